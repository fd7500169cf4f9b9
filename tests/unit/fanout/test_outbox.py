"""`backplane.fanout.outbox`: what each policy keeps, within which bounds, and in which order."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.errors import ConfigurationError
from backplane.fanout.backlog import Backlog, FullPolicy
from backplane.fanout.outbox import Outbox, Waiting
from backplane.journal.journal import Journal
from backplane.message import Gap, Message

POLICIES: tuple[FullPolicy, ...] = ("close", "drop_oldest", "drop_newest", "latest")
GAP_BYTES = 64


def text(data: str, channel: str = "a") -> Message:
    """Return a message."""
    return Message(channel=channel, data=data)


def gap(channel: str = "a") -> Gap:
    """Return a gap."""
    return Gap(channel=channel, reason="the link was lost")


def outbox_of(when_full: FullPolicy, *, max_bytes: int = 1_000, max_messages: int = 3) -> Outbox:
    """Return an outbox of three messages."""
    return Outbox(Backlog(max_bytes=max_bytes, max_messages=max_messages, when_full=when_full))


def drained(outbox: Outbox) -> list[str | bytes | Gap]:
    """Take everything and return it: the data of messages, and gaps."""
    items: list[str | bytes | Gap] = []
    while (item := outbox.take()) is not None:
        items.append(item.data if isinstance(item, Message) else item)
    return items


def test_policies() -> None:
    """There are four policies, and `close` is the default."""
    assert get_args(FullPolicy) == POLICIES
    outbox = Outbox(Backlog(max_bytes=1, max_messages=1))
    assert [outbox.offer(text("1")), outbox.offer(text("2"))] == [True, False]


@pytest.mark.parametrize("when_full", POLICIES)
def test_below_its_bounds(when_full: FullPolicy) -> None:
    """Below its bounds an outbox of any policy keeps everything, in order."""
    outbox = outbox_of(when_full)
    assert (len(outbox), outbox.size_bytes, outbox.take()) == (0, 0, None)
    items: list[Message | Gap] = [text("12", "a"), gap("b"), text("3", "b")]
    assert [outbox.offer(item) for item in items] == [True, True, True]
    assert (len(outbox), outbox.size_bytes) == (3, 2 + GAP_BYTES + 1)
    assert [outbox.take(), outbox.take(), outbox.take(), outbox.take()] == [*items, None]
    assert (len(outbox), outbox.size_bytes, outbox.dropped) == (0, 0, 0)


def test_close_at_the_bound_of_messages() -> None:
    """With `close` the message over the bound is refused, and what waits stays."""
    outbox = outbox_of("close")
    assert [outbox.offer(text(data)) for data in "1234"] == [True, True, True, False]
    assert outbox.dropped == 0
    assert drained(outbox) == ["1", "2", "3"]


def test_close_at_the_bound_of_bytes() -> None:
    """With `close` the byte over the bound is refused, and the byte at it is taken."""
    outbox = outbox_of("close", max_bytes=10)
    assert [outbox.offer(text(data)) for data in ("12345", "123456", "12345", "")] == [True, False, True, True]
    assert (outbox.size_bytes, outbox.dropped) == (10, 0)


def test_close_never_drops_a_gap() -> None:
    """With `close` a gap over the bound is refused like a message: the subscriber is cut instead."""
    outbox = outbox_of("close")
    assert [outbox.offer(item) for item in (text("1"), text("2"), text("3"), gap())] == [True, True, True, False]
    assert outbox.dropped == 0


def test_drop_oldest() -> None:
    """With `drop_oldest` what comes pushes the oldest out."""
    outbox = outbox_of("drop_oldest")
    assert [outbox.offer(text(data)) for data in "12345"] == [True] * 5
    assert outbox.dropped == 2
    assert drained(outbox) == ["3", "4", "5"]


def test_drop_oldest_makes_room_for_bytes() -> None:
    """With `drop_oldest` as many go as the bytes of the new one need."""
    outbox = outbox_of("drop_oldest", max_bytes=10)
    assert [outbox.offer(text(data)) for data in ("1234", "567", "89", "abcdefgh")] == [True] * 4
    assert outbox.dropped == 2
    assert drained(outbox) == ["89", "abcdefgh"]


def test_drop_newest() -> None:
    """With `drop_newest` what comes over the bound goes."""
    outbox = outbox_of("drop_newest")
    assert [outbox.offer(text(data)) for data in "12345"] == [True] * 5
    assert outbox.dropped == 2
    assert drained(outbox) == ["1", "2", "3"]


def test_latest_replaces_below_the_bound() -> None:
    """With `latest` a message replaces the waiting one of its channel, and stands where it came."""
    outbox = outbox_of("latest")
    assert [outbox.offer(text(*item)) for item in (("1", "a"), ("2", "b"), ("3", "a"))] == [True] * 3
    assert outbox.dropped == 1
    assert drained(outbox) == ["2", "3"]


def test_latest_replaces_the_only_one() -> None:
    """With `latest` a single waiting message is replaced, whatever its size."""
    outbox = outbox_of("latest", max_bytes=10)
    assert [outbox.offer(text("1" * 20)), outbox.offer(text("2" * 30)), outbox.offer(text("3"))] == [True] * 3
    assert (len(outbox), outbox.size_bytes, outbox.dropped) == (1, 1, 2)
    assert drained(outbox) == ["3"]


def test_latest_over_its_bound() -> None:
    """With `latest` more channels than fit act as `drop_oldest`."""
    outbox = outbox_of("latest")
    assert [outbox.offer(text(channel, channel)) for channel in "abcd"] == [True] * 4
    assert outbox.dropped == 1
    assert drained(outbox) == ["b", "c", "d"]


def test_latest_keeps_what_was_sent_to_one_client() -> None:
    """With `latest` messages without a channel, those of `Connection.send`, are never replaced."""
    outbox = outbox_of("latest")
    assert [outbox.offer(text(data, "")) for data in "12"] == [True, True]
    assert outbox.dropped == 0
    assert drained(outbox) == ["1", "2"]


def test_latest_keeps_gaps() -> None:
    """With `latest` a message does not replace the gap of its channel, nor a gap a message."""
    outbox = outbox_of("latest", max_messages=9)
    assert [outbox.offer(item) for item in (gap(), text("1"), gap(), text("2"))] == [True] * 4
    assert outbox.dropped == 1
    assert drained(outbox) == [gap(), gap(), "2"]


@pytest.mark.parametrize("when_full", POLICIES)
def test_oversized_alone(when_full: FullPolicy) -> None:
    """A message larger than the whole bound is taken when nothing else waits."""
    outbox = outbox_of(when_full, max_bytes=10)
    assert outbox.offer(text("x" * 1_000)) is True
    assert (len(outbox), outbox.size_bytes, outbox.dropped) == (1, 1_000, 0)
    assert drained(outbox) == ["x" * 1_000]


@pytest.mark.parametrize(
    ("when_full", "taken", "kept", "dropped"),
    [
        ("close", False, ["1"], 0),
        ("drop_oldest", True, ["x" * 11], 1),
        ("drop_newest", True, ["1"], 1),
        ("latest", True, ["x" * 11], 1),
    ],
)
def test_oversized_after_another(when_full: FullPolicy, taken: bool, kept: list[str], dropped: int) -> None:
    """A message larger than the whole bound acts by the policy when another waits."""
    outbox = outbox_of(when_full, max_bytes=10)
    assert outbox.offer(text("1", "b"))
    assert outbox.offer(text("x" * 11)) is taken
    assert outbox.dropped == dropped
    assert drained(outbox) == kept


@pytest.mark.parametrize("when_full", POLICIES)
def test_clear(when_full: FullPolicy) -> None:
    """Cleared, an outbox is empty and takes as much as a new one."""
    outbox = outbox_of(when_full, max_messages=1)
    assert outbox.offer(text("1"))
    outbox.clear()
    assert (len(outbox), outbox.size_bytes, outbox.take()) == (0, 0, None)
    assert outbox.offer(text("2"))
    assert drained(outbox) == ["2"]


@pytest.mark.parametrize("data", ["é" * 10, b"\xff" * 10], ids=["characters", "bytes"])
def test_size(data: str | bytes) -> None:
    """Text counts by its characters and binary by its bytes."""
    outbox = outbox_of("close")
    assert outbox.offer(Message(channel="a", data=data))
    assert outbox.size_bytes == 10


def test_unknown_policy() -> None:
    """An unknown policy is refused with the known ones."""
    policy: Any = "drop"
    with pytest.raises(
        ConfigurationError, match=r"^when_full must be one of close, drop_oldest, drop_newest, latest, not 'drop'$"
    ):
        outbox_of(policy)


@pytest.mark.parametrize("bounds", [{"max_bytes": 0}, {"max_bytes": "10"}, {"max_messages": -1}, {"max_messages": 1.5}])
def test_wrong_bounds(bounds: dict[str, Any]) -> None:
    """A bound that lets nothing through, or is no number, is refused by the name that the application knows."""
    with pytest.raises(ConfigurationError, match=r"^max_(bytes|messages) must be a whole number more than 0, "):
        outbox_of("close", **bounds)


# An operation: take one item, offer a gap, or offer a message of some channel and size.
operations = st.lists(
    st.just("take")
    | st.sampled_from(["gap a", "gap b"])
    | st.tuples(st.sampled_from(["a", "b", "c", ""]), st.integers(0, 100)),
    max_size=60,
)


@given(st.sampled_from(POLICIES), st.integers(1, 150), st.integers(1, 6), operations)
def test_any_use(when_full: FullPolicy, max_bytes: int, max_messages: int, steps: list[str | tuple[str, int]]) -> None:
    """Whatever comes and goes: never over the bounds, in order, nothing twice, and every item is accounted for."""
    outbox = Outbox(Backlog(max_bytes=max_bytes, max_messages=max_messages, when_full=when_full))
    accepted: list[Message | Gap] = []  # compared by identity
    taken: list[Message | Gap] = []
    for step in steps:
        if step == "take":
            item = outbox.take()
            taken += [] if item is None else [item]
            continue
        offered = Gap(channel=step[-1], reason="") if isinstance(step, str) else text("x" * step[1], step[0])
        if outbox.offer(offered):
            accepted.append(offered)
        else:
            assert when_full == "close"
        assert len(outbox) <= max_messages
        assert outbox.size_bytes <= max_bytes or len(outbox) == 1
    waiting = len(outbox)
    while (item := outbox.take()) is not None:
        taken.append(item)
        waiting -= 1
    assert waiting == 0
    assert outbox.size_bytes == 0
    places = {id(item): place for place, item in enumerate(accepted)}
    order = [places[id(item)] for item in taken]
    assert order == sorted(set(order))
    assert outbox.dropped == len(accepted) - len(taken)
    if when_full == "close":
        assert outbox.dropped == 0


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 50)), max_size=40))
def test_latest_holds_one_message_of_each_channel(steps: list[tuple[str, int]]) -> None:
    """With `latest` and room for all, exactly the last message of each channel waits, in the order of arrival."""
    outbox = Outbox(Backlog(max_bytes=10_000, max_messages=100, when_full="latest"))
    last: dict[str, str] = {}
    for number, (channel, size) in enumerate(steps):
        data = f"{number}{'x' * size}"
        assert outbox.offer(text(data, channel))
        last.pop(channel, None)
        last[channel] = data
    assert drained(outbox) == list(last.values())


# --- policies per channel and keys ------------------------------------------------------------------------------------


def drops_of(outbox: Outbox) -> list[tuple[str | bytes | Gap, str]]:
    """Return a list that each drop is added to, with its reason."""
    drops: list[tuple[str | bytes | Gap, str]] = []
    outbox.on_drop = lambda item, reason: drops.append((item.data if isinstance(item, Message) else item, reason))
    return drops


def keyed(**options: Any) -> Backlog:
    """Return a policy whose key is the part of a message before the colon."""
    return Backlog(when_full="latest", latest_by=lambda message: str(message.data).partition(":")[0], **options)


def fail(message: Message) -> object:
    """Return the number in a message, and fail for anything else."""
    return int(message.data)


@pytest.mark.parametrize("when_full", ["close", "drop_oldest", "drop_newest"])
def test_key_without_latest(when_full: FullPolicy) -> None:
    """A key is refused where nothing would ask for it."""
    with pytest.raises(ConfigurationError, match=r"^latest_by needs when_full='latest'$"):
        Backlog(when_full=when_full, latest_by=str)
    with pytest.raises(ConfigurationError):
        Outbox(Backlog(max_bytes=1, max_messages=1, when_full=when_full, latest_by=str))


def test_policy_of_a_channel() -> None:
    """A channel with a policy of its own acts by it, all others by the subscriber's, until it is taken away."""
    outbox = outbox_of("close", max_messages=2)
    outbox.set_policy("ticks", Backlog(when_full="latest"))
    assert [outbox.offer(text(data, "ticks")) for data in "123"] == [True] * 3
    assert [outbox.offer(text(data, "a")) for data in "45"] == [True, False]
    assert drained(outbox) == ["3", "4"]
    outbox.set_policy("ticks", None)
    outbox.set_policy("never set", None)
    assert [outbox.offer(text(data, "ticks")) for data in "678"] == [True, True, False]


def test_other_channels_make_no_room_at_the_cost_of_close() -> None:
    """A channel that drops takes the room of those that may be dropped, and never of one with `close`."""
    outbox = outbox_of("close", max_messages=3)
    outbox.set_policy("ticks", Backlog(when_full="drop_oldest"))
    drops = drops_of(outbox)
    for item in (text("a1"), text("t1", "ticks"), text("a2"), text("t2", "ticks")):
        assert outbox.offer(item)
    assert drops == [("t1", "dropped_oldest")]
    assert drained(outbox) == ["a1", "a2", "t2"]


@pytest.mark.parametrize("when_full", ["drop_oldest", "drop_newest", "latest"])
def test_no_room_that_may_be_made(when_full: FullPolicy) -> None:
    """Among messages that may not be dropped, one of a channel that drops goes itself."""
    outbox = outbox_of("close", max_messages=2)
    outbox.set_policy("ticks", Backlog(when_full=when_full))
    drops = drops_of(outbox)
    assert [outbox.offer(item) for item in (text("1"), text("2"), text("3", "ticks"))] == [True] * 3
    assert (drops, outbox.dropped, drained(outbox)) == ([("3", "dropped_newest")], 1, ["1", "2"])


def test_gap_follows_the_policy_of_its_channel() -> None:
    """A gap of a channel with `close` is kept, or refused, like its messages."""
    outbox = outbox_of("drop_oldest", max_messages=2)
    outbox.set_policy("orders", Backlog(when_full="close"))
    assert [outbox.offer(item) for item in (gap("orders"), text("1"), text("2"))] == [True] * 3
    assert drained(outbox) == [gap("orders"), "2"]
    assert [outbox.offer(item) for item in (text("1"), text("2"), gap("orders"))] == [True, True, False]


def test_keys() -> None:
    """With a key, the last message of each key is kept, and stands where it came."""
    outbox = Outbox(Backlog(max_bytes=100, max_messages=9, when_full="latest", latest_by=keyed().latest_by))
    drops = drops_of(outbox)
    for data in ("x:1", "y:1", "x:2", "z:1", "y:2"):
        assert outbox.offer(text(data))
    assert outbox.offer(text("x:other", "b"))
    assert drops == [("x:1", "replaced"), ("y:1", "replaced")]
    assert drained(outbox) == ["x:2", "z:1", "y:2", "x:other"]


def test_key_of_one_channel_alone() -> None:
    """A key of one channel is not asked for messages of others."""
    outbox = outbox_of("latest", max_messages=9)
    outbox.set_policy("keyed", keyed())
    for data in ("x:1", "y:1", "x:2"):
        assert outbox.offer(text(data, "keyed"))
        assert outbox.offer(text(data, "plain"))
    assert drained(outbox) == ["y:1", "x:2", "x:2"]


@pytest.mark.parametrize("key", [list[object](), {"a": 1}, set[object]()], ids=["list", "dict", "set"])
def test_unhashable_key(key: object) -> None:
    """A key that cannot be compared keeps its message beside the others."""
    outbox = Outbox(Backlog(max_bytes=100, max_messages=9, when_full="latest", latest_by=lambda _: key))
    assert [outbox.offer(text(data)) for data in "12"] == [True, True]
    assert (outbox.dropped, drained(outbox)) == (0, ["1", "2"])


@pytest.mark.anyio
async def test_failing_key_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """A stream of messages without a key is one line and a count, which repeat nothing that was published."""
    journal = Journal(burst=1)
    outbox = Outbox(Backlog(max_bytes=10_000, max_messages=999, when_full="latest", latest_by=fail), journal=journal)
    for _ in range(500):
        assert outbox.offer(text("s3cr3t"))
    journal.flush()
    assert [line.partition(": ValueError at test_outbox.py:")[0] for line in caplog.messages] == [
        "latest_by failed for a message on channel 'a', which is kept beside the others",
        "499 more within 10 s, the last one: latest_by failed for a message on channel 'a', "
        "which is kept beside the others",
    ]
    assert "s3cr3t" not in caplog.text


def test_raising_key() -> None:
    """A message whose key cannot be computed replaces none, whatever keys the others have, and none replaces it."""
    outbox = Outbox(Backlog(max_bytes=1_000, max_messages=99, when_full="latest", latest_by=fail))
    parts = ["1", "x", "2", "3", "y", "4", "5", "6", "z", "0", "-1"]
    for data in parts:
        assert outbox.offer(text(data))
    assert (outbox.dropped, drained(outbox)) == (0, parts)


def test_reasons() -> None:
    """Every drop is reported with what was dropped and why, when it is counted."""
    outbox = outbox_of("drop_oldest", max_messages=2)
    outbox.set_policy("new", Backlog(when_full="drop_newest"))
    outbox.set_policy("last", Backlog(when_full="latest"))
    drops = drops_of(outbox)
    for data, channel in (("1", "a"), ("2", "last"), ("3", "last"), ("4", "new"), ("5", "a")):
        assert outbox.offer(text(data, channel))
    assert drops == [("2", "replaced"), ("4", "dropped_newest"), ("1", "dropped_oldest")]
    assert outbox.dropped == 3


def test_overflowing() -> None:
    """It is overflowing from the first drop for lack of room until it is empty; a replaced message does not count."""
    outbox = outbox_of("drop_oldest", max_messages=2)
    outbox.set_policy("last", Backlog(when_full="latest"))
    seen: list[bool] = []
    outbox.on_drop = lambda _, __: seen.append(outbox.is_overflowing)
    for data in "12":
        outbox.offer(text(data, "last"))
    assert not outbox.is_overflowing
    for data in "345":
        outbox.offer(text(data))
    assert (seen, outbox.is_overflowing) == ([False, False, True], True)
    outbox.take()
    assert outbox.is_overflowing
    outbox.take()
    assert not outbox.is_overflowing
    for data in "678":
        outbox.offer(text(data))
    assert (seen[3:], outbox.is_overflowing) == ([False], True)
    outbox.clear()
    assert not outbox.is_overflowing


def test_replaced_by_what_does_not_fit() -> None:
    """A message that replaces another one and is too large makes room as by `drop_oldest`."""
    outbox = outbox_of("latest", max_bytes=10)
    for item in (text("1234", "b"), text("5678", "c"), text("9", "a"), text("x" * 5, "a")):
        assert outbox.offer(item)
    assert (drained(outbox), outbox.dropped) == (["5678", "x" * 5], 2)


policies = st.dictionaries(
    st.sampled_from("abc"),
    st.sampled_from([*(Backlog(when_full=policy) for policy in POLICIES), Backlog(when_full="latest", latest_by=fail)]),
)


@given(st.sampled_from(POLICIES), policies, st.integers(1, 150), st.integers(1, 6), operations)
def test_any_use_with_policies(
    when_full: FullPolicy,
    by_channel: dict[str, Backlog],
    max_bytes: int,
    max_messages: int,
    steps: list[str | tuple[str, int]],
) -> None:
    """With any policies bounds hold, order is kept, all is accounted for, and what `close` has taken is not dropped."""
    outbox = Outbox(Backlog(max_bytes=max_bytes, max_messages=max_messages, when_full=when_full))
    for channel, backlog in by_channel.items():
        outbox.set_policy(channel, backlog)
    dropped: list[Message | Gap] = []
    outbox.on_drop = lambda item, _: dropped.append(item)
    accepted: list[Message | Gap] = []
    taken: list[Message | Gap] = []
    for number, step in enumerate([*steps, *["take"] * len(steps)]):
        if step == "take":
            item = outbox.take()
            taken += [] if item is None else [item]
        else:
            offered: Message | Gap = Gap(channel=str(step[-1]), reason="")
            if not isinstance(step, str):  # every other one is a number, for the key
                offered = text(str(number % 3) if number % 2 else "x" * step[1], step[0])
            policy = by_channel[offered.channel].when_full if offered.channel in by_channel else when_full
            if outbox.offer(offered):
                accepted.append(offered)
            else:
                assert policy == "close"
        waiting = outbox.size_bytes
        assert len(outbox) <= max_messages
        assert waiting <= max_bytes or len(outbox) == 1
    assert (len(outbox), outbox.size_bytes) == (0, 0)
    places = {id(item): place for place, item in enumerate(accepted)}
    order = [places[id(item)] for item in taken]
    assert order == sorted(set(order))
    assert {id(item) for item in dropped}.isdisjoint(id(item) for item in taken)
    assert len(dropped) == outbox.dropped == len(accepted) - len(taken)
    for item in dropped:
        assert (by_channel[item.channel].when_full if item.channel in by_channel else when_full) != "close"


# --- what a join gives back ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when_full", ["close", "drop_oldest", "drop_newest"])
def test_allowance(when_full: FullPolicy) -> None:
    """What a join gives back raises both bounds by as much, for what is published after it too, until nothing waits."""
    outbox = outbox_of(when_full, max_bytes=10)
    missed = [str(number) * 5 for number in range(9)]
    outbox.allow("a", 4, 20)
    outbox.allow("a", 5, 25)
    assert all(outbox.offer(text(data)) for data in missed)
    assert outbox.offer(text("live"))
    assert drained(outbox) == [*missed, "live"]
    assert [outbox.offer(text(str(number))) for number in range(3)] == [True, True, True]
    fourth = outbox.offer(text("4"))
    assert (fourth, len(outbox)) == (when_full != "close", 3)


def test_allowance_by_bytes() -> None:
    """Each bound is raised by its own part."""
    outbox = outbox_of("close", max_bytes=10, max_messages=2)
    outbox.allow("a", 5, 0)
    assert [outbox.offer(text("12345")) for _ in range(3)] == [True, True, False]
    outbox.clear()
    outbox.allow("a", 0, 100)
    assert [outbox.offer(text("12345")) for _ in range(3)] == [True, True, False]


def test_allowance_ends_with_a_leave() -> None:
    """A channel that is left raises nothing any more, and others still do."""
    outbox = outbox_of("close")
    outbox.disallow("a")
    outbox.allow("a", 10, 1_000)
    outbox.allow("b", 1, 1)
    outbox.disallow("a")
    outbox.disallow("c")
    assert [outbox.offer(text(str(number))) for number in range(5)] == [True] * 4 + [False]


def test_allowance_is_bounded() -> None:
    """A subscriber that takes nothing is too slow, however often messages are given back to it."""
    outbox = outbox_of("close")
    for _ in range(10):
        outbox.allow("a", 4, 100)
    assert [outbox.offer(text(str(number))) for number in range(16)] == [True] * 15 + [False]


def test_allowance_that_was_not_needed() -> None:
    """What was sent at once, or was cleared, leaves the bounds as they were."""
    outbox = outbox_of("close")
    outbox.allow("a", 10, 1_000)
    outbox.settle()
    assert [outbox.offer(text(str(number))) for number in range(4)] == [True] * 3 + [False]
    outbox.allow("a", 1, 100)
    outbox.settle()  # something waits
    assert outbox.offer(text("4"))
    outbox.clear()
    assert [outbox.offer(text(str(number))) for number in range(4)] == [True] * 3 + [False]


def counted(waiting: Waiting) -> tuple[int, int, int]:
    """Return what is counted of all outboxes."""
    return waiting.subscribers, waiting.messages, waiting.size_bytes


def test_what_waits_in_all() -> None:
    """Outboxes that count together count what waits in all of them, and which have anything."""
    waiting = Waiting()
    outboxes = [Outbox(Backlog(max_messages=9), waiting=waiting) for _ in range(3)]
    for outbox in outboxes[:2]:
        outbox.offer(text("12"))
        outbox.offer(gap())
    assert counted(waiting) == (2, 4, 2 * (2 + GAP_BYTES))
    outboxes[0].take()
    assert counted(waiting) == (2, 3, 2 + 2 * GAP_BYTES)
    outboxes[0].take()
    outboxes[0].take()
    assert counted(waiting) == (1, 2, 2 + GAP_BYTES)
    outboxes[1].clear()
    outboxes[1].clear()
    assert counted(waiting) == (0, 0, 0)


@pytest.mark.parametrize("when_full", POLICIES)
@given(steps=st.lists(st.one_of(st.integers(1, 40), st.sampled_from(["take", "clear", "gap"])), max_size=40))
def test_what_waits_is_counted_with_every_policy(when_full: FullPolicy, steps: list[int | str]) -> None:
    """Whatever is dropped, replaced, taken or cleared, the count is what the outbox has."""
    waiting = Waiting()
    backlog = Backlog(max_bytes=100, max_messages=3, when_full=when_full)
    outbox = Outbox(backlog, waiting=waiting)
    for step in steps:
        if step == "take":
            outbox.take()
        elif step == "clear":
            outbox.clear()
        else:
            outbox.offer(gap() if isinstance(step, str) else text("x" * step, "ab"[step % 2]))
        assert counted(waiting) == (bool(outbox), len(outbox), outbox.size_bytes)


def test_an_outbox_that_is_cleared_when_it_drops() -> None:
    """Where the application closes the client because of a drop, what is then offered is counted, and nothing twice."""
    waiting = Waiting()
    outbox = Outbox(Backlog(max_messages=1, when_full="drop_oldest"), waiting=waiting)
    outbox.on_drop = lambda _, __: outbox.clear()
    for data in ("1", "22", "333"):
        outbox.offer(text(data))
    assert counted(waiting) == (1, 1, 3)
