"""`backplane.stats.overviews`: the figures of real workers, again and again; several share one broker here."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from backplane import Backplane, ConfigurationError, LifecycleError, Settings
from backplane.cluster.topics import STATS
from backplane.fanout.hub import Hub
from backplane.stats import overviews as module
from tests.unit.kit import WAIT_SECONDS

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = pytest.mark.anyio

BRISK = Settings(worker_heartbeat_seconds=0.2)


@asynccontextmanager
async def cluster(count: int) -> AsyncGenerator[list[Backplane]]:
    """Run some workers."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(Backplane("memory://", cluster=True, settings=BRISK)) for _ in range(count)
        ]


@pytest.fixture
def delivered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the channels on which any hub of this process was delivered a message, as they come."""
    channels: list[str] = []
    deliver = Hub.deliver

    def record(self: Hub, channel: str, payload: bytes, *place: Any) -> None:
        channels.append(channel)
        deliver(self, channel, payload, *place)

    monkeypatch.setattr(Hub, "deliver", record)
    return channels


async def test_all_workers(delivered: list[str]) -> None:
    """Every worker is in the first item, with rates where these were asked for, and its channels."""
    async with cluster(2) as (first, second), second.subscribe("orders", "news"), first.subscribe("orders"):
        assert STATS not in delivered
        async with first.overviews(with_rates=True) as overviews:
            async with asyncio.timeout(WAIT_SECONDS):
                overview = await anext(overviews)
        assert (overview.asked, overview.answered, overview.missing) == (2, 2, ())
        # On a loaded machine an event loop can have stood still.
        assert overview.verdict == "All 2 workers are live." or "stood still" in overview.verdict
        assert {row.id for row in overview.workers} == {worker.id for worker in await first.workers()}
        for row in overview.workers:
            assert (row.state, row.rates is None, row.cpu is None) == ("live", False, False)
            assert row.clock_offset is not None
            assert abs(row.clock_offset) < 5
            assert row.since <= overview.at
        assert [(each.name, each.subscribers, each.workers) for each in overview.channels] == [
            ("orders", 2, 2),
            ("news", 1, 1),
        ]
        assert STATS in delivered


async def test_an_observer() -> None:
    """A process that is no worker sees all of them, and is not among them."""
    async with (
        cluster(1) as (worker,),
        Backplane("memory://", cluster="observer", settings=BRISK) as observer,
        observer.overviews() as overviews,
        asyncio.timeout(WAIT_SECONDS),
    ):
        overview = await anext(overviews)
        assert [row.id for row in overview.workers] == [each.id for each in await worker.workers()]


async def test_a_worker_that_receives_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose adapter drops the control channel still sends heartbeats: it is named within ten seconds."""
    async with cluster(3) as (first, _, silent):
        runtime = silent._runtime  # pyright: ignore[reportPrivateUsage]
        assert runtime is not None
        deliver = runtime.hub.deliver

        def drop_commands(channel: str, payload: bytes, *place: Any) -> None:
            if not channel.endswith("/control"):
                deliver(channel, payload, *place)

        monkeypatch.setattr(runtime.hub, "deliver", drop_commands)
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with first.overviews(interval_seconds=0.1) as overviews, asyncio.timeout(WAIT_SECONDS):
            overview = await anext(overviews)
            while not overview.problems:
                overview = await anext(overviews)
        assert loop.time() - began < 10
        (problem,) = overview.problems
        assert (problem.kind, problem.severity) == ("receives_nothing", "error")
        assert problem.worker in overview.missing
        assert problem.worker is not None
        assert problem.worker.endswith(f"-{runtime.origin.hex()[:4]}")


async def test_again_and_again() -> None:
    """Each item comes after the interval, with what has been sent meanwhile."""
    async with (
        cluster(1) as (worker,),
        worker.overviews(interval_seconds=0.01) as overviews,
        asyncio.timeout(WAIT_SECONDS),
    ):
        first = await anext(overviews)
        second = await anext(overviews)
        assert second.at > first.at
        assert (first.answered, second.answered) == (1, 1)


async def test_it_ends_with_its_worker() -> None:
    """An iteration that waits ends when the worker stops, before and after its first item."""

    async def count(worker: Backplane, first: asyncio.Event) -> int:
        number = 0
        async with worker.overviews(interval_seconds=3_600) as overviews:
            first.set()
            async for _ in overviews:
                number += 1
                first.set()
        return number

    async with asyncio.timeout(WAIT_SECONDS):
        async with cluster(1) as (worker,):
            before, after = asyncio.Event(), asyncio.Event()
            waiting = asyncio.create_task(count(worker, before))
            await before.wait()
        assert await waiting <= 1
        async with cluster(1) as (worker,):
            iterating = asyncio.create_task(count(worker, after))
            await after.wait()
            after.clear()
            await after.wait()
        assert await iterating == 1


async def test_cancelling_loses_nothing() -> None:
    """An iteration that was cancelled goes on."""
    async with cluster(1) as (worker,), worker.overviews() as overviews:
        task = asyncio.create_task(anext(overviews))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        async with asyncio.timeout(WAIT_SECONDS):
            assert (await anext(overviews)).answered == 1


async def test_one_task_iterates() -> None:
    """A second one at the same time is an error: each would get a part."""
    async with cluster(1) as (worker,), worker.overviews() as overviews:
        task = asyncio.create_task(anext(overviews))
        await asyncio.sleep(0)
        with pytest.raises(LifecycleError, match="open one for each"):
            await anext(overviews)
        task.cancel()
        await asyncio.wait([task])


async def test_workers_that_are_not_known_yet_are_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first item comes after six seconds in any case."""
    monkeypatch.setattr(module, "_FIRST_SECONDS", 0.01)
    settings = Settings(worker_heartbeat_seconds=3)
    async with Backplane("memory://", cluster="observer", settings=settings) as observer, observer.overviews() as items:
        async with asyncio.timeout(WAIT_SECONDS):
            overview = await anext(items)
        assert (overview.asked, overview.problems[0].kind) == (0, "no_worker")


@pytest.mark.parametrize("seconds", [0, -1, "2", None])
async def test_an_interval_that_is_none(seconds: Any) -> None:
    """It is a number more than 0."""
    async with cluster(1) as (worker,):
        with pytest.raises(ConfigurationError, match="interval_seconds must be"):
            await worker.overviews(interval_seconds=seconds).__aenter__()


async def test_without_a_cluster() -> None:
    """Workers that do not know each other have nothing to merge."""
    async with Backplane("memory://") as backplane:
        with pytest.raises(ConfigurationError, match="the workers do not know each other"):
            await backplane.overviews().__aenter__()
