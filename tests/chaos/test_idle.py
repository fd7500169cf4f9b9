"""One direction of a link is idle, or the whole link: it is kept open, and a silent broker is detected."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from backplane import Backplane, Gap, Settings
from tests.brokers.redis import RedisConfig
from tests.chaos.delay import Delay
from tests.chaos.workload import QUICK

if TYPE_CHECKING:
    from tests.chaos.target import FaultTarget
    from tests.conftest import StartRedis

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

# Together they take longer than the server's `timeout` below.
_MESSAGES = 100
_PAUSE_SECONDS = 0.05


async def test_a_worker_without_channels_finds_that_its_broker_is_frozen(private_target: FaultTarget) -> None:
    """A worker without channels and publishes is degraded within two probe intervals, and live again."""
    async with Backplane(private_target.url, settings=QUICK) as backplane:
        private_target.broker.freeze()
        frozen_at, delay = time.monotonic(), Delay()
        async with asyncio.timeout(30):
            await backplane.wait_for_state("degraded")
        assert time.monotonic() - frozen_at < 2 * QUICK.probe_interval_seconds + 1 + delay.seconds
        private_target.broker.thaw()
        async with asyncio.timeout(30):
            await backplane.wait_for_state("live")
            await backplane.publish("room", "after")


async def test_a_busy_subscriber_keeps_its_idle_publish_connection(private_redis: StartRedis) -> None:
    """A server that closes idle connections (`timeout`) does not cut a worker that only receives, on a busy channel."""
    url = private_redis(RedisConfig(arguments=("--timeout", "2"))).url
    settings = Settings(probe_interval_seconds=0.9)  # an answer of the server may take twice as long
    async with (
        Backplane(url, settings=settings) as worker,
        Backplane(url, settings=settings) as publisher,
        worker.subscribe("room") as messages,
    ):

        async def publish_slowly() -> None:
            for number in range(_MESSAGES):
                await publisher.publish("room", str(number))
                await asyncio.sleep(_PAUSE_SECONDS)

        publishing = asyncio.create_task(publish_slowly())
        async for item in messages:
            assert not isinstance(item, Gap), item
            if item.data == str(_MESSAGES - 1):
                break
        await publishing
        assert (await worker.health()).generation == 1


async def test_an_outage_writes_few_lines(private_target: FaultTarget, caplog: pytest.LogCaptureFixture) -> None:
    """A broker that is away for some seconds costs a worker at most ten log lines, whatever is attempted meanwhile."""
    caplog.set_level(logging.INFO)
    settings = replace(QUICK, max_backoff_seconds=0.1)
    async with Backplane(private_target.url, settings=settings) as backplane:
        async with backplane.subscribe(*(f"room-{number}" for number in range(100))):
            caplog.clear()
            private_target.broker.kill9()
            async with asyncio.timeout(30):
                await backplane.wait_for_state("degraded")
            failing = [backplane.publish(f"room-{number}", "x") for number in range(30)]
            await asyncio.gather(*failing, return_exceptions=True)
            while (await backplane.health()).generation < 10:  # an attempt to open the link raises no event
                await asyncio.sleep(0.05)
            await private_target.restart_broker()
            async with asyncio.timeout(30):
                await backplane.wait_for_state("live")
            lines = [record.getMessage() for record in caplog.records if record.name.startswith("backplane")]
        assert len(lines) <= 10, lines
        back = [record for record in caplog.records if "degraded -> live" in record.getMessage()]
        assert [record.levelno for record in back] == [logging.WARNING]
