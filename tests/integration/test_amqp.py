"""What is RabbitMQ's own: queues that overrun or are deleted, alarms, refusals, rights, foreign publishers."""

import asyncio
import struct
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from pamqp import commands
from pamqp.body import ContentBody
from pamqp.frame import marshal
from pamqp.header import ContentHeader

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
from backplane.adapters.amqp import AmqpBroadcaster, AmqpOptions
from backplane.adapters.amqp.publisher import PublisherConnection
from backplane.adapters.amqp.wire import CHANNEL
from backplane.broadcaster import BrokerUrl
from backplane.broker.registry import broadcaster_from_url
from backplane.testing import FaultProxy
from backplane.testing.recording import RecordingSink
from tests.brokers.broker import Broker
from tests.brokers.process import free_port
from tests.brokers.rabbitmq import RabbitProcess, private_rabbitmq

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

_QUICK = Settings(probe_interval_seconds=0.5, max_backoff_seconds=0.2)


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """One event loop: the conformance suite runs on both."""
    return "asyncio", {"use_uvloop": False}


@pytest.fixture
def server(amqp_broker: Broker) -> RabbitProcess:
    """The shared server, where it can be controlled."""
    if not isinstance(amqp_broker, RabbitProcess):
        pytest.skip("this needs rabbitmqctl of the server")
    return amqp_broker


@asynccontextmanager
async def started(url: str, sink: RecordingSink | None = None) -> AsyncGenerator[AmqpBroadcaster]:
    """An adapter of the test's own."""
    adapter = broadcaster_from_url(url)
    assert isinstance(adapter, AmqpBroadcaster)
    try:
        await adapter.start(sink or RecordingSink())
        yield adapter
    finally:
        await adapter.stop()


def publisher_of(adapter: Any) -> PublisherConnection:
    """Return the connection that publishes."""
    return cast("PublisherConnection", adapter._publisher)


async def troubles_of(adapter: AmqpBroadcaster) -> dict[str, str]:
    """Return the levels of what `backplane doctor` finds and is not `ok`, by check."""
    return {finding.check: finding.level for finding in await adapter.inspect({}) if finding.level != "ok"}


# -- what the queue loses ----------------------------------------------------------------------------------------------


async def test_a_queue_that_overran_is_a_gap(amqp_broker: Broker) -> None:
    """The queue of a worker that does not read drops the oldest messages, which were confirmed to the publisher."""
    url = f"{amqp_broker.own_url}&queue_max_bytes=1048576"
    sink = RecordingSink()
    async with (
        FaultProxy(url) as proxy,
        started(proxy.url, sink) as worker,
        started(url) as publisher,
    ):
        await worker.subscribe(["room"])
        await publisher.publish("room", b"first")
        await sink.until(lambda: bool(sink.delivered))
        proxy.stall()
        data = bytes(100_000)
        for _ in range(400):  # more than the buffers of the sockets and the queue hold
            await publisher.publish("room", data)
        proxy.heal()
        await publisher.publish("room", b"last")
        await sink.until(lambda: sink.payloads("room")[-1] == b"last")
        assert [channels for channels, _ in sink.gaps] == [None]
        assert "the queue of this worker overran" in sink.gaps[0][1]
        dropped = int(sink.gaps[0][1].split()[-4].replace(",", ""))
        assert len(sink.delivered) == 402 - dropped
        assert not sink.losses


async def test_a_publisher_of_whom_everything_was_dropped_at_first(amqp_broker: Broker) -> None:
    """A link that began after the queue is known by its clock and its age, so its first messages are missed too."""
    url = f"{amqp_broker.own_url}&queue_max_bytes=1048576"
    sink = RecordingSink()
    async with FaultProxy(url) as proxy, started(proxy.url, sink) as worker:
        await worker.subscribe(["room"])
        consumer: Any = cast("Any", worker)._consumer
        consumer._numbers._bound_at -= 3  # in place of waiting: clocks may differ by 2 s
        consumer._numbers._bound -= 3
        async with started(url) as filler:
            proxy.stall()
            for _ in range(400):
                await filler.publish("other", bytes(100_000))
            async with started(url) as publisher:
                for _ in range(30):
                    await publisher.publish("room", bytes(100_000))
                proxy.heal()
                await publisher.publish("room", b"last")
                await sink.until(lambda: bool(sink.delivered) and sink.payloads("room")[-1] == b"last")
    assert len(sink.gaps) == 1
    assert len(sink.delivered) < 31


async def test_links_that_began_before_the_queue_are_no_gap(amqp_broker: Broker) -> None:
    """A worker that starts meets publishers in the middle of what they publish."""
    url, sink = amqp_broker.own_url, RecordingSink()
    async with started(url) as publisher, started(url, sink) as worker:
        for number in range(50):
            await publisher.publish("room", b"%d" % number)
        await worker.subscribe(["room"])
        await publisher.publish("room", b"last")
        await sink.until(lambda: bool(sink.delivered))
    assert sink.gaps == []


async def test_a_deleted_queue_is_a_lost_link(server: RabbitProcess) -> None:
    """The connection stays open, and the link is rebuilt with a gap all the same."""
    url = server.own_url
    async with Backplane(url, settings=_QUICK) as backplane, backplane.subscribe("room") as messages:
        await backplane.publish("room", "hello")
        item = await anext(messages)
        assert isinstance(item, Message)
        names = await asyncio.to_thread(server.control, "list_queues", "name")
        (queue,) = [name for name in names.split() if name.startswith(url.partition("exchange=")[2])]
        await asyncio.to_thread(server.control, "delete_queue", queue)
        gap = await anext(messages)
        assert isinstance(gap, Gap)
        assert "the queue of this worker was deleted" in gap.reason
        await backplane.publish("room", "again")
        item = await anext(messages)
        assert isinstance(item, Message)
        assert item.data == "again"


async def test_a_deleted_exchange_is_a_lost_link(amqp_broker: Broker) -> None:
    """The next publish, or check, finds it; the next link declares it again."""
    url, sink = amqp_broker.own_url, RecordingSink()
    async with started(url, sink) as adapter, started(url) as other:
        await publisher_of(other).ask(commands.Exchange.Delete(exchange=adapter.options.exchange))
        with pytest.raises(BrokerUnavailableError, match="NOT_FOUND"):
            await adapter.check()
        assert len(sink.losses) == 1


# -- the server refuses ------------------------------------------------------------------------------------------------


async def test_a_message_over_the_limit_of_the_server(amqp_broker: Broker) -> None:
    """It is refused alone, and the next one before it is sent; the link stays."""
    url, sink = f"{amqp_broker.own_url}&max_payload_bytes=67108864", RecordingSink()
    async with started(url, sink) as adapter:
        await adapter.subscribe(["room"])
        large = asyncio.create_task(adapter.publish("room", bytes(33_554_433)))
        await asyncio.sleep(0)
        with pytest.raises(BrokerUnavailableError, match="over another message"):
            await adapter.publish("room", b"the next one")
        with pytest.raises(PublishError, match="larger than") as refused:
            await large
        assert not refused.value.retriable
        with pytest.raises(PublishError, match="takes no more than"):
            await adapter.publish("room", bytes(40_000_000))
        await adapter.publish("room", b"fits")
        await sink.until(lambda: bool(sink.delivered))
        assert (sink.delivered, sink.gaps, sink.losses) == ([("room", b"fits")], [], [])


async def test_users_and_their_rights(server: RabbitProcess) -> None:
    """A wrong password, a virtual host without rights, one who may only listen; the last one keeps its link."""
    name = f"listener-{free_port()}"
    await asyncio.to_thread(server.control, "add_user", name, "secret")
    address = server.url.rpartition("@")[2]
    with pytest.raises(BrokerAuthenticationError, match=r"refused it: ACCESS_REFUSED.*PLAIN"):
        await Backplane(f"amqp://{name}:wrong@{address}").start()
    with pytest.raises(BrokerError, match="NOT_ALLOWED") as refused:
        await Backplane(f"amqp://{name}:secret@{address}").start()
    assert not refused.value.retriable
    with pytest.raises(BrokerError, match=r"NOT_ALLOWED.*not found"):
        await Backplane(f"amqp://{name}:secret@{address}/missing").start()
    url, sink = server.own_url, RecordingSink()
    exchange = url.partition("exchange=")[2]
    async with started(url) as owner:
        assert await troubles_of(owner) == {"amqp_policies": "skipped"}
    rights = ("set_permissions", name, rf"^{exchange}\..*", rf"^{exchange}\..*", rf"^{exchange}.*")
    await asyncio.to_thread(server.control, *rights)
    async with started(url) as owner, started(url.replace("guest:guest", f"{name}:secret"), sink) as listener:
        await listener.subscribe(["room"])
        await owner.publish("room", b"arrives")
        await sink.until(lambda: bool(sink.delivered))
        for _ in range(2):
            with pytest.raises(PublishError, match="ACCESS_REFUSED") as denied:
                await listener.publish("room", b"x")
            assert not denied.value.retriable
        await listener.check()
        assert await troubles_of(listener) == {
            "amqp_publish": "error",
            "amqp_rights": "warning",
            "amqp_policies": "skipped",
        }
        await owner.publish("room", b"still")
        await sink.until(lambda: len(sink.delivered) == 2)
        assert not sink.losses


async def test_an_exchange_of_another_kind_is_refused(amqp_broker: Broker) -> None:
    """Another program's exchange is not used."""
    url = amqp_broker.own_url
    async with started(amqp_broker.own_url) as other:
        name = url.partition("exchange=")[2]
        await publisher_of(other).ask(commands.Exchange.Declare(exchange=name, exchange_type="direct", durable=True))
    with pytest.raises(BrokerError, match="PRECONDITION_FAILED") as refused:
        await Backplane(url).start()
    assert not refused.value.retriable


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("exchange=amq.fanout", "belong to RabbitMQ"),
        ("tls_ca_certs=/a.pem", "speaks no TLS"),
        ("queue_max_bytes=1000", "larger than queue_max_bytes"),
        ("credentials=a:b", "one of both"),
    ],
)
async def test_options_that_contradict_each_other(query: str, reason: str) -> None:
    """They are refused before anything is opened."""
    with pytest.raises(ConfigurationError, match=reason):
        Backplane(f"amqp://user:secret@localhost?{query}")


async def test_a_key_without_its_certificate() -> None:
    """It is refused."""
    with pytest.raises(ConfigurationError, match="needs tls_certfile"):
        Backplane("amqps://localhost?tls_keyfile=/key.pem")


async def passwords() -> str:
    """What `credentials` names below."""
    return "guest"


async def wrong_kind() -> int:
    """What `credentials` names below."""
    return 5


async def test_credentials_of_the_application(amqp_broker: Broker) -> None:
    """They are asked for at each connect."""
    url = f"{amqp_broker.own_url.replace(':guest@', '@')}&credentials={__name__}"
    async with started(f"{url}:passwords") as adapter:
        assert (await adapter.describe()).startswith("RabbitMQ ")
    with pytest.raises(ConfigurationError, match="not int"):
        await Backplane(f"{url}:wrong_kind").start()


async def test_several_servers_and_tls(server: RabbitProcess) -> None:
    """A closed port is passed over; the port with TLS is trusted by its authority alone."""
    address = server.url.rpartition("@")[2]
    async with started(f"amqp://127.0.0.1:{free_port()},{address}") as adapter:
        await adapter.publish("room", b"x")
    async with started(server.tls_url) as adapter:
        await adapter.publish("room", b"x")
    with pytest.raises(BrokerError, match="not trusted") as refused:
        await Backplane(server.tls_url.partition("?")[0]).start()
    assert not refused.value.retriable


async def test_a_server_of_another_protocol() -> None:
    """Its bytes are no frames, which the error states; nothing stays open."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(8)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as other:
        port = other.sockets[0].getsockname()[1]
        adapter = AmqpBroadcaster(BrokerUrl.parse(f"amqp://127.0.0.1:{port}"), AmqpOptions())
        with pytest.raises(BrokerUnavailableError, match=r"no server of AMQP 0-9-1"):
            await adapter.start(RecordingSink())


# -- foreign programs --------------------------------------------------------------------------------------------------


async def test_foreign_publishers_are_received(amqp_broker: Broker) -> None:
    """Whatever properties they write, and names that are no text; an empty body too."""
    url = amqp_broker.own_url
    async with Backplane(url) as backplane, backplane.subscribe("room") as messages, started(url) as other:
        publisher = publisher_of(other)
        exchange = other.options.exchange
        properties = commands.Basic.Properties(
            content_type="text/plain", headers={"a": 1}, delivery_mode=2, message_id="mine", app_id="theirs"
        )
        for body in (b"from elsewhere", b""):
            publisher.send(marshal(commands.Basic.Publish(exchange=exchange, routing_key="room"), CHANNEL))
            publisher.send(marshal(ContentHeader(body_size=len(body), properties=properties), CHANNEL))
            if body:
                publisher.send(marshal(ContentBody(body), CHANNEL))
        nameless = struct.pack(">HHH", 60, 40, 0) + bytes((len(exchange),)) + exchange.encode() + b"\x02\xff\xfe\0"
        publisher.send(struct.pack(">BHI", 1, CHANNEL, len(nameless)) + nameless + b"\xce")
        publisher.send(marshal(ContentHeader(body_size=0), CHANNEL))
        await publisher.check()
        await backplane.publish("room", "own")
        items = [await anext(messages) for _ in range(3)]
        assert [item.data for item in items if isinstance(item, Message)] == ["from elsewhere", "", "own"]


# -- the server is in trouble ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def troubled(tmp_path_factory: pytest.TempPathFactory, amqp_broker: Broker) -> Iterator[RabbitProcess]:
    """A server that the tests below break."""
    if not isinstance(amqp_broker, RabbitProcess):
        pytest.skip("this needs rabbitmqctl of the server")
    with private_rabbitmq(tmp_path_factory.mktemp("troubled")) as broker:
        assert isinstance(broker, RabbitProcess)
        yield broker


async def test_a_memory_alarm_is_named(troubled: RabbitProcess) -> None:
    """Publishes fail at once with its name, messages still arrive, and all goes on when it ends."""
    sink = RecordingSink()
    async with started(troubled.url, sink) as adapter:
        await adapter.subscribe(["room"])
        await asyncio.to_thread(troubled.control, "set_vm_memory_high_watermark", "0.0001")
        with pytest.raises(PublishOutcomeUnknownError, match=r"RabbitMQ blocks publishers: .*memory"):
            await adapter.publish("room", b"in doubt")
        with pytest.raises(BrokerUnavailableError, match=r"RabbitMQ blocks publishers: .*memory"):
            await adapter.publish("room", b"refused")
        await adapter.check()
        async with started(troubled.url) as doctor:  # the server reports an alarm to what publishes
            assert (await troubles_of(doctor))["amqp_alarm"] == "error"
        await asyncio.to_thread(troubled.control, "set_vm_memory_high_watermark", "absolute", "4GB")
        async with asyncio.timeout(30):
            while publisher_of(adapter).blocked:
                await asyncio.sleep(0.05)
        await adapter.publish("room", b"after")
        await sink.until(lambda: b"after" in sink.payloads("room"))
        assert b"refused" not in sink.payloads("room")
        assert not sink.losses


@pytest.mark.full
async def test_a_worker_in_a_memory_alarm_comes_back(troubled: RabbitProcess) -> None:
    """Whether or not the core rebuilds its link meanwhile, messages arrive again when the alarm ends."""
    async with Backplane(troubled.url, settings=_QUICK) as backplane, backplane.subscribe("room") as messages:
        await asyncio.to_thread(troubled.control, "set_vm_memory_high_watermark", "0.0001")
        with pytest.raises(BrokerError, match="RabbitMQ blocks publishers"):
            await backplane.publish("room", "blocked")
        await asyncio.to_thread(troubled.control, "set_vm_memory_high_watermark", "absolute", "4GB")
        async with asyncio.timeout(30):
            while True:
                try:
                    await backplane.publish("room", "after")
                    break
                except BrokerError:
                    await asyncio.sleep(0.1)
            while True:
                item = await anext(messages)
                if isinstance(item, Message) and item.data == "after":
                    break


@pytest.mark.full
async def test_a_killed_server(troubled: RabbitProcess) -> None:
    """Every subscriber is notified of a gap, and messages arrive again."""
    async with Backplane(troubled.url, settings=_QUICK) as backplane, backplane.subscribe("room") as messages:
        troubled.kill9()
        troubled.launch()
        await asyncio.to_thread(troubled.wait_until_up)
        gap = await anext(messages)
        assert isinstance(gap, Gap)
        await backplane.publish("room", "again")
        item = await anext(messages)
        assert isinstance(item, Message)
        assert item.data == "again"


@pytest.mark.full
async def test_a_stopped_server_ends_by_its_heartbeat(troubled: RabbitProcess) -> None:
    """It is noticed without the core's probe too, and closing is bounded."""
    sink = RecordingSink()
    async with started(f"{troubled.url}?heartbeat_seconds=1", sink):
        troubled.freeze()
        try:
            await sink.until(lambda: bool(sink.losses))
        finally:
            troubled.thaw()
    assert "nothing came from the server" in str(sink.losses[0])


async def test_closing_on_a_silent_server_is_bounded(amqp_broker: Broker) -> None:
    """`stop` waits for half a second at most, and leaves nothing."""
    async with FaultProxy(amqp_broker.own_url) as proxy:
        adapter = broadcaster_from_url(proxy.url)
        await adapter.start(RecordingSink())
        await adapter.subscribe(["room"])
        proxy.silence()
        async with asyncio.timeout(20):
            await adapter.stop()
            await adapter.stop()
