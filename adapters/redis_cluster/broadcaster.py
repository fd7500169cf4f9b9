"""`redis+cluster://` and `rediss+cluster://`: sharded pub/sub on Redis Cluster 7 and Valkey Cluster.

A channel belongs to the node that serves its slot. Each node has a connection that publishes and one that receives, and
one node that fails concerns its channels alone: they are reported as revoked, and the core subscribes to them again, at
the node that serves them then. redis-py only opens sockets; its own cluster client subscribes again without a
notification, so messages in between would be lost unnoticed.

Where a slot moves, its old node notifies the subscribers (`sunsubscribe`), and refuses to publish from then on. So a
channel stays where it is until that arrives or its connection ends. Only a node that is cut off from its cluster sends
no notice: its channels are moved a second after the map has shown another owner.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import defaultdict
from contextlib import suppress
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, ClassVar, Final

import hiredis

from backplane.adapters.redis.address_race import first_usable
from backplane.adapters.redis.errors import classify_reply, unavailable
from backplane.adapters.redis.options import check_options
from backplane.adapters.redis.server_info import info_fields
from backplane.adapters.redis_cluster.classic import ClassicClusterBroadcaster
from backplane.adapters.redis_cluster.connector import Connector
from backplane.adapters.redis_cluster.links import ShardPublisherLink
from backplane.adapters.redis_cluster.node import Node
from backplane.adapters.redis_cluster.options import RedisClusterOptions
from backplane.adapters.redis_cluster.ordering import ShardedPublisher
from backplane.adapters.redis_cluster.slots import DEFAULT_PORT, SLOTS, SlotMap, moved_to, slot_of
from backplane.adapters.redis_cluster.topology import newest_report, report_of
from backplane.adapters.shared.server_address import format_address
from backplane.broadcaster import Broadcaster, Capabilities
from backplane.channels import RESERVED_PREFIX
from backplane.concurrency.shared_future import outcome_of
from backplane.errors import BrokerError, BrokerUnavailableError, ConfigurationError, SubscribeError
from backplane.journal.events import ADAPTER_FAULT, BROKER_DETAIL
from backplane.journal.writing import write

if TYPE_CHECKING:
    from collections.abc import Awaitable, Collection, Mapping

    from backplane.adapters.redis.link import RedisLink
    from backplane.adapters.redis_cluster.slots import Host
    from backplane.broadcaster import BrokerUrl, Options, Sink

__all__ = ["RedisClusterBroadcaster", "RedisClusterOptions"]

logger: Final = logging.getLogger("backplane.adapters.redis_cluster.broadcaster")

_EMPTY: Final = SlotMap((None,) * SLOTS, {})
# The pause between two looks at the map doubles from the first to the last.
_FIRST_PAUSE_SECONDS: Final = 0.05
_MAX_PAUSE_SECONDS: Final = 1.0
# So many looks in a row without a map that can be trusted are a lost link.
_MAX_FAILURES: Final = 3
# A node that is in contact with its cluster has ended the subscriptions of a slot that moved within this time.
_NOTIFIED_SECONDS: Final = 1.0
# A node that is new in the map gets this long to be connected before the map is used.
_CONNECT_SECONDS: Final = 0.25
# A connection is silent when its oldest reply is missing at more looks in a row. A pause of this process is one look.
_LOOKS: Final = 4
# So many maps in a row that are older than the one in use replace it: the node that made that one is gone.
_MAX_OLDER: Final = 3


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
        self._sink: Sink | None = None
        self._slots = _EMPTY
        self._nodes: dict[Host, Node] = {}
        self._retired: set[Node] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._runs: dict[Node, asyncio.Task[None]] = {}
        self._checks: dict[Node, asyncio.Task[None]] = {}
        self._refreshing: asyncio.Future[None] | None = None
        self._changed = asyncio.Event()
        self._epoch = 0
        self._older_in_a_row = 0
        self._suspects: set[bytes] = set()
        self._moved_at: dict[int, float] = {}
        self._ended_channels: set[str] = set()
        self._publisher = self._new_publisher()

    @property
    def capabilities(self) -> Capabilities:
        """What this adapter can do."""
        return Capabilities(
            brokered=True,
            reach="network",
            publish_returns="accepted",
            max_payload_bytes=self.options.max_payload_bytes,
            parts=True,
        )

    async def start(self, sink: Sink) -> None:
        """Find the nodes, and open a connection to each; one that does not answer is tried again in the background."""
        self._changed = asyncio.Event()
        self._publisher = self._new_publisher()
        self._epoch = self._older_in_a_row = 0
        self._moved_at, self._ended_channels = {}, set()
        slots = await self._find_map()
        self._sink = sink
        try:
            await self._open_nodes(slots, self.options.node_timeout_seconds)
            self._use(slots)
            self._require_node()
        except BaseException:
            await self.stop()
            raise
        self._spawn(self._maintain())
        self._spawn(self._watch_silence())
        if not all(node.is_up for node in self._nodes.values()):
            self._changed.set()

    async def stop(self) -> None:
        """Close every connection; publishes without a reply raise `PublishOutcomeUnknownError`."""
        self._sink = None
        nodes = {*self._nodes.values(), *self._retired}
        self._nodes, self._slots = {}, _EMPTY
        self._retired = set()
        tasks = {*self._tasks, *self._runs.values()}
        self._runs = {}
        for task in tasks:
            task.cancel()
        for node in nodes:
            await node.close()
        if tasks:
            await asyncio.wait(tasks)

    async def publish(self, channel: str, payload: bytes) -> None:
        """Publish at the node that serves the channel; returns when it has answered.

        Raises:
            BrokerUnavailableError: Certainly not published: no node serves the channel at present.
            PublishError: The server refused it; `retriable` where it accepts none at present, or where too much awaits
                an answer.
        """
        self._require_sink()
        await self._publisher.publish(self._encode(channel), payload)

    async def subscribe(self, channels: Collection[str]) -> None:
        """Subscribe, each at its node; those of nodes that are down are unconfirmed at once."""
        self._require_sink()
        refused: dict[str, str] = {}
        unconfirmed: dict[str, str] = {}
        names_by_node: defaultdict[Node, dict[bytes, str]] = defaultdict(dict)
        for channel in channels:
            name = self._encode(channel)
            node = self._node_of(slot_of(name))
            if node is None or not node.is_up:
                unconfirmed[channel] = self._why_down(node)
            else:
                names_by_node[node][name] = channel
        ended = await asyncio.gather(
            *(self._subscribe_at(node, names, refused, unconfirmed) for node, names in names_by_node.items())
        )
        self._require_sink()
        by_outcome: dict[bool, list[bytes]] = {True: [], False: []}
        for names, has_ended in zip(names_by_node.values(), ended, strict=True):
            by_outcome[has_ended] += names
        self._note_ended(by_outcome[True], by_outcome[False])
        if unconfirmed:
            self._changed.set()
        if refused or unconfirmed:
            raise SubscribeError(refused, unconfirmed=unconfirmed, adapter="redis")

    async def unsubscribe(self, channels: Collection[str]) -> None:
        """Drop `channels`, here at once and then at their nodes."""
        self._require_sink()
        self._ended_channels.difference_update(channels)
        wanted = {self._encode(channel) for channel in channels}
        self._suspects -= wanted
        nodes = [*self._nodes.values(), *self._retired]
        names_by_node = {node: names for node in nodes if (names := [*wanted.intersection(node.names)])}
        ended = await asyncio.gather(
            *(node.unsubscribe(names) for node, names in names_by_node.items()), return_exceptions=True
        )
        for error in ended:
            if isinstance(error, BaseException) and not isinstance(error, BrokerUnavailableError):
                raise error

    async def check(self) -> None:
        """Start the check of every node, which ends one that is silent, and check that a map can be trusted.

        A silent node must not hold up the answer: that would be an answer about the link as a whole.

        Raises:
            BrokerUnavailableError: No node answers that is in contact with the majority.
        """
        self._require_sink()
        for node in self._nodes.values():
            if node not in self._checks:
                self._checks[node] = self._spawn(node.check())
                self._checks[node].add_done_callback(lambda _, node=node: self._checks.pop(node, None))  # type: ignore[misc]
        await self._refresh()

    async def describe(self) -> str:
        """Return name, version and the number of nodes that serve slots; an ACL can deny the version."""
        self._require_sink()
        node = self._require_node()
        try:
            fields = info_fields(await node.publisher.ask(b"INFO", b"server"))
        except hiredis.ReplyError:
            fields = {}
        product, version = "Redis", fields.get("redis_version", "(version not granted)")
        if "valkey_version" in fields:  # Valkey reports the version of Redis that it is compatible with too
            product, version = "Valkey", fields["valkey_version"]
        return f"{product} {version}, a cluster of {len(self._nodes)}"

    # -- what nodes report ---------------------------------------------------------------------------------------------

    def owner_of(self, slot: int) -> Host | None:
        """Return the node that serves a slot."""
        return self._slots.owners[slot]

    def ended(self, node: Node, channels: Collection[str], reason: str) -> None:
        """Report subscriptions that have ended; the link is lost where no connection to any node is left."""
        if self._sink is None:
            return
        self._ended_channels.update(channels)
        self._changed.set()
        if not any(other.is_linked for other in self._nodes.values()):
            self._lost(unavailable(f"no node is left: {reason}"))
        elif channels:
            self._sink.revoked(channels, reason)
        else:
            where = format_address(node.host)
            words = "the connection that publishes to %(node)s is replaced: %(reason)s"
            write(logger, BROKER_DETAIL, words, node=where, reason=reason)

    # -- the map -------------------------------------------------------------------------------------------------------

    async def _find_map(self) -> SlotMap:
        """Return the map of the first known node that answers and can be trusted."""
        turns = zip_longest(self._seeds, random.sample(sorted(self._learned), len(self._learned)))
        hosts = dict.fromkeys(host for turn in turns for host in turn if host is not None)
        maps: dict[RedisLink, SlotMap] = {}

        async def ask(host: Any) -> RedisLink:
            link = await self._connector.open(lambda: ShardPublisherLink(self.options.max_pending_bytes), host)
            try:
                maps[link] = (await report_of(link, host)).slots
                await self._require_sharded(link)
            except BaseException:
                link.end("it was given up")
                raise
            return link

        link = await first_usable(list(hosts), ask)
        link.end("it was asked")
        await link.closed.wait()
        return maps[link]

    async def _require_sharded(self, link: RedisLink) -> None:
        try:
            await link.ask(b"SPUBLISH", f"{self.options.prefix}{RESERVED_PREFIX}probe/start".encode(), b"")
        except hiredis.ReplyError as error:
            if classify_reply(error) == "refused" and "unknown command" in str(error):
                reason = f"{self.url} has no sharded pub/sub (Redis 7.0 and later, Valkey): {error}"
                raise BrokerError(reason, adapter="redis", retriable=False) from error

    async def _refresh(self) -> None:
        """Get the newest map and use it. Concurrent calls share one question, if it was not asked before the call.

        Raises:
            BrokerUnavailableError: No node answers that can be trusted.
        """
        if self._refreshing is not None:
            with suppress(BrokerError):
                await outcome_of(self._refreshing)
        if self._refreshing is None:
            self._refreshing = asyncio.get_running_loop().create_future()
            self._spawn(self._get_map(self._refreshing))
        await outcome_of(self._refreshing)

    async def _get_map(self, done: asyncio.Future[None]) -> None:
        error: Exception | None = None
        try:
            up = [(node.publisher, node.host) for node in self._nodes.values() if node.is_up]
            if not up:
                raise self._no_node()
            report = await newest_report(random.sample(up, len(up)), seconds=self.options.node_timeout_seconds)
            # The node that knows of a change first can be late once: its map is not exchanged for an older one at once.
            self._older_in_a_row = self._older_in_a_row + 1 if report.epoch < self._epoch else 0
            if 0 < self._older_in_a_row < _MAX_OLDER:
                return
            await self._open_nodes(report.slots, _CONNECT_SECONDS)
            if self._sink is not None:
                self._epoch = report.epoch
                self._use(report.slots)
        except BrokerError as failure:
            error = failure
        finally:
            self._refreshing = None
            if error is not None:
                done.set_exception(error)
                done.exception()  # marks it as retrieved
            elif not done.done():
                done.set_result(None)

    async def _open_nodes(self, slots: SlotMap, seconds: float) -> None:
        """Connect to the nodes that are new in `slots`, and wait for the first try of each, though not for long."""
        added: list[Node] = []
        for host in slots.nodes - self._nodes.keys():
            assert self._sink is not None
            node_id = slots.ids.get(host, "")
            node = Node(host, node_id, self._connector, self.options, sink=self._sink, owner=self)
            self._nodes[host] = node
            self._runs[node] = self._spawn(node.run())
            added.append(node)
        if added:
            tries = [asyncio.ensure_future(node.tried.wait()) for node in added]
            try:
                await asyncio.wait(tries, timeout=seconds)
            finally:
                for each in tries:
                    each.cancel()

    def _use(self, slots: SlotMap) -> None:
        """Use a new map: the slots that have another node turn."""
        moved: defaultdict[Host | None, list[int]] = defaultdict(list)
        now = asyncio.get_running_loop().time()
        self._moved_at = {slot: at for slot, at in self._moved_at.items() if now - at < _NOTIFIED_SECONDS}
        for slot, old in self._slots.changes(slots):
            moved[old].append(slot)
            if old is not None:
                self._moved_at[slot] = now
        links = {host: node.publisher for host, node in self._nodes.items()}
        self._slots = slots
        self._learned = slots.nodes
        for host, numbers in moved.items():
            self._publisher.turn(numbers, None if host is None else links.get(host))
        for host in self._nodes.keys() - slots.nodes:
            self._retired.add(self._nodes.pop(host))
        if any(host is not None for host in moved) or self._retired:
            self._spawn(self._move_misplaced())

    async def _move_misplaced(self) -> None:
        """Move the channels of nodes that have not noticed that they serve them no more, and close nodes that left."""
        await asyncio.sleep(_NOTIFIED_SECONDS)
        retired, self._retired = self._retired, set()
        for node in (*self._nodes.values(), *retired):
            names = [
                name
                for name in node.names
                if (owner := self.owner_of(slot_of(name))) is not None and owner != node.host
            ]
            node.drop(names, f"another node serves the slot, and {format_address(node.host)} has not reported it")
        for node in retired:
            if node.names and node.is_linked:  # no other node serves these
                self._retired.add(node)
                continue
            if (run := self._runs.pop(node, None)) is not None:
                run.cancel()
            await node.close()

    async def _maintain(self) -> None:
        """Get a new map whenever something ended or moved, until every node is connected."""
        while True:
            await self._changed.wait()
            pause, failures = _FIRST_PAUSE_SECONDS, 0
            is_whole = False
            while not is_whole:
                self._changed.clear()
                try:
                    await self._refresh()
                    failures = 0
                except BrokerUnavailableError as error:
                    failures += 1
                    if failures == _MAX_FAILURES:
                        return self._lost(error)
                is_whole = not failures and all(node.is_up for node in self._nodes.values())
                if not is_whole:
                    await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311  # spreads the questions
                    pause = min(2 * pause, _MAX_PAUSE_SECONDS)

    async def _watch_silence(self) -> None:
        """End the nodes that leave a command without a reply."""
        awaited: dict[RedisLink, tuple[asyncio.Future[Any], int]] = {}
        while True:
            await asyncio.sleep(self.options.node_timeout_seconds / _LOOKS)
            before, awaited = awaited, {}
            for node in (*self._nodes.values(), *self._retired):
                for link in node.links:
                    if (oldest := link.oldest_unanswered) is None:
                        continue
                    reply, looks = before.get(link, (oldest, 0))
                    awaited[link] = (oldest, looks + 1 if reply is oldest else 1)
                    if awaited[link][1] > _LOOKS:
                        seconds = self.options.node_timeout_seconds
                        node.end(f"{format_address(node.host)} is silent: no answer within {seconds:g} s")
                        break

    async def _slot_moved(self, slot: int, target: Host, link: ShardPublisherLink) -> None:
        """Use what a node has replied: that `target` serves a slot. Its map can be newer than that of the others."""
        await self._refresh()
        owner = self.owner_of(slot)
        if owner is not None and self._nodes[owner].publisher is link and target in self._nodes:
            owners = list(self._slots.owners)
            owners[slot] = target
            self._slots = SlotMap(tuple(owners), self._slots.ids)

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
        now = asyncio.get_running_loop().time()
        recent = [
            channel
            for channel in channels
            if channel not in known
            and now - self._moved_at.get(slot_of(self._encode(channel)), float("-inf")) < _NOTIFIED_SECONDS
        ]
        if recent:
            self._spawn(self._report_gap(recent))

    async def _report_gap(self, channels: Collection[str]) -> None:
        await asyncio.sleep(_NOTIFIED_SECONDS)
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
            self._lost(error)
            raise error

    def _node_of(self, slot: int) -> Node | None:
        owner = self._slots.owners[slot]
        return None if owner is None else self._nodes.get(owner)

    def _link_of(self, slot: int) -> ShardPublisherLink:
        node = self._node_of(slot)
        if node is None or node.publisher.loss is not None:
            self._changed.set()
            raise unavailable(f"{self._why_down(node)}; not published")
        return node.publisher

    @staticmethod
    def _why_down(node: Node | None) -> str:
        if node is None:
            return "no node serves the slot of the channel"
        why = node.failure or "its connection has just ended"
        return f"{format_address(node.host)}, which serves the channel, is down: {getattr(why, 'reason', why)}"

    def _encode(self, channel: str) -> bytes:
        return (self.options.prefix + channel).encode()

    # -- the link as a whole -------------------------------------------------------------------------------------------

    def _new_publisher(self) -> ShardedPublisher:
        return ShardedPublisher(
            self._link_of, self._slot_moved, self._spawn, max_pending_bytes=self.options.max_pending_bytes
        )

    def _no_node(self) -> BrokerError:
        """Return the error for a cluster none of whose nodes is connected."""
        errors = [node.failure for node in self._nodes.values() if node.failure is not None]
        for error in errors:
            if isinstance(error, BrokerError) and not error.retriable:
                return error
        reasons = "; ".join(str(getattr(error, "reason", error) or "no answer in time") for error in errors)
        return unavailable(f"no node of {self.url} is connected{reasons and f': {reasons}'}")

    def _require_node(self) -> Node:
        """Return a node that is connected."""
        for node in self._nodes.values():
            if node.is_up:
                return node
        raise self._no_node()

    def _require_sink(self) -> Sink:
        if self._sink is None:
            raise unavailable("the link is closed")
        return self._sink

    def _spawn(self, work: Awaitable[None]) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)
        return task

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if not isinstance(error, BrokerError):
            write(logger, ADAPTER_FAULT, "unexpected error on the link to %(url)s", url=self.url, exc_info=error)
            error = unavailable(f"unexpected error: {error!r}")
        self._lost(error)

    def _lost(self, error: BrokerError) -> None:
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.lost(error)
