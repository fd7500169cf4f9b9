"""A stand-in that answers as RabbitMQ does."""

import asyncio
from typing import Any

from pamqp import commands
from pamqp.body import ContentBody
from pamqp.common import FieldTable  # noqa: TC002  # annotates a local variable
from pamqp.frame import marshal, unmarshal
from pamqp.header import ContentHeader

__all__ = ["StandIn"]

_ANSWERS: dict[str, Any] = {
    "Connection.StartOk": lambda: commands.Connection.Tune(0, 0, 60),
    "Connection.Open": commands.Connection.OpenOk,
    "Connection.Close": commands.Connection.CloseOk,
    "Channel.Open": commands.Channel.OpenOk,
    "Confirm.Select": commands.Confirm.SelectOk,
    "Basic.Qos": commands.Basic.QosOk,
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
        self.cluster = "one"
        self.capabilities = dict.fromkeys(("publisher_confirms", "consumer_cancel_notify", "connection.blocked"), True)
        self.once: dict[str, Any] = {}  # a method in place of the first answer, by what is answered
        self.logins: list[str] = []
        self.answers = dict(_ANSWERS)
        self.offset: int | None = None  # of the next message, where the queue is a stream
        self.stored: list[tuple[str, ContentHeader, ContentBody]] = []
        self._consumers: list[asyncio.StreamWriter] = []
        self._writers: set[asyncio.StreamWriter] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        self._writers.add(writer)
        await reader.readexactly(8)
        properties: Any = {
            "product": "RabbitMQ",
            "version": "0",
            "cluster_name": self.cluster,
            "capabilities": self.capabilities,
        }
        writer.write(marshal(commands.Connection.Start(server_properties=properties), 0))
        number, header = 0, ContentHeader()
        key = ""
        while head := await reader.read(7):
            data = head + await reader.readexactly(int.from_bytes(head[3:7], "big") + 1)
            _, channel, frame = unmarshal(data)
            answer = self.once.pop(frame.name, None) or self.answers.get(frame.name, lambda: None)()
            if answer is not None:
                writer.write(marshal(answer, channel))
            if isinstance(frame, commands.Connection.StartOk):
                self.logins.append(frame.response)
            elif isinstance(frame, commands.Basic.Consume):
                self._begin(writer, frame)
            elif isinstance(frame, commands.Basic.Publish):
                key, number = frame.routing_key, number + 1
            elif isinstance(frame, commands.Channel.Open):
                number = 0
            elif isinstance(frame, ContentHeader):
                header = frame
            elif isinstance(frame, ContentBody):
                self._confirm(writer, number)
                if frame.value not in self.drop:
                    self.deliver(key, header, frame)
        self._writers.discard(writer)
        self._consumers = [consumer for consumer in self._consumers if consumer is not writer]
        writer.close()

    def deliver(self, key: str, header: ContentHeader, body: ContentBody) -> None:
        """Deliver a message to every consumer."""
        if self.offset is not None:
            headers: FieldTable = {"x-stream-offset": self.offset + 2**40}  # so that it is a long one
            header.properties.headers = headers
            self.offset += 1
            self.stored.append((key, header, body))
        for consumer in self._consumers:
            if consumer.is_closing():
                continue
            self._send_message(consumer, key, header, body)

    def _send_message(self, writer: asyncio.StreamWriter, key: str, header: ContentHeader, body: ContentBody) -> None:
        for part in (commands.Basic.Deliver("c", 1, exchange="backplane", routing_key=key), header, body):
            writer.write(marshal(part, 1))

    def send(self, method: Any, channel: int = 1) -> None:
        """Send a method on every connection."""
        for writer in self._writers:
            writer.write(marshal(method, channel))

    def _begin(self, writer: asyncio.StreamWriter, consume: commands.Basic.Consume) -> None:
        self._consumers.append(writer)
        start: Any = (consume.arguments or {}).get("x-stream-offset")
        for message in self.stored if isinstance(start, int) else ():
            offset: Any = (message[1].properties.headers or {})["x-stream-offset"]
            if offset >= start:
                self._send_message(writer, *message)

    def _confirm(self, writer: asyncio.StreamWriter, number: int) -> None:
        is_blocked = isinstance(self.on_publish, commands.Connection.Blocked)
        writer.write(marshal(self.on_publish or commands.Basic.Ack(number), 0 if is_blocked else 1))
