"""`redis+cluster://` and `rediss+cluster://`: sharded pub/sub on Redis Cluster 7 and Valkey Cluster.

A channel belongs to the node that serves its slot. Each node has a connection that publishes and one that receives, and
one node that fails concerns its channels alone: they are reported as revoked, and the core subscribes to them again, at
the node that serves them then. redis-py only opens sockets; its own cluster client subscribes again without a
notification, so messages in between would be lost unnoticed.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, Final
from zlib import crc32

import hiredis

from backplane.adapters.redis.errors import classify_reply, publish_error, recall_error, unavailable
from backplane.adapters.redis.history import load_scripts
from backplane.adapters.redis.inspection import describe_server
from backplane.adapters.redis.options import check_options
from backplane.adapters.redis_cluster.classic import ClassicClusterBroadcaster
from backplane.adapters.redis_cluster.connector import Connector
from backplane.adapters.redis_cluster.discovery import find_map
from backplane.adapters.redis_cluster.history import ShardHistory
from backplane.adapters.redis_cluster.inspection import inspect_cluster
from backplane.adapters.redis_cluster.nodes import NOTIFIED_SECONDS, Nodes
from backplane.adapters.redis_cluster.options import RedisClusterOptions
from backplane.adapters.redis_cluster.ordering import ShardedPublisher
from backplane.adapters.redis_cluster.slots import DEFAULT_PORT, moved_to, slot_of
from backplane.adapters.shared.link_tasks import LinkTasks
from backplane.adapters.shared.server_address import format_address
from backplane.broadcaster import Broadcaster, Capabilities
from backplane.errors import BrokerError, BrokerUnavailableError, ConfigurationError, PublishError, SubscribeError
from backplane.journal.events import BROKER_DETAIL
from backplane.journal.writing import write

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from backplane.adapters.redis.publisher_link import PublisherLink
    from backplane.adapters.redis_cluster.links import ShardPublisherLink
    from backplane.adapters.redis_cluster.node import Node
    from backplane.adapters.redis_cluster.slots import Host
    from backplane.broadcaster import BrokerUrl, Options, Recalled, Sink
    from backplane.findings import Finding
    from backplane.history_rules import History, HistoryRules
    from backplane.message import Position, Receipt

__all__ = ["RedisClusterBroadcaster", "RedisClusterOptions"]

logger: Final = logging.getLogger("backplane.adapters.redis_cluster.broadcaster")


class RedisClusterBroadcaster(Broadcaster):
    """One link to all nodes of one cluster that serve slots; with the option `pubsub=classic` to one of its nodes.

    Args:
        url: Some of the nodes; the others are found.
        options: The validated options.
    """

    options_class: ClassVar[type[Options]] = RedisClusterOptions
    options: RedisClusterOptions

    def __new__(cls, url: BrokerUrl, options: RedisClusterOptions) -> Any:
        """Return the adapter for the option `pubsub`."""
        return ClassicClusterBroadcaster(url, options) if options.pubsub == "classic" else super().__new__(cls)

    def __init__(self, url: BrokerUrl, options: RedisClusterOptions) -> None:
        super().__init__(url, options)
        check_options(url, options)
        self._seeds: list[Host] = url.servers(DEFAULT_PORT, adapter="redis")
        if url.path.strip("/"):
            raise ConfigurationError(f"redis: a cluster has no databases: leave out {url.path!r}")
        self._learned: set[Host] = set()
        self._connector = Connector(url, options, self._seeds)
        self._history = ShardHistory(options, url.username)
        self._tasks = LinkTasks(url, "redis", self.lost)
        self._sink: Sink | None = None
        self._nodes: Nodes | None = None
        self._publisher: ShardedPublisher | None = None
        self._suspects: set[bytes] = set()
        self._ended_channels: set[str] = set()

    @property
    def capabilities(self) -> Capabilities:
        """What this adapter can do."""
        return Capabilities(
            brokered=True,
            reach="network",
            publish_returns="accepted",
            max_payload_bytes=self.options.max_payload_bytes,
            keeps="server",
            deduplicates=True,
            parts=True,
        )

    async def start(self, sink: Sink) -> None:
        """Find the nodes, and open a connection to each; one that does not answer is tried again in the background."""
        self._ended_channels = set()
        slots = await find_map(self._connector, self.url, self.options, seeds=self._seeds, learned=self._learned)
        self._sink = sink
        nodes = self._nodes = Nodes(self.url, self._connector, self.options, tasks=self._tasks, sink=sink, owner=self)
        self._publisher = ShardedPublisher(
            nodes.link_of,
            nodes.slot_moved,
            lambda work: self._tasks.spawn(work, "redis-turn"),
            max_pending_bytes=self.options.max_pending_bytes,
        )
        try:
            await nodes.open(slots)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Close every connection; publishes without a reply raise `PublishOutcomeUnknownError`."""
        self._sink = None
        tasks = self._tasks.cancel()
        nodes, self._nodes = self._nodes, None
        if nodes is not None:
            self._learned = nodes.hosts
            await nodes.close()
        if tasks:
            await asyncio.wait(tasks)

    async def publish(self, channel: str, payload: bytes) -> None:
        """Publish at the node that serves the channel; returns when it has answered.

        Raises:
            BrokerUnavailableError: Certainly not published: no node serves the channel at present.
            PublishError: The server refused it; `retriable` where it accepts none at present, or where too much awaits
                an answer.
        """
        await self._require_publisher().publish(self._encode(channel), payload)

    async def subscribe(self, channels: Collection[str]) -> None:
        """Subscribe, each at its node; those of nodes that are down are unconfirmed at once."""
        nodes = self._require_nodes()
        refused: dict[str, str] = {}
        unconfirmed: dict[str, str] = {}
        names_by_node: defaultdict[Node, dict[bytes, str]] = defaultdict(dict)
        for channel in channels:
            name = self._encode(channel)
            node = nodes.of(slot_of(name))
            if node is None or not node.is_up:
                unconfirmed[channel] = nodes.why_down(node)
            else:
                names_by_node[node][name] = channel
        ended = await asyncio.gather(
            *(self._subscribe_at(node, names, refused, unconfirmed) for node, names in names_by_node.items())
        )
        self._require_nodes()
        by_outcome: dict[bool, list[bytes]] = {True: [], False: []}
        for names, has_ended in zip(names_by_node.values(), ended, strict=True):
            by_outcome[has_ended] += names
        self._note_ended(by_outcome[True], by_outcome[False])
        if unconfirmed:
            nodes.look_again()
        if refused or unconfirmed:
            raise SubscribeError(refused, unconfirmed=unconfirmed, adapter="redis")

    async def unsubscribe(self, channels: Collection[str]) -> None:
        """Drop `channels`, here at once and then at their nodes."""
        nodes = self._require_nodes()
        self._ended_channels.difference_update(channels)
        wanted = {self._encode(channel) for channel in channels}
        self._suspects -= wanted
        names_by_node = {node: names for node in nodes if (names := [*wanted.intersection(node.names)])}
        ended = await asyncio.gather(
            *(node.unsubscribe(names) for node, names in names_by_node.items()), return_exceptions=True
        )
        for error in ended:
            if isinstance(error, BaseException) and not isinstance(error, BrokerUnavailableError):
                raise error

    async def prepare(self, rules: HistoryRules) -> None:
        """Load the scripts that keep and recall at every node, and check that it permits what they do.

        Raises:
            ConfigurationError: The option `wire_format=plain`, or a prefix, excludes a history.
            BrokerError: A node cannot keep messages, or an ACL denies it; not retriable, with the line to grant.
            BrokerUnavailableError: A node accepts no commands at present.
        """
        nodes = self._require_nodes()
        self._history.begin()
        await asyncio.gather(
            *(
                self._history.prepare_node(node.publisher, format_address(node.host), slot)
                for node in nodes.serving
                if (slot := nodes.first_slot_of(node)) is not None
            )
        )

    async def keep(self, channel: str, payload: bytes, rule: History, *, key: bytes | None = None) -> Receipt:
        """Publish and store by one script, which the node of the channel runs as a whole, or not at all.

        What the node has confirmed, a failover can lose, as every write to Redis: the replicas are not awaited. A
        position of what was lost is not found afterwards; one from before it is, as if nothing had been published.

        Raises:
            BrokerUnavailableError: Certainly not published: no node serves the channel at present, or its history is
                on its way to another node, or the node had lost its scripts, and a later publish was executed before
                they were loaded again.
            PublishError: The server refused it; `retriable` where it accepts none at present (out of memory), or where
                too much awaits its answer.
        """
        check = crc32(payload)
        command = self._history.keep(channel, payload, check, rule, key)
        publisher = self._require_publisher()
        try:
            reply = await publisher.run_script(self._encode(channel), command, len(command))
        except hiredis.ReplyError as error:
            raise publish_error(error) from error
        return self._history.receipt(reply, check)

    async def recall(
        self, channel: str, rule: History, *, after: Position | None, limit: int, max_bytes: int
    ) -> Recalled:
        """Read by one script, at the node as a whole: it holds back other commands for some microseconds a message.

        Raises:
            BrokerUnavailableError: No node serves the channel at present, or its history is on its way to another one.
            BrokerError: The node refuses.
        """
        command = self._history.recall(channel, rule, after, limit, max_bytes)
        try:
            reply = await self._require_publisher().run_script(self._encode(channel), command, 0)
        except hiredis.ReplyError as error:
            raise recall_error(error, "node") from error
        except PublishError as error:  # a read that ended with its link is as good as one that was not sent
            raise unavailable(error.reason) from error
        return self._history.recalled(reply, after)

    async def check(self) -> None:
        """Start the check of every node, which ends one that is silent, and check that a map can be trusted.

        A silent node must not hold up the answer: that would be an answer about the link as a whole.

        Raises:
            BrokerUnavailableError: No node answers that is in contact with the majority.
        """
        nodes = self._require_nodes()
        nodes.start_checks()
        await nodes.refresh()

    async def describe(self) -> str:
        """Return name, version and the number of nodes that serve slots; an ACL can deny the version."""
        nodes = self._require_nodes()
        node = nodes.require()
        described = await describe_server(node.publisher)
        return f"{described}, a cluster of {len(nodes)}"

    async def inspect(self, subscribers: Mapping[str, int]) -> list[Finding]:
        """Return the state of the cluster, what of its nodes can lose messages, and whether all have subscribed."""
        nodes = self._require_nodes()
        nodes.require()
        return await inspect_cluster(nodes, self.options.prefix, subscribers)

    # -- what the nodes report -----------------------------------------------------------------------------------------

    def ended(self, node: Node, channels: Collection[str], reason: str) -> None:
        """Report subscriptions that have ended; the link is lost where no connection to any node is left."""
        if self._sink is None or self._nodes is None:
            return
        self._ended_channels.update(channels)
        if not self._nodes.is_any_linked:
            self.lost(unavailable(f"no node is left: {reason}"))
        elif channels:
            self._sink.revoked(channels, reason)
        else:
            where = format_address(node.host)
            words = "the connection that publishes to %(node)s is replaced: %(reason)s"
            write(logger, BROKER_DETAIL, words, node=where, reason=reason)

    def turn(self, slots: Collection[int], old: ShardPublisherLink | None) -> None:
        """Hold back what is published to slots that have another node, until the old one has answered everything."""
        if self._publisher is not None:
            self._publisher.turn(slots, old)

    async def prepare_link(self, link: PublisherLink) -> None:
        """Load the scripts on a new connection, where there is a history."""
        if self._history.is_prepared:
            with suppress(hiredis.ReplyError):  # then the commands that need them fail, with the reason
                await load_scripts(link)

    def lost(self, error: BrokerError) -> None:
        """Report the link as lost, once."""
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.lost(error)

    # -- channels ------------------------------------------------------------------------------------------------------

    async def _subscribe_at(
        self, node: Node, names: Mapping[bytes, str], refused: dict[str, str], unconfirmed: dict[str, str]
    ) -> bool:
        """Subscribe at one node; return whether the connection ended meanwhile."""
        try:
            link = await node.subscriber()
        except BrokerUnavailableError as error:
            unconfirmed |= dict.fromkeys(names.values(), error.reason)
            return False
        try:
            errors = await link.subscribe(names)
        except BrokerUnavailableError as error:
            unconfirmed |= dict.fromkeys(names.values(), error.reason)
            return True
        for name, reply in errors.items():
            moving = "its slot moves to another node: " if moved_to(reply) else ""
            (refused if classify_reply(reply) == "refused" else unconfirmed)[names[name]] = f"{moving}{reply}"
        if joined := [names[name] for name in names.keys() - errors.keys()]:
            self._report_moved(joined)
        return False

    def _report_moved(self, channels: Collection[str]) -> None:
        """Report a gap, a second later, of channels that were joined for the first time while their slot moved.

        Until the old node has noticed that, it accepts messages of workers that have not either. Subscribers from
        before receive these, because they are still there.
        """
        known = self._ended_channels.intersection(channels)
        self._ended_channels -= known
        nodes = self._require_nodes()
        recent = [
            channel
            for channel in channels
            if channel not in known and nodes.has_just_moved(slot_of(self._encode(channel)))
        ]
        if recent:
            self._tasks.spawn(self._report_gap(recent), "redis-gap")

    async def _report_gap(self, channels: Collection[str]) -> None:
        await asyncio.sleep(NOTIFIED_SECONDS)
        if self._sink is not None:
            self._sink.gap(channels, "the slot moved while the channel was joined")

    def _note_ended(self, ended: Collection[bytes], others: Collection[bytes]) -> None:
        """Note over which channels a connection ended, and which of them were answered since.

        Raises:
            BrokerUnavailableError: One was noted before: it can be the reason. The core finds such a channel on links
                that are rebuilt.
        """
        self._suspects.difference_update(others)
        is_repeated = not self._suspects.isdisjoint(ended)
        self._suspects.update(ended)
        if is_repeated:
            error = unavailable("a connection ended once more while the same channels were subscribed")
            self.lost(error)
            raise error

    def _encode(self, channel: str) -> bytes:
        return (self.options.prefix + channel).encode()

    def _require_nodes(self) -> Nodes:
        if self._sink is None or self._nodes is None:
            raise unavailable("the link is closed")
        return self._nodes

    def _require_publisher(self) -> ShardedPublisher:
        if self._sink is None or self._publisher is None:
            raise unavailable("the link is closed")
        return self._publisher
