"""`backplane.broker.supervisor` with an adapter that resumes: when it is suspended, resumed, started and stopped."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from backplane.broadcaster import SupportsResume
from backplane.errors import BrokerUnavailableError
from backplane.message import ALL, Gap
from tests.unit.controlled_adapter import Adapter
from tests.unit.kit import SupervisedWorld, supervised

if TYPE_CHECKING:
    from collections.abc import Collection

    from backplane.broadcaster import Sink
    from backplane.message import Receipt

pytestmark = pytest.mark.anyio


class ResumingAdapter(Adapter):
    """An adapter that resumes.

    Attributes:
        resumed: The channels of every `resume`.
        resume_errors: What the next tries to resume raise, one each.
        gap_reason: The gap that the next `resume` finds, if any.
        missed: What the next `resume` delivers on channel `a`.
        late_error: What the next `resume` raises after all of that, if anything.
    """

    def __init__(self) -> None:
        super().__init__(resumes=True)
        self.resumed: list[set[str]] = []
        self.resume_errors: list[Exception] = []
        self.gap_reason = ""
        self.missed: list[bytes] = []
        self.late_error: Exception | None = None

    async def suspend(self) -> None:
        """Close the link."""
        self._record("suspend")

    async def resume(self, sink: Sink, channels: Collection[str]) -> None:
        """Open the next one."""
        self._record("resume")
        if self.resume_errors:
            raise self.resume_errors.pop(0)
        self.resumed.append(set(channels))
        self.channels = set(channels)
        self.sink = sink
        self.links.append(sink)
        if self.gap_reason:
            sink.gap(ALL, self.gap_reason)
        for payload in self.missed:
            sink.deliver("a", payload)
        if (error := self.late_error) is not None:
            self.late_error, self.gap_reason, self.missed = None, "", []  # each is reported once
            raise error


async def test_a_lost_link_is_suspended_and_resumed() -> None:
    """After a loss the adapter is suspended and resumed with the wanted channels; at the end it is stopped."""
    adapter = ResumingAdapter()
    assert isinstance(adapter, SupportsResume)
    async with supervised(adapter) as made:
        await made.joined("a", "b")
        await made.recover()
        assert adapter.resumed == [{"a", "b"}]
        assert [verb for verb in adapter.verbs if verb != "subscribe"] == ["start", "suspend", "resume"]
    assert adapter.verbs[-1] == "stop"


async def test_a_resume_that_fails_is_tried_again() -> None:
    """Each try is a suspend and a resume, without a stop, which would drop what the adapter kept."""
    adapter = ResumingAdapter()
    async with supervised(adapter) as made:
        await made.joined("a")
        adapter.resume_errors = [BrokerUnavailableError("away"), BrokerUnavailableError("away")]
        adapter.cut()
        await made.reaches("live", generation=4)
        assert "stop" not in adapter.verbs
        assert adapter.verbs.count("suspend") == adapter.verbs.count("resume") == 3


async def test_the_first_link_is_started_at_each_try() -> None:
    """Before the first link was live there is nothing to resume."""
    adapter = ResumingAdapter()
    adapter.start_errors = [BrokerUnavailableError("not yet")]
    async with supervised(adapter):
        assert adapter.verbs == ["start", "stop", "start"]


async def test_after_a_stop_the_adapter_is_started() -> None:
    """An adapter object that was stopped is started again, not resumed."""
    adapter = ResumingAdapter()
    async with supervised(adapter) as made:
        await made.recover()
    async with supervised(adapter):
        assert adapter.verbs[-2:] == ["stop", "start"]


async def test_what_was_missed_is_delivered_without_a_gap() -> None:
    """What is received while the link resumes is delivered to the subscribers of the lost link."""
    adapter = ResumingAdapter()
    async with supervised(adapter) as made:
        subscriber = await made.joined("a")
        adapter.missed = [b"missed"]
        await made.recover()
        assert await subscriber.receives(1) == ["missed"]


async def test_a_gap_found_while_resuming_is_reported() -> None:
    """A gap that the adapter reports while it resumes is delivered, though no channel was confirmed yet."""
    adapter = ResumingAdapter()
    async with supervised(adapter) as made:
        subscriber = await made.joined("a")
        adapter.gap_reason = "deleted by age"
        await made.recover()
        assert await subscriber.receives(1) == [Gap(channel="a", reason="deleted by age")]


async def test_a_gap_outlives_the_link_that_found_it_while_resuming() -> None:
    """A gap that the adapter reported on a link that was lost before it was live is reported by the next one."""
    adapter = ResumingAdapter()
    async with supervised(adapter) as made:
        subscriber = await made.joined("a")
        adapter.gap_reason, adapter.missed = "deleted by age", [b"dropped with the link"]
        adapter.late_error = BrokerUnavailableError("cut while resuming")
        adapter.cut()
        await made.reaches("live", generation=3)
        await adapter.publish("a", b"next")
        assert await subscriber.receives(2) == [Gap(channel="a", reason="deleted by age"), "next"]


async def test_a_channel_that_is_refused_on_a_resumed_link_is_a_gap() -> None:
    """A channel that the broker refuses on a resumed link is a gap, and another one when it is confirmed again."""
    adapter = ResumingAdapter()
    async with supervised(adapter) as made:
        subscriber = await made.joined("a", "b")
        adapter.refusals["a"] = "not yours"
        adapter.missed = [b"missed"]
        await made.recover()
        refused = Gap(channel="a", reason="the broker refused the channel: not yours")
        assert await subscriber.receives(2) == ["missed", refused]
        del adapter.refusals["a"]
        made.broker_subscriptions.retry_refused()
        assert await subscriber.receives(3) == ["missed", refused, refused]


async def test_a_gap_on_an_unconfirmed_channel_is_reported_when_it_is_confirmed() -> None:
    """A gap that is found while resuming is not lost on a channel without a final answer."""
    adapter = ResumingAdapter()
    async with supervised(adapter) as made:
        subscriber = await made.joined("a", "b")
        adapter.gap_reason = "deleted by age"
        adapter.unconfirmed["a"] = "BUSY"
        await made.recover()
        assert await subscriber.receives(1) == [Gap(channel="b", reason="deleted by age")]
        del adapter.unconfirmed["a"]
        assert (await subscriber.receives(2))[1] == Gap(channel="a", reason="deleted by age")


async def test_a_channel_that_is_not_confirmed_at_once_on_a_resumed_link_is_a_gap() -> None:
    """A channel without a final answer on a resumed link is a gap, reported once when it is confirmed."""
    adapter = ResumingAdapter()
    async with supervised(adapter) as made:
        subscriber = await made.joined("a", "b")
        adapter.unconfirmed["a"] = "BUSY"
        await made.recover()
        del adapter.unconfirmed["a"]
        assert await subscriber.receives(1) == [
            Gap(channel="a", reason="the broker has not confirmed the channel again: BUSY")
        ]


async def test_a_channel_dropped_while_resuming_is_unsubscribed() -> None:
    """A channel that is dropped while the adapter resumes is unsubscribed."""
    made = SupervisedWorld(ResumingAdapter())
    made.broker_subscriptions.close()
    await made.broker_subscriptions.subscribe_all(made.adapter, {"left"})
    assert made.adapter.calls == [("unsubscribe", ("left",))]


async def test_publishes_keep_their_order_through_a_loss() -> None:
    """Publishes that wait for the link and those called while it changes are sent in the order of the calls."""
    adapter = ResumingAdapter()
    async with supervised(adapter) as made:
        publishing: list[asyncio.Task[Receipt]] = []
        for number in range(300):
            publishing.append(asyncio.create_task(made.publisher.publish("a", b"%d" % number)))
            if number % 100 == 50:
                adapter.cut()
            if number % 3 == 0:
                await asyncio.sleep(0)
        await asyncio.gather(*publishing)
        assert [payload for _, payload in adapter.published] == [b"%d" % number for number in range(300)]
