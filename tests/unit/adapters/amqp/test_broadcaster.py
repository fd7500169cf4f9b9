"""The adapter on a stand-in that answers as RabbitMQ does; real servers are in `tests/integration/test_amqp.py`."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from pamqp import commands
from pamqp.body import ContentBody
from pamqp.frame import marshal, unmarshal
from pamqp.header import ContentHeader

from backplane.adapters.amqp import AmqpBroadcaster
from backplane.broker.registry import broadcaster_from_url
from backplane.errors import BrokerUnavailableError, PublishError, PublishOutcomeUnknownError
from backplane.testing.recording import RecordingSink

pytestmark = pytest.mark.anyio

_ANSWERS: dict[str, Any] = {
    "Connection.StartOk": lambda: commands.Connection.Tune(0, 0, 60),
    "Connection.Open": commands.Connection.OpenOk,
    "Connection.Close": commands.Connection.CloseOk,
    "Channel.Open": commands.Channel.OpenOk,
    "Confirm.Select": commands.Confirm.SelectOk,
    "Exchange.Declare": commands.Exchange.DeclareOk,
    "Queue.Declare": lambda: commands.Queue.DeclareOk("q", 0, 0),
    "Queue.Bind": commands.Queue.BindOk,
    "Basic.Consume": lambda: commands.Basic.ConsumeOk("c"),
}


class StandIn:
    """Answers each method; what is published goes to every connection that consumes."""

    def __init__(self) -> None:
        self.port = 0
        self.on_publish: Any = None  # a method in place of the confirmation
        self.drop: set[bytes] = set()
        self._consumers: list[asyncio.StreamWriter] = []
        self._writers: set[asyncio.StreamWriter] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        self._writers.add(writer)
        await reader.readexactly(8)
        properties: Any = {"product": "RabbitMQ", "version": "0", "cluster_name": "one"}
        writer.write(marshal(commands.Connection.Start(server_properties=properties), 0))
        number, header = 0, ContentHeader()
        key = ""
        while head := await reader.read(7):
            data = head + await reader.readexactly(int.from_bytes(head[3:7], "big") + 1)
            _, channel, frame = unmarshal(data)
            answer = _ANSWERS.get(frame.name)
            if answer is not None:
                writer.write(marshal(answer(), channel))
            if isinstance(frame, commands.Basic.Consume):
                self._consumers.append(writer)
            elif isinstance(frame, commands.Basic.Publish):
                key, number = frame.routing_key, number + 1
            elif isinstance(frame, commands.Channel.Open):
                number = 0
            elif isinstance(frame, ContentHeader):
                header = frame
            elif isinstance(frame, ContentBody):
                writer.write(marshal(self.on_publish or commands.Basic.Ack(number), 0 if self._is_blocked() else 1))
                if frame.value not in self.drop:
                    self.deliver(key, header, frame)
        writer.close()

    def deliver(self, key: str, header: ContentHeader, body: ContentBody) -> None:
        """Deliver a message to every consumer."""
        for consumer in self._consumers:
            for part in (commands.Basic.Deliver("c", 1, exchange="backplane", routing_key=key), header, body):
                consumer.write(marshal(part, 1))

    def send(self, method: Any, channel: int = 1) -> None:
        """Send a method on every connection."""
        for writer in self._writers:
            writer.write(marshal(method, channel))

    def _is_blocked(self) -> bool:
        return isinstance(self.on_publish, commands.Connection.Blocked)


@pytest.fixture
async def server() -> AsyncGenerator[StandIn]:
    """A stand-in."""
    stand_in = StandIn()
    async with await asyncio.start_server(stand_in.serve, "127.0.0.1", 0) as listener:
        stand_in.port = listener.sockets[0].getsockname()[1]
        yield stand_in


@pytest.fixture
async def sink() -> RecordingSink:
    """A sink."""
    return RecordingSink()


@pytest.fixture
async def adapter(server: StandIn, sink: RecordingSink) -> AsyncGenerator[AmqpBroadcaster]:
    """An adapter that is subscribed to `room`."""
    made = broadcaster_from_url(f"amqp://127.0.0.1:{server.port}")
    assert isinstance(made, AmqpBroadcaster)
    await made.start(sink)
    await made.subscribe(["room"])
    yield made
    await made.stop()


async def test_publish_and_receive(adapter: AmqpBroadcaster, sink: RecordingSink) -> None:
    """What is published comes back, on subscribed channels alone."""
    await adapter.publish("room", b"1")
    await adapter.publish("other", b"2")
    await adapter.check()
    await adapter.publish("room", b"3")
    await sink.until(lambda: len(sink.delivered) == 2)
    await adapter.unsubscribe(["room"])
    assert (sink.payloads("room"), sink.gaps) == ([b"1", b"3"], [])
    assert await adapter.describe() == "RabbitMQ 0"


async def test_a_hole_is_a_gap(adapter: AmqpBroadcaster, sink: RecordingSink, server: StandIn) -> None:
    """A message that the queue dropped, though it was confirmed."""
    server.drop = {b"2"}
    for payload in (b"1", b"2", b"3"):
        await adapter.publish("room", payload)
    await sink.until(lambda: len(sink.delivered) == 2)
    assert sink.gaps == [
        (None, "the queue of this worker overran, or the cluster was parted: at least 1 messages are missing")
    ]


async def test_refusals(adapter: AmqpBroadcaster, sink: RecordingSink, server: StandIn) -> None:
    """One message the server could not take, and one without rights; the link stays."""
    server.on_publish = commands.Basic.Nack(1)
    with pytest.raises(PublishOutcomeUnknownError, match="could not take it"):
        await adapter.publish("room", b"1")
    server.on_publish = commands.Channel.Close(403, "ACCESS_REFUSED", 60, 40)
    with pytest.raises(PublishError, match="ACCESS_REFUSED"):
        await adapter.publish("room", b"2")
    server.on_publish = None
    await adapter.publish("room", b"3")
    assert not sink.losses


async def test_an_alarm(adapter: AmqpBroadcaster, server: StandIn) -> None:
    """It is named, and ends."""
    server.on_publish = commands.Connection.Blocked("low on memory")
    with pytest.raises(PublishOutcomeUnknownError, match="low on memory"):
        await adapter.publish("room", b"1")
    with pytest.raises(BrokerUnavailableError, match="low on memory"):
        await adapter.publish("room", b"2")
    await adapter.check()


@pytest.mark.parametrize(
    ("method", "channel", "reason"),
    [
        (commands.Basic.Cancel("c"), 1, "queue of this worker was deleted"),
        (commands.Channel.Close(404, "NOT_FOUND", 0, 0), 1, "NOT_FOUND"),
        (commands.Connection.Close(320, "CONNECTION_FORCED", 0, 0), 0, "CONNECTION_FORCED"),
        (commands.Exchange.DeclareOk(), 1, "answers nothing"),
    ],
)
async def test_what_ends_the_link(
    adapter: AmqpBroadcaster, sink: RecordingSink, server: StandIn, method: Any, channel: int, reason: str
) -> None:
    """Once, with its reason; every call fails afterwards."""
    server.send(method, channel)
    await sink.until(lambda: bool(sink.losses))
    assert reason in str(sink.losses[0])
    with pytest.raises(BrokerUnavailableError):
        await adapter.subscribe(["more"])
    await adapter.stop()
    with pytest.raises(BrokerUnavailableError):
        await adapter.publish("room", b"1")
    assert len(sink.losses) == 1
