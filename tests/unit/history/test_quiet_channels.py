"""`backplane.history.quiet_channels`: a message that was stored and never delivered live is found."""

from __future__ import annotations

import asyncio

import pytest

from backplane.errors import BrokerError, BrokerUnavailableError
from backplane.history.quiet_channels import QuietChannels
from tests.unit.controlled_adapter import ControlledHistoryAdapter
from tests.unit.doubles import until_idle
from tests.unit.history.world import HistoryWorld, history_world
from tests.unit.kit import BRISK_PROBE

pytestmark = pytest.mark.anyio


def quiet_channels(worker: HistoryWorld, *, interval_seconds: float = 60) -> QuietChannels:
    """Return what compares the channels of a hub."""
    return QuietChannels(worker.history_hub, worker.adapter, interval_seconds=interval_seconds)


def skip(worker: HistoryWorld, channel: str, payload: str) -> None:
    """Store a message that is not delivered live."""
    worker.adapter.skips_live = True
    worker.append(channel, payload)
    worker.adapter.skips_live = False


async def test_a_message_that_was_not_delivered_live_is_found() -> None:
    """The channel whose newest position differs from the broker's is repaired, without a gap."""
    async with history_world() as worker:
        subscriber, other = await worker.joined("k"), await worker.joined("k2")
        skip(worker, "k", "1")
        await quiet_channels(worker).compare()
        assert await subscriber.receives(1) == ["1"]
        assert (other.received, worker.hub.gaps.reported) == ([], 0)


async def test_it_is_compared_by_itself_where_live_messages_may_be_skipped() -> None:
    """An adapter with `live_may_skip` has its channels compared while the link is live."""
    adapter = ControlledHistoryAdapter()
    adapter.live_may_skip = True
    async with history_world(adapter, BRISK_PROBE) as worker:
        subscriber = await worker.joined("k")
        skip(worker, "k", "1")
        assert await subscriber.receives(1) == ["1"]


async def test_a_channel_without_a_difference_is_left_alone() -> None:
    """Where the positions are equal, only the position is read."""
    async with history_world() as worker:
        await worker.joined("k")
        worker.append("k", "1")
        await quiet_channels(worker).compare()
        await until_idle()
        assert worker.history_hub.in_doubt == 0
        assert [recall.limit for recall in worker.adapter.recalls] == [0, 0]


async def test_channels_are_compared_in_turn() -> None:
    """At most 200 channels are compared at once; each has its turn, and then the first ones again."""
    async with history_world() as worker:
        channels = [f"k{number}" for number in range(250)]
        await worker.joined(*channels)
        quiet = quiet_channels(worker)
        turns = list[list[str]]()
        for _ in range(3):
            worker.adapter.recalls.clear()
            await quiet.compare()
            turns.append([recall.channel for recall in worker.adapter.recalls])
        assert turns == [channels[:200], channels[200:], channels[:200]]


@pytest.mark.parametrize("error", [BrokerError("not permitted"), KeyError("fault")])
async def test_a_channel_that_cannot_be_compared_concerns_no_other(error: Exception) -> None:
    """Where the broker refuses one channel, or its read fails unexpectedly, the others of its turn are compared."""
    async with history_world() as worker:
        await worker.joined("k")
        subscriber = await worker.joined("k2")
        skip(worker, "k2", "1")
        worker.adapter.recall_errors = [error]
        await quiet_channels(worker).compare()
        assert await subscriber.receives(1) == ["1"]


async def test_a_channel_in_doubt_is_not_compared() -> None:
    """A channel that is repaired at present is not compared: its read shows everything."""
    async with history_world() as worker:
        await worker.joined("k")
        worker.adapter.recall_gate.close()
        worker.hub.gap(["k"], "dropped")
        await worker.adapter.until(lambda: len(worker.adapter.recalls) == 2)
        await quiet_channels(worker).compare()
        assert len(worker.adapter.recalls) == 2
        worker.adapter.recall_gate.open()
        await worker.settled()


async def test_a_message_that_arrives_meanwhile_is_no_difference() -> None:
    """A message that arrives while the position is read ends the comparison, and nothing is read again."""
    async with history_world() as worker:
        subscriber = await worker.joined("k")
        worker.adapter.recall_gate.close()
        comparing = asyncio.create_task(quiet_channels(worker).compare())
        await worker.adapter.until(lambda: len(worker.adapter.recalls) == 2)
        worker.append("k", "1")
        worker.adapter.recall_gate.open()
        await comparing
        assert (worker.history_hub.in_doubt, subscriber.received) == (0, ["1"])
        assert len(worker.adapter.recalls) == 2


@pytest.mark.parametrize("failure", ["error", "no answer"])
async def test_a_comparison_that_fails_is_made_again_later(failure: str) -> None:
    """A read that fails puts no channel in doubt; the next comparison finds what was skipped."""
    async with history_world() as worker:
        subscriber = await worker.joined("k")
        skip(worker, "k", "1")
        quiet = quiet_channels(worker, interval_seconds=0.05)
        if failure == "error":
            worker.adapter.recall_errors = [BrokerUnavailableError("loading")]
        else:
            worker.adapter.recall_gate.close()
        await quiet.compare()
        await until_idle()
        assert (worker.history_hub.in_doubt, subscriber.received) == (0, [])
        worker.adapter.recall_gate.open()
        await quiet_channels(worker).compare()
        assert await subscriber.receives(1) == ["1"]
