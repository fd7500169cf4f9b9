"""The figures of workers on a real Redis: what it is sent, as `MONITOR` shows it, while a process watches and else."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio import Redis

from backplane import Backplane, Settings
from backplane.stats import publisher, reader

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from tests.brokers.broker import Broker
    from tests.conftest import StartRedis

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 60
SETTINGS = Settings(worker_heartbeat_seconds=0.2)


class Monitor:
    """The channels to which any process publishes."""

    def __init__(self, monitor: Any) -> None:
        self._monitor = monitor

    async def published(self, heartbeats: int) -> list[str]:
        """Return the channels of what is published until so many heartbeats were seen, without the heartbeats."""
        channels: list[str] = []
        async with asyncio.timeout(WAIT_SECONDS):
            while heartbeats:
                command: list[str] = (await self._monitor.next_command())["command"].split(" ")
                if command[0] == "PUBLISH":
                    if command[1].endswith("$backplane/workers"):
                        heartbeats -= 1
                    else:
                        channels.append(command[1])
        return channels


@asynccontextmanager
async def monitoring(url: str) -> AsyncGenerator[Monitor]:
    """Watch all commands of a Redis."""
    client: Any = Redis
    async with client.from_url(url, decode_responses=True) as redis, redis.monitor() as monitor:
        yield Monitor(monitor)


async def test_nothing_is_sent_unless_a_process_watches(redis_broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two workers and traffic there are heartbeats alone; while they are watched figures of both; then none."""
    monkeypatch.setattr(reader, "LEASE_SECONDS", 0.5)
    monkeypatch.setattr(publisher, "INTERVAL_SECONDS", 0.2)
    url = redis_broker.url
    async with AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(Backplane(url, cluster=True, settings=SETTINGS)) for _ in range(2)]
        monitor = await stack.enter_async_context(monitoring(url))
        await workers[0].publish("orders", "x")
        assert await monitor.published(heartbeats=10) == ["orders"]
        async with workers[1].overviews() as overviews, asyncio.timeout(WAIT_SECONDS):
            assert (await anext(overviews)).answered == 2
        assert "$backplane/stats" in await monitor.published(heartbeats=4)
        async with asyncio.timeout(WAIT_SECONDS):
            while await monitor.published(heartbeats=10):
                pass
        assert await monitor.published(heartbeats=10) == []
        numbers: Any = await stack.enter_async_context(_client(url))
        assert await numbers.pubsub_numsub("$backplane/stats", "$backplane/control") == [
            ("$backplane/stats", 0),
            ("$backplane/control", 2),
        ]


@asynccontextmanager
async def _client(url: str) -> AsyncGenerator[Any]:
    client: Any = Redis
    async with client.from_url(url, decode_responses=True) as redis:
        yield redis


async def test_ten_that_watch_cost_as_much_as_one(redis_broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """All in one worker share one subscription, and a worker sends each snapshot once."""
    monkeypatch.setattr(publisher, "INTERVAL_SECONDS", 0.2)
    async with (
        Backplane(redis_broker.url, cluster=True, settings=SETTINGS) as worker,
        AsyncExitStack() as stack,
    ):
        pages = [await stack.enter_async_context(worker.overviews()) for _ in range(10)]
        async with asyncio.timeout(WAIT_SECONDS):
            await asyncio.gather(*map(anext, pages))
        monitor = await stack.enter_async_context(monitoring(redis_broker.url))
        published = await monitor.published(heartbeats=10)  # 2 s
        assert 5 <= published.count("$backplane/stats") <= 15


async def test_the_broker_stops(private_redis: StartRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is away a worker shows itself, and that its link is lost; once it is back all are there again."""
    monkeypatch.setattr(reader, "LEASE_SECONDS", 0.5)
    monkeypatch.setattr(publisher, "INTERVAL_SECONDS", 0.2)
    broker = private_redis()
    settings = replace(SETTINGS, max_backoff_seconds=0.1, publish_timeout_seconds=0.3)
    async with AsyncExitStack() as stack:
        first, _ = [
            await stack.enter_async_context(Backplane(broker.url, cluster=True, settings=settings)) for _ in range(2)
        ]
        overviews = await stack.enter_async_context(first.overviews(interval_seconds=0.2))
        async with asyncio.timeout(WAIT_SECONDS):
            overview = await anext(overviews)
            assert overview.answered == 2
            broker.stop()
            while not overview.problems:
                overview = await anext(overviews)
            assert overview.problems[0].kind == "link_down"
            while overview.answered > 1:
                overview = await anext(overviews)
            assert overview.verdict.startswith(f"The link of this process to {broker.url} is lost")
            assert (overview.workers[0].state, len(overview.missing)) == ("degraded", overview.asked - 1)
            broker.start()
            while overview.verdict != "All 2 workers are live.":
                overview = await anext(overviews)
