"""`backplane.outbox`: what each policy keeps, within which bounds, and in which order."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.errors import ConfigurationError
from backplane.message import Gap, Message
from backplane.outbox import FullPolicy, Outbox

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
    return Outbox(max_bytes=max_bytes, max_messages=max_messages, when_full=when_full)


def drained(outbox: Outbox) -> list[str | bytes | Gap]:
    """Take everything and return it: the data of messages, and gaps."""
    items: list[str | bytes | Gap] = []
    while (item := outbox.take()) is not None:
        items.append(item.data if isinstance(item, Message) else item)
    return items


def test_policies() -> None:
    """There are four policies, and `close` is the default."""
    assert get_args(FullPolicy) == POLICIES
    outbox = Outbox(max_bytes=1, max_messages=1)
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


def test_close_never_drops_a_gap_in_silence() -> None:
    """With `close` a gap over the bound is refused like a message: whoever is not told of it is cut."""
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
def test_oversized_behind_another(when_full: FullPolicy, taken: bool, kept: list[str], dropped: int) -> None:
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


@pytest.mark.parametrize("bounds", [{"max_bytes": 0}, {"max_bytes": -1}, {"max_messages": 0}, {"max_messages": -1}])
def test_wrong_bounds(bounds: dict[str, int]) -> None:
    """A bound that lets nothing through is refused."""
    with pytest.raises(ConfigurationError, match=r"^the bounds of an outbox must be more than 0$"):
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
    outbox = Outbox(max_bytes=max_bytes, max_messages=max_messages, when_full=when_full)
    accepted: list[Message | Gap] = []  # each its own object, so that identity tells one from the other
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
    outbox = Outbox(max_bytes=10_000, max_messages=100, when_full="latest")
    last: dict[str, str] = {}
    for number, (channel, size) in enumerate(steps):
        data = f"{number}{'x' * size}"
        assert outbox.offer(text(data, channel))
        last.pop(channel, None)
        last[channel] = data
    assert drained(outbox) == list(last.values())
