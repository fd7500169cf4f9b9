"""Clients that come back to channels on Kafka: the hub's joins, over the adapter that continues where it was."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false
# aiokafka has no types.

from __future__ import annotations

import asyncio
import random
import uuid
from typing import TYPE_CHECKING, Final

import pytest
from aiokafka import TopicPartition  # type: ignore[import-untyped]
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete  # type: ignore[import-untyped]

from backplane import Backlog, Backplane, Gap, History, Message, Settings
from tests.brokers.kafka import KafkaProcess
from tests.brokers.kafka_topic import topic_proxy, topic_url
from tests.integration.test_kafka_history import producer

if TYPE_CHECKING:
    from backplane import Subscription
    from backplane.testing import FaultProxy
    from tests.brokers.broker import Broker
    from tests.conftest import StartKafka

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

HISTORY: Final = {"room*": History(max_messages=5_000)}
SETTINGS: Final = Settings(
    publish_timeout_seconds=60,
    subscribe_timeout_seconds=60,
    recall_timeout_seconds=10,
    max_backoff_seconds=0.2,
    linger_seconds=0.02,
)
ROOMY: Final = Backlog(max_messages=50_000, max_bytes=64 * 1024 * 1024)
VISITORS, VISITS = 10, 11


@pytest.fixture
def topic() -> str:
    """A topic of the test's own, not created."""
    return f"resume-{uuid.uuid4()}"


@pytest.fixture
def url(kafka_broker: Broker, topic: str) -> str:
    """The URL of the topic, with one partition, at the shared broker."""
    return topic_url(kafka_broker, topic, "&partitions=1")


@pytest.fixture
def proxy(kafka_broker: Broker, topic: str) -> FaultProxy:
    """A proxy at the address that one of the listeners advertises."""
    return topic_proxy(kafka_broker, topic, "&partitions=1")


def backplane(url: str) -> Backplane:
    """Return a worker."""
    return Backplane(url, history=HISTORY, settings=SETTINGS)


async def data_of(messages: Subscription, count: int) -> list[object]:
    """Return the data of the next messages; a gap fails the test."""
    async with asyncio.timeout(30):
        items = [await anext(messages) for _ in range(count)]
    assert [item for item in items if isinstance(item, Gap)] == []
    return [item.data for item in items if isinstance(item, Message)]


async def position_of(worker: Backplane, channel: str) -> str:
    """Visit a channel, and return its position."""
    async with worker.subscribe(channel) as messages:
        return str(messages.position(channel))


async def noise(worker: Backplane) -> None:
    """Publish more to the partition than is read back."""
    for _ in range(20):
        await worker.publish("noise", bytes(900_000))


@pytest.mark.parametrize("missed", [0, 2])
@pytest.mark.parametrize("after", ["a message", "a transaction", "an empty message"])
async def test_a_quiet_channel_is_resumed_on_another_worker(url: str, topic: str, missed: int, after: str) -> None:
    """A channel whose newest message is too far back to be found: a client gets what it missed, and no gap.

    By a worker that has just started, by one that knows the newest message, and by the one that it was connected to.
    """
    async with backplane(url) as publisher, backplane(url) as knowing, knowing.subscribe("room") as known:
        old = await publisher.publish("room", "old")
        assert await data_of(known, 1) == ["old"]
        await noise(publisher)
        await publish_last(publisher, topic, url, after)
        async with backplane(url) as first:
            position = await position_of(first, "room")
            assert position != str(old.position)
            await publisher.publish("noise", b"another end of the partition")
            expected = [f"missed {number}" for number in range(missed)]
            for text in expected:
                await publisher.publish("room", text)
            async with backplane(url) as fresh:
                for worker in (fresh, knowing, first):
                    for _ in range(2):
                        async with worker.subscribe("room", since=position) as messages:
                            assert await data_of(messages, missed) == expected
                            live = await publisher.publish("room", "live")
                            assert await data_of(messages, 1) == ["live"]
                            assert messages.position("room") == live.position
                        expected.append("live")
                        missed += 1
                    assert worker.statistics().resumed == 2
                    assert worker.statistics().not_resumed == 0


async def publish_last(worker: Backplane, topic: str, url: str, after: str) -> None:
    """Let the log end with something that has another checksum."""
    if after == "an empty message":
        await worker.publish("noise", b"")
    elif after == "a transaction":
        async with producer(url, transactional_id=topic) as foreign, foreign.transaction():
            await foreign.send_and_wait(topic, b"x", key=b"noise")


async def test_joins_meet_the_live_messages_across_a_kill_of_the_broker(private_kafka: StartKafka) -> None:
    """While messages are published, 110 joins on two workers have no hole, no repetition and no gap.

    The broker is killed in between, and started again.
    """
    broker = private_kafka()
    if not isinstance(broker, KafkaProcess):
        pytest.skip("this Kafka cannot be killed")
    url = f"{broker.url}?partitions=2"
    async with backplane(url) as publisher, backplane(url) as one, backplane(url) as two:
        published, visits = 0, 0
        half, all_visited = asyncio.Event(), asyncio.Event()

        async def publish() -> None:
            nonlocal published
            while not all_visited.is_set():
                receipt = await publisher.publish("room", str(published))
                assert receipt.position is not None
                published += 1
                await asyncio.sleep(0.001)

        async def visit(seed: int) -> None:
            nonlocal visits
            choose, received, since = random.Random(seed), list[int](), ""
            for _ in range(VISITS):
                worker, rewind = choose.choice((one, two)), choose.choice((0, 1, 50))
                first = not received
                async with worker.subscribe("room", since=since, rewind=rewind, backlog=ROOMY) as messages:
                    until = published + choose.randint(0, 20)
                    while not received or received[-1] < until:
                        received += [int(str(data)) for data in await data_of(messages, 1)]
                    since = str(messages.position("room"))
                assert not first or len(received) > rewind or received[0] == 0
                visits += 1
                if visits == VISITORS * VISITS // 2:
                    half.set()
                await asyncio.sleep(choose.random() * 0.02)
            assert received == list(range(received[0], received[-1] + 1))

        async def kill() -> None:
            await half.wait()
            broker.kill9()
            await one.wait_for_state("degraded")
            broker.launch()
            await asyncio.to_thread(broker.wait_until_up)

        async with asyncio.timeout(100), asyncio.TaskGroup() as group:
            group.create_task(publish())
            group.create_task(kill())
            async with asyncio.TaskGroup() as visitors:
                for seed in range(VISITORS):
                    visitors.create_task(visit(seed))
            all_visited.set()
        statistics = [worker.statistics() for worker in (one, two)]
        assert sum(each.resumed for each in statistics) == VISITORS * (VISITS - 1)
        assert [(each.gaps, each.not_resumed) for each in statistics] == [(0, 0), (0, 0)]
        assert [(await worker.health()).generation for worker in (one, two)] != [1, 1]


async def test_nothing_is_given_back_across_a_gap(proxy: FaultProxy, url: str, topic: str) -> None:
    """Where the log has lost messages, subscribers get one gap, and so does a client with a position before it."""
    async with backplane(url) as publisher, proxy, backplane(proxy.url) as worker:
        async with worker.subscribe("room") as messages:
            first = await publisher.publish("room", "first")
            assert await data_of(messages, 1) == ["first"]
            async with worker.subscribe("room", rewind=10) as filled:
                assert await data_of(filled, 1) == ["first"]
            proxy.refuse()
            await worker.wait_for_state("degraded")
            for text in ("lost 1", "lost 2", "third"):
                await publisher.publish("room", text)
            admin = AIOKafkaAdminClient(bootstrap_servers=url.partition("//")[2].partition("?")[0])
            await admin.start()
            await admin.delete_records({TopicPartition(topic, 0): RecordsToDelete(3)})
            await admin.close()
            proxy.heal()
            assert isinstance(await anext(messages), Gap)
            assert await data_of(messages, 1) == ["third"]
            for since, rewind, expected in ((str(first.position), 0, []), (str(first.position), 10, ["third"])):
                async with worker.subscribe("room", since=since, rewind=rewind) as again:
                    assert isinstance(await anext(again), Gap)
                    assert await data_of(again, len(expected)) == expected
            async with worker.subscribe("room", rewind=10) as newest:
                assert await data_of(newest, 1) == ["third"]
            await publisher.publish("room", "live")
            assert await data_of(messages, 1) == ["live"]
        assert worker.statistics().gaps == 1
