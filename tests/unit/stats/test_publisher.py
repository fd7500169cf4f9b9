"""`backplane.stats.publisher`: a worker sends its figures only while a lease stands."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from backplane import ConfigurationError
from backplane.cluster.topics import STATS
from backplane.control.messages import Command
from backplane.fanout.codec import decode
from backplane.stats import publisher as module
from backplane.stats.publisher import INTERVAL_SECONDS, WATCH, StatsPublisher, interval_of
from backplane.stats.snapshot import parse_snapshot
from tests.unit.control.world import control_workers
from tests.unit.kit import WAIT_SECONDS
from tests.unit.stats.world import snapshot

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from backplane.stats.snapshot import WorkerSnapshot
    from tests.unit.control.world import ControlWorker

pytestmark = pytest.mark.anyio


class World:
    """A worker that can be watched.

    Attributes:
        state: How its link is.
        taken: After how many seconds the next snapshot was to follow, for each that was taken.
        workers: How many workers there are.
        changes: Whether a lease stood, at each change of that.
    """

    def __init__(self, worker: ControlWorker) -> None:
        self.worker = worker
        self.state = "live"
        self.taken: list[float] = []
        self.workers = 1
        self.changes: list[bool] = []
        self.publisher = StatsPublisher(worker.bus, self._take, lambda: self.workers, self.changes.append)
        worker.commands.add_kind(WATCH, self.publisher.watch)

    async def watched(self, seconds: Any) -> Any:
        """Receive a command to send figures; return the answer."""
        return (await self.worker.asked(WATCH, arguments={"seconds": seconds})).value

    def sent(self) -> list[WorkerSnapshot]:
        """Return the snapshots that were sent."""
        found: list[WorkerSnapshot] = []
        for channel, payload in self.worker.broker.published:
            if channel == STATS:
                message = decode(channel, payload)
                assert message is not None
                parsed = parse_snapshot(str(message.data))
                assert parsed is not None
                found.append(parsed)
        return found

    async def until_sent(self, count: int) -> None:
        """Wait until so many snapshots were sent."""
        async with asyncio.timeout(WAIT_SECONDS):
            while len(self.sent()) < count:
                await self.worker.broker.until_published(len(self.worker.broker.published) + 1)

    def _take(self, interval: float) -> WorkerSnapshot:
        self.taken.append(interval)
        return snapshot(self.worker.name, state=self.state, interval_seconds=interval)


@asynccontextmanager
async def worlds() -> AsyncGenerator[World]:
    """A worker that can be watched, and is stopped after the block."""
    async with control_workers() as (worker,):
        world = World(worker)
        try:
            yield world
        finally:
            world.publisher.stop()


async def test_nothing_is_sent_unless_it_is_watched() -> None:
    """A worker has no timer, and takes no snapshot."""
    async with worlds() as world:
        await world.worker.receives(Command(kind="count"))
        assert (world.publisher.is_watched, world.taken, world.sent()) == (False, [], [])


async def test_it_sends_while_a_lease_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the lease nothing more is sent, until it is watched again."""
    monkeypatch.setattr(module, "INTERVAL_SECONDS", 0.01)
    async with worlds() as world:
        assert (await world.watched(0.1)).keys() == {"at"}
        await world.until_sent(2)
        async with asyncio.timeout(WAIT_SECONDS):
            while world.publisher.is_watched:
                await asyncio.sleep(0.01)
        sent = len(world.sent())
        assert sent < 15
        assert world.changes == [True, False]
        await world.watched(60)
        await world.until_sent(sent + 1)


async def test_however_many_watch_it_sends_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second lease makes the first one longer; the number of snapshots does not grow."""
    monkeypatch.setattr(module, "_SPREAD_SECONDS", 0)
    async with worlds() as world:
        for seconds in (60, 60, 0.001, 10**9):
            await world.watched(seconds)
        await world.until_sent(1)
        assert (len(world.sent()), world.taken) == (1, [INTERVAL_SECONDS])


async def test_without_a_link_nothing_is_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    """Snapshots of an outage would only wait for its end."""
    monkeypatch.setattr(module, "INTERVAL_SECONDS", 0.01)
    async with worlds() as world:
        world.state = "degraded"
        await world.watched(60)
        async with asyncio.timeout(WAIT_SECONDS):
            while len(world.taken) < 3:
                await asyncio.sleep(0.001)
        assert world.sent() == []
        world.state = "live"
        await world.until_sent(1)


@pytest.mark.parametrize("seconds", [0, -1, "5", None, True, [5]])
async def test_a_lease_that_is_no_time(seconds: Any) -> None:
    """It is answered with an error, and nothing is sent."""
    async with worlds() as world:
        answer = await world.watched(seconds)
        assert (answer, world.publisher.is_watched) == (ConfigurationError.__name__, False)


def test_many_workers_send_more_rarely() -> None:
    """Up to 50 workers send every 2 seconds; above it those that watch receive 25 snapshots a second."""
    assert [interval_of(workers) for workers in (0, 1, 50, 100, 1000)] == [2, 2, 2, 4, 40]
