"""One direction of a link is idle, or a whole link: it is kept alive, and its silence is found."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from backplane import Backplane, Gap
from tests.brokers.redis import RedisConfig
from tests.chaos.crew import QUICK

if TYPE_CHECKING:
    from tests.chaos.site import Site
    from tests.conftest import StartRedis

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

# Longer than the server's patience below, in messages of the outsider.
_MESSAGES = 100
_PAUSE_SECONDS = 0.05


async def test_a_worker_without_channels_finds_that_its_broker_stands_still(own_site: Site) -> None:
    """A process that only publishes, though not now, is degraded within two probe intervals, and live again."""
    async with Backplane(own_site.url, settings=QUICK) as backplane:
        own_site.broker.freeze()
        async with asyncio.timeout(2 * QUICK.probe_interval_seconds + 1):
            await backplane.wait_for_state("degraded")
        own_site.broker.thaw()
        async with asyncio.timeout(10):
            await backplane.wait_for_state("live")
            await backplane.publish("room", "after")


async def test_a_busy_listener_keeps_its_idle_publish_connection(private_redis: StartRedis) -> None:
    """A server that closes idle connections (`timeout`) costs a worker that only listens on a busy channel nothing."""
    url = private_redis(RedisConfig(arguments=("--timeout", "2"))).url
    async with (
        Backplane(url, settings=QUICK) as worker,
        Backplane(url, settings=QUICK) as outside,
        worker.subscribe("room") as messages,
    ):

        async def talk() -> None:
            for number in range(_MESSAGES):
                await outside.publish("room", str(number))
                await asyncio.sleep(_PAUSE_SECONDS)

        talking = asyncio.create_task(talk())
        async for item in messages:
            assert not isinstance(item, Gap), item
            if item.data == str(_MESSAGES - 1):
                break
        await talking
        assert (await worker.health()).generation == 1


async def test_an_outage_writes_few_lines(own_site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """A broker that is away for some seconds costs a worker at most ten lines, whatever is tried meanwhile."""
    caplog.set_level(logging.INFO)
    settings = replace(QUICK, max_backoff_seconds=0.1)
    async with Backplane(own_site.url, settings=settings) as backplane:
        async with backplane.subscribe(*(f"room-{number}" for number in range(100))):
            caplog.clear()
            own_site.broker.kill9()
            async with asyncio.timeout(10):
                await backplane.wait_for_state("degraded")
            failing = [backplane.publish(f"room-{number}", "x") for number in range(30)]
            await asyncio.gather(*failing, return_exceptions=True)
            while (await backplane.health()).generation < 10:  # no event tells of a try
                await asyncio.sleep(0.05)
            await own_site.start_broker_again()
            async with asyncio.timeout(20):
                await backplane.wait_for_state("live")
            lines = [record.getMessage() for record in caplog.records if record.name.startswith("backplane")]
        assert len(lines) <= 10, lines
        back = [record for record in caplog.records if "degraded -> live" in record.getMessage()]
        assert [record.levelno for record in back] == [logging.WARNING]
