"""A broker that cuts a client on purpose: one that reads too slowly, or one that an administrator kills."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio import Redis

from backplane import Backlog, Backplane, Gap, SubscribeError
from backplane.testing import FaultProxy
from tests.brokers.broker import ProcessBroker
from tests.brokers.redis import RedisConfig
from tests.chaos.workload import CHANNELS, QUICK, running_workload, watched_loop

if TYPE_CHECKING:
    from tests.brokers.broker import Broker
    from tests.chaos.case_table import CaseRecorder
    from tests.chaos.workload import Participant
    from tests.conftest import StartNats, StartRedis

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(90)]

# More than the kernel's buffers of one connection hold, so that the broker's own fills.
_FLOOD = 400
_PIECE = "x" * 64 * 1024
# NATS 2.9 delays publishers to a slow consumer for up to a second. The broker cuts before the probe does.
_SETTINGS = replace(QUICK, probe_interval_seconds=1.5, publish_timeout_seconds=5.0)


async def flood(publisher: Participant) -> None:
    """Publish 25 MB on one channel."""
    for _ in range(0, _FLOOD, 5):
        await asyncio.gather(*(publisher.publish(CHANNELS[0], _PIECE) for _ in range(5)))


async def assert_slow_reader_is_cut(case: str, broker: Broker, words: str, record_case: CaseRecorder) -> None:
    """Stall the workers behind a proxy under a flood until the broker cuts them, and check that they recover."""
    assert isinstance(broker, ProcessBroker)
    async with FaultProxy(broker.url) as proxy, running_workload(proxy.url, broker.url, settings=_SETTINGS) as workload:
        stalled_at = asyncio.get_running_loop().time()
        proxy.stall()
        await flood(workload.publishers[1])
        detected = await workload.detected(stalled_at)
        recovered = await workload.recovered()
    record_case(case, broker.url.partition(":")[0], workload, detected=detected, silent=True, recovered=recovered)
    assert words in (broker.folder / "broker.log").read_text()


async def test_redis_cuts_a_subscriber_over_its_output_buffer(
    private_redis: StartRedis, record_case: CaseRecorder
) -> None:
    """A subscriber over `client-output-buffer-limit` is cut by Redis; the worker recovers with a gap."""
    limit = ("--client-output-buffer-limit", "pubsub 1mb 512kb 5")
    broker = private_redis(RedisConfig(arguments=limit))
    await assert_slow_reader_is_cut("output buffer limit", broker, "overcoming of output buffer limits", record_case)


async def test_nats_cuts_a_slow_consumer(private_nats: StartNats, record_case: CaseRecorder) -> None:
    """A subscriber over `max_pending` is cut by NATS; the worker detects it, and recovers with a gap."""
    broker = private_nats("max_pending: 1MB\nwrite_deadline: '300ms'\n")
    await assert_slow_reader_is_cut("max_pending", broker, "Slow Consumer", record_case)


async def test_one_denied_channel_of_a_thousand_and_a_killed_client(private_redis: StartRedis) -> None:
    """Of 1,000 channels an ACL denies one, which fails alone; after CLIENT KILL the other 999 are back, with a gap."""
    channels = [f"room-{number}" for number in range(1000)]
    rules = " ".join(f"&{channel}" for channel in channels if channel != "room-500")
    users = (f"alice on >secret +@all resetchannels &$backplane/* {rules}",)
    broker = private_redis(RedisConfig(users=users, login="alice:secret"))
    root: Any = Redis
    async with (
        watched_loop("channel.refused"),
        asyncio.timeout(30),
        root.from_url(broker.url.replace("alice:secret@", "")) as observer,
        Backplane(broker.url, settings=QUICK) as backplane,
        backplane.subscribe(backlog=Backlog(max_messages=5000)) as messages,
    ):
        joined = await asyncio.gather(*(messages.join(name) for name in channels), return_exceptions=True)
        assert [type(error) for error in joined if error is not None] == [SubscribeError]
        assert await observer.execute_command("CLIENT", "KILL", "TYPE", "pubsub") == 1
        gaps = [await anext(messages) for _ in range(999)]
        assert {item.channel for item in gaps if isinstance(item, Gap)} == {*channels} - {"room-500"}
        await backplane.wait_for_state("live")
        subscribed = [name for name, count in await observer.pubsub_numsub(*channels) if count == 1]
        assert len(subscribed) == 999
        await asyncio.gather(*(backplane.publish(name, "") for name in channels if name != "room-500"))
        assert {(await anext(messages)).channel for _ in range(999)} == {*channels} - {"room-500"}
