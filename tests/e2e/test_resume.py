"""Pages of a real browser that come back with their last position lose nothing, whatever ends or restarts."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from contextlib import asynccontextmanager, suppress
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from backplane import Backplane, BrokerError
from backplane.broker.registry import broadcaster_from_url
from tests.brokers.broker import ProcessBroker
from tests.brokers.postgres import DURABLE
from tests.brokers.redis import RedisConfig
from tests.e2e.app import HISTORY
from tests.servers import Server, serving

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from playwright.async_api import Page

    from tests.brokers.broker import Broker

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(400)]

logger = logging.getLogger(__name__)

WORKERS = 2
SECONDS = 90
PERIOD_SECONDS = 0.1
OUTAGE_SECONDS = 1


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """One event loop is enough: what is tested runs in other processes."""
    return "asyncio", {"use_uvloop": True}


class Numbers:
    """Publishes numbers, ten a second, each on the kept channel and on the plain one.

    Args:
        backplane: Through which it publishes.
        keys: Publish again what may not have been published, by a key; without, no broker may end.

    Attributes:
        published: How many were published on the kept channel.
        plain: Those that were published on the plain one.
    """

    def __init__(self, backplane: Backplane, *, keys: bool) -> None:
        self.published = 0
        self.plain: list[int] = []
        self._backplane = backplane
        self._keys = keys
        self._ends = False

    async def run(self) -> None:
        """Publish until it is stopped."""
        for number in count():
            await self._publish_kept(number)
            with suppress(BrokerError):
                await self._backplane.publish("plain-room", str(number))
                self.plain.append(number)
            if self._ends:
                return
            await asyncio.sleep(PERIOD_SECONDS)

    def stop(self) -> None:
        """Let the next number be the last one."""
        self._ends = True

    async def _publish_kept(self, number: int) -> None:
        while True:
            with suppress(BrokerError):
                key = str(number) if self._keys else None
                await self._backplane.publish("kept-room", str(number), idempotency_key=key)
                self.published = number + 1
                return


class NumbersPage:
    """The page in the browser, and what it has received."""

    def __init__(self, page: Page, numbers: Numbers) -> None:
        self._page = page
        self._numbers = numbers

    async def record(self, name: str) -> Any:
        """Return what one of its receivers has: `numbers`, `gaps`, `opened` and `pid`."""
        return await self._page.evaluate(name)

    async def published(self, more: int) -> None:
        """Wait until so many more numbers are published on the kept channel."""
        expected = self._numbers.published + more
        async with asyncio.timeout(SECONDS):
            while self._numbers.published < expected:
                await asyncio.sleep(PERIOD_SECONDS)

    async def up_to_date(self) -> None:
        """Wait until its receivers have a number that is published from now on."""
        next_number = self._numbers.published + 1
        received = "[resumed, events, plain].every(({numbers}) => numbers.at(-1) >= number)"
        await self._page.wait_for_function(f"(number) => {received}", arg=next_number, timeout=1000 * SECONDS)

    async def has(self, published: int) -> None:
        """Wait until its receivers of the kept channel have the last number."""
        received = "[resumed, events].every(({numbers}) => numbers.at(-1) === number)"
        await self._page.wait_for_function(f"(number) => {received}", arg=published - 1, timeout=1000 * SECONDS)


class Kept(NamedTuple):
    """Where the history is kept.

    Attributes:
        url: The URL.
        broker: A broker that keeps it over a restart, where there is one that may end.
    """

    url: str
    broker: Broker | None


@pytest.fixture(params=["ipc", "redis", "nats", "kafka", pytest.param("postgres", marks=pytest.mark.full)])
def kept(request: pytest.FixtureRequest) -> Kept:
    """Each broker in turn."""
    match request.param:
        case "redis":
            config = RedisConfig(arguments=("--appendonly", "yes", "--appendfsync", "always"))
            made: Broker = request.getfixturevalue("private_redis")(config)
        case "nats":
            made = request.getfixturevalue("private_nats")(jetstream=True)
        case "postgres":
            made = request.getfixturevalue("private_postgres")(DURABLE)
            return Kept(f"{made.url}?durable=true", made)
        case "kafka":  # the one of the whole run
            return Kept(request.getfixturevalue("kafka_broker").own_url, None)
        case _:
            return Kept(request.getfixturevalue("ipc_url"), None)
    return Kept(made.url, made)


@asynccontextmanager
async def publishing(url: str) -> AsyncGenerator[Numbers]:
    """Publish numbers during the block, from this process."""
    async with Backplane(url, history=HISTORY) as backplane, asyncio.TaskGroup() as tasks:
        numbers = Numbers(backplane, keys=not url.startswith("kafka:"))
        running = tasks.create_task(numbers.run())
        yield numbers
        running.cancel()


async def test_pages_lose_nothing(kept: Kept, page: Page, tmp_path: Path) -> None:
    """At ten messages a second the kills of both workers, a rolling restart, and the broker's restart lose nothing.

    Both a WebSocket with the envelope and an `EventSource` receive every message once and in order, without a gap, and
    stay connected while the broker restarts. The page without a history loses some; where
    the adapter itself goes on after a lost link, at the kills alone.
    """
    url, broker = kept
    environment = {"TEST_HISTORY": "1", "TEST_DRAIN_SECONDS": "1"}
    # Uvicorn kills a worker that is suspended for five seconds.
    name = "uvicorn" if broker is None else "gunicorn"
    with serving(name, url, tmp_path, workers=WORKERS, environment=environment) as server:
        async with publishing(url) as numbers:
            await page.goto(f"http://127.0.0.1:{server.port}/page")
            numbers_page = NumbersPage(page, numbers)
            await numbers_page.up_to_date()
            first = {name: (await numbers_page.record(name))["numbers"][0] for name in ("resumed", "events", "plain")}

            lost: dict[str, int] = {}
            for fault in (kill_each_worker, restart_each_worker, *([] if broker is None else [restart_broker])):
                await fault(server, numbers_page, broker)
                await numbers_page.up_to_date()
                received = set((await numbers_page.record("plain"))["numbers"])
                missing = [number for number in numbers.plain[:-2] if number >= first["plain"]]
                lost[fault.__name__] = len(set(missing) - received) - sum(lost.values())

            numbers.stop()
            published = 0
            while published != numbers.published:
                published = numbers.published
                await asyncio.sleep(3 * PERIOD_SECONDS)
            await numbers_page.has(published)

            for name in ("resumed", "events"):
                record = await numbers_page.record(name)
                assert record["numbers"] == list(range(first[name], published))
                assert record["gaps"] == 0
                assert record["opened"] > 2  # the faults have ended connections
            assert lost["kill_each_worker"] > 0
            if not broadcaster_from_url(url).capabilities.resumes:
                assert lost.get("restart_broker", 5) >= 5

            # --log-cli-level=INFO shows it.
            logger.info("kept pages lost 0 of %d, the plain page %s of %d", published, lost, len(numbers.plain))


async def kill_each_worker(server: Server, page: NumbersPage, _: object) -> None:
    """Kill one worker after the other, each once another one serves in the place of the one before."""
    await _end_each_worker(server, page, signal.SIGKILL)


async def restart_each_worker(server: Server, page: NumbersPage, _: object) -> None:
    """Restart one worker after the other in an orderly way, as for a new release."""
    await _end_each_worker(server, page, signal.SIGTERM)


async def _end_each_worker(server: Server, page: NumbersPage, ending: signal.Signals) -> None:
    # Not by SIGHUP: Uvicorn ends that restart where a new worker takes more than five seconds to start.
    for pid in sorted(server.pids):
        os.kill(pid, ending)
        server.pids = await asyncio.to_thread(server.wait_for_workers, without=[pid])
        await page.up_to_date()


async def restart_broker(server: Server, page: NumbersPage, broker: Broker | None) -> None:
    """Kill the broker, and start it again; no client of a kept channel is closed.

    The workers are suspended until it has messages that they miss.
    """
    before = [(await page.record(name))["opened"] for name in ("resumed", "events")]
    assert isinstance(broker, ProcessBroker)
    broker.kill9()
    await asyncio.sleep(OUTAGE_SECONDS)
    for pid in server.pids:
        os.kill(pid, signal.SIGSTOP)
    broker.launch()
    await asyncio.to_thread(broker.wait_until_up)
    await page.published(5)
    for pid in server.pids:
        os.kill(pid, signal.SIGCONT)
    await page.up_to_date()
    assert [(await page.record(name))["opened"] for name in ("resumed", "events")] == before
