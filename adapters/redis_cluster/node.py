"""The connections to one node of a cluster, and how they are kept."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from typing import TYPE_CHECKING, Final, Protocol

import hiredis

from backplane.adapters.redis.errors import classify_reply, unavailable
from backplane.adapters.redis_cluster.links import ShardPublisherLink, ShardSubscriberLink
from backplane.adapters.redis_cluster.slots import slot_of
from backplane.adapters.shared.server_address import format_address
from backplane.channels import RESERVED_PREFIX
from backplane.concurrency.timeouts import PatientTimeout
from backplane.errors import BrokerError
from backplane.journal.events import BROKER_DETAIL, PROBE_DENIED
from backplane.journal.writing import write

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from backplane.adapters.redis.link import RedisLink
    from backplane.adapters.redis.publisher_link import PublisherLink
    from backplane.adapters.redis_cluster.connector import Connector
    from backplane.adapters.redis_cluster.options import RedisClusterOptions
    from backplane.adapters.redis_cluster.slots import Host
    from backplane.broadcaster import Sink

__all__ = ["Node", "NodeOwner"]

logger: Final = logging.getLogger("backplane.adapters.redis_cluster.node")

# The pause between two tries to connect doubles from the first to the last.
_FIRST_PAUSE_SECONDS: Final = 0.05
_MAX_PAUSE_SECONDS: Final = 1.0
# A connection that ends as soon as it is open must not be replaced in a busy loop.
_STABLE_SECONDS: Final = 1.0
_MAX_NAMES: Final = 100_000


class NodeOwner(Protocol):
    """What a node reports to."""

    def ended(self, node: Node, channels: Collection[str], reason: str) -> None:
        """Take note that subscriptions have ended: a connection of the node did, or the server ended them."""
        ...

    def owner_of(self, slot: int) -> Host | None:
        """Return where the node is that serves a slot."""
        ...

    async def prepare_link(self, link: PublisherLink) -> None:
        """Prepare a new connection that is about to publish."""
        ...


class Node:
    """One node: a connection that publishes, kept open, and one that receives, opened with the first subscription.

    Args:
        host: Where it is.
        node_id: Its id, where it is known.
        connector: Opens connections.
        options: Those of the adapter.
        sink: Takes messages.
        owner: Takes note of what has ended.

    Attributes:
        host: Where it is.
        publisher: The connection that publishes. Where it has ended, a new one that holds back what is published until
            the next try to connect has succeeded or failed.
        failure: Why it is down.
        tried: Set after the first try to connect.
    """

    def __init__(
        self,
        host: Host,
        node_id: str,
        connector: Connector,
        options: RedisClusterOptions,
        *,
        sink: Sink,
        owner: NodeOwner,
    ) -> None:
        self.host: Host = host
        self._id = node_id
        self._connector = connector
        self._options = options
        self._sink = sink
        self._owner = owner
        self._closed = False
        self._lost = asyncio.Event()
        self._opening = asyncio.Lock()
        self._subscriber: ShardSubscriberLink | None = None
        self._probe_denied = False
        self.publisher: ShardPublisherLink = self._new_publisher()
        self.failure: Exception | None = None
        self.tried: asyncio.Event = asyncio.Event()

    @property
    def is_up(self) -> bool:
        """Whether the connection that publishes is open."""
        return self.publisher.is_adopted and self.publisher.loss is None

    @property
    def is_linked(self) -> bool:
        """Whether any connection is open."""
        return self.is_up or (self._subscriber is not None and self._subscriber.loss is None)

    @property
    def links(self) -> Sequence[RedisLink]:
        """Its connections."""
        return [self.publisher] if self._subscriber is None else [self.publisher, self._subscriber]

    @property
    def names(self) -> Mapping[bytes, str]:
        """The channels that are subscribed here, by name."""
        return {} if self._subscriber is None else self._subscriber.channels

    async def run(self) -> None:
        """Keep the connection that publishes, until cancelled."""
        loop = asyncio.get_running_loop()
        pause = _FIRST_PAUSE_SECONDS
        while True:
            held_back = self.publisher
            try:
                # Publishes wait for the first try after a loss, so that one is short.
                async with PatientTimeout(self._options.node_timeout_seconds if held_back.loss is None else None):
                    link = await self._connector.open(self._new_publisher, self.host, self._id)
                    await self._prepare(link)
            except (BrokerError, TimeoutError) as error:
                self.failure = error
                held_back.end(f"{format_address(self.host)} is down: {getattr(error, 'reason', 'no answer')}")
                self.tried.set()
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311  # spreads the tries
                pause = min(2 * pause, _MAX_PAUSE_SECONDS)
                continue
            link.inherit(held_back)
            self.publisher = link
            self.failure = None
            link.adopt(self._publisher_lost)
            self.tried.set()
            opened_at = loop.time()
            await self._lost.wait()
            self._lost.clear()
            if loop.time() - opened_at > _STABLE_SECONDS:
                pause = _FIRST_PAUSE_SECONDS
            else:
                await asyncio.sleep(pause)
                pause = min(2 * pause, _MAX_PAUSE_SECONDS)

    async def unsubscribe(self, names: Sequence[bytes]) -> None:
        """Drop channels.

        Raises:
            BrokerUnavailableError: The connection ended, and with it every subscription here.
        """
        if self._subscriber is not None:
            await self._subscriber.unsubscribe(names)

    def drop(self, names: Collection[bytes], reason: str) -> None:
        """End subscriptions of slots that another node serves; the server refuses to end them, or does so itself."""
        link = self._subscriber
        channels = [channel for name in names if link is not None and (channel := link.channels.pop(name, None))]
        if channels:
            self._owner.ended(self, channels, reason)

    def end(self, reason: str) -> None:
        """End both connections."""
        for link in self.links:
            link.end(reason)

    async def close(self) -> None:
        """End both connections for good, and report nothing more."""
        self._closed = True
        links = self.links
        self.end("the link is closed")
        for link in links:
            await link.closed.wait()

    async def check(self) -> None:
        """Prove that both connections answer, and that what is published here comes back; end them where it does not.

        Raises nothing: a node that is down is its owner's to move away from.
        """
        if not self.is_up:
            return
        try:
            async with PatientTimeout(self._options.node_timeout_seconds):
                if self._subscriber is None:
                    await self.publisher.barrier()
                else:
                    await self._check_both(self._subscriber)
        except TimeoutError:
            seconds = self._options.node_timeout_seconds
            self.end(f"{format_address(self.host)} is silent: a delivery probe did not return within {seconds:g} s")
        except (BrokerError, hiredis.ReplyError) as error:
            write(logger, BROKER_DETAIL, "the check of a node was not completed: %(reason)s", reason=error)

    async def _check_both(self, link: ShardSubscriberLink) -> None:
        name = link.probe_name
        if name is None or self._owner.owner_of(slot_of(name)) != self.host:
            name = await self._subscribe_probe(link)
        if name is None:
            await asyncio.gather(self.publisher.barrier(), link.ask(b"PING"))
            return
        link.probe_reply = asyncio.get_running_loop().create_future()
        await self.publisher.spublish(name, b"")
        await link.probe_reply

    async def _subscribe_probe(self, link: ShardSubscriberLink) -> bytes | None:
        """Return the name of a delivery probe; `None` where there can be none at present, or ever."""
        name = None if self._probe_denied else self._new_probe_name()
        if name is None or (error := await link.subscribe_probe(name)) is None:
            return name
        self._probe_denied = classify_reply(error) == "refused"
        if self._probe_denied:
            words = "no delivery probe, a silent node can go unnoticed: allow channel %(channel)s: %(reason)s"
            write(logger, PROBE_DENIED, words, channel=f"{RESERVED_PREFIX}*", reason=error)
        return None

    def _new_probe_name(self) -> bytes | None:
        """Return a name in a slot of this node; `None` where it has too few slots to find one."""
        start = f"{self._options.prefix}{RESERVED_PREFIX}probe/{secrets.token_hex(8)}"
        for number in range(_MAX_NAMES):
            name = f"{start}{number}".encode()
            if self._owner.owner_of(slot_of(name)) == self.host:
                return name
        return None

    async def subscriber(self) -> ShardSubscriberLink:
        """Return the connection that receives; the first call opens it, and the first after its end.

        Raises:
            BrokerUnavailableError: The node is down.
        """
        async with self._opening:
            if not self.is_up:
                raise unavailable(f"{format_address(self.host)} is down: {self.failure or 'connecting'}")
            if self._subscriber is None or self._subscriber.loss is not None:
                try:
                    async with PatientTimeout(self._options.node_timeout_seconds):
                        link = await self._connector.open(self._new_subscriber, self.host, self._id)
                except TimeoutError:
                    raise unavailable(f"{format_address(self.host)} does not answer") from None
                if self._closed:
                    link.end("the link is closed")
                link.adopt(lambda error: self._subscriber_lost(link, error))
                self._subscriber = link
            return self._subscriber

    async def _prepare(self, link: ShardPublisherLink) -> None:
        try:
            await self._owner.prepare_link(link)
        except BaseException:
            link.end("it was given up")
            raise

    def _new_publisher(self) -> ShardPublisherLink:
        return ShardPublisherLink(self._options.max_pending_bytes)

    def _new_subscriber(self) -> ShardSubscriberLink:
        return ShardSubscriberLink(self._sink, self._moved)

    def _publisher_lost(self, error: BrokerError) -> None:
        if self._closed:
            return
        lost, self.publisher = self.publisher, self._new_publisher()
        self.publisher.inherit(lost)
        self._lost.set()
        self._owner.ended(self, (), error.reason)

    def _subscriber_lost(self, link: ShardSubscriberLink, error: BrokerError) -> None:
        if not self._closed:
            channels = list(link.channels.values())
            link.channels.clear()
            self._owner.ended(self, channels, f"the connection to {format_address(self.host)} was lost: {error.reason}")

    def _moved(self, channels: Collection[str]) -> None:
        self._owner.ended(self, channels, f"{format_address(self.host)} serves their slot no more")
