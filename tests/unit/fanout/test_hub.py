"""`backplane.fanout.hub`: which subscribers receive what, in which order, and what is left of a join that fails."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from typing import TYPE_CHECKING, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backplane.errors import BrokerUnavailableError, SubscribeError
from backplane.fanout.batch import Batch, FinalMessage
from backplane.fanout.codec import encode, encode_path_test
from backplane.header import pack
from backplane.message import Gap, Joined, Message, Place, Position
from tests.unit.doubles import RecordingSubscriber, run_passes, until_idle
from tests.unit.kit import AT_ONCE, WAIT_SECONDS, World, counts, crowd, lost, running

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

pytestmark = pytest.mark.anyio

MALFORMED = b"\xbfBP\x07"


async def test_fan_out() -> None:
    """Every subscriber of a channel receives every message of it, in order, and nothing of other channels."""
    async with running() as worker:
        one, two, other = await worker.joined("a"), await worker.joined("a", "b"), await worker.joined("c")
        worker.deliver("a", "1", "2")
        worker.deliver("b", "3")
        worker.deliver("d", "4")
        await until_idle()
        assert (one.received, two.received, other.received) == (["1", "2"], ["1", "2", "3"], [])
        assert worker.hub.delivered == 3
        assert set(worker.hub.channels) == {"a", "b", "c"}


async def test_reserved_channels_do_not_count() -> None:
    """What workers send each other is delivered, and not counted among the messages of the application."""
    async with running() as worker:
        subscriber = await worker.joined("$backplane/workers")
        worker.deliver("$backplane/workers", "1")
        await until_idle()
        assert (subscriber.received, worker.hub.delivered) == (["1"], 0)


async def test_what_this_worker_has_made_itself() -> None:
    """It reaches the recipients alone, is not counted, and waits for no channel of the same name."""
    async with running() as worker:
        one, two = await worker.joined("a"), await worker.joined("a")
        done: list[int] = []
        worker.hub.deliver_local(
            "a", Batch(FinalMessage(channel="", data="x")), [two], {one: 1, two: 1}, lambda: done.append(1)
        )
        await until_idle()
        assert (one.received, two.received, done, worker.hub.delivered) == ([], ["x"], [1], 0)


async def test_one_pass_is_one_offer() -> None:
    """Messages of one pass of the event loop are offered together for each channel, at the end of the pass."""
    async with running() as worker:
        subscriber = await worker.joined("a", "b")
        worker.deliver("a", "1")
        worker.deliver("b", "2")
        worker.deliver("a", "3")
        assert subscriber.offers == []
        await run_passes(1)
        assert subscriber.offers == [["1", "3"], ["2"]]
        worker.deliver("a", "4")
        await run_passes(1)
        assert subscriber.offers == [["1", "3"], ["2"], ["4"]]


async def test_position() -> None:
    """The position that the adapter reports reaches the subscribers."""
    received: list[Position | None] = []

    async with running() as worker:
        subscriber = await worker.joined("a")
        subscriber.offer = lambda messages: received.extend(message.position for message in messages)  # type: ignore[method-assign]
        worker.hub.deliver("a", b"1", Place(b"12345678", 2, 3, 1))
        await until_idle()
    assert received == [Position(b"12345678", 2, 3)]


@pytest.mark.parametrize("count", [1_024, 1_025, 2_500])
async def test_many_in_one_pass(count: int) -> None:
    """Where the event loop never gets a pass, 1,024 messages are collected, and then delivered."""
    async with running() as worker:
        subscriber = await worker.joined("a")
        payloads = [str(number) for number in range(count)]
        worker.deliver("a", *payloads)
        assert subscriber.received == payloads[: count - count % 1_024]
        await until_idle()
        assert subscriber.received == payloads
        assert [len(offer) for offer in subscriber.offers[:1]] == [1_024]


async def test_exclude() -> None:
    """A message that excludes one subscriber is delivered to all others, and the next one to it again."""
    async with running() as worker:
        one, two = await worker.joined("a"), await worker.joined("a")
        for data, excluded in (("1", None), ("2", one.token), ("3", two.token), ("4", b"elsewher")):
            worker.hub.deliver("a", encode(data, origin=b"ORIGIN_8", published_at=0.0, excluded=excluded))
        await until_idle()
        assert (one.received, two.received) == (["1", "3", "4"], ["1", "2", "4"])


async def test_malformed(caplog: pytest.LogCaptureFixture) -> None:
    """A malformed payload is counted and dropped, and the first, second, fourth and eighth one are logged."""
    async with running() as worker:
        subscriber = await worker.joined("a")
        with caplog.at_level(logging.WARNING, "backplane.fanout.hub"):
            for _ in range(9):
                worker.hub.deliver("a", MALFORMED)
        worker.deliver("a", "1")
        await until_idle()
        assert (worker.hub.malformed, worker.hub.delivered, subscriber.received) == (9, 1, ["1"])
        assert caplog.messages == [
            f"dropped a malformed payload on channel 'a' ({count} so far)" for count in (1, 2, 4, 8)
        ]


async def test_unsupported(caplog: pytest.LogCaptureFixture) -> None:
    """A message that only a newer release can read is counted apart and dropped, and the log states what to do."""
    newer = encode("x", origin=b"ORIGIN_8", published_at=0.0, extensions=pack([(0x90, b"")]))
    traced = encode("1", origin=b"ORIGIN_8", published_at=0.0, extensions=pack([(0x01, bytes(25)), (0x70, b"later")]))
    async with running() as worker:
        subscriber = await worker.joined("a")
        with caplog.at_level(logging.WARNING, "backplane.fanout.hub"):
            for payload in (newer, traced, newer, newer):
                worker.hub.deliver("a", payload)
        await until_idle()
        assert (worker.hub.unsupported, worker.hub.malformed, subscriber.received) == (3, 0, ["1"])
        assert caplog.messages == [
            f"dropped a message on channel 'a' that only a newer release can read ({count} so far): upgrade this worker"
            for count in (1, 2)
        ]


async def test_path_test(caplog: pytest.LogCaptureFixture) -> None:
    """A path test is reported at once, with its channel; subscribers, counters and the log do not notice it."""
    reported: list[tuple[str, bytes]] = []
    payload = encode_path_test(b"TEST_ID8", origin=b"ORIGIN_8", published_at=0.0)
    async with running() as worker:
        subscriber = await worker.joined("a")
        worker.hub.deliver("a", payload)  # nothing asks for it
        worker.hub.on_path_test = lambda channel, test_id: reported.append((channel, test_id))
        worker.hub.deliver("a", payload)
        worker.hub.deliver("b", payload)
        assert reported == [("a", b"TEST_ID8")]
        worker.deliver("a", "1")
        await until_idle()
        assert (subscriber.received, worker.hub.delivered, worker.hub.malformed) == (["1"], 1, 0)
        assert (worker.hub.path_tests, caplog.messages) == (2, [])


async def test_path_test_whose_report_fails(caplog: pytest.LogCaptureFixture) -> None:
    """What the function raises is logged, and what comes after the path test is delivered."""

    def fail(channel: str, test_id: bytes) -> None:
        raise ZeroDivisionError(channel, test_id)

    async with running() as worker:
        subscriber = await worker.joined("a")
        worker.hub.on_path_test = fail
        worker.hub.deliver("a", encode_path_test(b"TEST_ID8", origin=b"ORIGIN_8", published_at=0.0))
        worker.deliver("a", "1")
        await until_idle()
        assert (subscriber.received, caplog.messages) == (["1"], ["on_path_test failed"])


async def test_malformed_without_subscribers() -> None:
    """A payload of a channel without subscribers is not decoded."""
    async with running() as worker:
        worker.hub.deliver("a", MALFORMED)
        assert worker.hub.malformed == 0


async def test_leave() -> None:
    """A subscriber that left receives nothing more, not even what was collected in the same pass."""
    async with running() as worker:
        one, two = await worker.joined("a"), await worker.joined("a")
        worker.deliver("a", "1")
        worker.hub.leave("a", one)
        worker.deliver("a", "2")
        await until_idle()
        assert (one.received, two.received) == ([], ["1", "2"])


async def test_leaving_twice() -> None:
    """Leaving a channel that was left, or never joined, changes nothing."""
    async with running() as worker:
        one, two = await worker.joined("a"), await worker.joined("a")
        worker.hub.leave("a", one)
        worker.hub.leave("a", one)
        worker.hub.leave("b", two)
        worker.hub.leave("a", RecordingSubscriber())
        worker.deliver("a", "1")
        await until_idle()
        assert (one.received, two.received, set(worker.hub.channels)) == ([], ["1"], {"a"})


async def test_last_leave() -> None:
    """The last leave of a channel, and no earlier one, ends its subscription at the broker."""
    async with running(linger_seconds=AT_ONCE) as worker:
        one, two = await worker.joined("a"), await worker.joined("a")
        worker.hub.leave("a", one)
        await until_idle()
        assert worker.adapter.channels == {"a"}
        worker.hub.leave("a", two)
        await worker.adapter.until(lambda: worker.adapter.channels == set())
        assert worker.adapter.calls == [("subscribe", ("a",)), ("unsubscribe", ("a",))]
        assert set(worker.hub.channels) == set()


async def test_lingering_channel_is_silent() -> None:
    """A message on a lingering channel is dropped, and a subscriber that joins again receives later ones."""
    async with running() as worker:
        one = await worker.joined("a")
        worker.hub.leave("a", one)
        worker.deliver("a", "1")
        two = await worker.joined("a")
        worker.deliver("a", "2")
        await until_idle()
        assert (one.received, two.received) == ([], ["2"])
        assert worker.adapter.calls == [("subscribe", ("a",))]


async def test_concurrent_joins() -> None:
    """A hundred joins of one channel cause one subscription at the broker, and all subscribers receive."""
    async with running() as worker:
        subscribers = await asyncio.gather(*(worker.joined("a") for _ in range(100)))
        worker.deliver("a", "1")
        await until_idle()
        assert [subscriber.received for subscriber in subscribers] == [["1"]] * 100
        assert worker.adapter.calls == [("subscribe", ("a",))]


async def test_join_misses_nothing() -> None:
    """A message between the broker's confirmation and the return of the join is received."""
    async with running() as worker:
        worker.adapter.subscribe_gate.close()
        subscriber = RecordingSubscriber()
        joining = asyncio.create_task(worker.hub.join("a", subscriber))
        await worker.adapter.until(lambda: worker.adapter.calls == [("subscribe", ("a",))])
        worker.adapter.subscribe_gate.open()
        await worker.adapter.until(lambda: worker.adapter.channels == {"a"})
        worker.deliver("a", "1")
        await joining
        await until_idle()
        assert subscriber.received == ["1"]


async def test_joining_twice() -> None:
    """A subscriber that joins twice receives each message once, and one leave is enough."""
    async with running() as worker:
        subscriber = await worker.joined("a", "a")
        worker.deliver("a", "1")
        await until_idle()
        worker.hub.leave("a", subscriber)
        worker.deliver("a", "2")
        await until_idle()
        assert subscriber.received == ["1"]


@pytest.mark.parametrize("cancelled", [0, 1], ids=["first", "second"])
async def test_one_of_two_joins_is_cancelled(cancelled: int) -> None:
    """Of two concurrent joins of one subscriber either can be cancelled, and the other one remains in force."""
    async with running() as worker:
        subscriber = RecordingSubscriber()
        worker.adapter.subscribe_gate.close()
        joining = [asyncio.create_task(worker.hub.join("a", subscriber)) for _ in range(2)]
        await worker.adapter.until(lambda: worker.adapter.calls == [("subscribe", ("a",))])
        joining.pop(cancelled).cancel()
        await until_idle()
        worker.adapter.subscribe_gate.open()
        await joining[0]
        worker.deliver("a", "1")
        await until_idle()
        assert subscriber.received == ["1"]


async def test_second_join_that_fails() -> None:
    """A second join that times out while the link is down leaves the first one as it was."""
    async with running(timeout_seconds=0.5) as worker:
        subscriber = await worker.joined("a")
        await worker.lose_link()
        with pytest.raises(BrokerUnavailableError):
            await worker.hub.join("a", subscriber)
        worker.open_link()
        await worker.adapter.until(lambda: worker.adapter.channels == {"a"})
        worker.deliver("a", "1")
        await until_idle()
        assert subscriber.received == [lost(), "1"]


@pytest.mark.parametrize("outcome", ["cancelled", "refused", "timed out"])
async def test_join_that_fails(outcome: Literal["cancelled", "refused", "timed out"]) -> None:
    """A join that fails leaves nothing: no subscriber, no wanted channel, no subscription at the broker."""
    async with running(linger_seconds=AT_ONCE, timeout_seconds=0.5 if outcome == "timed out" else 10.0) as worker:
        broadcaster, subscriber = worker.adapter, RecordingSubscriber()
        broadcaster.subscribe_gate.close()
        if outcome == "refused":
            broadcaster.refusals["a"] = "not yours"
        joining = asyncio.create_task(worker.hub.join("a", subscriber))
        await broadcaster.until(lambda: broadcaster.calls == [("subscribe", ("a",))])
        worker.deliver("a", "1")
        if outcome == "cancelled":
            joining.cancel()
        if outcome == "refused":
            broadcaster.subscribe_gate.open()
        error = {"cancelled": asyncio.CancelledError, "refused": SubscribeError, "timed out": BrokerUnavailableError}
        with pytest.raises(error[outcome]):
            await joining
        await until_idle()
        broadcaster.subscribe_gate.open()
        worker.adapter.refusals.clear()
        await worker.joined("b")
        await broadcaster.until(lambda: broadcaster.channels == {"b"})
        received = len(subscriber.received)
        worker.deliver("a", "2")
        await until_idle()
        assert (len(subscriber.received), set(worker.hub.channels), set(worker.broker_subscriptions.wanted)) == (
            received,
            {"b"},
            {"b"},
        )


async def test_join_that_fails_undoes_no_other() -> None:
    """A join that is cancelled does not affect another subscriber of its channel."""
    async with running(linger_seconds=AT_ONCE) as worker:
        one, two = RecordingSubscriber(), RecordingSubscriber()
        worker.adapter.subscribe_gate.close()
        joining = [asyncio.create_task(worker.hub.join("a", subscriber)) for subscriber in (one, two)]
        await worker.adapter.until(lambda: worker.adapter.calls == [("subscribe", ("a",))])
        joining[0].cancel()
        await until_idle()
        worker.adapter.subscribe_gate.open()
        await joining[1]
        worker.deliver("a", "1")
        await until_idle()
        assert (one.received, two.received) == ([], ["1"])


async def test_close() -> None:
    """A closed hub has no subscribers, and delivers neither what it had collected nor an open gap."""
    async with running() as worker:
        subscriber = await worker.joined("a", "b")
        worker.hub.open_gap(["b"], "a queue overran")
        worker.deliver("a", "1")
        worker.hub.close()
        worker.hub.close()
        worker.deliver("a", "2")
        worker.hub.gaps.report(["b"])
        await until_idle()
        assert (subscriber.received, set(worker.hub.channels), worker.hub.delivered) == ([], set(), 0)


# --- a fan-out too long for one pass -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6, 10])
async def test_slices(size: int) -> None:
    """A channel with more subscribers than a slice is delivered over several passes, once each, in order of joining."""
    async with running(slice_size=3, pass_seconds=0.0) as worker:
        subscribers = await crowd(worker, "a", size)
        worker.deliver("a", "1", "2")
        passes: list[int] = []
        under_way: list[int] = []
        while len(passes) < 5:
            await run_passes(1)
            passes.append(*counts(subscribers))
            under_way.append(worker.hub.under_way)
        assert passes == [min(size, 3 * number) for number in range(1, 6)]
        assert under_way == [int(size > 3 * number) for number in range(1, 6)]
        assert [subscriber.offers for subscriber in subscribers] == [[["1", "2"]]] * size
        assert worker.hub.delivered == 2


class SlowSubscriber(RecordingSubscriber):
    """A subscriber that makes a fan-out long."""

    def offer(self, messages: Sequence[Message]) -> None:
        """Take messages, after some milliseconds of work."""
        threading.Event().wait(0.01)
        super().offer(messages)

    def offer_missed(self, messages: Sequence[Message]) -> None:
        """Take messages that are given back, after as much work."""
        threading.Event().wait(0.01)
        super().offer_missed(messages)


async def rested(worker: World, channel: str) -> SlowSubscriber:
    """Make a long fan-out of a channel, after which it rests; return its last subscriber."""
    await crowd(worker, channel, 3)
    last = SlowSubscriber()
    await worker.hub.join(channel, last)
    worker.deliver(channel, "long")
    await until(lambda: last.received == ["long"])
    return last


async def until(condition: Callable[[], bool]) -> None:
    """Run the event loop until `condition` holds."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not condition():
            await asyncio.sleep(0)


async def test_a_channel_rests_after_a_long_fan_out() -> None:
    """What is received while it rests is delivered together at the end of the rest; other channels do not wait."""
    async with running(slice_size=3, pass_seconds=0.0, most_rest_seconds=0.2) as worker:
        last, (other,) = await rested(worker, "a"), await crowd(worker, "b", 1)
        worker.deliver("a", "1")
        worker.deliver("b", "other")
        worker.deliver("a", "2")
        await until(lambda: other.received == ["other"])
        await until(lambda: len(last.received) > 1)
        assert last.offers == [["long"], ["1", "2"]]


async def test_a_rest_takes_no_passes() -> None:
    """The hub runs where something is received and where the rest ends, and not in between."""
    async with running(slice_size=3, pass_seconds=0.0, most_rest_seconds=0.2) as worker:
        last = await rested(worker, "a")
        flush, passes = worker.hub._flush_in_slices, list[None]()  # pyright: ignore[reportPrivateUsage]

        def counted() -> None:
            passes.append(None)
            flush()

        worker.hub._flush_in_slices = counted  # type: ignore[method-assign]  # pyright: ignore[reportPrivateUsage]
        worker.deliver("a", "1")
        await until(lambda: last.received == ["long", "1"])
        assert len(passes) == 3  # the message, the end of the rest, and the second slice


async def test_a_channel_that_rests_rests_once() -> None:
    """What is given back while a channel rests is a long fan-out of its own, after which the same rest goes on."""
    async with running(slice_size=3, pass_seconds=0.0, most_rest_seconds=60.0) as worker:
        last = await rested(worker, "a")
        assert worker.hub.resting == 1
        timers = dict(worker.hub._resting)  # pyright: ignore[reportPrivateUsage]
        timers["a"].cancel()
        worker.hub._give_back("a", Batch(Message(channel="a", data="missed")))  # pyright: ignore[reportPrivateUsage]
        await until(lambda: last.missed == [["missed"]])
        assert worker.hub._resting == timers  # pyright: ignore[reportPrivateUsage]


async def test_what_must_follow_ends_a_rest() -> None:
    """A gap has its place after what was received before it, which is delivered at once."""
    async with running(slice_size=3, pass_seconds=0.0, most_rest_seconds=60.0) as worker:
        last = await rested(worker, "a")
        worker.hub._resting["a"].cancel()  # pyright: ignore[reportPrivateUsage]  # it would end within milliseconds
        worker.deliver("a", "1")
        await run_passes(5)
        assert last.received == ["long"]
        worker.hub.gap(["a"], "overrun")
        assert last.received[:2] == ["long", "1"]
        worker.deliver("a", "2")
        await until(lambda: last.received[-1] == "2")


async def test_a_rest_ends_with_64_kib() -> None:
    """What a rest collects is no larger than a write that shows a client which does not read."""
    async with running(slice_size=3, pass_seconds=0.0, most_rest_seconds=60.0) as worker:
        last = await rested(worker, "a")
        worker.hub._resting["a"].cancel()  # pyright: ignore[reportPrivateUsage]  # it would end within milliseconds
        part = "x" * 16 * 1024
        for _ in range(3):
            worker.deliver("a", part)
        await run_passes(5)
        assert last.received == ["long"]
        worker.deliver("a", part)
        await until(lambda: len(last.received) > 1)
        assert last.offers == [["long"], [part] * 4]


async def test_rests_of_several_channels() -> None:
    """Each channel rests for its own time, and what it received meanwhile is delivered when that is over."""
    async with running(slice_size=3, pass_seconds=0.0, most_rest_seconds=0.05) as worker:
        one, two = await rested(worker, "a"), await rested(worker, "b")
        worker.deliver("b", "2")
        worker.deliver("a", "1")
        await until(lambda: (one.received, two.received) == (["long", "1"], ["long", "2"]))


async def test_channels_take_turns() -> None:
    """Of two long fan-outs neither waits for the end of the other, and a short one ends at its first turn."""
    async with running(slice_size=3, pass_seconds=0.0) as worker:
        one, two, short = [await crowd(worker, channel, size) for channel, size in (("a", 9), ("b", 6), ("c", 2))]
        for channel in "abc":
            worker.deliver(channel, "1")
        passes: list[tuple[int, ...]] = []
        while not passes or passes[-1] != (9, 6, 2):
            await run_passes(1)
            passes.append(counts(one, two, short))
            assert len(passes) < 20
        assert passes[:6] == [(3, 0, 0), (3, 3, 0), (3, 3, 2), (6, 3, 2), (6, 6, 2), (9, 6, 2)]


async def test_messages_during_a_long_fan_out() -> None:
    """What is received on a channel during its fan-out is delivered in one later batch, in order, to all."""
    async with running(slice_size=3, pass_seconds=0.0) as worker:
        subscribers = await crowd(worker, "a", 10)
        worker.deliver("a", "1")
        await run_passes(1)
        worker.deliver("a", "2")
        await run_passes(1)
        worker.deliver("a", "3", "4")
        await run_passes(20)
        assert [subscriber.offers for subscriber in subscribers] == [[["1"], ["2", "3", "4"]]] * 10
        assert worker.hub.delivered == 4


async def test_other_channel_during_a_long_fan_out() -> None:
    """What is received on another channel does not wait for the end of a long fan-out."""
    async with running(slice_size=3, pass_seconds=0.0) as worker:
        subscribers = await crowd(worker, "a", 30)
        (other,) = await crowd(worker, "b", 1)
        worker.deliver("a", "1")
        await run_passes(1)
        worker.deliver("b", "2")
        await run_passes(20)
        assert (other.received, counts(subscribers)) == (["2"], (30,))


async def test_other_channel_takes_its_turn_at_once() -> None:
    """A message received during a long fan-out of another channel is delivered after the present slice."""
    async with running(slice_size=3, pass_seconds=0.0) as worker:
        subscribers = await crowd(worker, "a", 30)
        (other,) = await crowd(worker, "b", 1)
        worker.deliver("a", "1")
        await run_passes(1)
        worker.deliver("b", "2")
        await run_passes(3)
        assert (other.received, counts(subscribers) < (30,)) == (["2"], True)


async def test_many_messages_during_a_long_fan_out() -> None:
    """What is received in one pass during a long fan-out is bounded too, and the order is kept."""
    async with running(slice_size=3, pass_seconds=0.0) as worker:
        subscribers = await crowd(worker, "a", 5)
        worker.deliver("a", "first")
        await run_passes(1)
        payloads = [str(number) for number in range(2_000)]
        worker.deliver("a", *payloads)
        await run_passes(20)
        assert [subscriber.received for subscriber in subscribers] == [["first", *payloads]] * 5


async def test_close_during_a_long_fan_out() -> None:
    """After the close nothing more is offered, and no callback is left."""
    async with running(slice_size=3, pass_seconds=0.0) as worker:
        subscribers = await crowd(worker, "a", 10)
        worker.deliver("a", "1")
        await run_passes(1)
        worker.deliver("a", "2")
        worker.hub.close()
        await run_passes(20)
        assert counts(subscribers) == (3,)


async def test_one_fan_out_within_its_budget_is_one_pass() -> None:
    """Within the time budget of a pass, several slices of several channels are delivered."""
    async with running() as worker:
        one, two = await crowd(worker, "a", 450), await crowd(worker, "b", 10)
        worker.deliver("a", "1")
        worker.deliver("b", "2")
        await run_passes(1)
        assert counts(one[:200]) == (200,)
        await run_passes(10)
        assert counts(one, two) == (450, 10)


async def test_repeated_revocations_are_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    """Of many revocations the first, second, fourth and eighth one are logged."""
    async with running() as worker:
        await worker.joined("a")
        for _ in range(9):
            worker.hub.revoke(["a"], "maximum subscriptions exceeded")
        assert [message.partition("(")[2].partition(")")[0] for message in caplog.messages] == [
            f"times so far: {times}" for times in (1, 2, 4, 8)
        ]


published = st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 3)), max_size=30)


@settings(max_examples=100, deadline=None)
@given(published, st.integers(1, 4), st.integers(1, 9))
async def test_any_traffic_in_slices(steps: list[tuple[str, int]], slice_size: int, size: int) -> None:
    """Whatever is received when, every subscriber of a channel receives all of it, once and in order."""
    async with running(slice_size=slice_size, pass_seconds=0.0) as worker:
        crowds = {channel: await crowd(worker, channel, size) for channel in "ab"}
        published_by_channel: dict[str, list[str]] = {"a": [], "b": []}
        for number, (channel, passes) in enumerate(steps):
            worker.deliver(channel, str(number))
            published_by_channel[channel].append(str(number))
            await run_passes(passes)
        await run_passes(200)
        for channel, subscribers in crowds.items():
            assert [subscriber.received for subscriber in subscribers] == [published_by_channel[channel]] * size
        assert worker.hub.delivered == len(steps)


Action = Literal["publish", "exclude", "gap", "join", "leave"]

actions: list[Action] = ["publish", "publish", "publish", "exclude", "gap", "join", "leave"]
traffic = st.lists(
    st.tuples(st.sampled_from("ab"), st.sampled_from(actions), st.integers(0, 8), st.integers(0, 3)), max_size=30
)


class Traffic:
    """Two channels in use, and what each subscriber of them has to receive."""

    def __init__(self, worker: World) -> None:
        self.worker = worker
        self.items: dict[str, list[tuple[str | Gap, bytes | None]]] = {"a": [], "b": []}
        self.present: dict[str, list[RecordingSubscriber]] = {"a": [], "b": []}
        self.places: dict[RecordingSubscriber, tuple[str, int, int | None]] = {}

    async def join(self, channel: str) -> None:
        """Add a subscriber."""
        subscriber = await self.worker.joined(channel)
        self.present[channel].append(subscriber)
        self.places[subscriber] = channel, len(self.items[channel]), None

    async def do(self, channel: str, action: Action, index: int) -> None:
        """Do one thing; the first subscriber of each channel stays."""
        items, present = self.items[channel], self.present[channel]
        chosen, text = present[index % len(present)], str(len(items))
        if action == "join":
            await self.join(channel)
        elif action == "gap":
            items.append((Gap(channel=channel, reason=text), None))
            self.worker.hub.gap([channel], text)
        elif action != "leave":
            excluded = chosen.token if action == "exclude" else None
            items.append((text, excluded))
            self.worker.hub.deliver(channel, encode(text, origin=b"ORIGIN_8", published_at=0.0, excluded=excluded))
        elif chosen is not present[0]:
            present.remove(chosen)
            self.worker.hub.leave(channel, chosen)
            self.places[chosen] = *self.places[chosen][:2], len(items)

    def all_received(self) -> bool:
        """Whether every subscriber that is left has received the newest items."""
        return not any(
            (newest := self.expected(subscriber, since)) and newest[-1:] != subscriber.received[-1:]
            for subscriber, (_, since, until) in self.places.items()
            if until is None
        )

    def expected(self, subscriber: RecordingSubscriber, since: int, until: int | None = None) -> list[str | Gap]:
        """Return what a subscriber gets of the items of its channel from one on."""
        items = self.items[self.places[subscriber][0]][since:until]
        return [item for item, excluded in items if excluded != subscriber.token]


@settings(max_examples=50, deadline=None)
@given(traffic, st.integers(1, 4), st.integers(1, 9))
async def test_any_traffic_with_rests(steps: list[tuple[str, Action, int, int]], slice_size: int, size: int) -> None:
    """Whatever is received, excluded, joined and left while channels rest: all of it, once, in order, in its place.

    A join can also get what was received shortly before it, and a leave ends what is delivered at once.
    """
    async with running(slice_size=slice_size, pass_seconds=0.0, most_rest_seconds=0.001) as worker:
        rest = worker.hub._rest  # pyright: ignore[reportPrivateUsage]

        def long(channel: str, seconds: float, loop: asyncio.AbstractEventLoop) -> None:
            rest(channel, 1.0, loop)

        worker.hub._rest = long  # type: ignore[method-assign]  # pyright: ignore[reportPrivateUsage]
        made = Traffic(worker)
        for channel in "ab" * size:
            await made.join(channel)
        for channel, action, index, passes in steps:
            await made.do(channel, action, index)
            await run_passes(passes)
        await until(made.all_received)
        for subscriber, (_, joined_at, left_at) in made.places.items():
            received = subscriber.received
            whole = made.expected(subscriber, 0, left_at)
            if left_at is None:
                newest = made.expected(subscriber, joined_at)
                assert received == whole[len(whole) - len(received) :]
                assert len(received) >= len(newest)
            else:
                starts = range(len(whole) - len(received) + 1)
                assert any(received == whole[start : start + len(received)] for start in starts)


Verb = Literal["join", "leave", "cancel", "hold", "refuse", "lose", "open", "retry", "run", "publish"]

verbs: list[Verb] = ["join", "leave", "cancel", "hold", "refuse", "lose", "open", "retry", "run", "publish"]
often: list[Verb] = ["join", "leave", "run"]
steps = st.lists(st.tuples(st.sampled_from([*verbs, *often]), st.integers(0, 3), st.integers(0, 2)), max_size=60)


class RandomUse:
    """Channels and subscribers used in any order, with a broker that delays, refuses and becomes unreachable."""

    def __init__(self, worker: World) -> None:
        self.worker = worker
        self.channels = [f"channel {number}" for number in range(4)]
        self.subscribers = [RecordingSubscriber() for _ in range(3)]
        self.joining: dict[tuple[int, int], asyncio.Task[None]] = {}
        self.joined: set[tuple[int, int]] = set()
        self.down = False

    async def step(self, verb: Verb, channel: int, subscriber: int) -> None:
        """Do one thing, if it makes sense now."""
        match verb:
            case "join" | "leave" | "cancel":
                self._use(verb, (channel, subscriber))
            case "lose" | "open":
                await self._link(verb)
            case "run":
                await run_passes(channel + 1)
            case "hold" | "refuse" | "retry" | "publish":
                self._broker(verb, channel)

    def _use(self, verb: Literal["join", "leave", "cancel"], place: tuple[int, int]) -> None:
        name, subscriber = self.channels[place[0]], self.subscribers[place[1]]
        if verb == "join" and place not in self.joining and place not in self.joined:
            self.joining[place] = asyncio.create_task(self.worker.hub.join(name, subscriber))
            self.joining[place].add_done_callback(lambda task: self._joined(place, task))
        if verb == "leave" and place in self.joined:
            self.joined.discard(place)
            self.worker.hub.leave(name, subscriber)
        if verb == "cancel" and place in self.joining:
            self.joining[place].cancel()

    def _broker(self, verb: Literal["hold", "refuse", "retry", "publish"], channel: int) -> None:
        broadcaster, name = self.worker.adapter, self.channels[channel]
        if verb == "hold":  # neither, the one, the other, or both
            for gate, bit in ((broadcaster.subscribe_gate, 1), (broadcaster.unsubscribe_gate, 2)):
                if channel & bit:
                    gate.close()
                else:
                    gate.open()
        if verb == "refuse" and broadcaster.refusals.pop(name, None) is None:
            broadcaster.refusals[name] = "not yours"
        if verb == "retry" and not self.down:
            self.worker.broker_subscriptions.retry_refused()
        if verb == "publish" and name in broadcaster.channels:
            self.worker.deliver(name, "1")

    async def _link(self, verb: Literal["lose", "open"]) -> None:
        if verb == "lose" and not self.down:
            self.down = True
            await self.worker.lose_link()
        if verb == "open" and self.down:
            self.down = False
            self.worker.open_link()

    def _joined(self, place: tuple[int, int], task: asyncio.Task[None]) -> None:
        del self.joining[place]
        if task.cancelled() or task.exception() is not None:
            return
        self.joined.add(place)

    async def settle(self) -> None:
        """Let the broker answer everything, and wait until no request is left."""
        self.worker.adapter.refusals.clear()
        for verb in ("open", "hold", "retry"):
            await self.step(verb, 0, 0)
        async with asyncio.timeout(30):
            while self.joining or self._differs():
                await asyncio.sleep(0)
        await until_idle()

    def _differs(self) -> bool:
        wanted = {self.channels[channel] for channel, _ in self.joined}
        sides = [
            self.worker.adapter.channels,
            self.worker.broker_subscriptions.wanted,
            self.worker.broker_subscriptions.confirmed,
        ]
        return any(set(side) != wanted for side in sides)


@settings(max_examples=200, deadline=None)
@given(steps, st.sampled_from([AT_ONCE, 0.0005]))
async def test_any_use(random_steps: list[tuple[Verb, int, int]], linger_seconds: float) -> None:
    """Whatever is joined, left, cancelled, delayed, refused and lost: both sides end with the joined channels."""
    async with running(linger_seconds=linger_seconds) as worker:
        use = RandomUse(worker)
        for verb, channel, number in random_steps:
            await use.step(verb, channel, number)
        await use.settle()
        assert worker.adapter.doubled == []
        assert set(worker.hub.channels) == worker.adapter.channels
        for subscriber in use.subscribers:
            subscriber.received.clear()
        for name in use.channels:
            worker.deliver(name, name)
        await until_idle()
        for number, subscriber in enumerate(use.subscribers):
            expected = [name for place, name in enumerate(use.channels) if (place, number) in use.joined]
            assert subscriber.received == expected


async def test_notice_of_a_join() -> None:
    """Each join is notified once the broker has confirmed it; a position cannot be served without a history."""
    async with running() as worker:
        subscriber = await worker.joined("a")
        assert subscriber.joins == [Joined(channel="a")]
        await worker.hub.join("b", subscriber, since="any text")
        gap = Gap(channel="b", reason="the channel keeps no history")
        assert subscriber.joins[1:] == [Joined(channel="b", gap=gap)]
        assert (worker.hub.position("a"), worker.hub.rules) == (None, None)


async def test_what_is_known_of_a_channel() -> None:
    """How many subscribers it has, and what was received on it since the first of them joined, and when."""
    began_at = time.time()
    async with running() as world:
        leaving = await world.joined("a", "b")
        await world.joined("a")
        channel = world.hub.channels["a"]
        assert {name: len(found) for name, found in world.hub.channels.items()} == {"a": 2, "b": 1}
        assert (world.hub.audience("a"), world.hub.audience("c")) == (2, 0)
        assert (channel.messages, channel.size_bytes, channel.last_received_at) == (0, 0, None)
        world.deliver("a", "1", "22")
        world.deliver("b", "333")
        await until_idle()
        assert (channel.messages, channel.size_bytes, world.hub.channels["b"].size_bytes) == (2, 3, 3)
        assert channel.last_received_at is not None
        assert began_at <= channel.since <= channel.last_received_at <= time.time()
        world.hub.leave("b", leaving)
        await world.joined("b")
        assert world.hub.channels["b"].messages == 0, "it begins again with its first subscriber"
