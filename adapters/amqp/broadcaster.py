"""`amqp://` and `amqps://`: RabbitMQ, by AMQP 0-9-1.

There are two connections: one publishes; the other, opened with the first subscription, receives. All channels share
one fanout exchange (option `exchange`) with the channel as the routing key, and each worker has a queue of its own, of
which it passes on what it has subscribed to: a binding for each channel would cost the server 0.7 ms.

At most once: the queue ends with its connection, and drops the oldest messages where the worker does not read.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar, Self

from backplane.adapters.amqp.connector import Connector
from backplane.adapters.amqp.consumer import ConsumerConnection
from backplane.adapters.amqp.errors import unavailable
from backplane.adapters.amqp.inspection import describe_server, inspect_server
from backplane.adapters.amqp.numbering import Numbering
from backplane.adapters.amqp.options import AmqpOptions, check_options
from backplane.adapters.amqp.publisher import PublisherConnection
from backplane.broadcaster import Broadcaster, Capabilities
from backplane.message import ALL

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from backplane.adapters.amqp.connection import AmqpConnection
    from backplane.broadcaster import BrokerUrl, Options, Sink
    from backplane.errors import BrokerError
    from backplane.findings import Finding

__all__ = ["AmqpBroadcaster", "AmqpOptions"]


class AmqpBroadcaster(Broadcaster):
    """One link to RabbitMQ, to one of several servers of a cluster that the URL may name: `amqp://one,two/shop`.

    Args:
        url: Where it connects. Its path is the virtual host.
        options: The validated options.
    """

    options_class: ClassVar[type[Options]] = AmqpOptions
    options: AmqpOptions

    def __new__(cls, url: BrokerUrl, options: AmqpOptions) -> Self:
        """Return the class that the option `durable` asks for: what can resume is another kind of adapter."""
        chosen: Any = cls
        if options.durable and cls is AmqpBroadcaster:
            from backplane.adapters.amqp.durable import DurableAmqpBroadcaster  # it is a subclass

            chosen = DurableAmqpBroadcaster
        made: Self = super().__new__(chosen)
        return made

    def __init__(self, url: BrokerUrl, options: AmqpOptions) -> None:
        super().__init__(url, options)
        check_options(url, options)
        self._connector = Connector(url, options)
        self._numbering = Numbering()
        self._sink: Sink | None = None
        self._publisher: PublisherConnection | None = None
        self._consumer: ConsumerConnection | None = None
        self._consumer_opening = asyncio.Lock()  # a new one at each start: a lock belongs to one event loop

    @property
    def capabilities(self) -> Capabilities:
        """What this adapter can do."""
        return Capabilities(
            brokered=True,
            reach="network",
            publish_returns="accepted",
            max_payload_bytes=self.options.max_payload_bytes,
            patterns=True,
        )

    async def start(self, sink: Sink) -> None:
        """Open the connection that publishes; the one that receives is opened with the first subscription."""
        await self._open(sink)

    async def stop(self) -> None:
        """Close both connections; publishes without an answer raise `PublishOutcomeUnknownError`."""
        await self._close()

    async def publish(self, channel: str, payload: bytes) -> None:
        """Publish; returns when the server has confirmed, which is when every queue has it.

        Raises:
            PublishError: The server refused it; `retriable` where too much awaits its answer.
        """
        await self._require_publisher().publish(channel, payload)

    async def subscribe(self, channels: Collection[str]) -> None:
        """Subscribe, in this process; the first call opens the connection that receives, with its queue."""
        (await self._require_consumer()).wanted.add(channels)

    async def unsubscribe(self, channels: Collection[str]) -> None:
        """Drop `channels`, in this process."""
        if self._consumer is None:
            raise unavailable("the link is closed")
        self._consumer.wanted.remove(channels)

    async def subscribe_prefixes(self, prefixes: Collection[str]) -> None:
        """Subscribe to every channel that begins with one of `prefixes`, in this process."""
        (await self._require_consumer()).wanted.add_prefixes(prefixes)

    async def unsubscribe_prefixes(self, prefixes: Collection[str]) -> None:
        """Drop `prefixes`, in this process."""
        if self._consumer is None:
            raise unavailable("the link is closed")
        self._consumer.wanted.remove_prefixes(prefixes)

    async def check(self) -> None:
        """Check that the server answers on both connections, and still has exchange and queue.

        Raises:
            BrokerError: It does not.
        """
        await self._require_publisher().check()
        if self._consumer is not None:
            await self._consumer.check()

    async def describe(self) -> str:
        """Return name and version."""
        return describe_server(self._require_publisher().server)

    async def inspect(self, subscribers: Mapping[str, int]) -> list[Finding]:
        """Return what of the server can keep messages from workers; how many have subscribed AMQP does not show."""
        return await inspect_server(self._require_publisher(), self.options)

    async def _open(self, sink: Sink) -> None:
        self._consumer_opening = asyncio.Lock()
        publisher = await self._connector.open(self._make_publisher)
        publisher.adopt(lambda error: self._lost(publisher, error))
        self._sink, self._publisher = sink, publisher

    async def _close(self) -> None:
        self._sink = None
        publisher, self._publisher = self._publisher, None
        consumer, self._consumer = self._consumer, None
        open_connections = [connection for connection in (publisher, consumer) if connection is not None]
        if open_connections:
            await asyncio.gather(*[connection.close() for connection in open_connections])

    def _make_publisher(self) -> PublisherConnection:
        return PublisherConnection(self.options.exchange, self.options.max_pending_bytes, self._numbering)

    def _make_consumer(self, sink: Sink) -> ConsumerConnection:
        return ConsumerConnection(
            self.options.exchange,
            self.options.queue_max_bytes,
            deliver=sink.deliver,
            overran=lambda reason: sink.gap(ALL, reason),
        )

    def _require_publisher(self) -> PublisherConnection:
        if self._publisher is None:
            raise unavailable("the link is closed")
        return self._publisher

    async def _ready(self, consumer: ConsumerConnection, publisher: PublisherConnection) -> None:
        """Prepare a connection that receives, before it is used."""

    async def _require_consumer(self, channels: Collection[str] = ()) -> ConsumerConnection:
        """Return the connection that receives, which is opened where there is none, with these channels."""
        async with self._consumer_opening:
            publisher, sink = self._publisher, self._sink
            if publisher is None or sink is None or publisher.loss is not None:
                raise unavailable("the link is lost")
            if self._consumer is None:
                consumer = await self._open_consumer(sink, publisher, channels)
                if self._publisher is not publisher or self._sink is not sink:
                    consumer.end(unavailable("the link is closed"))
                    raise unavailable("the link was closed meanwhile")
                consumer.adopt(lambda error: self._lost(consumer, error))
                self._consumer = consumer
            return self._consumer

    async def _open_consumer(
        self, sink: Sink, publisher: PublisherConnection, channels: Collection[str]
    ) -> ConsumerConnection:
        def make() -> ConsumerConnection:
            consumer = self._make_consumer(sink)
            consumer.wanted.add(channels)
            return consumer

        consumer = await self._connector.open(make)
        try:
            self._compare(publisher, consumer)
            await self._ready(consumer, publisher)
        except BaseException:
            consumer.end(unavailable("it was given up"))
            raise
        return consumer

    def _compare(self, *connections: AmqpConnection) -> None:
        names = {str(connection.server.get("cluster_name")) for connection in connections}
        if len(names) > 1:
            found = ", ".join(sorted(names))
            raise unavailable(f"{self.url} leads to more than one cluster: two connections found {found}")

    def _lost(self, connection: AmqpConnection, error: BrokerError) -> None:
        if self._sink is None or connection not in (self._publisher, self._consumer):
            return
        sink, self._sink = self._sink, None
        sink.lost(error)
