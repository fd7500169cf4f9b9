"""Floor of a broker: from publish to receive by a minimal client, without WebSockets.

One process subscribes and publishes at a rate. Redis and NATS are driven by their line protocols, Kafka by aiokafka,
because a Kafka client of our own would not be minimal.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Protocol, cast
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["SCHEMES", "latencies"]

SCHEMES = ("redis", "nats", "kafka")

_CHANNEL = "backplane-bench-raw"
_NUMBER_BYTES = 16


class _Link(Protocol):
    """Publishes; what it receives goes to the callback of its constructor."""

    def publish(self, payload: bytes) -> None: ...

    async def close(self) -> None: ...


async def latencies(url: str, *, rate: float, seconds: float, payload: int) -> list[int]:
    """Return the microseconds of each message, from when it should have been published until it was back."""
    received: list[int] = []
    epoch = time.monotonic_ns()

    def on_message(data: bytes) -> None:
        received.append((time.monotonic_ns() - epoch) // 1000 - int(data[:_NUMBER_BYTES]))

    link = await _open(url, on_message)
    count = round(rate * seconds)
    start = (time.monotonic_ns() - epoch) // 1000 + 200_000
    for number in range(count):
        intended = start + round(number * 1e6 / rate)
        await asyncio.sleep((intended - (time.monotonic_ns() - epoch) // 1000) / 1e6)
        link.publish(b"%016d" % intended + b"x" * (payload - _NUMBER_BYTES))
    async with asyncio.timeout(10):
        while len(received) < count:  # noqa: ASYNC110  # messages are only counted
            await asyncio.sleep(0.01)
    await link.close()
    return received


async def _open(url: str, on_message: Callable[[bytes], None]) -> _Link:
    parts = urlsplit(url)
    host, port = parts.hostname or "127.0.0.1", parts.port or 0
    loop = asyncio.get_running_loop()
    if parts.scheme == "kafka":
        return await _Kafka.open(f"{host}:{port}", on_message)
    make: Any = {"redis": _Redis, "nats": _Nats}[parts.scheme]
    made: Any = [(await loop.create_connection(lambda: make(on_message), host, port))[1] for _ in range(2)]
    link, link.publishing = made[0], made[1]
    link.subscribe()
    await link.subscribed
    return cast("_Link", link)


class _Redis(asyncio.Protocol):
    publishing: _Redis

    def __init__(self, on_message: Callable[[bytes], None]) -> None:
        import hiredis

        self.subscribed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._on_message = on_message
        self._reader: Any = hiredis.Reader()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not False:
            if isinstance(reply, list):
                self._take(reply)

    def subscribe(self) -> None:
        self.transport.write(f"SUBSCRIBE {_CHANNEL}\r\n".encode())

    def publish(self, payload: bytes) -> None:
        channel = _CHANNEL.encode()
        head = b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$%d\r\n" % (len(channel), channel, len(payload))
        self.publishing.transport.write(head + payload + b"\r\n")

    async def close(self) -> None:
        self.transport.close()
        self.publishing.transport.close()

    def _take(self, reply: Any) -> None:
        if reply[0] == b"message":
            self._on_message(reply[2])
        elif not self.subscribed.done():
            self.subscribed.set_result(None)


class _Nats(asyncio.Protocol):
    publishing: _Nats

    def __init__(self, on_message: Callable[[bytes], None]) -> None:
        self.subscribed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._on_message = on_message
        self._data = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.write(b'CONNECT {"verbose":false,"pedantic":false}\r\n')

    def data_received(self, data: bytes) -> None:
        self._data += data
        while (end := self._data.find(b"\r\n")) >= 0:
            line = self._data[:end]
            if line.startswith(b"MSG"):
                stop = end + 2 + int(line.rsplit(b" ", 1)[1])
                if len(self._data) < stop + 2:
                    return
                self._on_message(self._data[end + 2 : stop])
                self._data = self._data[stop + 2 :]
            else:
                self._data = self._data[end + 2 :]
                self._answer(line)

    def subscribe(self) -> None:
        self.transport.write(f"SUB {_CHANNEL} 1\r\nPING\r\n".encode())

    def publish(self, payload: bytes) -> None:
        self.publishing.transport.write(f"PUB {_CHANNEL} {len(payload)}\r\n".encode() + payload + b"\r\n")

    async def close(self) -> None:
        self.transport.close()
        self.publishing.transport.close()

    def _answer(self, line: bytes) -> None:
        if line == b"PING":
            self.transport.write(b"PONG\r\n")
        elif line == b"PONG" and not self.subscribed.done():
            self.subscribed.set_result(None)


class _Kafka:
    """Reads one partition from its end on; `open` creates the topic where it does not exist."""

    def __init__(self, producer: Any, consumer: Any, on_message: Callable[[bytes], None]) -> None:
        self._producer, self._consumer = producer, consumer
        self._sending: set[asyncio.Task[Any]] = set()
        self._reading = asyncio.create_task(self._read(on_message))

    @classmethod
    async def open(cls, address: str, on_message: Callable[[bytes], None]) -> _Kafka:
        import aiokafka  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs]
        import aiokafka.admin  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs]

        library: Any = aiokafka
        administration: Any = aiokafka.admin
        admin = administration.AIOKafkaAdminClient(bootstrap_servers=address)
        await admin.start()
        if _CHANNEL not in await admin.list_topics():
            await admin.create_topics([administration.NewTopic(_CHANNEL, 1, 1)])
        await admin.close()
        consumer = library.AIOKafkaConsumer(bootstrap_servers=address, fetch_max_wait_ms=100)
        producer = library.AIOKafkaProducer(bootstrap_servers=address, linger_ms=0)
        await producer.start()
        await consumer.start()
        consumer.assign([library.TopicPartition(_CHANNEL, 0)])
        await consumer.seek_to_end()
        return cls(producer, consumer, on_message)

    def publish(self, payload: bytes) -> None:
        task = asyncio.create_task(self._producer.send_and_wait(_CHANNEL, payload, partition=0))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def close(self) -> None:
        self._reading.cancel()
        await self._consumer.stop()
        await self._producer.stop()

    async def _read(self, on_message: Callable[[bytes], None]) -> None:
        async for message in self._consumer:
            on_message(message.value)
