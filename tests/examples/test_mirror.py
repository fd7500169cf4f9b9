"""examples/mirror: messages of other services, on real brokers, through restarts, and what can be wrong in them."""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import uuid4

import aiomqtt
import nats
import pytest
from aiokafka import AIOKafkaProducer, TopicPartition  # type: ignore[import-untyped]
from aiokafka.admin import AIOKafkaAdminClient, NewTopic, RecordsToDelete  # type: ignore[import-untyped]
from redis.asyncio import Redis

from backplane import (
    Backplane,
    BrokerError,
    BrokerUnavailableError,
    CloseCode,
    Gap,
    PublishError,
    PublishOutcomeUnknownError,
    Settings,
)
from tests.brokers.broker import ProcessBroker
from tests.brokers.kafka_topic import topic_url
from tests.brokers.redis import RedisConfig
from tests.examples.example_server import SECONDS, received_close_code, running

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from backplane import Message, Subscription
    from examples.mirror.mirror import Item, Source
    from tests.brokers.broker import Broker
    from tests.brokers.mosquitto import MosquittoProcess
    from tests.conftest import StartKafka, StartNats, StartRedis

    Publish = Callable[[str, bytes], Awaitable[None]]

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

# A loaded machine may need long to connect.
SETTINGS = Settings(start_timeout_seconds=60, subscribe_timeout_seconds=60, publish_timeout_seconds=60)


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """One event loop is enough: the client libraries run on both."""
    return "asyncio", {"use_uvloop": False}


async def received(subscription: Subscription) -> Message | Gap:
    """Return the next message or gap."""
    async with asyncio.timeout(SECONDS):
        return await anext(subscription)


async def data_of(subscription: Subscription) -> object:
    """Return the data of the next message."""
    item = await received(subscription)
    assert not isinstance(item, Gap), item
    return item.data


async def restart(broker: Broker) -> None:
    """Kill a broker, and start it again."""
    assert isinstance(broker, ProcessBroker)
    broker.kill9()
    broker.launch()
    await asyncio.to_thread(broker.wait_until_up)


@asynccontextmanager
async def mirrored(source: Source, *channels: str, **options: Any) -> AsyncGenerator[tuple[Backplane, Subscription]]:
    """Run a local mirror, and subscribe to channels of it."""
    from examples.mirror.mirror import LocalMirror

    async with (
        Backplane(LocalMirror(source, **options), settings=SETTINGS) as feed,
        feed.subscribe(*channels) as messages,
    ):
        yield feed, messages


async def check_restart(broker: Broker, source: Source, name: str, publish: Publish, expected: list[str]) -> None:
    """Messages arrive, a restart of the broker is a gap that names the source, and messages arrive after it."""
    async with mirrored(source, name, "another") as (_, messages):
        await publish(name, b"one")
        assert await data_of(messages) == expected[0]
        await restart(broker)
        gaps = [await received(messages) for _ in range(2)]
        assert {gap.channel for gap in gaps} == {name, "another"}
        for gap in gaps:
            assert isinstance(gap, Gap)
            assert str(source) in gap.reason
        await publish(name, b"two")
        assert await data_of(messages) == expected[1]


async def test_nats_subjects(private_nats: StartNats) -> None:
    """A tree of subjects; each subject is a channel."""
    from examples.mirror.nats_subjects import nats_subjects

    broker = private_nats()

    async def publish(name: str, payload: bytes) -> None:
        client: Any = await nats.connect(broker.url)  # pyright: ignore[reportUnknownMemberType]
        await client.publish("other.eur", b"not in the tree")
        await client.publish(name, payload)
        await client.close()

    await check_restart(broker, nats_subjects(broker.url, "prices.>"), "prices.fx.eur", publish, ["one", "two"])


async def test_a_refused_nats_subject(private_nats: StartNats) -> None:
    """A subject that the server refuses is an error of the start, and names the source."""
    from examples.mirror.mirror import LocalMirror
    from examples.mirror.nats_subjects import nats_subjects

    users = 'authorization {users = [{user: ada, password: secret, permissions: {subscribe: ["public.>"]}}]}'
    broker = private_nats(users, login="ada:secret")
    feed = Backplane(LocalMirror(nats_subjects(broker.url, "prices.>")), settings=SETTINGS)
    with pytest.raises(BrokerError, match=r"prices\.> of nats://ada:\*\*\*@.*permissions violation"):
        await feed.start()


async def test_mqtt_topics(mosquitto: MosquittoProcess) -> None:
    """Topics with a wildcard; each topic is a channel."""
    from examples.mirror.mqtt_topics import mqtt_topics

    async def publish(name: str, payload: bytes) -> None:
        async with aiomqtt.Client("127.0.0.1", mosquitto.port) as client:
            await client.publish(name, payload, qos=1)

    await check_restart(mosquitto, mqtt_topics(mosquitto.url, "sensors/#"), "sensors/1/warmth", publish, ["one", "two"])


async def test_a_refused_mqtt_topic() -> None:
    """A topic that the broker refuses is an error of the start, and names the source."""
    from examples.mirror.mirror import LocalMirror
    from examples.mirror.mqtt_topics import mqtt_topics

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while header := await reader.read(2):
            packet = await reader.readexactly(header[1])
            answers = {0x10: b"\x20\x02\0\0", 0x82: b"\x90\x03" + packet[:2] + b"\x80"}
            writer.write(answers.get(header[0], b""))
        writer.close()

    # A Mosquitto refuses a subscription only by its plugins.
    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        feed = Backplane(LocalMirror(mqtt_topics(f"mqtt://127.0.0.1:{port}", "secret/#")), settings=SETTINGS)
        with pytest.raises(BrokerError, match=r"secret/# of mqtt://.* refused the topic"):
            await feed.start()


def redis_of(url: str) -> Any:
    """Return a client."""
    return Redis.from_url(url)  # pyright: ignore[reportUnknownMemberType]


async def test_redis_keyspace(private_redis: StartRedis) -> None:
    """Events of keys; each key is a channel. A connection that Redis ends is a gap too, although redis-py hides it."""
    from examples.mirror.redis_keyspace import redis_keyspace

    broker = private_redis(RedisConfig(arguments=("--notify-keyspace-events", "KA")))
    source = redis_keyspace(f"{broker.url}/2", "session:*")

    async def change(name: str, payload: bytes) -> None:
        async with redis_of(f"{broker.url}/2") as client:
            await (client.set(name, payload) if payload == b"one" else client.hset(name, "field", payload))

    await check_restart(broker, source, "session:1", change, ["set", "hset"])
    async with mirrored(source, "session:2") as (_, messages):
        async with redis_of(broker.url) as client:
            assert await client.client_kill_filter(_type="pubsub") == 1
        assert isinstance(await received(messages), Gap)
        await change("session:2", b"one")
        assert await data_of(messages) == "set"


async def test_redis_without_events(private_redis: StartRedis) -> None:
    """A Redis that publishes no events of keys is an error of the start, at once, which names the setting."""
    from examples.mirror.mirror import LocalMirror
    from examples.mirror.redis_keyspace import redis_keyspace

    broker = private_redis()
    mirror = LocalMirror(redis_keyspace(broker.url))
    with pytest.raises(BrokerError, match="set notify-keyspace-events to KA"):
        await Backplane(mirror, settings=SETTINGS).start()
    # Set while it runs, and lost with a restart: the mirror tries until it is set again.
    await set_events(broker.url)
    async with Backplane(mirror, settings=SETTINGS) as feed, feed.subscribe("key") as messages:
        await restart(broker)
        async with redis_of(broker.url) as client, asyncio.timeout(SECONDS):
            while "cmdstat_config|get" not in await client.info("commandstats"):  # it has asked, and got no
                await asyncio.sleep(0.01)
        await set_events(broker.url)
        assert isinstance(await received(messages), Gap)
        async with redis_of(broker.url) as client:
            await client.set("key", 1)
        assert await data_of(messages) == "set"


async def set_events(url: str) -> None:
    """Make a Redis publish all events of keys."""
    async with redis_of(url) as client:
        await client.config_set("notify-keyspace-events", "KA")


@asynccontextmanager
async def kafka_of(broker: Broker, topic: str) -> AsyncGenerator[tuple[Any, Any]]:
    """Create a topic of one partition, and return a producer and an administrator."""
    servers = urlsplit(topic_url(broker, topic)).netloc  # skips where this is no real Kafka
    producer: Any = AIOKafkaProducer(bootstrap_servers=servers)
    admin: Any = AIOKafkaAdminClient(bootstrap_servers=servers)
    async with producer, AsyncExitStack() as stack:
        stack.push_async_callback(admin.close)
        await admin.start()
        await admin.create_topics([NewTopic(topic, 1, 1)])
        yield producer, admin


async def test_kafka_topic(kafka_broker: Broker) -> None:
    """Every worker gets the records from now on, by their keys."""
    from examples.mirror.kafka_topic import kafka_topic

    async with kafka_of(kafka_broker, topic := f"prices-{uuid4()}") as (producer, _):
        await producer.send_and_wait(topic, b"old", key=b"eur")
        async with mirrored(kafka_topic(kafka_broker.url, topic), "eur") as (_, messages):
            for key, value in ((None, b"no key"), (b"\xff", b"no text"), (b"usd", b"another"), (b"eur", b"new")):
                await producer.send_and_wait(topic, value, key=key)
            await producer.send_and_wait(topic, None, key=b"eur")
            assert [await data_of(messages) for _ in range(2)] == ["new", "null"]


async def test_a_kafka_group(private_kafka: StartKafka) -> None:
    """A group goes on where it was, after a restart of Kafka and of its reader; what was deleted is reported."""
    from examples.mirror.kafka_topic import kafka_topic
    from examples.mirror.mirror import shared_mirror

    broker, topic, reported = private_kafka(), "orders", list[str]()

    async def on_missing(reason: str) -> None:
        reported.append(reason)

    async with (
        kafka_of(broker, topic) as (producer, admin),
        Backplane("memory://") as backplane,
        backplane.subscribe("42") as messages,
    ):
        source = kafka_topic(broker.url, topic, group="pages")

        async def send(value: bytes) -> None:
            await producer.send_and_wait(topic, value, key=b"42")

        async def receive(*values: str) -> None:
            for value in values:
                while (data := await data_of(messages)) != value:
                    assert data in {"1", "2", "3"}, data  # at least once: the last one that was passed on

        await send(b"1")
        async with shared_mirror(backplane, source, on_missing=on_missing):
            await receive("1")
            await restart(broker)
            await send(b"2")
            await receive("2")
        await send(b"3")
        async with shared_mirror(backplane, source, on_missing=on_missing):
            await receive("3")
        assert not reported
        await send(b"4")
        await send(b"5")
        await admin.delete_records({TopicPartition(topic, 0): RecordsToDelete(before_offset=4)})
        async with shared_mirror(backplane, source, on_missing=on_missing):
            await receive("5")
        assert len(reported) == 1
        assert "were deleted before they were read" in reported[0]


async def test_live_pages(private_nats: StartNats, tmp_path: Path) -> None:
    """The program: two workers that share nothing each read NATS, and close their pages with 4000 at a restart."""
    broker = private_nats()
    variables = {"FEED": broker.url, "FEED_TOPIC": "prices.>"}
    command = [sys.executable, "-m", "uvicorn", "mirror.live:app", "--port", "{port}"]
    with ExitStack() as stack:
        servers = [
            stack.enter_context(running(command, tmp_path, broker_url="memory://", environment=variables))
            for _ in range(2)
        ]
        pages = [stack.enter_context(server.connect("/live/prices.eur")) for server in servers]
        client: Any = await nats.connect(broker.url)  # pyright: ignore[reportUnknownMemberType]
        await client.publish("prices.eur", b"1.08")
        await client.close()
        assert [page.recv(timeout=SECONDS) for page in pages] == ["1.08"] * 2
        await restart(broker)
        assert [received_close_code(page) for page in pages] == [CloseCode.MESSAGES_MISSED] * 2


async def test_order_pages(private_kafka: StartKafka, tmp_path: Path, ipc_url: str) -> None:
    """The program: of two workers one reads a record, and the pages of both receive it."""
    broker = private_kafka()  # on the shared one another test expects no consumer group
    async with kafka_of(broker, topic := "orders") as (producer, _):
        variables = {"KAFKA": broker.url}
        command = [sys.executable, "-m", "uvicorn", "mirror.orders:app", "--port", "{port}"]
        with ExitStack() as stack:
            servers = [
                stack.enter_context(running(command, tmp_path, broker_url=ipc_url, environment=variables))
                for _ in range(2)
            ]
            pages = [stack.enter_context(server.connect("/orders/42")) for server in servers]
            await producer.send_and_wait(topic, b"no key")
            await producer.send_and_wait(topic, b'{"state": "shipped"}', key=b"42")
            assert [page.recv(timeout=SECONDS) for page in pages] == ['{"state": "shipped"}'] * 2


class Played:
    """A source that a test plays: each connection has a queue of items and, last, the error that ends it."""

    def __init__(self, *, resumes: bool = False) -> None:
        self.connections: asyncio.Queue[asyncio.Queue[Item | Exception | None]] = asyncio.Queue()
        self.closed = 0
        self.resumes = resumes

    @property
    def source(self) -> Source:
        """The source, for a mirror."""
        from examples.mirror.mirror import Source

        return Source(url="played://ada:secret@there", topic="t", read=self._read, resumes=self.resumes)

    async def connected(self) -> asyncio.Queue[Item | Exception | None]:
        """Wait for the next connection, and return its queue."""
        async with asyncio.timeout(SECONDS):
            return await self.connections.get()

    @asynccontextmanager
    async def _read(self) -> AsyncGenerator[AsyncIterator[Item]]:
        items: asyncio.Queue[Item | Exception | None] = asyncio.Queue()
        self.connections.put_nowait(items)
        try:
            yield self.items(items)
        finally:
            self.closed += 1

    async def items(self, items: asyncio.Queue[Item | Exception | None]) -> AsyncIterator[Item]:
        """Iterate over what is put into a queue."""
        while (item := await items.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item


async def test_payloads_and_bad_messages(caplog: pytest.LogCaptureFixture) -> None:
    """Bytes that are text, other bytes, text and JSON arrive; what cannot be passed on is skipped, and logged."""
    from examples.mirror.mirror import Missing

    played = Played()

    def channel(name: str) -> str | None:
        return None if name == "skipped" else {"a": "a", "wrong": 7}[name]  # type: ignore[return-value]

    async with mirrored(played.source, "a", channel=channel) as (_, messages):
        items = await played.connected()
        for payload in ("é".encode(), b"\xff\0", "text", {"id": 1}, None, b"", object(), b"last"):
            items.put_nowait(("a", payload))
        for name in ("skipped", "unknown", "unknown", "unknown", "wrong"):
            items.put_nowait((name, b"lost"))
        items.put_nowait(Missing("an overrun"))
        items.put_nowait(("a", b"\xbfBP\1 forged"))  # would be a header: dropped by the core, and counted
        items.put_nowait(("a", b"end"))
        expected = ["é", b"\xff\0", "text", '{"id": 1}', "null", "", "last"]
        assert [await data_of(messages) for _ in expected] == expected
        gap = await received(messages)
        assert isinstance(gap, Gap)
        assert gap.reason == "t of played://ada:***@there: an overrun"
        assert await data_of(messages) == "end"
    skips = [record.getMessage() for record in caplog.records if record.name == "mirror"]
    assert [line.partition("(")[2][0] for line in skips] == ["1", "2", "4"]
    assert "secret" not in caplog.text


async def test_patterns() -> None:
    """The application's own consumers can subscribe to a pattern of what a local mirror delivers."""
    played = Played()
    async with mirrored(played.source, "prices.*", "other") as (_, messages):
        items = await played.connected()
        for name in ("sizes.eur", "prices.eur", "other", "$backplane/forged", "prices.usd"):
            items.put_nowait((name, name.encode()))
        assert [await data_of(messages) for _ in range(3)] == ["prices.eur", "other", "prices.usd"]


async def test_no_publish_to_a_local_mirror() -> None:
    """A publish is refused, as the messages belong to others."""
    async with mirrored(Played().source, "a") as (feed, _):
        with pytest.raises(PublishError, match="only reads"):
            await feed.publish("a", 1)


@pytest.mark.parametrize("end", [None, OSError("cut")])
async def test_a_local_mirror_goes_on(end: Exception | None) -> None:
    """A source that ends or fails is opened again, each time closed before; the stop closes the last one."""
    played = Played()
    async with mirrored(played.source, "a") as (_, messages):
        for round_number in range(3):
            items = await played.connected()
            assert played.closed == round_number
            if round_number:
                assert isinstance(await received(messages), Gap)
            items.put_nowait(("a", str(round_number)))
            items.put_nowait(end if round_number < 2 else ("a", "last"))
            assert await data_of(messages) == str(round_number)
        assert await data_of(messages) == "last"
    assert played.closed == 3


async def test_a_start_that_is_given_up() -> None:
    """A source that cannot be opened within the start's time is an error, and nothing of it is left."""
    from examples.mirror.mirror import LocalMirror, Source

    ended = asyncio.Event()

    @asynccontextmanager
    async def never() -> AsyncGenerator[AsyncIterator[Item]]:
        try:
            await asyncio.Event().wait()
            yield Played().items(asyncio.Queue())
        finally:
            ended.set()

    mirror = LocalMirror(Source(url="played://there", topic="t", read=never))
    with pytest.raises(BrokerError):
        await Backplane(mirror, settings=Settings(start_timeout_seconds=0.2)).start()
    assert ended.is_set()


class Failing(Backplane):
    """A backplane whose next publishes fail."""

    def __init__(self) -> None:
        super().__init__("memory://")
        self.failures: list[Exception] = []
        self.attempts: list[tuple[str, object]] = []

    async def publish(self, channel: str, data: object, **options: Any) -> Any:
        """Fail, or publish."""
        self.attempts.append((channel, data))
        if self.failures:
            raise self.failures.pop(0)
        return await super().publish(channel, data, **options)


@asynccontextmanager
async def shared(played: Played, **options: Any) -> AsyncGenerator[tuple[Failing, Subscription]]:
    """Run a shared mirror, and subscribe."""
    from examples.mirror.mirror import shared_mirror

    async with (
        Failing() as backplane,
        backplane.subscribe("a") as messages,
        shared_mirror(backplane, played.source, **options),
    ):
        yield backplane, messages


async def test_a_shared_mirror_keeps_the_order() -> None:
    """What the broker does not get is published again before the next; what it refuses is skipped."""
    async with shared(played := Played()) as (backplane, messages):
        items = await played.connected()
        backplane.failures = [
            BrokerUnavailableError("away"),
            PublishOutcomeUnknownError("cut"),
            BrokerUnavailableError(""),
        ]
        items.put_nowait(("a", b"one"))
        items.put_nowait(("a", b"two"))
        assert [await data_of(messages) for _ in range(2)] == ["one", "two"]
        backplane.failures = [PublishError("refused")]
        items.put_nowait(("a", b"refused"))
        items.put_nowait(("$backplane/control", b"forged"))
        items.put_nowait(("a" * 300, b"too long"))
        items.put_nowait(("a", {"id": 3}))
        assert await data_of(messages) == '{"id":3}'
        assert [data for _, data in backplane.attempts] == [
            *["one"] * 4,
            "two",
            "refused",
            "forged",
            "too long",
            {"id": 3},
        ]
    assert played.closed == 1


async def test_what_a_shared_mirror_may_have_missed_is_reported() -> None:
    """After a lost connection `on_missing` is called, again if it fails, and before the next message."""
    from examples.mirror.mirror import Missing

    reported: list[str] = []
    failures: list[Exception] = [BrokerUnavailableError("away")]

    async def on_missing(reason: str) -> None:
        if failures:
            raise failures.pop()
        reported.append(reason)

    async with shared(played := Played(), on_missing=on_missing) as (_, messages):
        (await played.connected()).put_nowait(OSError("cut"))
        await played.connected()  # ends by the failure of `on_missing`
        items = await played.connected()
        items.put_nowait(("a", b"one"))
        assert await data_of(messages) == "one"
        assert reported == ["t of played://ada:***@there: the connection was lost"]
        failures.append(BrokerUnavailableError("away"))
        items.put_nowait(Missing("an overrun"))
        items = await played.connected()
        items.put_nowait(("a", b"two"))
        assert await data_of(messages) == "two"
        assert reported[1:] == ["t of played://ada:***@there: an overrun"]


async def test_a_source_that_resumes_has_missed_nothing() -> None:
    """A lost connection of a source that resumes is not reported."""
    reported: list[str] = []

    async def on_missing(reason: str) -> None:
        reported.append(reason)

    async with shared(played := Played(resumes=True), on_missing=on_missing) as (_, messages):
        (await played.connected()).put_nowait(None)
        (await played.connected()).put_nowait(("a", b"one"))
        assert await data_of(messages) == "one"
    assert not reported


async def test_a_shared_mirror_ends_with_its_backplane() -> None:
    """A backplane that is stopped first ends the task, which is not tried again."""
    async with shared(played := Played()) as (backplane, _):
        items = await played.connected()
        await backplane.stop()
        items.put_nowait(("a", b"one"))
        async with asyncio.timeout(SECONDS):
            while not played.closed:
                await asyncio.sleep(0)
    assert played.connections.empty()
