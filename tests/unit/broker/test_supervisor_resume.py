"""`backplane.broker.supervisor` with an adapter that resumes: which of its four methods is called."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from backplane.broadcaster import SupportsResume
from backplane.errors import BrokerUnavailableError
from backplane.message import ALL, Gap
from tests.unit.supervised import Adapter, supervised, world

if TYPE_CHECKING:
    from collections.abc import Collection

    from backplane.broadcaster import Sink

pytestmark = pytest.mark.anyio


class ResumingAdapter(Adapter):
    """An adapter that goes on where it was.

    Attributes:
        resumed: The channels of every `resume`.
        resume_errors: What the next tries to resume raise, one each.
        gap_reason: The gap that the next `resume` finds, if any.
        missed: What the next `resume` delivers on channel `a`.
    """

    def __init__(self) -> None:
        super().__init__(resumes=True)
        self.resumed: list[set[str]] = []
        self.resume_errors: list[Exception] = []
        self.gap_reason = ""
        self.missed: list[bytes] = []

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


async def test_a_lost_link_is_suspended_and_resumed() -> None:
    """A loss leads through suspend and resume, with the channels that are wanted; the life ends with stop."""
    adapter = ResumingAdapter()
    assert isinstance(adapter, SupportsResume)
    async with supervised(adapter) as made:
        await made.listener("a", "b")
        await made.recover()
        assert adapter.resumed == [{"a", "b"}]
        assert [verb for verb in adapter.verbs if verb != "subscribe"] == ["start", "suspend", "resume"]
    assert adapter.verbs[-1] == "stop"


async def test_a_resume_that_fails_is_tried_again() -> None:
    """Each try is a suspend and a resume; what the adapter kept is never stopped away."""
    adapter = ResumingAdapter()
    async with supervised(adapter) as made:
        await made.listener("a")
        adapter.resume_errors = [BrokerUnavailableError("away"), BrokerUnavailableError("away")]
        adapter.cut()
        await made.reaches("live", generation=4)
        assert "stop" not in adapter.verbs
        assert adapter.verbs.count("suspend") == adapter.verbs.count("resume") == 3


async def test_the_first_link_starts_even_when_it_is_tried_again() -> None:
    """Before the first link stood there is nothing to resume."""
    adapter = ResumingAdapter()
    adapter.start_errors = [BrokerUnavailableError("not yet")]
    async with supervised(adapter):
        assert adapter.verbs == ["start", "stop", "start"]


async def test_a_new_life_starts() -> None:
    """What the life before knew is none of the next one's concern, though the object is the same."""
    adapter = ResumingAdapter()
    async with supervised(adapter) as made:
        await made.recover()
    async with supervised(adapter):
        assert adapter.verbs[-2:] == ["stop", "start"]


async def test_what_was_missed_is_heard_without_a_gap() -> None:
    """What arrives while the link resumes goes to those who were there."""
    adapter = ResumingAdapter()
    async with supervised(adapter) as made:
        listener = await made.listener("a")
        adapter.missed = [b"missed"]
        await made.recover()
        assert await listener.hears(1) == ["missed"]


async def test_a_gap_found_while_resuming_is_told() -> None:
    """What the adapter could not go on with is told, though no channel was confirmed yet when it said so."""
    adapter = ResumingAdapter()
    async with supervised(adapter) as made:
        listener = await made.listener("a")
        adapter.gap_reason = "deleted by age"
        await made.recover()
        assert await listener.hears(1) == [Gap(channel="a", reason="deleted by age")]


async def test_a_channel_that_is_refused_on_a_resumed_link_is_told() -> None:
    """What the broker no longer grants is a gap, though the adapter resumes, and one more when it grants it again."""
    adapter = ResumingAdapter()
    async with supervised(adapter) as made:
        listener = await made.listener("a", "b")
        adapter.refusals["a"] = "not yours"
        adapter.missed = [b"missed"]
        await made.recover()
        refused = Gap(channel="a", reason="the broker refused the channel: not yours")
        assert await listener.hears(2) == ["missed", refused]
        del adapter.refusals["a"]
        made.broker_subscriptions.retry_refused()
        assert await listener.hears(3) == ["missed", refused, refused]


async def test_a_gap_on_a_channel_in_doubt_is_told_when_it_is_confirmed() -> None:
    """A gap that is found while resuming is not lost where the broker gives no final answer yet."""
    adapter = ResumingAdapter()
    async with supervised(adapter) as made:
        listener = await made.listener("a", "b")
        adapter.gap_reason = "deleted by age"
        adapter.doubts["a"] = "BUSY"
        await made.recover()
        assert await listener.hears(1) == [Gap(channel="b", reason="deleted by age")]
        del adapter.doubts["a"]
        assert (await listener.hears(2))[1] == Gap(channel="a", reason="deleted by age")


async def test_a_channel_given_up_while_resuming_is_dropped() -> None:
    """Who leaves between the call and its return leaves nothing subscribed."""
    made = world(ResumingAdapter())
    made.broker_subscriptions.close()
    await made.broker_subscriptions.subscribe_all(made.adapter, {"left"})
    assert made.adapter.calls == [("unsubscribe", ("left",))]


async def test_publishes_keep_their_order_through_a_loss() -> None:
    """Publishes that wait for the link and those that come while it changes go out in the order of their calls."""
    adapter = ResumingAdapter()
    async with supervised(adapter) as made:
        publishing: list[asyncio.Task[None]] = []
        for number in range(300):
            publishing.append(asyncio.create_task(made.supervisor.publish("a", b"%d" % number)))
            if number % 100 == 50:
                adapter.cut()
            if number % 3 == 0:
                await asyncio.sleep(0)
        await asyncio.gather(*publishing)
        assert [payload for _, payload in adapter.published] == [b"%d" % number for number in range(300)]
