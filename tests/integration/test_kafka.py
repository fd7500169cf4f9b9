"""What is specific to Kafka: refusals at the start, foreign records, resuming after outages, changes of the topic."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportArgumentType=false, reportPrivateUsage=false
# aiokafka has no types.

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import sys
import time
import uuid
from base64 import urlsafe_b64encode
from contextlib import asynccontextmanager, suppress
from time import monotonic
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition  # type: ignore[import-untyped]
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic, RecordsToDelete  # type: ignore[import-untyped]
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType  # type: ignore[import-untyped]
from aiokafka.protocol.admin import CreateAclsRequest, DescribeAclsRequest  # type: ignore[import-untyped]

from backplane import (
    Backlog,
    Backplane,
    BrokerAuthenticationError,
    BrokerError,
    BrokerUnavailableError,
    ConfigurationError,
    Gap,
    History,
    Message,
    PayloadTooLargeError,
    PublishError,
    PublishOutcomeUnknownError,
    Receipt,
    Settings,
    SubscribeError,
)
from backplane.broadcaster import SupportsResume
from backplane.broker.registry import broadcaster_from_url
from backplane.fanout.codec import encode_path_test
from backplane.testing import FaultProxy, RecordingSink
from backplane.testing.harness import started_worker
from tests.brokers.cluster import kafka_partitions
from tests.brokers.kafka import KafkaConfig, KafkaProcess
from tests.brokers.kafka_topic import topic_proxy, topic_url
from tests.brokers.process import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping

    from backplane import Subscription
    from tests.brokers.broker import Broker, ProcessBroker
    from tests.brokers.cluster import Cluster
    from tests.conftest import StartKafka

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]  # a cluster takes its time beside other tests

# https://kafka.apache.org/protocol, as numbers
_TOPIC, _LITERAL, _DENY, _ALLOW = 2, 3, 2, 3
_UNKNOWN = 3
_EXISTS = 36
READ, WRITE = 3, 4

_QUICK = Settings(max_backoff_seconds=0.2, publish_timeout_seconds=60)


@pytest.fixture
def topic() -> str:
    """A topic of the test's own, not created."""
    return f"test-{uuid.uuid4()}"


@pytest.fixture
def url(kafka_broker: Broker, topic: str) -> str:
    """The URL of the topic at the shared broker."""
    return topic_url(kafka_broker, topic)


@pytest.fixture
def proxy(kafka_broker: Broker, topic: str) -> FaultProxy:
    """A proxy at the address that one of the listeners advertises."""
    return topic_proxy(kafka_broker, topic)


async def test_a_broker_that_is_down_fails_the_start(caplog: pytest.LogCaptureFixture) -> None:
    """If no broker is there, start raises when its time is up, names the address, and shows no password."""
    started = monotonic()
    settings = Settings(start_timeout_seconds=0.5)
    with caplog.at_level(logging.DEBUG), pytest.raises(BrokerUnavailableError) as raised:
        await Backplane(f"kafka://alice:hunter2@127.0.0.1:{free_port()}", settings=settings).start()
    assert monotonic() - started < 25
    assert "kafka://alice:***@127.0.0.1:" in str(raised.value)
    assert "hunter2" not in repr(raised.value) + caplog.text


async def test_a_worker_starts_in_well_under_a_second(url: str) -> None:
    """If the topic exists, start, subscribe and one message take less than a second together."""
    async with Backplane(url):
        pass
    took: list[float] = []
    while not took or (min(took) >= 1 and len(took) < 10):  # a busy machine delays some
        started = monotonic()
        async with Backplane(url) as backplane, backplane.subscribe("room") as messages:
            await backplane.publish("room", "hello")
            assert await _texts(messages, 1) == ["hello"]
            took.append(monotonic() - started)
    assert min(took) < 1


@pytest.mark.parametrize("first", ["127.0.0.1:1,", ""])
async def test_any_server_of_the_url_is_sufficient(url: str, first: str) -> None:
    """A server that is down does not matter while another one of the URL answers."""
    async with Backplane(url.replace("kafka://", f"kafka://{first}")):
        pass


@pytest.fixture
def listener_urls(kafka_broker: Broker) -> Mapping[str, str]:
    """The other listeners of the broker: with a login, over TLS."""
    if not isinstance(kafka_broker, KafkaProcess):
        pytest.skip("this Kafka cannot be configured")
    return kafka_broker.listener_urls


@pytest.fixture
def guarded(listener_urls: Mapping[str, str], topic: str) -> str:
    """A listener with a login, which grants rights to `admin` alone."""
    return f"{listener_urls['login']}?topic={topic}"


@pytest.mark.parametrize("login", ["alice:hunter2@", "unknown:hunter2@", "alice@"])
async def test_a_wrong_password_fails_the_start_at_once(
    guarded: str, login: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A wrong password, or user, raises `BrokerAuthenticationError` after one attempt and shows no password."""
    with caplog.at_level(logging.DEBUG), pytest.raises(BrokerAuthenticationError) as raised:
        await Backplane(guarded.replace("kafka://", f"kafka://{login}")).start()
    assert raised.value.retriable is False
    assert "hunter2" not in str(raised.value) + caplog.text
    assert raised.value.__cause__ is not None


async def test_a_mechanism_the_broker_does_not_offer_is_named(guarded: str) -> None:
    """A login by another mechanism than the broker's raises `BrokerAuthenticationError` and names it."""
    with pytest.raises(BrokerAuthenticationError, match="no login by SCRAM-SHA-256"):
        await Backplane(_as("alice", f"{guarded}&sasl_mechanism=SCRAM-SHA-256")).start()


async def test_a_user_without_rights_to_the_topic_is_refused(guarded: str, topic: str) -> None:
    """A login without rights raises at once and names the rights to grant."""
    async with Backplane(_as("admin", guarded)):
        pass
    with pytest.raises(BrokerError, match=f"not authorized for topic '{topic}': grant") as raised:
        async with Backplane(_as("alice", guarded)):
            pass
    assert raised.value.retriable is False


@pytest.mark.parametrize("operation", [READ, WRITE])
async def test_a_user_may_have_one_right_of_two(kafka_broker: Broker, guarded: str, operation: int, topic: str) -> None:
    """With one right of two a user subscribes or publishes; the other raises and names the right."""
    async with Backplane(_as("admin", guarded)) as admin, admin.subscribe("room") as everything:
        await grant(kafka_broker, "alice", topic, operation)
        async with Backplane(_as("alice", guarded)) as backplane:
            if operation == READ:
                async with backplane.subscribe("room") as messages:
                    with pytest.raises(PublishError, match="grant WRITE") as raised:
                        await backplane.publish("room", "denied")
                    assert not isinstance(raised.value, PublishOutcomeUnknownError)
                    await admin.publish("room", "hello")
                    assert await _texts(messages, 1) == ["hello"]
            else:
                await backplane.publish("room", "hello")
                with pytest.raises(SubscribeError, match=r"not authorized to read .* grant READ"):
                    async with backplane.subscribe("room"):
                        pass
                await backplane.publish("room", "and on")
            assert backplane.state == "live"
        assert await _texts(everything, 1) == ["hello"]


async def test_a_right_to_read_that_is_withdrawn(kafka_broker: Broker, guarded: str, topic: str) -> None:
    """When READ is withdrawn the subscription is revoked, the next one is refused, and the link stays."""
    async with Backplane(_as("admin", guarded)):
        pass
    await grant(kafka_broker, "alice", topic, READ)
    sink = RecordingSink()
    broadcaster = broadcaster_from_url(_as("alice", guarded))
    await broadcaster.start(sink)
    await broadcaster.subscribe(["room"])
    await grant(kafka_broker, "alice", topic, READ, allow=False)
    await sink.until(lambda: sink.revocations != [])
    with pytest.raises(SubscribeError, match="grant READ"):
        await broadcaster.subscribe(["room"])
    assert sink.losses == []
    await broadcaster.stop()


async def test_an_advertised_address_that_cannot_be_reached_is_named(listener_urls: Mapping[str, str]) -> None:
    """If the URL is reached and the address that the broker advertises is not, the error names that address."""
    with pytest.raises(BrokerUnavailableError, match=r"kafka\.invalid:\d+, the address in its advertised\.listeners"):
        await broadcaster_from_url(listener_urls["unreachable"]).start(RecordingSink())


async def test_a_login_by_token(listener_urls: Mapping[str, str], topic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function of the application returns a token for each connection; an expired one is refused, with the time."""
    url = f"{listener_urls['token']}?topic={topic}&sasl_mechanism=OAUTHBEARER&credentials={__name__}:_token"
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or ModuleType(__name__))
    for get_token in (lambda: _unsigned_token(60), _async_token):
        monkeypatch.setattr(sys.modules[__name__], "_token", get_token, raising=False)
        async with Backplane(url) as backplane, backplane.subscribe("room") as messages:
            await backplane.publish("room", "hello")
            assert await _texts(messages, 1) == ["hello"]
    monkeypatch.setattr(sys.modules[__name__], "_token", lambda: _unsigned_token(-7200))
    with pytest.raises(BrokerAuthenticationError, match=r"is a clock wrong\? This machine's reads"):
        await Backplane(url).start()


async def test_a_login_that_expires_loses_nothing(
    listener_urls: Mapping[str, str], topic: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each connection is replaced, with a new token, before the broker ends it: no loss, gap or unknown outcome."""
    tokens: list[str] = []
    module = ModuleType("short_tokens")
    monkeypatch.setitem(sys.modules, "short_tokens", module)

    def get_token() -> str:
        tokens.append(_unsigned_token(60))
        return tokens[-1]

    monkeypatch.setattr(module, "get_token", get_token, raising=False)
    url = f"{listener_urls['short_token']}?topic={topic}&sasl_mechanism=OAUTHBEARER&credentials=short_tokens:get_token"
    async with Backplane(url) as backplane, backplane.subscribe("room") as messages:
        at_first, number = len(tokens), 0
        while len(tokens) < at_first + 4:
            await backplane.publish("room", f"{number}")
            assert await _texts(messages, 1) == [f"{number}"]
            number += 1
            await asyncio.sleep(0.05)  # time itself is the subject
        assert "degraded" not in caplog.text


@pytest.mark.parametrize("credentials", [lambda: ("alice", "secret"), lambda: None, lambda: ("alice",), lambda: 1 / 0])
async def test_a_login_by_a_password_of_the_application(
    kafka_broker: Broker, guarded: str, monkeypatch: pytest.MonkeyPatch, credentials: Callable[[], object], topic: str
) -> None:
    """A pair of user name and password logs in; anything else raises, and names what was expected."""
    async with Backplane(_as("admin", guarded)):
        pass
    await grant(kafka_broker, "alice", topic, READ)
    module = ModuleType("rotated_passwords")
    monkeypatch.setitem(sys.modules, "rotated_passwords", module)
    monkeypatch.setattr(module, "credentials", credentials, raising=False)
    url = f"{guarded}&credentials=rotated_passwords:credentials"
    backplane = Backplane(url)
    try:
        expected = credentials()
    except ZeroDivisionError:
        with pytest.raises(BrokerUnavailableError, match="ZeroDivisionError"):
            await broadcaster_from_url(url).start(RecordingSink())
        return
    if isinstance(expected, tuple) and len(expected) == 2:
        async with backplane:
            assert backplane.state == "live"
        return
    with pytest.raises(BrokerAuthenticationError, match=r"needs \(username, password\)"):
        await backplane.start()


@pytest.mark.parametrize("path", ["nowhere_at_all:token", "json:nothing", "json:__name__"])
async def test_credentials_that_cannot_be_found_are_named(path: str) -> None:
    """A module that does not exist, a name that is not in it, or is not callable, raises at the start."""
    with pytest.raises(ConfigurationError, match=f"credentials={path}"):
        await Backplane(f"kafka://localhost?credentials={path}").start()


async def test_nothing_is_sent_unencrypted_if_tls_is_requested() -> None:
    """A proxy that strips TLS receives the start of a handshake and no byte of the login; its answer is an error."""
    seen = bytearray()

    async def strip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            seen.extend(await reader.read(10_000))
            writer.write(b"\0\0\0\x04\0\0\0\x01")
            seen.extend(await reader.read(10_000))
        writer.close()

    async with await asyncio.start_server(strip, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        url = f"kafka://alice:hunter2@127.0.0.1:{port}?tls=true"
        with pytest.raises(BrokerUnavailableError, match="does this port speak no TLS"):
            await broadcaster_from_url(url).start(RecordingSink())
    assert seen.startswith(b"\x16\x03")
    assert b"alice" not in seen
    assert b"hunter2" not in seen


async def test_a_port_with_tls_or_a_login_is_suspected(listener_urls: Mapping[str, str], guarded: str) -> None:
    """The error asks whether the port speaks TLS, or needs a login, if the URL has neither."""
    encrypted = listener_urls["tls"].partition("?")[0]
    with pytest.raises(BrokerUnavailableError, match="does this port speak TLS"):
        await broadcaster_from_url(encrypted).start(RecordingSink())
    with pytest.raises(BrokerUnavailableError, match="does it want a login"):
        await broadcaster_from_url(guarded).start(RecordingSink())


async def test_a_clock_that_the_broker_refuses_is_named(url: str, topic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A timestamp two hours ahead is refused, with a hint at the clock; the next message is stored."""
    async with Backplane(url) as backplane, backplane.subscribe("room") as messages:
        with monkeypatch.context() as wrong:
            wrong.setattr("backplane.adapters.kafka.records.time", SimpleNamespace(time=lambda: time.time() + 7200))
            with pytest.raises(PublishError, match=r"InvalidTimestamp.*is a clock wrong"):
                await backplane.publish("room", "from the future")
        await backplane.publish("room", "now")
        assert await _texts(messages, 1) == ["now"]


async def test_a_request_that_the_broker_does_not_read_fails_alone(
    private_kafka: StartKafka, caplog: pytest.LogCaptureFixture
) -> None:
    """Above `socket.request.max.bytes` the broker closes; that message is given up, and link and others are kept."""
    broker = private_kafka(KafkaConfig(properties={"socket.request.max.bytes": "20000"}))
    async with (
        Backplane(f"{broker.url}?partitions=1", settings=_QUICK) as backplane,
        backplane.subscribe("room") as messages,
    ):
        many = [backplane.publish("room", f"{number:0>5000}") for number in range(10)]
        large = backplane.publish("room", bytes(50_000))
        outcomes = await asyncio.gather(*many[:5], large, *many[5:], return_exceptions=True)
        assert [type(outcome) for outcome in outcomes if not isinstance(outcome, Receipt)] == [
            PublishOutcomeUnknownError
        ]
        assert "socket.request.max.bytes" in str(outcomes[5])
        assert await _texts(messages, 10) == [f"{number:0>5000}" for number in range(10)]
        assert "degraded" not in caplog.text


async def test_an_idle_connection_that_the_broker_closes_loses_nothing(
    private_kafka: StartKafka, caplog: pytest.LogCaptureFixture
) -> None:
    """A connection for publishing that the broker closes as idle is opened anew: no loss, gap or unknown outcome."""
    broker = private_kafka(KafkaConfig(properties={"connections.max.idle.ms": "1000"}))
    settings = Settings(probe_interval_seconds=30)
    async with Backplane(broker.url, settings=settings) as backplane, backplane.subscribe("room") as messages:
        for number in range(3):
            await backplane.publish("room", f"{number}")
            await asyncio.sleep(1.5)  # idleness itself is the subject
        assert await _texts(messages, 3) == ["0", "1", "2"]
        assert "degraded" not in caplog.text


@pytest.mark.timeout(120)
async def test_known_brokers_are_tried_when_the_one_of_the_url_is_gone(kafka_cluster: Cluster) -> None:
    """If the URL names one of three brokers and that one is gone, the others are tried, by a later start too."""
    first = kafka_cluster.nodes[0]
    async with Backplane(f"{first.url}?partitions=3", settings=_QUICK) as backplane:
        async with backplane.subscribe("room") as messages:
            await backplane.publish("room", "before")
            first.kill9()
            await backplane.wait_for_state("degraded")
            async with asyncio.timeout(60):
                await backplane.wait_for_state("live")
            await backplane.publish("room", "after")
            assert await _texts(messages, 2) == ["before", "after"]
        await backplane.stop()
        await backplane.start()
        await backplane.publish("room", "again")


async def test_records_lost_by_an_unclean_election_are_reported_as_a_gap(kafka_cluster: Cluster) -> None:
    """A leader that lacks records which were read, and has others instead, is detected by its epoch."""
    one, two, three = kafka_cluster.nodes
    configs = {"unclean.leader.election.enable": "true", "min.insync.replicas": "1"}
    async with _admin(three.url) as admin:
        await _create(admin, NewTopic("fragile", -1, -1, {0: [1, 2]}, topic_configs=configs))
    for node in (one, two, three):  # each is notified of a topic separately, and any of them may be asked
        await _until_partition(node, leader=1, in_sync=[1, 2])
    url = f"{three.url}?topic=fragile"
    history = {"room": History()}
    async with Backplane(url, settings=_QUICK, history=history) as backplane, backplane.subscribe("room") as messages:
        await backplane.publish("room", "on both")
        two.kill9()
        await _until_partition(three, leader=1, in_sync=[1])
        lost = [f"on the first only {number}" for number in range(3)]
        for text in lost:
            await backplane.publish("room", text)
        read = [await anext(messages) for _ in range(4)]
        assert [item.data for item in read if isinstance(item, Message)] == ["on both", *lost]
        one.kill9()
        await backplane.wait_for_state("degraded")
        two.launch()
        await _until_partition(three, leader=2, in_sync=[2])
        async with _producer(three.url) as foreign:
            for number in range(10):
                await foreign.send_and_wait("fragile", b"instead %d" % number, key=b"room")
        assert isinstance(await anext(messages), Gap)
        assert await _texts(messages, 10) == [f"instead {number}" for number in range(10)]
        for item in read[1:]:  # its offset is that of another message now
            assert not (await backplane.history("room", since=item.position)).complete
        page = await backplane.history("room", since=read[0].position)
        assert [message.data for message in page.messages] == [f"instead {number}" for number in range(10)]
        assert page.complete


@pytest.mark.parametrize("seconds", [3.0, 12.0])
async def test_a_pause_of_the_process_is_not_taken_for_silence_of_the_broker(url: str, seconds: float) -> None:
    """If the event loop is blocked for longer than an answer may take, all publishes succeed and the link is kept."""
    sink = RecordingSink()
    broadcaster = broadcaster_from_url(f"{url}&request_timeout_seconds=2")
    await broadcaster.start(sink)
    await broadcaster.subscribe(["room"])
    publishing = [asyncio.create_task(broadcaster.publish("room", b"%d" % number)) for number in range(5)]
    await asyncio.sleep(0)
    time.sleep(seconds)  # the pause itself is the subject
    await asyncio.gather(*publishing)
    await sink.until(lambda: len(sink.delivered) == 5)
    await asyncio.sleep(0.6)  # until the fetch that was in flight is answered
    assert (sink.losses, sink.gaps) == ([], [])
    await broadcaster.stop()


async def test_a_burst_of_fifty_thousand_is_no_outage(url: str) -> None:
    """Of 50,000 messages published at once each is stored, over the same link."""
    sink = RecordingSink()
    broadcaster = broadcaster_from_url(f"{url}&request_timeout_seconds=2")
    await broadcaster.start(sink)
    await broadcaster.subscribe(["room"])
    await asyncio.gather(*(broadcaster.publish("room", b"%d" % number) for number in range(50_000)))
    await sink.until(lambda: len(sink.delivered) == 50_000, timeout_seconds=60)
    assert sink.payloads("room") == [b"%d" % number for number in range(50_000)]
    assert (sink.losses, sink.gaps) == ([], [])
    await broadcaster.stop()


async def test_a_valid_login_passes_messages(guarded: str) -> None:
    """With the right password a message is published and received."""
    async with Backplane(_as("admin", guarded)) as backplane, backplane.subscribe("room") as messages:
        await backplane.publish("room", "hello")
        assert await _texts(messages, 1) == ["hello"]


async def test_tls(listener_urls: Mapping[str, str], topic: str) -> None:
    """Over TLS a message is published and received; a certificate that is not trusted is refused without a retry."""
    url = f"{listener_urls['tls']}&topic={topic}"
    async with Backplane(url) as backplane, backplane.subscribe("room") as messages:
        await backplane.publish("room", "hello")
        assert await _texts(messages, 1) == ["hello"]
    with pytest.raises(BrokerError, match="not trusted") as raised:
        await Backplane(f"{url.partition('?')[0]}?tls=true").start()
    assert raised.value.retriable is False
    with pytest.raises(BrokerError, match="files of TLS"):
        await Backplane(f"{url.partition('?')[0]}?tls=true&ssl_ca_certs=nowhere.pem").start()


async def test_a_missing_topic_is_not_created_if_that_is_off(url: str, topic: str) -> None:
    """With `create_topic=false` a missing topic raises at once, with what to do, and is not created."""
    with pytest.raises(BrokerError, match="does not exist: create it, or set create_topic=true") as raised:
        await Backplane(f"{url}&create_topic=false").start()
    assert raised.value.retriable is False
    async with _admin(url) as admin:
        assert topic not in await admin.list_topics()


async def test_a_topic_is_created_with_the_partitions_of_the_options(url: str, topic: str) -> None:
    """The topic has as many partitions as the option; ten processes that start at once all succeed."""
    backplanes = [Backplane(f"{url}&partitions=3&replication_factor=1") for _ in range(10)]
    await asyncio.gather(*(backplane.start() for backplane in backplanes))
    await asyncio.gather(*(backplane.stop() for backplane in backplanes))
    async with _admin(url) as admin:
        (found,) = await admin.describe_topics([topic])
        assert len(found["partitions"]) == 3


async def test_a_topic_that_cannot_be_created_raises_the_reason(url: str) -> None:
    """More replicas than there are brokers raise the broker's own error message."""
    with pytest.raises(BrokerError, match=r"cannot be created: .*replication factor"):
        await Backplane(f"{url}&replication_factor=3").start()


async def test_the_limit_of_the_topic_is_known_from_the_start(url: str, topic: str) -> None:
    """A payload above the limit of the topic, less the overhead, raises before anything is sent and names the limit."""
    async with _admin(url) as admin:
        await _create(admin, NewTopic(topic, 1, 1, topic_configs={"max.message.bytes": "2000"}))
    async with Backplane(url) as backplane:
        await backplane.publish("room", bytes(1500))
        with pytest.raises(PayloadTooLargeError, match="1,600"):
            await backplane.publish("room", bytes(3000))


async def test_a_message_over_the_limit_of_the_topic_is_refused(url: str, topic: str) -> None:
    """If the limit was lowered later, `PublishError` is raised by that publish alone; link and order are kept."""
    async with _admin(url) as admin:
        await _create(admin, NewTopic(topic, 1, 1))
    async with Backplane(url) as backplane, backplane.subscribe("room") as messages:
        await _configure(url, topic, {"max.message.bytes": "2000"})
        for number in range(3):
            with pytest.raises(PublishError, match="MessageSizeTooLarge") as raised:
                await backplane.publish("room", bytes(3000))
            assert not isinstance(raised.value, PublishOutcomeUnknownError)
            await backplane.publish("room", f"fits {number}")
        assert await _texts(messages, 3) == ["fits 0", "fits 1", "fits 2"]
        small = [backplane.publish("room", f"{number:0>900}") for number in range(5)]
        outcomes = await asyncio.gather(*small, backplane.publish("room", bytes(3000)), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [Receipt] * 5 + [PublishError]
        assert await _texts(messages, 5) == [f"{number:0>900}" for number in range(5)]
        assert backplane.state == "live"


async def test_a_foreign_record_is_received_unchanged(url: str, topic: str) -> None:
    """A bare producer's record with the channel as its key is text where it is UTF-8, else binary."""
    async with Backplane(url) as backplane, backplane.subscribe("foreign") as messages, _producer(url) as foreign:
        await foreign.send_and_wait(topic, b"no key")
        await foreign.send_and_wait(topic, None, key=b"foreign")
        for payload in (b"hello", "grüße".encode(), b"\xff\0", b""):
            await foreign.send_and_wait(topic, payload, key=b"foreign")
        received = [await anext(messages) for _ in range(4)]
    assert [item.data for item in received if isinstance(item, Message)] == ["hello", "grüße", b"\xff\0", ""]


@pytest.mark.parametrize("compression", ["gzip", "snappy", "lz4", "zstd"])
async def test_a_topic_that_is_recompressed_by_the_broker_is_read(url: str, topic: str, compression: str) -> None:
    """A broker that recompresses, whose answers an old fetch request cannot hold, is read like any other."""
    async with _admin(url) as admin:
        await _create(admin, NewTopic(topic, 1, 1, topic_configs={"compression.type": compression}))
    async with Backplane(url) as backplane, backplane.subscribe("room") as messages:
        await backplane.publish("room", "hello" * 100)
        assert await _texts(messages, 1) == ["hello" * 100]


async def test_a_topic_in_a_compression_that_is_not_installed_refuses_subscribers(
    url: str, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the codec publishing works, and a subscription is refused with the command that installs it."""
    monkeypatch.setattr("aiokafka.codec.cramjam", None)
    async with _admin(url) as admin:
        await _create(admin, NewTopic(topic, 1, 1, topic_configs={"compression.type": "zstd"}))
    async with Backplane(url) as backplane:
        await backplane.publish("room", "hello")
        with pytest.raises(SubscribeError, match=r"pip install 'fastapi-backplane\[kafka\]'"):
            async with backplane.subscribe("room"):
                pass


@pytest.mark.parametrize("compression", ["gzip", "snappy", "lz4", "zstd"])
async def test_a_compressed_foreign_record_is_received(url: str, topic: str, compression: str) -> None:
    """A record in a compressed batch is received."""
    async with Backplane(url) as backplane, backplane.subscribe("foreign") as messages:
        async with _producer(url, compression_type=compression) as foreign:
            await foreign.send_and_wait(topic, b"hello" * 100, key=b"foreign")
        item = await anext(messages)
        assert isinstance(item, Message)
        assert item.data == "hello" * 100


async def test_a_bare_consumer_finds_key_and_value(url: str, topic: str) -> None:
    """A message is stored with its channel as the key, in the partition that every Java client would choose."""
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


async def test_no_consumer_group_remains(url: str) -> None:
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


async def test_an_outage_loses_and_duplicates_nothing(proxy: FaultProxy, url: str) -> None:
    """Messages published while the link is lost are received after it, once, in order, without a gap."""
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
    """Publishes without an answer when the link is cut are sent again over the next one, and stored once."""
    async with (
        proxy,
        Backplane(proxy.url, settings=_QUICK) as backplane,
        Backplane(url) as outside,
        outside.subscribe("room", backlog=Backlog(max_messages=5000)) as messages,
    ):
        published: list[asyncio.Task[Receipt]] = []
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
    """A lost link that only the delivery probe detects continues at its positions too."""
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


async def test_a_new_start_reads_from_the_end(url: str) -> None:
    """After a stop the same object starts reading from the end, without what was published meanwhile."""
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


async def test_a_frozen_broker_does_not_delay_a_stop(proxy: FaultProxy) -> None:
    """With a publish in flight and a broker that does not answer, stop waits no longer than the publish."""
    took: list[float] = []
    async with proxy:
        while not took or (min(took) >= 1 and len(took) < 10):  # a busy machine delays some
            backplane = Backplane(proxy.url, settings=Settings(publish_timeout_seconds=0.3))
            await backplane.start()
            proxy.silence()
            publishing = asyncio.create_task(backplane.publish("room", "hello"))
            await proxy.swallowed()
            started = monotonic()
            await backplane.stop()
            took.append(monotonic() - started)
            with pytest.raises(PublishOutcomeUnknownError):
                await publishing
            proxy.heal()
    assert min(took) < 1


async def test_new_partitions_are_read_from_their_start(url: str, topic: str) -> None:
    """When the topic has new partitions a gap is reported, and none of their messages is missed."""
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
        received = [await anext(messages) for _ in range(40)]
        assert {item.channel for item in received if isinstance(item, Gap)} == {f"room-{n}" for n in range(20)}
        assert {item.channel for item in received if isinstance(item, Message)} == {f"room-{n}" for n in range(20)}


@pytest.mark.parametrize("partitions", [1, 4])
async def test_a_topic_that_is_created_anew_is_reported_as_a_gap(url: str, topic: str, partitions: int) -> None:
    """A topic that is deleted and created again, with fewer partitions or as many, is reported as a gap, and read."""
    async with _admin(url) as admin:
        await _create(admin, NewTopic(topic, 4, 1))
        async with (
            Backplane(f"{url}&create_topic=false", settings=_QUICK) as backplane,
            backplane.subscribe("room") as messages,
        ):
            for number in range(5):
                await backplane.publish("room", f"{number}")
            assert await _texts(messages, 5) == ["0", "1", "2", "3", "4"]
            await admin.delete_topics([topic])
            await backplane.wait_for_state("degraded")
            await _create(admin, NewTopic(topic, partitions, 1))
            await backplane.wait_for_state("live")
            assert isinstance(await anext(messages), Gap)
            await backplane.publish("room", "after")
            item = await anext(messages)
            while isinstance(item, Gap):  # the old position is after the end, which is a gap too
                item = await anext(messages)
            assert item.data == "after"


async def test_a_topic_that_was_created_anew_and_has_grown_is_reported_as_a_gap(
    proxy: FaultProxy, url: str, topic: str
) -> None:
    """Created anew and grown past the old position during an outage, it causes a gap; then all of it is received."""
    async with (
        proxy,
        _admin(url) as admin,
        Backplane(f"{proxy.url}&partitions=1", settings=_QUICK) as backplane,
        backplane.subscribe("room") as messages,
    ):
        for number in range(5):
            await backplane.publish("room", f"old {number}")
        assert await _texts(messages, 5) == [f"old {number}" for number in range(5)]
        proxy.refuse()
        await backplane.wait_for_state("degraded")
        await _recreate(admin, topic)
        async with Backplane(url) as outside:
            for number in range(20):
                await outside.publish("room", f"new {number}")
        proxy.heal()
        assert isinstance(await anext(messages), Gap)
        assert await _texts(messages, 20) == [f"new {number}" for number in range(20)]


async def test_a_topic_that_is_created_anew_under_a_live_link_is_reported_as_a_gap(url: str, topic: str) -> None:
    """A topic that is replaced between two fetches is not read without a gap."""
    async with _admin(url) as admin:
        await _create(admin, NewTopic(topic, 1, 1))
        async with (
            Backplane(f"{url}&create_topic=false&latency=cheap", settings=_QUICK) as backplane,
            backplane.subscribe("room") as messages,
        ):
            await backplane.publish("room", "old")
            assert await _texts(messages, 1) == ["old"]
            await _recreate(admin, topic)
            async with _producer(url) as foreign:
                for number in range(20):
                    await foreign.send_and_wait(topic, b"new %d" % number, key=b"room")
            assert isinstance(await anext(messages), Gap)
            received = [await anext(messages) for _ in range(20)]
            while isinstance(received[0], Gap):
                received = [*received[1:], await anext(messages)]
            assert [item.data for item in received if isinstance(item, Message)] == [f"new {n}" for n in range(20)]


async def test_another_cluster_under_the_same_name_is_reported_as_a_gap(private_kafka: StartKafka) -> None:
    """A cluster that was replaced has another log, whatever its offsets: a gap, then messages from its end on."""
    broker = private_kafka()
    if not isinstance(broker, KafkaProcess):
        pytest.skip("this Kafka cannot be replaced")
    url = f"{broker.url}?partitions=1"
    async with Backplane(url, settings=_QUICK) as backplane, backplane.subscribe("room") as messages:
        await backplane.publish("room", "old")
        assert await _texts(messages, 1) == ["old"]
        broker.kill9()
        await backplane.wait_for_state("degraded")
        shutil.rmtree(broker.folder / "data")
        broker.launch()
        await asyncio.to_thread(broker.wait_until_up)
        await backplane.wait_for_state("live")
        await backplane.publish("room", "new")
        assert isinstance(await anext(messages), Gap)
        assert await _texts(messages, 1) == ["new"]


async def test_compaction_is_warned_of_and_its_deletions_are_a_gap(
    proxy: FaultProxy, url: str, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A compacted topic causes a warning at the start; messages that the broker deleted in an outage are a gap."""
    compacted = {
        "cleanup.policy": "compact",
        "segment.bytes": "1048576",
        "min.cleanable.dirty.ratio": "0.001",
        "max.compaction.lag.ms": "100",
        "segment.ms": "100",
    }
    async with (
        proxy,
        _admin(url) as admin,
    ):
        await _create(admin, NewTopic(topic, 1, 1, topic_configs=compacted))
        async with (
            Backplane(proxy.url, settings=_QUICK) as backplane,
            Backplane(url) as outside,
            backplane.subscribe("room") as messages,
        ):
            assert f"topic '{topic}' is compacted" in caplog.text
            async with started_worker(url) as worker:
                test = encode_path_test(b"TEST_ID8", origin=bytes(8), published_at=0.0)
                with pytest.raises(PublishError, match="a path test would replace the newest message of its channel"):
                    await worker.broadcaster.publish("room", test)
            proxy.refuse()
            await backplane.wait_for_state("degraded")
            for number in range(20):
                await outside.publish("room", f"{number}")
            # No event reports that the log cleaner has run; it may run before all of them are stored.
            while not (await _oldest(url, topic, b"room")).endswith(b"19"):
                await outside.publish("other", "roll")
                await asyncio.sleep(0.2)
            proxy.heal()
            assert isinstance(await anext(messages), Gap)
            assert (await anext(messages)).data == "19"  # type: ignore[union-attr]


async def test_transactions_of_others_are_no_gap(url: str, topic: str) -> None:
    """The control records of a transaction have offsets and no message, and are not taken for missing ones."""
    async with Backplane(f"{url}&partitions=1") as backplane, backplane.subscribe("room") as messages:
        async with _producer(url, transactional_id=f"t-{topic}") as foreign:
            for number in range(3):
                async with foreign.transaction():
                    await foreign.send_and_wait(topic, b"in %d" % number, key=b"room")
        await backplane.publish("room", "after")
        assert await _texts(messages, 4) == ["in 0", "in 1", "in 2", "after"]


async def test_a_damaged_batch_is_skipped_alone(private_kafka: StartKafka) -> None:
    """A damaged byte on the broker's disk is reported as one gap; later messages are received."""
    broker = private_kafka()
    if not isinstance(broker, KafkaProcess):
        pytest.skip("the disk of this Kafka cannot be reached")
    sink = RecordingSink()
    broadcaster = broadcaster_from_url(f"{broker.url}?partitions=1")
    await broadcaster.start(sink)
    assert isinstance(broadcaster, SupportsResume)
    await broadcaster.subscribe(["room"])
    await broadcaster.publish("room", b"read")
    await sink.until(lambda: sink.delivered != [])
    await broadcaster.suspend()
    async with Backplane(broker.url) as outside:
        for text in ("damaged", "intact"):
            await outside.publish("room", text)
    broker.stop()
    (segment,) = (broker.folder / "data").glob("backplane-0/*.log")
    segment.write_bytes(segment.read_bytes().replace(b"damaged", b"dAmaged"))
    broker.start()
    again = RecordingSink()
    await broadcaster.resume(again, ["room"])
    await broadcaster.publish("room", b"later")
    await again.until(lambda: len(again.delivered) == 2)
    await broadcaster.stop()
    assert [payload.endswith(end) for payload, end in zip(again.payloads("room"), (b"intact", b"later"), strict=True)]
    assert len(again.gaps) == 1
    assert "damaged" in again.gaps[0][1]


async def test_a_record_larger_than_a_fetch_is_received(url: str, topic: str) -> None:
    """A foreign record of three megabytes delays no other, whichever partition it is in."""
    async with _admin(url) as admin:
        await _create(admin, NewTopic(topic, 4, 1, topic_configs={"max.message.bytes": "5000000"}))
    rooms = [f"room-{number}" for number in range(8)]
    async with Backplane(url) as backplane, backplane.subscribe(*rooms, backlog=Backlog(max_bytes=1 << 26)) as messages:
        async with _producer(url, max_request_size=5_000_000) as foreign:
            for room in rooms:
                await foreign.send_and_wait(topic, b"x" * 3_000_000, key=room.encode())
        received = [await anext(messages) for _ in rooms]
        assert {item.channel for item in received if isinstance(item, Message)} == set(rooms)


async def test_records_deleted_by_retention_are_reported_as_a_gap(proxy: FaultProxy, url: str, topic: str) -> None:
    """Records that were deleted while the link was lost are reported as a gap; the others are received after it."""
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
    """Of 10,000 subscriptions the last one receives messages like the first."""
    async with Backplane(url) as backplane, backplane.subscribe(*(f"room-{n}" for n in range(10_000))) as messages:
        for name in ("room-0", "room-9999"):
            await backplane.publish(name, "hello")
            assert (await anext(messages)).channel == name


@pytest.mark.parametrize("latency", ["low", "balanced", "cheap"])
async def test_every_latency_delivers(url: str, latency: str) -> None:
    """With every latency all messages are received, in order."""
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
def test_an_invalid_url_is_refused(url: str) -> None:
    """An invalid port, a path, an unknown value, and TLS files without TLS are refused before anything is opened."""
    with pytest.raises(ConfigurationError, match="kafka:"):
        Backplane(url)


def _server(url: str) -> str:
    return url.partition("//")[2].partition("?")[0]


def _as(user: str, url: str) -> str:
    return url.replace("kafka://", f"kafka://{user}:secret@")


async def grant(broker: Broker, user: str, topic: str, operation: int, *, allow: bool = True) -> None:
    """Allow or deny `user` an operation on `topic`, and wait until the broker applies it."""
    assert isinstance(broker, KafkaProcess)
    admin = AIOKafkaAdminClient(bootstrap_servers=_server(broker.internal_url))
    await admin.start()
    try:
        entry = (_TOPIC, topic, _LITERAL, f"User:{user}", "*", operation, _ALLOW if allow else _DENY)
        answer: Any = await admin._send_to_controller(CreateAclsRequest(*entry))
        assert not answer.creation_responses[0][0]
        found: Any = await admin._send_request(DescribeAclsRequest(*entry))
        while not found.resources:
            found = await admin._send_request(DescribeAclsRequest(*entry))
    finally:
        await admin.close()


def _unsigned_token(seconds: int) -> str:
    """Return a JSON Web Token without a signature that is valid for `seconds` from now on."""
    now = int(time.time())
    claims = {"sub": "bearer", "iat": now + min(0, seconds) - 60, "exp": now + seconds}
    parts = (json.dumps(part).encode() for part in ({"alg": "none"}, claims))
    return ".".join(urlsafe_b64encode(part).decode().rstrip("=") for part in parts) + "."


async def _async_token() -> str:
    return _unsigned_token(60)


async def _until_partition(node: ProcessBroker, *, leader: int, in_sync: list[int]) -> None:
    """Wait until `node` knows this of the partition of `fragile`; two controllers of three decide it."""
    while (leader, in_sync) not in await kafka_partitions(node, "fragile"):
        await asyncio.sleep(0.05)


async def _configure(url: str, topic: str, configs: dict[str, str]) -> None:
    """Change the configuration of a topic, and wait until the broker applies it."""
    async with _admin(url) as admin:
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, configs)])
        resource = ConfigResource(ConfigResourceType.TOPIC, topic, configs=dict.fromkeys(configs))
        while True:
            (answer,) = await admin.describe_configs([resource])
            if {entry[0]: entry[1] for entry in answer.resources[0][4]} == configs:
                return
            await asyncio.sleep(0.01)


async def _texts(messages: Subscription, count: int) -> list[str | bytes]:
    """Return the data of the next `count` messages; a gap among them fails the test."""
    received = [await anext(messages) for _ in range(count)]
    assert [item for item in received if isinstance(item, Gap)] == []
    return [item.data for item in received if isinstance(item, Message)]


async def _create(admin: Any, topic: Any) -> None:
    """Create a topic, as soon as an old one of that name is gone, and wait until the broker knows it.

    The controller answers before a deletion, or a creation, is complete.
    """
    while code := (await admin.create_topics([topic])).topic_errors[0][1]:
        assert code == _EXISTS
        await asyncio.sleep(0.01)
    while (await admin.describe_topics([topic.name]))[0]["error_code"]:
        await asyncio.sleep(0.01)


async def _recreate(admin: Any, topic: str) -> None:
    """Delete the topic, wait until the broker's metadata has it no more, and create it again."""
    await admin.delete_topics([topic])
    while (await admin.describe_topics([topic]))[0]["error_code"] != _UNKNOWN:
        await asyncio.sleep(0.01)
    await _create(admin, NewTopic(topic, 1, 1))


async def _oldest(url: str, topic: str, key: bytes) -> bytes:
    """Return the value of the first record with this key."""
    consumer = AIOKafkaConsumer(bootstrap_servers=_server(url), auto_offset_reset="earliest")
    await consumer.start()
    try:
        consumer.assign([TopicPartition(topic, 0)])
        while (record := await consumer.getone()).key != key:
            pass
        return record.value or b""
    finally:
        await consumer.stop()


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
