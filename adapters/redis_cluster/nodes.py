"""The nodes of a cluster, and which of them serves each slot, kept up to date.

Where a slot moves, its old node notifies the subscribers (`sunsubscribe`), and refuses to publish from then on. So a
channel stays where it is until that arrives or its connection ends. Only a node that is cut off from its cluster sends
no notice: its channels are moved a second after the map has shown another owner.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Protocol

from backplane.adapters.redis.errors import unavailable
from backplane.adapters.redis_cluster.node import Node
from backplane.adapters.redis_cluster.slots import SLOTS, SlotMap, slot_of
from backplane.adapters.redis_cluster.topology import newest_report
from backplane.adapters.shared.server_address import format_address
from backplane.concurrency.shared_future import outcome_of
from backplane.errors import BrokerError, BrokerUnavailableError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from backplane.adapters.redis.link import RedisLink
    from backplane.adapters.redis.publisher_link import PublisherLink
    from backplane.adapters.redis_cluster.connector import Connector
    from backplane.adapters.redis_cluster.links import ShardPublisherLink
    from backplane.adapters.redis_cluster.options import RedisClusterOptions
    from backplane.adapters.redis_cluster.slots import Host
    from backplane.adapters.shared.link_tasks import LinkTasks
    from backplane.broadcaster import BrokerUrl, Sink

__all__ = ["NOTIFIED_SECONDS", "Nodes", "NodesOwner"]

NOTIFIED_SECONDS: Final = 1.0
"""A node that is in contact with its cluster has ended the subscriptions of a slot that moved within this time."""

# The pause between two looks at the map doubles from the first to the last.
_FIRST_PAUSE_SECONDS: Final = 0.05
_MAX_PAUSE_SECONDS: Final = 1.0
# So many looks in a row without a map that can be trusted are a lost link.
_MAX_FAILURES: Final = 3
# A node that is new in the map gets this long to be connected before the map is used.
_CONNECT_SECONDS: Final = 0.25
# A connection is silent when its oldest reply is missing at more looks in a row. A pause of this process is one look.
_LOOKS: Final = 4
# So many maps in a row that are older than the one in use replace it: the node that made that one is gone.
_MAX_OLDER: Final = 3


class NodesOwner(Protocol):
    """What is notified of changes."""

    def ended(self, node: Node, channels: Collection[str], reason: str) -> None:
        """Take note that subscriptions have ended: a connection of the node did, or the server ended them."""
        ...

    def turn(self, slots: Collection[int], old: ShardPublisherLink | None) -> None:
        """Take note that slots have another node, just now; `old` published to the one before."""
        ...

    async def prepare_link(self, link: PublisherLink) -> None:
        """Prepare a new connection that is about to publish."""
        ...

    def lost(self, error: BrokerError) -> None:
        """Take note that no map can be had."""
        ...


class Nodes:
    """The nodes that serve slots, and those that did so a moment ago.

    Args:
        url: The URL, as errors show it.
        connector: Opens connections.
        options: Those of the adapter.
        tasks: Runs what keeps them up to date.
        sink: Takes messages.
        owner: Is notified of changes.
    """

    def __init__(
        self,
        url: BrokerUrl,
        connector: Connector,
        options: RedisClusterOptions,
        *,
        tasks: LinkTasks,
        sink: Sink,
        owner: NodesOwner,
    ) -> None:
        self._url = url
        self._connector = connector
        self._options = options
        self._tasks = tasks
        self._sink = sink
        self._owner = owner
        self._is_closed = False
        self._slots = SlotMap((None,) * SLOTS, {})
        self._nodes: dict[Host, Node] = {}
        self._retired: set[Node] = set()
        self._runs: dict[Node, asyncio.Task[None]] = {}
        self._checks: dict[Node, asyncio.Task[None]] = {}
        self._refreshing: asyncio.Future[None] | None = None
        self._changed = asyncio.Event()
        self._epoch = 0
        self._older_in_a_row = 0
        self._moved_at: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[Node]:
        """Iterate over the nodes that serve slots, and then over those that did."""
        return iter((*self._nodes.values(), *self._retired))

    @property
    def hosts(self) -> set[Host]:
        """Where the nodes are that serve slots."""
        return self._slots.nodes

    @property
    def serving(self) -> Sequence[Node]:
        """The nodes that serve slots and are connected."""
        return [node for node in self._nodes.values() if node.is_up]

    @property
    def is_any_linked(self) -> bool:
        """Whether a connection to any node is open."""
        return any(node.is_linked for node in self._nodes.values())

    async def open(self, slots: SlotMap) -> None:
        """Connect to the nodes of a map, and keep it up to date; a node that does not answer is tried again.

        Raises:
            BrokerError: None is connected.
        """
        await self._open_nodes(slots, self._options.node_timeout_seconds)
        self._use(slots)
        self.require()
        self._tasks.spawn(self._maintain(), "redis-map")
        self._tasks.spawn(self._watch_silence(), "redis-silence")
        if len(self.serving) < len(self._nodes):
            self.look_again()

    async def close(self) -> None:
        """Close every connection, and report nothing more."""
        self._is_closed = True
        nodes = list(self)
        self._nodes, self._retired = {}, set()
        for node in nodes:
            await node.close()

    def look_again(self) -> None:
        """Get a new map soon: something ended or moved."""
        self._changed.set()

    def owner_of(self, slot: int) -> Host | None:
        """Return where the node is that serves a slot."""
        return self._slots.owners[slot]

    def of(self, slot: int) -> Node | None:
        """Return the node that serves a slot."""
        owner = self._slots.owners[slot]
        return None if owner is None else self._nodes.get(owner)

    def first_slot_of(self, node: Node) -> int | None:
        """Return a slot that a node serves; `None` where it serves none any more."""
        return self._slots.owners.index(node.host) if node.host in self._slots.owners else None

    def link_of(self, slot: int) -> ShardPublisherLink:
        """Return the connection that publishes to a slot.

        Raises:
            BrokerUnavailableError: There is none at present.
        """
        node = self.of(slot)
        if node is None or node.publisher.loss is not None:
            self.look_again()
            raise unavailable(f"{self.why_down(node)}; not published")
        return node.publisher

    def require(self) -> Node:
        """Return a node that is connected.

        Raises:
            BrokerError: There is none.
        """
        for node in self.serving:
            return node
        raise self._no_node()

    def has_just_moved(self, slot: int) -> bool:
        """Return whether a slot has moved so recently that its old node can still accept messages."""
        return asyncio.get_running_loop().time() - self._moved_at.get(slot, float("-inf")) < NOTIFIED_SECONDS

    @staticmethod
    def why_down(node: Node | None) -> str:
        """Return why a node, the one that serves a slot, takes nothing."""
        if node is None:
            return "no node serves the slot of the channel"
        why = node.failure or "its connection has just ended"
        return f"{format_address(node.host)}, which serves the channel, is down: {getattr(why, 'reason', why)}"

    def start_checks(self) -> None:
        """Start the check of every node, which ends one that is silent."""
        for node in self._nodes.values():
            if node not in self._checks:
                self._checks[node] = self._tasks.spawn(node.check(), "redis-check")
                self._checks[node].add_done_callback(lambda _, node=node: self._checks.pop(node, None))  # type: ignore[misc]

    async def refresh(self) -> None:
        """Get the newest map and use it. Concurrent calls share one question, if it was not asked before the call.

        Raises:
            BrokerUnavailableError: No node answers that can be trusted.
        """
        if self._refreshing is not None:
            with suppress(BrokerError):
                await outcome_of(self._refreshing)
        if self._refreshing is None:
            self._refreshing = asyncio.get_running_loop().create_future()
            self._tasks.spawn(self._get_map(self._refreshing), "redis-map")
        await outcome_of(self._refreshing)

    async def slot_moved(self, slot: int, target: Host, link: ShardPublisherLink) -> None:
        """Use what a node has replied: that `target` serves a slot. Its map can be newer than that of the others."""
        await self.refresh()
        owner = self.owner_of(slot)
        if owner is not None and self._nodes[owner].publisher is link and target in self._nodes:
            owners = list(self._slots.owners)
            owners[slot] = target
            self._slots = SlotMap(tuple(owners), self._slots.ids)

    # -- what nodes report ---------------------------------------------------------------------------------------------

    def ended(self, node: Node, channels: Collection[str], reason: str) -> None:
        """Get a new map, and pass on which subscriptions have ended."""
        if not self._is_closed:
            self.look_again()
            self._owner.ended(node, channels, reason)

    async def prepare_link(self, link: PublisherLink) -> None:
        """Pass on a connection that is about to publish."""
        await self._owner.prepare_link(link)

    # -- the map -------------------------------------------------------------------------------------------------------

    async def _get_map(self, done: asyncio.Future[None]) -> None:
        error: Exception | None = None
        try:
            up = [(node.publisher, node.host) for node in self.serving]
            if not up:
                raise self._no_node()
            report = await newest_report(random.sample(up, len(up)), seconds=self._options.node_timeout_seconds)
            # The node that knows of a change first can be late once: its map is not exchanged for an older one at once.
            self._older_in_a_row = self._older_in_a_row + 1 if report.epoch < self._epoch else 0
            if 0 < self._older_in_a_row < _MAX_OLDER:
                return
            await self._open_nodes(report.slots, _CONNECT_SECONDS)
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
            node_id = slots.ids.get(host, "")
            node = Node(host, node_id, self._connector, self._options, sink=self._sink, owner=self)
            self._nodes[host] = node
            self._runs[node] = self._tasks.spawn(node.run(), "redis-node")
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
        self._moved_at = {slot: at for slot, at in self._moved_at.items() if now - at < NOTIFIED_SECONDS}
        for slot, old in self._slots.changes(slots):
            moved[old].append(slot)
            if old is not None:
                self._moved_at[slot] = now
        links = {host: node.publisher for host, node in self._nodes.items()}
        self._slots = slots
        for host, numbers in moved.items():
            self._owner.turn(numbers, None if host is None else links.get(host))
        for host in self._nodes.keys() - slots.nodes:
            self._retired.add(self._nodes.pop(host))
        if any(host is not None for host in moved) or self._retired:
            self._tasks.spawn(self._move_misplaced(), "redis-moved")

    async def _move_misplaced(self) -> None:
        """Move the channels of nodes that have not noticed that they serve them no more, and close nodes that left."""
        await asyncio.sleep(NOTIFIED_SECONDS)
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
                    await self.refresh()
                    failures = 0
                except BrokerUnavailableError as error:
                    failures += 1
                    if failures == _MAX_FAILURES:
                        return self._owner.lost(error)
                is_whole = not failures and all(node.is_up for node in self._nodes.values())
                if not is_whole:
                    await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311  # spreads the questions
                    pause = min(2 * pause, _MAX_PAUSE_SECONDS)

    async def _watch_silence(self) -> None:
        """End the nodes that leave a command without a reply."""
        awaited: dict[RedisLink, tuple[asyncio.Future[Any], int]] = {}
        while True:
            await asyncio.sleep(self._options.node_timeout_seconds / _LOOKS)
            before, awaited = awaited, {}
            for node in self:
                for link in node.links:
                    if (oldest := link.oldest_unanswered) is None:
                        continue
                    reply, looks = before.get(link, (oldest, 0))
                    awaited[link] = (oldest, looks + 1 if reply is oldest else 1)
                    if awaited[link][1] > _LOOKS:
                        seconds = self._options.node_timeout_seconds
                        node.end(f"{format_address(node.host)} is silent: no answer within {seconds:g} s")
                        break

    def _no_node(self) -> BrokerError:
        """Return the error for a cluster none of whose nodes is connected."""
        errors = [node.failure for node in self._nodes.values() if node.failure is not None]
        for error in errors:
            if isinstance(error, BrokerError) and not error.retriable:
                return error
        reasons = "; ".join(str(getattr(error, "reason", error) or "no answer in time") for error in errors)
        return unavailable(f"no node of {self._url} is connected{reasons and f': {reasons}'}")
