"""What is particular to Kafka: refusals at the start, foreign records, resuming after outages, changes of the topic."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportArgumentType=false
# aiokafka has no types.

from __future__ import annotations

import asyncio
import logging
import uuid
from contextlib import asynccontextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition  # type: ignore[import-untyped]
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic, RecordsToDelete  # type: ignore[import-untyped]

from backplane import (
    Backplane,
    BrokerAuthenticationError,
    BrokerError,
    BrokerUnavailableError,
    ConfigurationError,
    Gap,
    Message,
    PublishError,
    PublishOutcomeUnknownError,
    Settings,
)
from backplane.registry import broadcaster_from_url
from backplane.testing import FaultProxy, RecordingSink
from tests.brokers.kafka import KafkaConfig, KafkaProcess
from tests.brokers.kafka import private_kafka as another_kafka
from tests.brokers.kafka_stand_in import KafkaStandIn
from tests.brokers.process import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    from backplane import Subscription
    from tests.brokers.broker import Broker
    from tests.conftest import StartKafka

pytestmark = pytest.mark.anyio

_QUICK = Settings(max_backoff_seconds=0.2, publish_timeout_seconds=30)


@pytest.fixture
def topic() -> str:
    """A topic of the test's own, not created."""
    return f"test-{uuid.uuid4()}"


@pytest.fixture
def url(kafka_broker: Broker, topic: str) -> str:
    """Where it is."""
    if isinstance(kafka_broker, KafkaStandIn):
        pytest.skip("what is particular to Kafka needs a real one")
    return f"{kafka_broker.url}?topic={topic}"


@pytest.fixture
def proxy(kafka_broker: Broker, topic: str) -> FaultProxy:
    """In front of the listener whose clients are told to come here."""
    if not isinstance(kafka_broker, KafkaProcess):
        pytest.skip("a proxy is of no use where the broker tells its clients another address")
    return FaultProxy(f"{kafka_broker.proxied_url}?topic={topic}", port=kafka_broker.proxy_port)


async def test_a_broker_that_is_down_fails_the_start(caplog: pytest.LogCaptureFixture) -> None:
    """With no broker there, start raises within five seconds, says where it looked, and shows no password."""
    started = monotonic()
    settings = Settings(start_timeout_seconds=0.5)
    with caplog.at_level(logging.DEBUG), pytest.raises(BrokerUnavailableError) as raised:
        await Backplane(f"kafka://alice:hunter2@127.0.0.1:{free_port()}", settings=settings).start()
    assert monotonic() - started < 5
    assert "kafka://alice:***@127.0.0.1:" in str(raised.value)
    assert "hunter2" not in repr(raised.value) + caplog.text


async def test_a_worker_starts_in_well_under_a_second(url: str) -> None:
    """With the topic there, start, subscribe, and a message there and back take less than a second together."""
    async with Backplane(url):
        pass
    started = monotonic()
    async with Backplane(url) as backplane, backplane.subscribe("room") as messages:
        await backplane.publish("room", "hello")
        assert await _texts(messages, 1) == ["hello"]
        assert monotonic() - started < 1


@pytest.mark.parametrize("first", ["127.0.0.1:1,", ""])
async def test_any_server_of_the_url_will_do(url: str, first: str) -> None:
    """A server that is down does not matter while another one of the URL answers."""
    async with Backplane(url.replace("kafka://", f"kafka://{first}")):
        pass


@pytest.fixture(scope="module")
def guarded(kafka_broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A Kafka with a login, which grants nothing to anyone but `admin`."""
    if not isinstance(kafka_broker, KafkaProcess):
        pytest.skip("this Kafka cannot be set up")
    config = KafkaConfig(users={"alice": "secret", "admin": "secret"}, administrators=("admin",))
    with another_kafka(config, tmp_path_factory.mktemp("kafka"), print) as broker:
        yield broker


@pytest.mark.parametrize("login", ["alice:hunter2@", "nobody:hunter2@", "alice@"])
async def test_a_wrong_password_fails_the_start_at_once(
    guarded: Broker, login: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A wrong password, or user, raises `BrokerAuthenticationError` in one try and shows no password."""
    with caplog.at_level(logging.DEBUG), pytest.raises(BrokerAuthenticationError) as raised:
        await Backplane(guarded.url.replace("kafka://", f"kafka://{login}")).start()
    assert raised.value.retriable is False
    assert "hunter2" not in str(raised.value) + caplog.text
    assert raised.value.__cause__ is not None


async def test_a_mechanism_the_broker_does_not_offer_is_named(guarded: Broker) -> None:
    """A login by another mechanism than the broker's raises `BrokerAuthenticationError` and names it."""
    url = guarded.url.replace("kafka://", "kafka://alice:secret@")
    with pytest.raises(BrokerAuthenticationError, match="no login by SCRAM-SHA-256"):
        await Backplane(f"{url}?sasl_mechanism=SCRAM-SHA-256").start()


async def test_a_user_who_may_not_use_the_topic_is_told(guarded: Broker) -> None:
    """A login without rights raises at once and says what to grant."""
    async with _backplane(guarded, "admin"):
        pass
    with pytest.raises(BrokerError, match="not authorized for topic 'backplane': grant") as raised:
        async with _backplane(guarded, "alice"):
            pass
    assert raised.value.retriable is False


async def test_a_login_that_is_right_passes_messages(guarded: Broker) -> None:
    """With the right password a message goes there and back."""
    async with _backplane(guarded, "admin") as backplane, backplane.subscribe("room") as messages:
        await backplane.publish("room", "hello")
        assert await _texts(messages, 1) == ["hello"]


async def test_tls(kafka_broker: Broker, private_kafka: StartKafka) -> None:
    """Over TLS a message goes there and back; a certificate that is not trusted is refused without a second try."""
    if not isinstance(kafka_broker, KafkaProcess):
        pytest.skip("this Kafka cannot be set up")
    url = private_kafka(KafkaConfig(tls=True)).url
    async with Backplane(url) as backplane, backplane.subscribe("room") as messages:
        await backplane.publish("room", "hello")
        assert await _texts(messages, 1) == ["hello"]
    with pytest.raises(BrokerError, match="not trusted") as raised:
        await Backplane(f"{url.partition('?')[0]}?tls=true").start()
    assert raised.value.retriable is False
    with pytest.raises(BrokerError, match="files of TLS"):
        await Backplane(f"{url.partition('?')[0]}?tls=true&ssl_ca_certs=nowhere.pem").start()


async def test_a_missing_topic_is_not_created_against_the_will(url: str, topic: str) -> None:
    """With `create_topic=false` a missing topic raises at once, says what to do, and is not created."""
    with pytest.raises(BrokerError, match="does not exist: create it, or set create_topic=true") as raised:
        await Backplane(f"{url}&create_topic=false").start()
    assert raised.value.retriable is False
    async with _admin(url) as admin:
        assert topic not in await admin.list_topics()


async def test_a_topic_is_created_as_told(url: str, topic: str) -> None:
    """The topic gets as many partitions as the option says; ten processes that start at once do not quarrel."""
    backplanes = [Backplane(f"{url}&partitions=3&replication_factor=1") for _ in range(10)]
    await asyncio.gather(*(backplane.start() for backplane in backplanes))
    await asyncio.gather(*(backplane.stop() for backplane in backplanes))
    async with _admin(url) as admin:
        (found,) = await admin.describe_topics([topic])
        assert len(found["partitions"]) == 3


async def test_a_topic_that_cannot_be_created_says_why(url: str) -> None:
    """More replicas than there are brokers raise in the broker's own words."""
    with pytest.raises(BrokerError, match=r"cannot be created: .*replication factor"):
        await Backplane(f"{url}&replication_factor=3").start()


async def test_a_message_over_the_limit_of_the_topic_is_refused(url: str, topic: str) -> None:
    """What the topic does not take raises `PublishError` for its publisher alone; the link and the order go on."""
    async with _admin(url) as admin:
        await admin.create_topics([NewTopic(topic, 1, 1, topic_configs={"max.message.bytes": "2000"})])
    async with Backplane(url) as backplane, backplane.subscribe("room") as messages:
        for number in range(3):
            with pytest.raises(PublishError, match="MessageSizeTooLarge") as raised:
                await backplane.publish("room", bytes(3000))
            assert not isinstance(raised.value, PublishOutcomeUnknownError)
            await backplane.publish("room", f"fits {number}")
        assert await _texts(messages, 3) == ["fits 0", "fits 1", "fits 2"]
        assert backplane.state == "live"


async def test_a_foreign_record_arrives_as_it_is(url: str, topic: str) -> None:
    """A bare producer's record with the channel as its key is text where it is UTF-8, else binary."""
    async with Backplane(url) as backplane, backplane.subscribe("foreign") as messages, _producer(url) as foreign:
        await foreign.send_and_wait(topic, b"no key")
        await foreign.send_and_wait(topic, None, key=b"foreign")
        for payload in (b"hello", "grüße".encode(), b"\xff\0", b""):
            await foreign.send_and_wait(topic, payload, key=b"foreign")
        heard = [await anext(messages) for _ in range(4)]
    assert [item.data for item in heard if isinstance(item, Message)] == ["hello", "grüße", b"\xff\0", ""]


@pytest.mark.parametrize("compression", ["gzip", "snappy", "lz4", "zstd"])
async def test_a_compressed_foreign_record_arrives(url: str, topic: str, compression: str) -> None:
    """A record in a compressed batch arrives."""
    if compression != "gzip":
        pytest.importorskip("cramjam", reason="aiokafka finds its codecs there")
    async with Backplane(url) as backplane, backplane.subscribe("foreign") as messages:
        async with _producer(url, compression_type=compression) as foreign:
            await foreign.send_and_wait(topic, b"hello" * 100, key=b"foreign")
        item = await anext(messages)
        assert isinstance(item, Message)
        assert item.data == "hello" * 100


async def test_a_bare_consumer_finds_key_and_value(url: str, topic: str) -> None:
    """What is published stands in the topic under its channel, in the partition that every Java client would choose."""
    async with Backplane(url) as backplane:
        await backplane.publish("room", b"payload")
    async with _producer(url) as bare:
        expected = await bare.send_and_wait(topic, b"bare", key=b"room")
    consumer = AIOKafkaConsumer(bootstrap_servers=_server(url), auto_offset_reset="earliest")
    await consumer.start()
    try:
        consumer.assign([TopicPartition(topic, expected.partition)])
        record = await consumer.getone()
        assert record.key == b"room"
        assert (record.value or b"").endswith(b"payload")
    finally:
        await consumer.stop()


async def test_no_consumer_group_is_left_behind(url: str) -> None:
    """A process that subscribed leaves no trace in the cluster's groups."""
    async with Backplane(url) as backplane, backplane.subscribe("room") as messages:
        await backplane.publish("room", "hello")
        assert await _texts(messages, 1) == ["hello"]
        async with _admin(url) as admin:
            assert await admin.list_consumer_groups() == []


async def test_a_process_that_only_publishes_does_not_read(url: str, proxy: FaultProxy) -> None:
    """Publishing holds one connection to the one broker; the first subscription opens one more."""
    async with proxy, Backplane(proxy.url) as backplane:
        await backplane.publish("room", "hello")
        assert proxy.links == 1
        async with backplane.subscribe("room"):
            assert proxy.links == 2
            async with backplane.subscribe("other"):
                assert proxy.links == 2


async def test_an_outage_loses_nothing_and_doubles_nothing(proxy: FaultProxy, url: str) -> None:
    """What others publish while the link is away arrives after it, once, in order, and no gap is told."""
    async with (
        proxy,
        Backplane(proxy.url, settings=_QUICK) as backplane,
        Backplane(url) as outside,
        backplane.subscribe("room") as messages,
    ):
        for outage in range(3):
            await outside.publish("room", f"{outage} before")
            proxy.refuse()
            await backplane.wait_for_state("degraded")
            for number in range(50):
                await outside.publish("room", f"{outage} during {number}")
            proxy.heal()
            await backplane.wait_for_state("live")
            await outside.publish("room", f"{outage} after")
            expected = [f"{outage} before", *(f"{outage} during {number}" for number in range(50)), f"{outage} after"]
            assert await _texts(messages, 52) == expected


async def test_publishes_on_a_link_that_is_cut_succeed_once(proxy: FaultProxy, url: str) -> None:
    """Publishes that await their answer when the link is cut are sent again over the next one, and stand once."""
    async with (
        proxy,
        Backplane(proxy.url, settings=_QUICK) as backplane,
        Backplane(url) as outside,
        outside.subscribe("room", max_outbox_messages=5000) as messages,
    ):
        published: list[asyncio.Task[None]] = []
        for number in range(1000):
            published.append(asyncio.create_task(backplane.publish("room", f"{number}")))
            if number % 10 == 0:
                await asyncio.sleep(0)
            if number % 250 == 100:
                await published[number // 2]
                proxy.cut()
        await asyncio.gather(*published)
        assert await _texts(messages, 1000) == [f"{number}" for number in range(1000)]


async def test_a_silent_link_resumes_too(proxy: FaultProxy, url: str) -> None:
    """A link that only the delivery probe found to be lost goes on where it was as well."""
    settings = Settings(max_backoff_seconds=0.2, probe_interval_seconds=0.5)
    async with (
        proxy,
        Backplane(proxy.url, settings=settings) as backplane,
        Backplane(url) as outside,
        backplane.subscribe("room") as messages,
    ):
        proxy.silence()
        await outside.publish("room", "into the silence")
        await backplane.wait_for_state("degraded")
        proxy.heal()
        assert await _texts(messages, 1) == ["into the silence"]


async def test_a_new_life_begins_at_the_end(url: str) -> None:
    """After an orderly stop the same object starts at the end: what was published meanwhile is of no concern to it."""
    broadcaster = broadcaster_from_url(url)
    await broadcaster.start(RecordingSink())
    await broadcaster.subscribe(["room"])
    await broadcaster.stop()
    async with Backplane(url) as outside:
        await outside.publish("room", "meanwhile")
        sink = RecordingSink()
        await broadcaster.start(sink)
        await broadcaster.subscribe(["room"])
        await broadcaster.publish("room", b"now")
        await sink.until(lambda: sink.delivered != [])
        assert sink.delivered == [("room", b"now")]
        await broadcaster.stop()


async def test_a_frozen_broker_does_not_hold_up_a_stop(proxy: FaultProxy) -> None:
    """With a publish in the air and a broker that answers nothing, stop waits no longer than the publish does."""
    async with proxy:
        backplane = Backplane(proxy.url, settings=Settings(publish_timeout_seconds=0.3))
        await backplane.start()
        proxy.silence()
        publishing = asyncio.create_task(backplane.publish("room", "hello"))
        await proxy.swallowed()
        started = monotonic()
        await backplane.stop()
        assert monotonic() - started < 1
        with pytest.raises(PublishOutcomeUnknownError):
            await publishing


async def test_new_partitions_are_read_from_their_beginning(url: str, topic: str) -> None:
    """When the topic grows a gap is told, and nothing of the new partitions is missed."""
    async with (
        _admin(url) as admin,
        Backplane(f"{url}&partitions=1&metadata_max_age_seconds=0.1") as backplane,
        backplane.subscribe(*(f"room-{number}" for number in range(20))) as messages,
    ):
        await admin.create_partitions({topic: NewPartitions(4)})
        async with _producer(url, metadata_max_age_ms=50) as foreign:
            while len(await foreign.partitions_for(topic)) < 4:
                await asyncio.sleep(0.01)
            for number in range(20):
                await foreign.send_and_wait(topic, b"moved", key=f"room-{number}".encode())
        heard = [await anext(messages) for _ in range(40)]
        assert {item.channel for item in heard if isinstance(item, Gap)} == {f"room-{n}" for n in range(20)}
        assert {item.channel for item in heard if isinstance(item, Message)} == {f"room-{n}" for n in range(20)}


@pytest.mark.parametrize("partitions", [1, 4])
async def test_a_topic_that_is_created_anew_is_told_as_a_gap(url: str, topic: str, partitions: int) -> None:
    """A topic that is deleted and comes back, with fewer partitions or as many, is told as a gap, and heard again."""
    async with _admin(url) as admin:
        await admin.create_topics([NewTopic(topic, 4, 1)])
        async with (
            Backplane(f"{url}&create_topic=false", settings=_QUICK) as backplane,
            backplane.subscribe("room") as messages,
        ):
            for number in range(5):
                await backplane.publish("room", f"{number}")
            assert await _texts(messages, 5) == ["0", "1", "2", "3", "4"]
            await admin.delete_topics([topic])
            await backplane.wait_for_state("degraded")
            await admin.create_topics([NewTopic(topic, partitions, 1)])
            await backplane.wait_for_state("live")
            assert isinstance(await anext(messages), Gap)
            await backplane.publish("room", "after")
            item = await anext(messages)
            while isinstance(item, Gap):  # the end that was to be read next is missing too
                item = await anext(messages)
            assert item.data == "after"


async def test_records_deleted_by_retention_are_told_as_a_gap(proxy: FaultProxy, url: str, topic: str) -> None:
    """What the broker deleted while the link was away is told as a gap; what it still holds arrives behind it."""
    async with (
        proxy,
        _admin(url) as admin,
        Backplane(f"{proxy.url}&partitions=1", settings=_QUICK) as backplane,
        Backplane(url) as outside,
        backplane.subscribe("room") as messages,
    ):
        proxy.refuse()
        await backplane.wait_for_state("degraded")
        for number in range(10):
            await outside.publish("room", f"{number}")
        await admin.delete_records({TopicPartition(topic, 0): RecordsToDelete(7)})
        proxy.heal()
        assert isinstance(await anext(messages), Gap)
        assert await _texts(messages, 3) == ["7", "8", "9"]


async def test_ten_thousand_channels_of_one_process(url: str) -> None:
    """10,000 subscriptions cost the broker nothing: the last of them is heard like the first."""
    async with Backplane(url) as backplane, backplane.subscribe(*(f"room-{n}" for n in range(10_000))) as messages:
        for name in ("room-0", "room-9999"):
            await backplane.publish(name, "hello")
            assert (await anext(messages)).channel == name


@pytest.mark.parametrize("latency", ["low", "balanced", "cheap"])
async def test_every_latency_delivers(url: str, latency: str) -> None:
    """Whatever is traded for CPU, everything arrives, in order."""
    async with Backplane(f"{url}&latency={latency}") as backplane, backplane.subscribe("room") as messages:
        for number in range(20):
            await backplane.publish("room", f"{number}")
        assert await _texts(messages, 20) == [f"{number}" for number in range(20)]


@pytest.mark.parametrize(
    "url",
    [
        "kafka://localhost:notaport",
        "kafka://localhost:9092,localhost:99999",
        "kafka://localhost/room",
        "kafka://localhost?latency=none",
        "kafka://localhost?ssl_ca_certs=ca.pem",
    ],
)
def test_a_url_that_makes_no_sense_is_refused(url: str) -> None:
    """A port that is none, a path, an unknown word, TLS files without TLS are refused before anything is opened."""
    with pytest.raises(ConfigurationError, match="kafka:"):
        Backplane(url)


def _server(url: str) -> str:
    return url.partition("//")[2].partition("?")[0]


def _backplane(broker: Broker, login: str) -> Backplane:
    return Backplane(broker.url.replace("kafka://", f"kafka://{login}:secret@"))


async def _texts(messages: Subscription, count: int) -> list[str | bytes]:
    """Return the data of the next `count` messages; a gap among them fails the test."""
    heard = [await anext(messages) for _ in range(count)]
    assert [item for item in heard if isinstance(item, Gap)] == []
    return [item.data for item in heard if isinstance(item, Message)]


@asynccontextmanager
async def _admin(url: str) -> AsyncGenerator[Any]:
    admin = AIOKafkaAdminClient(bootstrap_servers=_server(url))
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


@asynccontextmanager
async def _producer(url: str, **settings: Any) -> AsyncGenerator[Any]:
    producer = AIOKafkaProducer(bootstrap_servers=_server(url), **settings)
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()
