"""The broker of channels with a history is killed, stopped, or loses what it kept."""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete  # type: ignore[import-untyped]
from aiokafka.structs import TopicPartition  # type: ignore[import-untyped]
from nats import connect as connect_nats
from redis.asyncio import Redis

from tests.brokers.redis import RedisConfig
from tests.chaos.kept import KEPT, running_kept
from tests.chaos.target import FaultTarget

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from tests.chaos.kept import KeptCaseRecorder

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

full = pytest.mark.full

# Of a topic of Kafka: on a channel without a history each that has lost records is a gap.
_PARTITIONS: Final = 8


class Storage(NamedTuple):
    """How a broker keeps what it has.

    Attributes:
        broker: The broker.
        persists: Whether that survives its restart.
        redis: Arguments of Redis.
        options: Options of the URL.
    """

    broker: str
    persists: bool
    redis: tuple[str, ...] = ()
    options: str = ""


STORAGES: Final = {
    "redis, AOF": Storage("redis", persists=True, redis=("--appendonly", "yes", "--appendfsync", "always")),
    "redis, nothing": Storage("redis", persists=False),
    "nats, file": Storage("nats", persists=True),
    "nats, memory": Storage("nats", persists=False, options="?history_storage=memory"),
    "kafka": Storage("kafka", persists=True),
}


@pytest.fixture
def storage(request: pytest.FixtureRequest) -> Storage:
    """The storage that the parameter names."""
    return STORAGES[request.param]


@pytest.fixture
def stored(request: pytest.FixtureRequest, storage: Storage) -> FaultTarget:
    """A private broker with this storage."""
    start = request.getfixturevalue(f"private_{storage.broker}")
    if storage.broker == "redis":
        return FaultTarget.of("redis", start(RedisConfig(arguments=storage.redis)))
    return FaultTarget.of(storage.broker, start(jetstream=True) if storage.broker == "nats" else start())


@pytest.mark.parametrize("end", ["kill -9", "stop"])
@pytest.mark.parametrize(
    ("storage", "times"),
    [
        *(pytest.param(name, 1, id=name, marks=full if name == "kafka" else ()) for name in STORAGES),
        *(pytest.param(name, 5, id=f"{name}, 5 times", marks=full) for name in STORAGES),
    ],
    indirect=["storage"],
)
async def test_a_broker_that_ends_and_comes_back(
    end: str, times: int, storage: Storage, stored: FaultTarget, record_kept: KeptCaseRecorder
) -> None:
    """With persistence nothing is missed and no gap is reported; without it each channel has one gap per end."""
    url = stored.url + storage.options
    async with running_kept(url, plain_lossless=stored.lossless) as workload:
        for _ in range(times):
            ended_at = asyncio.get_running_loop().time()
            if end == "stop":
                await asyncio.to_thread(stored.broker.stop)
            else:
                stored.broker.kill9()
            await workload.detected(ended_at)
            await stored.restart_broker()
            await workload.all_live()
            await workload.go_on(workload.publishers[1])
        await workload.recovered()
    result = workload.judge(gaps=0 if storage.persists else times, more_plain_gaps=workload.failed_openings)
    persistence = "kept" if storage.persists else "lost"
    record_kept(f"{end}, restart, history {persistence}, {times} times", stored.name, result)


# -- the broker runs and loses what it has kept ------------------------------------------------------------------------


@asynccontextmanager
async def redis_client(target: FaultTarget) -> AsyncGenerator[Any]:
    """A client of Redis, which bypasses the proxy."""
    async with Redis.from_url(target.broker.url) as client:
        yield client


async def delete_keys(target: FaultTarget, *ends: str) -> None:
    """Delete the keys of all histories that end so."""
    async with redis_client(target) as client:
        keys = [key async for key in client.scan_iter("*$backplane/*") if key.decode().endswith(ends)]
        assert len(keys) >= len(KEPT) * len(ends)
        await client.delete(*keys)


async def delete_log(target: FaultTarget) -> None:
    """Delete the messages."""
    await delete_keys(target, "/log")


async def delete_place(target: FaultTarget) -> None:
    """Delete the position and the epoch."""
    await delete_keys(target, "/place")


async def delete_both(target: FaultTarget) -> None:
    """Delete everything of the channels."""
    await delete_keys(target, "/place", "/log")


async def flush_all(target: FaultTarget) -> None:
    """FLUSHALL."""
    async with redis_client(target) as client:
        await client.flushall()


async def flush_scripts(target: FaultTarget) -> None:
    """SCRIPT FLUSH."""
    async with redis_client(target) as client:
        await client.script_flush()


async def delete_stream(target: FaultTarget) -> None:
    """Delete the stream, with its configuration."""
    client = await connect_nats(target.broker.url)
    try:
        streams = await client.jetstream().streams_info()
        names = [stream.config.name for stream in streams if stream.config.name]
        assert names
        for name in names:
            await client.jetstream().delete_stream(name)
    finally:
        await client.close()


async def purge_stream(target: FaultTarget) -> None:
    """Delete all messages of the stream."""
    client = await connect_nats(target.broker.url)
    try:
        for stream in await client.jetstream().streams_info():
            assert stream.config.name
            await client.jetstream().purge_stream(stream.config.name)
    finally:
        await client.close()


async def delete_records(target: FaultTarget) -> None:
    """Delete every record of the topic, as its retention does."""
    url, _, topic = target.broker.url.partition("?")
    topic = target.url.rpartition("topic=")[2]
    admin = AIOKafkaAdminClient(bootstrap_servers=url.removeprefix("kafka://"))
    await admin.start()
    try:
        described = await admin.describe_topics([topic])
        everything = [TopicPartition(topic, one["partition"]) for one in described[0]["partitions"]]
        await admin.delete_records({one: RecordsToDelete(-1) for one in everything})
    finally:
        await admin.close()


class Loss(NamedTuple):
    """A loss.

    Attributes:
        broker: At which broker.
        cause: Causes it.
        live: How many gaps a worker has whose link is live meanwhile.
        at_most: Or fewer: whether a worker had received what was deleted is up to the moment.
    """

    broker: str
    cause: Callable[[FaultTarget], Awaitable[None]]
    live: int
    at_most: bool = False


LOSSES: Final[dict[str, Loss]] = {
    # Live, each message still names the one before it.
    "log deleted": Loss("redis", delete_log, 0),
    "place deleted": Loss("redis", delete_place, 1),
    "place and log deleted": Loss("redis", delete_both, 1),
    "FLUSHALL": Loss("redis", flush_all, 1),
    "stream deleted": Loss("nats", delete_stream, 1),
    "stream purged": Loss("nats", purge_stream, 0),
    "records deleted": Loss("kafka", delete_records, 1, at_most=True),
}


@pytest.mark.parametrize("name", LOSSES)
async def test_a_history_that_is_lost_during_an_absence(
    name: str, request: pytest.FixtureRequest, record_kept: KeptCaseRecorder
) -> None:
    """Workers that were away meanwhile get one gap on each channel; one whose link is live where it cannot know."""
    loss = LOSSES[name]
    start = request.getfixturevalue(f"private_{loss.broker}")
    target = FaultTarget.of(loss.broker, start(jetstream=True) if loss.broker == "nats" else start())
    async with target.proxy, running_kept(target.proxy.url, target.url) as workload:
        beside = workload.publishers[1]
        cut_at = asyncio.get_running_loop().time()
        target.proxy.refuse()
        await workload.detected(cut_at)
        await workload.go_on(beside)
        await loss.cause(target)
        await workload.go_on(beside)
        target.proxy.heal()
        await workload.all_live()
        await workload.recovered()
    gaps = {one.name: 1 if one in workload.near else loss.live for one in workload.subscribers}
    result = workload.judge(gaps=gaps, at_most="d" if loss.at_most else "", more_plain_gaps=_PARTITIONS)
    record_kept(f"{name}, some workers away", target.name, result)


@pytest.mark.parametrize("name", LOSSES)
async def test_a_history_that_is_lost_under_live_links(
    name: str, request: pytest.FixtureRequest, record_kept: KeptCaseRecorder
) -> None:
    """Whether a worker can know that nothing is missing decides: then there is no gap, else exactly one."""
    loss = LOSSES[name]
    start = request.getfixturevalue(f"private_{loss.broker}")
    target = FaultTarget.of(loss.broker, start(jetstream=True) if loss.broker == "nats" else start())
    async with running_kept(target.url) as workload:
        await workload.go_on(workload.publishers[1])
        await loss.cause(target)
        await workload.go_on(workload.publishers[1])
        await workload.recovered()
    result = workload.judge(gaps=loss.live, at_most="acd" if loss.at_most else "", more_plain_gaps=_PARTITIONS)
    record_kept(f"{name}, links live", target.name, result)


async def test_scripts_that_are_lost(request: pytest.FixtureRequest, record_kept: KeptCaseRecorder) -> None:
    """No subscriber of a kept channel notices SCRIPT FLUSH, and no publish fails."""
    target = FaultTarget.of("redis", request.getfixturevalue("private_redis")())
    async with running_kept(target.url) as workload:
        for _ in range(3):
            await flush_scripts(target)
            await workload.go_on(workload.publishers[1])
        await workload.recovered()
    record_kept("SCRIPT FLUSH, 3 times", "redis", workload.judge(more_plain_gaps=workload.failed_openings))
