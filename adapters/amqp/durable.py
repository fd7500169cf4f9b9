"""`?durable=true`: messages are in a stream, and a worker goes on after a lost link where it was.

The exchange and its messages are those of plain workers, which may share it: the stream is one more queue of it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from backplane.adapters.amqp.broadcaster import AmqpBroadcaster
from backplane.adapters.amqp.inspection import inspect_stream
from backplane.adapters.amqp.publisher import PublisherConnection, StreamSettings
from backplane.adapters.amqp.stream import StreamConsumer, StreamPosition
from backplane.message import ALL

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from backplane.adapters.amqp.consumer import ConsumerConnection
    from backplane.adapters.amqp.options import AmqpOptions
    from backplane.broadcaster import BrokerUrl, Capabilities, Sink
    from backplane.findings import Finding

__all__ = ["DurableAmqpBroadcaster"]


class DurableAmqpBroadcaster(AmqpBroadcaster):
    """One link to RabbitMQ, which stores a message before its publish returns."""

    def __init__(self, url: BrokerUrl, options: AmqpOptions) -> None:
        super().__init__(url, options)
        self._stream = StreamSettings(f"{options.exchange}.stream", options.retention_seconds, options.retention_bytes)
        self._position = StreamPosition()
        self._prefixes: set[str] = set()  # for the next connection, where the link is resumed

    @property
    def capabilities(self) -> Capabilities:
        """What this adapter can do."""
        return replace(super().capabilities, publish_returns="stored", resumes=True)

    async def stop(self) -> None:
        """Close both connections, and forget the position."""
        await self._close()
        self._position = StreamPosition()
        self._prefixes.clear()

    async def suspend(self) -> None:
        """Close both connections; `resume` goes on at the position."""
        await self._close()

    async def resume(self, sink: Sink, channels: Collection[str]) -> None:
        """Open both connections again, and deliver what was published meanwhile."""
        await self._open(sink)
        if self._position.last is not None:
            await self._require_consumer(channels)

    async def subscribe_prefixes(self, prefixes: Collection[str]) -> None:
        """Subscribe to every channel that begins with one of `prefixes`, in this process."""
        await super().subscribe_prefixes(prefixes)
        self._prefixes.update(prefixes)

    async def unsubscribe_prefixes(self, prefixes: Collection[str]) -> None:
        """Drop `prefixes`, in this process."""
        await super().unsubscribe_prefixes(prefixes)
        self._prefixes.difference_update(prefixes)

    async def inspect(self, subscribers: Mapping[str, int]) -> list[Finding]:
        """Return what of the server, and of the stream, can keep messages from workers."""
        findings = await super().inspect(subscribers)
        return [*findings, inspect_stream(self._stream.name, self._require_publisher().stream_refusal)]

    def _make_publisher(self) -> PublisherConnection:
        options = self.options
        return PublisherConnection(options.exchange, options.max_pending_bytes, self._numbering, self._stream)

    def _make_consumer(self, sink: Sink) -> ConsumerConnection:
        consumer = StreamConsumer(
            self._stream.name,
            self.options.queue_max_bytes,
            self._position,
            deliver=sink.deliver,
            overran=lambda reason: sink.gap(ALL, reason),
        )
        consumer.wanted.add_prefixes(self._prefixes)
        return consumer

    async def _ready(self, consumer: ConsumerConnection, publisher: PublisherConnection) -> None:
        """Wait until a message of this worker comes back: what was published before it is delivered then."""
        if isinstance(consumer, StreamConsumer):
            await consumer.caught_up(publisher)
