"""`backplane.fanout.hub`: who hears what, in which order, and what is told of gaps."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backplane.errors import BrokerUnavailableError, SubscribeError
from backplane.fanout.broker_subscriptions import BrokerSubscriptions
from backplane.fanout.codec import encode
from backplane.fanout.hub import Hub
from backplane.message import ALL, Gap, Position
from tests.unit.doubles import ControlledBroadcaster, RecordingSubscriber, run_passes, until_idle

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from backplane.message import Message

pytestmark = pytest.mark.anyio

# Over before the next pass of the event loop but one, and longer than any test.
AT_ONCE = 1e-9
NEVER = 3_600.0

MALFORMED = b"\xbfBP\x02"


@dataclass
class Worker:
    """A hub with its interest and its link, wired as the supervisor wires them."""

    broker_subscriptions: BrokerSubscriptions
    broadcaster: ControlledBroadcaster = field(default_factory=ControlledBroadcaster)
    hub: Hub = field(init=False)
    link: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        self.hub = Hub(self.broker_subscriptions)
        self.broker_subscriptions.on_confirmed = self.hub.report_gaps
        self.broker_subscriptions.on_refused = self.hub.refuse
        self.broker_subscriptions.on_overdue = self.hub.doubt

    async def joined(self, *channels: str) -> RecordingSubscriber:
        """Return a subscriber that has joined `channels`."""
        subscriber = RecordingSubscriber()
        for channel in channels:
            await self.hub.join(channel, subscriber)
        return subscriber

    def deliver(self, channel: str, *payloads: str) -> None:
        """Deliver foreign texts from the broker."""
        for payload in payloads:
            self.hub.deliver(channel, payload.encode())

    async def lose_link(self, reason: str = "the link was lost") -> None:
        """Lose the link, and with it what the broker had subscribed."""
        await self.end_link()
        self.hub.open_gap(ALL, reason)
        self.broker_subscriptions.forget_link()
        self.broadcaster.channels.clear()

    def open_link(self) -> None:
        """Open a link: every wanted channel is asked for, and then what is wanted from then on."""
        self.link = asyncio.create_task(self._follow())

    async def end_link(self) -> None:
        """End the task of the link."""
        if self.link is not None:
            self.link.cancel()
            await asyncio.wait([self.link])

    async def _follow(self) -> None:
        await self.broker_subscriptions.subscribe_all(self.broadcaster)
        await self.broker_subscriptions.run(self.broadcaster)


@asynccontextmanager
async def running(*, linger_seconds: float = NEVER, timeout_seconds: float = 10.0) -> AsyncGenerator[Worker]:
    """Run a worker with its link open."""
    worker = Worker(BrokerSubscriptions(linger_seconds=linger_seconds, timeout_seconds=timeout_seconds))
    worker.open_link()
    try:
        yield worker
    finally:
        await worker.end_link()
        worker.broker_subscriptions.close()
        worker.hub.close()


def lost(channel: str = "a", reason: str = "the link was lost") -> Gap:
    """Return the gap that tells of a lost link."""
    return Gap(channel=channel, reason=reason)


async def test_fan_out() -> None:
    """Every subscriber of a channel hears every message of it, in order, and nothing of other channels."""
    async with running() as worker:
        one, two, other = await worker.joined("a"), await worker.joined("a", "b"), await worker.joined("c")
        worker.deliver("a", "1", "2")
        worker.deliver("b", "3")
        worker.deliver("d", "4")
        await until_idle()
        assert (one.heard, two.heard, other.heard) == (["1", "2"], ["1", "2", "3"], [])
        assert worker.hub.delivered == 3
        assert set(worker.hub.channels) == {"a", "b", "c"}


async def test_one_pass_is_one_offer() -> None:
    """Messages of one pass of the event loop reach a subscriber at once for each channel, at the end of the pass."""
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
    """What the adapter says of a message's place reaches the subscribers."""
    heard: list[Position | None] = []

    async with running() as worker:
        subscriber = await worker.joined("a")
        subscriber.offer = lambda messages: heard.extend(message.position for message in messages)  # type: ignore[method-assign]
        worker.hub.deliver("a", b"1", Position(epoch="1", offset=2))
        await until_idle()
    assert heard == [Position(epoch="1", offset=2)]


@pytest.mark.parametrize("count", [1_024, 1_025, 2_500])
async def test_many_in_one_pass(count: int) -> None:
    """A publisher that never yields grows the collection to 1,024 messages, and then it is handed out."""
    async with running() as worker:
        subscriber = await worker.joined("a")
        payloads = [str(number) for number in range(count)]
        worker.deliver("a", *payloads)
        assert subscriber.heard == payloads[: count - count % 1_024]
        await until_idle()
        assert subscriber.heard == payloads
        assert [len(offer) for offer in subscriber.offers[:1]] == [1_024]


async def test_exclude() -> None:
    """A message that leaves one subscriber out reaches all others, and the next one reaches it again."""
    async with running() as worker:
        one, two = await worker.joined("a"), await worker.joined("a")
        for data, excluded in (("1", None), ("2", one.token), ("3", two.token), ("4", b"elsewher")):
            worker.hub.deliver("a", encode(data, origin=b"ORIGIN_8", published_at=0.0, excluded=excluded))
        await until_idle()
        assert (one.heard, two.heard) == (["1", "3", "4"], ["1", "2", "4"])


async def test_malformed(caplog: pytest.LogCaptureFixture) -> None:
    """A malformed payload is counted and dropped, and logged the more rarely the more there are."""
    async with running() as worker:
        subscriber = await worker.joined("a")
        with caplog.at_level(logging.WARNING, "backplane.fanout.hub"):
            for _ in range(9):
                worker.hub.deliver("a", MALFORMED)
        worker.deliver("a", "1")
        await until_idle()
        assert (worker.hub.malformed, worker.hub.delivered, subscriber.heard) == (9, 1, ["1"])
        assert caplog.messages == [
            f"dropped a malformed payload on channel 'a' ({count} so far)" for count in (1, 2, 4, 8)
        ]


async def test_malformed_where_nobody_is() -> None:
    """A payload of a channel without subscribers is not even read."""
    async with running() as worker:
        worker.hub.deliver("a", MALFORMED)
        assert worker.hub.malformed == 0


async def test_leave() -> None:
    """Whoever left hears nothing more, what was collected in the same pass included."""
    async with running() as worker:
        one, two = await worker.joined("a"), await worker.joined("a")
        worker.deliver("a", "1")
        worker.hub.leave("a", one)
        worker.deliver("a", "2")
        await until_idle()
        assert (one.heard, two.heard) == ([], ["1", "2"])


async def test_leaving_twice() -> None:
    """Leaving what was left, or never joined, changes nothing."""
    async with running() as worker:
        one, two = await worker.joined("a"), await worker.joined("a")
        worker.hub.leave("a", one)
        worker.hub.leave("a", one)
        worker.hub.leave("b", two)
        worker.hub.leave("a", RecordingSubscriber())
        worker.deliver("a", "1")
        await until_idle()
        assert (one.heard, two.heard, set(worker.hub.channels)) == ([], ["1"], {"a"})


async def test_last_leave() -> None:
    """The last leave of a channel, and no earlier one, ends its subscription at the broker."""
    async with running(linger_seconds=AT_ONCE) as worker:
        one, two = await worker.joined("a"), await worker.joined("a")
        worker.hub.leave("a", one)
        await until_idle()
        assert worker.broadcaster.channels == {"a"}
        worker.hub.leave("a", two)
        await worker.broadcaster.until(lambda: worker.broadcaster.channels == set())
        assert worker.broadcaster.calls == [("subscribe", ("a",)), ("unsubscribe", ("a",))]
        assert set(worker.hub.channels) == set()


async def test_lingering_channel_is_silent() -> None:
    """What arrives on a channel that only lingers is dropped, and whoever joins again hears what comes then."""
    async with running() as worker:
        one = await worker.joined("a")
        worker.hub.leave("a", one)
        worker.deliver("a", "1")
        two = await worker.joined("a")
        worker.deliver("a", "2")
        await until_idle()
        assert (one.heard, two.heard) == ([], ["2"])
        assert worker.broadcaster.calls == [("subscribe", ("a",))]


async def test_concurrent_joins() -> None:
    """A hundred joins of one channel cost one subscription at the broker, and all of them hear."""
    async with running() as worker:
        subscribers = await asyncio.gather(*(worker.joined("a") for _ in range(100)))
        worker.deliver("a", "1")
        await until_idle()
        assert [subscriber.heard for subscriber in subscribers] == [["1"]] * 100
        assert worker.broadcaster.calls == [("subscribe", ("a",))]


async def test_join_misses_nothing() -> None:
    """What arrives between the broker's confirmation and the joining task's next turn is heard."""
    async with running() as worker:
        worker.broadcaster.subscribe_gate.close()
        subscriber = RecordingSubscriber()
        joining = asyncio.create_task(worker.hub.join("a", subscriber))
        await worker.broadcaster.until(lambda: worker.broadcaster.calls == [("subscribe", ("a",))])
        worker.broadcaster.subscribe_gate.open()
        await worker.broadcaster.until(lambda: worker.broadcaster.channels == {"a"})
        worker.deliver("a", "1")
        await joining
        await until_idle()
        assert subscriber.heard == ["1"]


async def test_joining_twice() -> None:
    """A subscriber that joins again hears everything once, and one leave is enough."""
    async with running() as worker:
        subscriber = await worker.joined("a", "a")
        worker.deliver("a", "1")
        await until_idle()
        worker.hub.leave("a", subscriber)
        worker.deliver("a", "2")
        await until_idle()
        assert subscriber.heard == ["1"]


@pytest.mark.parametrize("cancelled", [0, 1], ids=["first", "second"])
async def test_one_of_two_joins_is_cancelled(cancelled: int) -> None:
    """Of two joins of one subscriber at a time either can be cancelled, and the other one still counts."""
    async with running() as worker:
        subscriber = RecordingSubscriber()
        worker.broadcaster.subscribe_gate.close()
        joining = [asyncio.create_task(worker.hub.join("a", subscriber)) for _ in range(2)]
        await worker.broadcaster.until(lambda: worker.broadcaster.calls == [("subscribe", ("a",))])
        joining.pop(cancelled).cancel()
        await until_idle()
        worker.broadcaster.subscribe_gate.open()
        await joining[0]
        worker.deliver("a", "1")
        await until_idle()
        assert subscriber.heard == ["1"]


async def test_second_join_that_fails() -> None:
    """A second join that times out while the link is down leaves the first one as it was."""
    async with running(timeout_seconds=0.01) as worker:
        subscriber = await worker.joined("a")
        await worker.lose_link()
        with pytest.raises(BrokerUnavailableError):
            await worker.hub.join("a", subscriber)
        worker.open_link()
        await worker.broadcaster.until(lambda: worker.broadcaster.channels == {"a"})
        worker.deliver("a", "1")
        await until_idle()
        assert subscriber.heard == [lost(), "1"]


@pytest.mark.parametrize("outcome", ["cancelled", "refused", "timed out"])
async def test_join_that_fails(outcome: Literal["cancelled", "refused", "timed out"]) -> None:
    """A join that fails leaves nothing: no subscriber, no wanted channel, no subscription at the broker."""
    async with running(linger_seconds=AT_ONCE, timeout_seconds=0.01 if outcome == "timed out" else 10.0) as worker:
        broadcaster, subscriber = worker.broadcaster, RecordingSubscriber()
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
        worker.broadcaster.refusals.clear()
        await worker.joined("b")
        await broadcaster.until(lambda: broadcaster.channels == {"b"})
        heard = len(subscriber.heard)
        worker.deliver("a", "2")
        await until_idle()
        assert (len(subscriber.heard), set(worker.hub.channels), set(worker.broker_subscriptions.wanted)) == (
            heard,
            {"b"},
            {"b"},
        )


async def test_join_that_fails_takes_no_other_with_it() -> None:
    """A join that is cancelled leaves another subscriber of its channel alone."""
    async with running(linger_seconds=AT_ONCE) as worker:
        one, two = RecordingSubscriber(), RecordingSubscriber()
        worker.broadcaster.subscribe_gate.close()
        joining = [asyncio.create_task(worker.hub.join("a", subscriber)) for subscriber in (one, two)]
        await worker.broadcaster.until(lambda: worker.broadcaster.calls == [("subscribe", ("a",))])
        joining[0].cancel()
        await until_idle()
        worker.broadcaster.subscribe_gate.open()
        await joining[1]
        worker.deliver("a", "1")
        await until_idle()
        assert (one.heard, two.heard) == ([], ["1"])


async def test_gap() -> None:
    """A gap that an adapter reports is told at once, behind what came before it and before what comes after."""
    async with running() as worker:
        one, two, other = await worker.joined("a"), await worker.joined("a"), await worker.joined("b")
        worker.deliver("a", "1")
        worker.hub.gap(["a"], "a queue overran")
        worker.deliver("a", "2")
        await until_idle()
        expected = ["1", Gap(channel="a", reason="a queue overran"), "2"]
        assert (one.heard, two.heard, other.heard) == (expected, expected, [])


async def test_gap_of_every_channel() -> None:
    """A gap of every channel is told once for each channel to each of its subscribers."""
    async with running() as worker:
        one, two = await worker.joined("a", "b"), await worker.joined("b")
        worker.hub.gap(ALL, "lost")
        assert one.heard == [lost("a", "lost"), lost("b", "lost")]
        assert two.heard == [lost("b", "lost")]


async def test_gap_where_nobody_is() -> None:
    """A gap of a channel without subscribers is told to nobody, later joiners included."""
    async with running() as worker:
        subscriber = await worker.joined("a")
        worker.hub.leave("a", subscriber)
        worker.hub.gap(["a", "b"], "a queue overran")
        worker.hub.gap(ALL, "a queue overran")
        one, two = await worker.joined("a"), await worker.joined("b")
        worker.deliver("a", "1")
        worker.deliver("b", "2")
        await until_idle()
        assert (subscriber.heard, one.heard, two.heard) == ([], ["1"], ["2"])


@pytest.mark.parametrize("refused", [False, True], ids=["taken away", "refused"])
async def test_gap_while_a_channel_is_not_subscribed(refused: bool) -> None:
    """Another gap while the broker delivers nothing on a channel does not stand for what is missing after it."""
    async with running() as worker:
        subscriber = await worker.joined("a")
        if refused:
            await worker.lose_link()
            worker.broadcaster.refusals["a"] = "not yours"
            worker.open_link()
            await worker.broadcaster.until(lambda: len(worker.broadcaster.calls) == 2)
            await until_idle()
            del worker.broadcaster.refusals["a"]
        else:
            worker.broadcaster.channels.clear()
            worker.hub.revoke(["a"], "taken away")
        told = len(subscriber.heard)
        worker.hub.gap(ALL, "a queue overran")
        assert len(subscriber.heard) == told
        worker.broker_subscriptions.retry_refused()
        await worker.broadcaster.until(lambda: worker.broadcaster.channels == {"a"})
        await until_idle()
        assert subscriber.heard[told:] == [lost(reason="a queue overran")]


async def test_gap_of_a_lost_link() -> None:
    """A lost link is told once, when the channel is subscribed again and before the first message of the new link."""
    async with running() as worker:
        subscriber = await worker.joined("a")
        worker.deliver("a", "1")
        await worker.lose_link()
        assert subscriber.heard == ["1"]
        worker.open_link()
        await worker.broadcaster.until(lambda: worker.broadcaster.channels == {"a"})
        await until_idle()
        assert subscriber.heard == ["1", lost()]
        worker.deliver("a", "2")
        await until_idle()
        assert subscriber.heard == ["1", lost(), "2"]


async def test_message_before_the_confirmation() -> None:
    """A message of the new link that overtakes the broker's confirmation tells the gap first, and that is all."""
    async with running() as worker:
        subscriber = await worker.joined("a")
        await worker.lose_link()
        worker.deliver("a", "1")
        await until_idle()
        worker.open_link()
        await worker.broadcaster.until(lambda: worker.broadcaster.channels == {"a"})
        worker.deliver("a", "2")
        await until_idle()
        assert subscriber.heard == [lost(), "1", "2"]


async def test_link_lost_twice_before_it_is_back() -> None:
    """A link that is lost again before the channel is subscribed is one gap, with the last reason."""
    async with running() as worker:
        subscriber = await worker.joined("a")
        await worker.lose_link("first")
        worker.broadcaster.subscribe_gate.close()
        worker.open_link()
        await worker.broadcaster.until(lambda: len(worker.broadcaster.calls) == 2)
        await worker.lose_link("second")
        worker.broadcaster.subscribe_gate.open()
        worker.open_link()
        await worker.broadcaster.until(lambda: worker.broadcaster.channels == {"a"})
        worker.deliver("a", "1")
        await until_idle()
        assert subscriber.heard == [lost(reason="second"), "1"]


async def test_link_lost_twice() -> None:
    """Each loss of a link that was back is told."""
    async with running() as worker:
        subscriber = await worker.joined("a")
        for number in range(3):
            await worker.lose_link(str(number))
            worker.open_link()
            await worker.broadcaster.until(lambda: worker.broadcaster.channels == {"a"})
            await until_idle()
        assert subscriber.heard == [lost(reason="0"), lost(reason="1"), lost(reason="2")]


async def test_gap_is_for_those_who_were_there() -> None:
    """A gap is told to who was there when it opened and still is: not to a later joiner, nor to one who left."""
    async with running() as worker:
        one, two = await worker.joined("a"), await worker.joined("a")
        await worker.lose_link()
        later = RecordingSubscriber()
        joining = asyncio.create_task(worker.hub.join("a", later))
        await until_idle()
        worker.hub.leave("a", two)
        worker.open_link()
        await joining
        worker.deliver("a", "1")
        await until_idle()
        assert (one.heard, two.heard, later.heard) == ([lost(), "1"], [], ["1"])


async def test_gap_of_a_channel_that_was_left() -> None:
    """Whoever joins a channel that everybody left while the link was down hears of no gap."""
    async with running() as worker:
        first = await worker.joined("a")
        await worker.lose_link()
        worker.hub.leave("a", first)
        second = RecordingSubscriber()
        joining = asyncio.create_task(worker.hub.join("a", second))
        await until_idle()
        worker.open_link()
        await joining
        worker.deliver("a", "1")
        await until_idle()
        assert (first.heard, second.heard) == ([], ["1"])


async def test_no_gap_before_the_first_confirmation() -> None:
    """Whoever still waits for the broker's confirmation has been promised nothing, and hears of no gap."""
    async with running() as worker:
        worker.broadcaster.subscribe_gate.close()
        subscriber = RecordingSubscriber()
        joining = asyncio.create_task(worker.hub.join("a", subscriber))
        await worker.broadcaster.until(lambda: worker.broadcaster.calls == [("subscribe", ("a",))])
        worker.hub.gap(ALL, "a queue overran")
        await worker.lose_link()
        worker.broadcaster.subscribe_gate.open()
        worker.open_link()
        await joining
        worker.deliver("a", "1")
        await until_idle()
        assert subscriber.heard == ["1"]


async def test_refused_on_a_new_link() -> None:
    """Subscribers of a channel that a new link refuses are told of the gap, with the broker's words."""
    async with running() as worker:
        subscriber = await worker.joined("a")
        await worker.lose_link()
        worker.broadcaster.refusals["a"] = "not yours"
        worker.open_link()
        await worker.broadcaster.until(lambda: len(worker.broadcaster.calls) == 2)
        await until_idle()
        assert subscriber.heard == [lost(reason="the broker refused the channel: not yours")]


async def test_refused_on_a_new_link_while_a_newcomer_waits() -> None:
    """Subscribers of a channel that a new link refuses are told of the gap even where a newcomer waits for it too."""
    async with running() as worker:
        subscriber = await worker.joined("a")
        await worker.lose_link()
        worker.broadcaster.refusals["a"] = "not yours"
        newcomer = asyncio.create_task(worker.joined("a"))
        await until_idle()
        worker.open_link()
        with pytest.raises(SubscribeError):
            await newcomer
        await until_idle()
        assert subscriber.heard == [lost(reason="the broker refused the channel: not yours")]


async def test_refused_for_a_while() -> None:
    """A channel that a new link refused and later confirmed was deaf in between: that is a gap of its own."""
    async with running() as worker:
        subscriber = await worker.joined("a")
        await worker.lose_link()
        worker.broadcaster.refusals["a"] = "not yours"
        worker.open_link()
        await worker.broadcaster.until(lambda: len(worker.broadcaster.calls) == 2)
        await until_idle()
        told = len(subscriber.heard)
        worker.broadcaster.refusals.clear()
        worker.broker_subscriptions.retry_refused()
        await worker.broadcaster.until(lambda: worker.broadcaster.channels == {"a"})
        await until_idle()
        worker.deliver("a", "1")
        await until_idle()
        behind = subscriber.heard[told:]
        assert [type(item) for item in behind] == [Gap, str]


async def test_refused_again_and_again(caplog: pytest.LogCaptureFixture) -> None:
    """A channel that is asked for again and refused again is told, and logged, once."""
    async with running() as worker:
        subscriber = await worker.joined("a")
        await worker.lose_link()
        worker.broadcaster.refusals["a"] = "not yours"
        worker.open_link()
        await worker.broadcaster.until(lambda: len(worker.broadcaster.calls) == 2)
        for calls in (3, 4):
            await until_idle()
            worker.broker_subscriptions.retry_refused()
            await worker.broadcaster.until(lambda calls=calls: len(worker.broadcaster.calls) == calls)  # type: ignore[misc]
        await until_idle()
        assert subscriber.heard == [lost(reason="the broker refused the channel: not yours")]
        assert caplog.messages == [
            "the broker refuses channels, their subscribers receive nothing: subscription refused: 'a': not yours"
        ]


async def test_many_refused_channels_are_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    """Rules that take many channels away write one line for the first and one for the rest; each is still a gap."""
    names = [f"room{number}" for number in range(50)]
    async with running() as worker:
        subscriber = await worker.joined(*names)
        worker.hub.open_gap(names, "lost")
        worker.hub.refuse(dict.fromkeys(names[:30], "not yours"))
        worker.hub.refuse(dict.fromkeys(names, "not yours"))
        assert len(subscriber.heard) == 50
        (line,) = caplog.messages
        assert line.startswith(
            "the broker refuses channels, their subscribers receive nothing: subscription refused: 'room0'"
        )


async def test_unconfirmed_on_a_new_link(caplog: pytest.LogCaptureFixture) -> None:
    """Subscribers of a channel that a new link leaves unconfirmed get one gap while it does, and one when it does not.

    Whoever joins meanwhile missed nothing, and gets none.
    """
    async with running() as worker:
        subscriber = await worker.joined("a")
        await worker.lose_link()
        worker.broadcaster.doubts["a"] = "no place"
        worker.open_link()
        newcomer = asyncio.create_task(worker.joined("a"))
        await worker.broadcaster.until(lambda: len(worker.broadcaster.calls) == 8)  # two more than it takes
        await until_idle()
        gap = lost(reason="the broker has not confirmed the channel again: no place")
        assert subscriber.heard == [gap]
        assert caplog.messages == [
            "the broker does not confirm channels, their subscribers receive nothing: not confirmed yet: 'a': no place"
        ]
        worker.broadcaster.doubts.clear()
        late = await newcomer
        worker.deliver("a", "1")
        await until_idle()
        assert subscriber.heard == [gap, gap, "1"]
        assert late.heard == ["1"]


async def test_unconfirmed_and_then_refused() -> None:
    """The final word on a channel that was unconfirmed is another gap, with the broker's reason."""
    async with running() as worker:
        subscriber = await worker.joined("a")
        await worker.lose_link()
        worker.broadcaster.doubts["a"] = "no place"
        worker.open_link()
        await worker.broadcaster.until(lambda: len(worker.broadcaster.calls) == 6)
        await until_idle()
        assert len(subscriber.heard) == 1
        worker.broadcaster.doubts.clear()
        worker.broadcaster.refusals["a"] = "not yours"
        await worker.broadcaster.until(lambda: len(worker.broadcaster.calls) == 7)
        await until_idle()
        assert subscriber.heard[1] == lost(reason="the broker refused the channel: not yours")


async def test_close() -> None:
    """Closed, a hub has no subscribers, and what was collected or suspected is told to nobody."""
    async with running() as worker:
        subscriber = await worker.joined("a", "b")
        worker.hub.open_gap(["b"], "a queue overran")
        worker.deliver("a", "1")
        worker.hub.close()
        worker.hub.close()
        worker.deliver("a", "2")
        worker.hub.report_gaps(["b"])
        await until_idle()
        assert (subscriber.heard, set(worker.hub.channels), worker.hub.delivered) == ([], set(), 0)


# --- a fan-out too long for one pass -------------------------------------------------------------------------------


@pytest.fixture
def tiny_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices of three subscribers, one in each pass of the event loop."""
    monkeypatch.setattr("backplane.fanout.hub._SLICE", 3)
    monkeypatch.setattr("backplane.fanout.hub._PASS_SECONDS", 0.0)


async def crowd(worker: Worker, channel: str, size: int) -> list[RecordingSubscriber]:
    """Return so many subscribers of a channel."""
    return [await worker.joined(channel) for _ in range(size)]


def counts(*crowds: list[RecordingSubscriber]) -> tuple[int, ...]:
    """Return how many of each crowd have heard something."""
    return tuple(sum(bool(member.heard) for member in members) for members in crowds)


@pytest.mark.usefixtures("tiny_passes")
@pytest.mark.parametrize("size", [1, 2, 3, 4, 6, 10])
async def test_slices(size: int) -> None:
    """A channel with more members than a slice is delivered over several passes, everyone once, in order of joining."""
    async with running() as worker:
        members = await crowd(worker, "a", size)
        worker.deliver("a", "1", "2")
        passes: list[int] = []
        while len(passes) < 5:
            await run_passes(1)
            passes.append(*counts(members))
        assert passes == [min(size, 3 * number) for number in range(1, 6)]
        assert [member.offers for member in members] == [[["1", "2"]]] * size
        assert worker.hub.delivered == 2


@pytest.mark.usefixtures("tiny_passes")
async def test_channels_take_turns() -> None:
    """Of two long fan-outs neither waits for the end of the other, and a short one is over at its first turn."""
    async with running() as worker:
        one, two, short = [await crowd(worker, channel, size) for channel, size in (("a", 9), ("b", 6), ("c", 2))]
        for channel in "abc":
            worker.deliver(channel, "1")
        passes: list[tuple[int, ...]] = []
        while not passes or passes[-1] != (9, 6, 2):
            await run_passes(1)
            passes.append(counts(one, two, short))
            assert len(passes) < 20
        assert passes[:6] == [(3, 0, 0), (3, 3, 0), (3, 3, 2), (6, 3, 2), (6, 6, 2), (9, 6, 2)]


@pytest.mark.usefixtures("tiny_passes")
async def test_messages_during_a_long_fan_out() -> None:
    """What arrives on a channel whose fan-out is under way comes in one later batch, in order, to everyone."""
    async with running() as worker:
        members = await crowd(worker, "a", 10)
        worker.deliver("a", "1")
        await run_passes(1)
        worker.deliver("a", "2")
        await run_passes(1)
        worker.deliver("a", "3", "4")
        await run_passes(20)
        assert [member.offers for member in members] == [[["1"], ["2", "3", "4"]]] * 10
        assert worker.hub.delivered == 4


@pytest.mark.usefixtures("tiny_passes")
async def test_other_channel_during_a_long_fan_out() -> None:
    """What arrives on another channel does not wait for the end of a long fan-out."""
    async with running() as worker:
        members = await crowd(worker, "a", 30)
        (other,) = await crowd(worker, "b", 1)
        worker.deliver("a", "1")
        await run_passes(1)
        worker.deliver("b", "2")
        await run_passes(20)
        assert (other.heard, counts(members)) == (["2"], (30,))


@pytest.mark.usefixtures("tiny_passes")
async def test_other_channel_takes_its_turn_at_once() -> None:
    """A channel whose message comes during a long fan-out of another one takes its turn behind the present slice."""
    async with running() as worker:
        members = await crowd(worker, "a", 30)
        (other,) = await crowd(worker, "b", 1)
        worker.deliver("a", "1")
        await run_passes(1)
        worker.deliver("b", "2")
        await run_passes(3)
        assert (other.heard, counts(members) < (30,)) == (["2"], True)


@pytest.mark.usefixtures("tiny_passes")
async def test_leave_during_a_long_fan_out() -> None:
    """Whoever leaves before its slice hears nothing, and the others everything."""
    async with running() as worker:
        members = await crowd(worker, "a", 10)
        worker.deliver("a", "1")
        await run_passes(1)
        for number in (0, 5, 9):
            worker.hub.leave("a", members[number])
        worker.deliver("a", "2")
        await run_passes(20)
        expected = [["1", "2"]] * 10
        expected[0], expected[5], expected[9] = ["1"], [], []
        assert [member.heard for member in members] == expected


@pytest.mark.usefixtures("tiny_passes")
async def test_everybody_leaves_during_a_long_fan_out() -> None:
    """When all have left, nothing more is offered, to newcomers neither; what comes then reaches these."""
    async with running() as worker:
        members = await crowd(worker, "a", 10)
        worker.deliver("a", "1")
        await run_passes(1)
        for member in members:
            worker.hub.leave("a", member)
        newcomer = await worker.joined("a")
        await until_idle()
        assert (counts(members), newcomer.heard) == ((3,), [])
        worker.deliver("a", "2")
        await until_idle()
        assert newcomer.heard == ["2"]


@pytest.mark.usefixtures("tiny_passes")
async def test_leave_from_within_an_offer() -> None:
    """A subscriber that ends another one while it is offered something keeps that one from hearing."""
    async with running() as worker:
        members = await crowd(worker, "a", 5)
        offer = members[0].offer

        def offer_and_end(messages: Sequence[Message]) -> None:
            offer(messages)
            for member in members:
                worker.hub.leave("a", member)

        members[0].offer = offer_and_end  # type: ignore[method-assign]
        worker.deliver("a", "1")
        await until_idle()
        assert [member.heard for member in members] == [["1"], [], [], [], []]


@pytest.mark.usefixtures("tiny_passes")
@pytest.mark.parametrize("at_once", [True, False], ids=["gap", "open_gap"])
async def test_gap_during_a_long_fan_out(at_once: bool) -> None:
    """A gap stands behind all that came before it, for everyone, however far the fan-out was."""
    async with running() as worker:
        members = await crowd(worker, "a", 10)
        others = await crowd(worker, "b", 4)
        worker.deliver("a", "1")
        worker.deliver("b", "x")
        await run_passes(1)
        worker.deliver("a", "2")
        if at_once:
            worker.hub.gap(["a"], "overrun")
        else:
            worker.hub.open_gap(["a"], "overrun")
        assert [member.heard[:2] for member in members] == [["1", "2"]] * 10
        assert counts(others) == (4,)
        worker.deliver("a", "3")
        await run_passes(20)
        assert [member.heard for member in members] == [["1", "2", lost(reason="overrun"), "3"]] * 10
        assert [member.heard for member in others] == [["x"]] * 4


@pytest.mark.usefixtures("tiny_passes")
async def test_many_messages_during_a_long_fan_out() -> None:
    """A publisher that does not yield during a long fan-out is bounded as ever, and the order is kept."""
    async with running() as worker:
        members = await crowd(worker, "a", 5)
        worker.deliver("a", "first")
        await run_passes(1)
        payloads = [str(number) for number in range(2_000)]
        worker.deliver("a", *payloads)
        await run_passes(20)
        assert [member.heard for member in members] == [["first", *payloads]] * 5


@pytest.mark.usefixtures("tiny_passes")
async def test_close_during_a_long_fan_out() -> None:
    """At the close nothing more is offered, and nothing is left to run."""
    async with running() as worker:
        members = await crowd(worker, "a", 10)
        worker.deliver("a", "1")
        await run_passes(1)
        worker.deliver("a", "2")
        worker.hub.close()
        await run_passes(20)
        assert counts(members) == (3,)


@pytest.mark.usefixtures("tiny_passes")
async def test_exclusions_in_slices() -> None:
    """Whoever is left out of one message of a batch gets the others, in whichever slice it stands."""
    async with running() as worker:
        members = await crowd(worker, "a", 7)
        for data, excluded in (("1", members[0].token), ("2", None), ("3", members[6].token)):
            worker.hub.deliver("a", encode(data, origin=b"ORIGIN_8", published_at=0.0, excluded=excluded))
        await run_passes(20)
        expected = [["1", "2", "3"]] * 7
        expected[0], expected[6] = ["2", "3"], ["1", "2"]
        assert [member.heard for member in members] == expected


async def test_one_fan_out_within_its_budget_is_one_pass() -> None:
    """As long as the budget of a pass lasts, several slices of several channels are delivered in one pass."""
    async with running() as worker:
        one, two = await crowd(worker, "a", 450), await crowd(worker, "b", 10)
        worker.deliver("a", "1")
        worker.deliver("b", "2")
        await run_passes(1)
        assert counts(one[:200]) == (200,)
        await run_passes(10)
        assert counts(one, two) == (450, 10)


async def test_subscriber_that_raises() -> None:
    """A subscriber that raises, which it must not, costs neither the others nor any later message."""
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, __: None)
    async with running() as worker:
        bad, good = await worker.joined("a"), await worker.joined("a")

        def fail(_: Sequence[Message]) -> None:
            raise KeyError("a fault")

        bad.offer = fail  # type: ignore[method-assign,assignment]
        worker.deliver("a", "1")
        await until_idle()
        worker.deliver("a", "2")
        await until_idle()
        loop.set_exception_handler(None)
        assert good.heard == ["1", "2"]


async def test_subscriber_that_raises_at_a_gap(caplog: pytest.LogCaptureFixture) -> None:
    """A subscriber that raises at a gap costs neither the others' notice nor the report of the gap itself."""
    async with running() as worker:
        bad, good = await worker.joined("a"), await worker.joined("a")

        def fail(_: Gap) -> None:
            raise KeyError("a fault")

        bad.gap = fail  # type: ignore[method-assign,assignment]
        worker.hub.gap(["a"], "overrun")
        assert good.heard == [Gap(channel="a", reason="overrun")]
        assert [line.partition(": KeyError at test_hub.py:")[0] for line in caplog.messages] == [
            "a subscriber of channel 'a' failed"
        ]
        assert "a fault" not in caplog.text


async def test_many_refusals_are_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """A broker whose rules changed for a thousand channels costs one line, and each subscriber is notified."""
    names = [f"room-{number}" for number in range(400)]
    async with running() as worker:
        subscriber = await worker.joined(*names)
        await worker.lose_link()
        worker.broadcaster.refusals |= dict.fromkeys(names, "not yours")
        worker.open_link()
        await worker.broadcaster.until(lambda: len(worker.broadcaster.calls[-1][1]) == 400)
        await until_idle()
        assert len(subscriber.heard) == 400
        (line,) = caplog.messages
        assert line.endswith("(and 395 more)")


async def test_subscriptions_that_are_taken_away_again_and_again_fill_no_log(caplog: pytest.LogCaptureFixture) -> None:
    """A broker that takes a subscription away at each confirmation is asked more and more rarely, and logged so."""
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
    """Whatever is delivered whenever, every member of a channel hears all of it, once and in order."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("backplane.fanout.hub._SLICE", slice_size)
        patch.setattr("backplane.fanout.hub._PASS_SECONDS", 0.0)
        async with running() as worker:
            crowds = {channel: await crowd(worker, channel, size) for channel in "ab"}
            said: dict[str, list[str]] = {"a": [], "b": []}
            for number, (channel, passes) in enumerate(steps):
                worker.deliver(channel, str(number))
                said[channel].append(str(number))
                await run_passes(passes)
            await run_passes(200)
            for channel, members in crowds.items():
                assert [member.heard for member in members] == [said[channel]] * size
            assert worker.hub.delivered == len(steps)


Verb = Literal["join", "leave", "cancel", "hold", "refuse", "lose", "open", "retry", "run", "publish"]

verbs: list[Verb] = ["join", "leave", "cancel", "hold", "refuse", "lose", "open", "retry", "run", "publish"]
often: list[Verb] = ["join", "leave", "run"]
steps = st.lists(st.tuples(st.sampled_from([*verbs, *often]), st.integers(0, 3), st.integers(0, 2)), max_size=60)


class RandomUse:
    """Channels and subscribers that are used in any order, with a broker that stalls, refuses and goes away."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.channels = [f"channel {number}" for number in range(4)]
        self.subscribers = [RecordingSubscriber() for _ in range(3)]
        self.joining: dict[tuple[int, int], asyncio.Task[None]] = {}
        self.members: set[tuple[int, int]] = set()
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
        name, member = self.channels[place[0]], self.subscribers[place[1]]
        if verb == "join" and place not in self.joining and place not in self.members:
            self.joining[place] = asyncio.create_task(self.worker.hub.join(name, member))
            self.joining[place].add_done_callback(lambda task: self._joined(place, task))
        if verb == "leave" and place in self.members:
            self.members.discard(place)
            self.worker.hub.leave(name, member)
        if verb == "cancel" and place in self.joining:
            self.joining[place].cancel()

    def _broker(self, verb: Literal["hold", "refuse", "retry", "publish"], channel: int) -> None:
        broadcaster, name = self.worker.broadcaster, self.channels[channel]
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
        self.members.add(place)

    async def settle(self) -> None:
        """Let the broker answer everything, and wait until nothing is asked of it any more."""
        self.worker.broadcaster.refusals.clear()
        for verb in ("open", "hold", "retry"):
            await self.step(verb, 0, 0)
        async with asyncio.timeout(10):
            while self.joining or self._differs():
                await asyncio.sleep(0)
        await until_idle()

    def _differs(self) -> bool:
        wanted = {self.channels[channel] for channel, _ in self.members}
        sides = [
            self.worker.broadcaster.channels,
            self.worker.broker_subscriptions.wanted,
            self.worker.broker_subscriptions.confirmed,
        ]
        return any(set(side) != wanted for side in sides)


@settings(max_examples=200, deadline=None)
@given(steps, st.sampled_from([AT_ONCE, 0.0005]))
async def test_any_use(random_steps: list[tuple[Verb, int, int]], linger_seconds: float) -> None:
    """Whatever is joined, left, cancelled, stalled, refused and lost: both sides end with the joined channels."""
    async with running(linger_seconds=linger_seconds) as worker:
        use = RandomUse(worker)
        for verb, channel, subscriber in random_steps:
            await use.step(verb, channel, subscriber)
        await use.settle()
        assert worker.broadcaster.doubled == []
        assert set(worker.hub.channels) == worker.broadcaster.channels
        for member in use.subscribers:
            member.heard.clear()
        for name in use.channels:
            worker.deliver(name, name)
        await until_idle()
        for number, member in enumerate(use.subscribers):
            expected = [name for place, name in enumerate(use.channels) if (place, number) in use.members]
            assert member.heard == expected
