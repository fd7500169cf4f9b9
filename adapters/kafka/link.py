"""The connections of one link to a Kafka cluster, and the topic on it.

aiokafka connects, logs in, and encodes; its producer and consumer are left aside, because they hide a lost link, cannot
tell what was never sent from what may have arrived, and wait for the broker when they are to stop (0.14). Here a broker
that cannot be reached, or a partition that moved, is the link lost: the supervisor opens another one, and that goes on
where this one was.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar

from aiokafka.errors import KafkaError  # type: ignore[import-untyped]

from backplane.adapters.kafka.codes import Meaning, code_name, meaning
from backplane.adapters.kafka.connect_error import connect_error, unavailable
from backplane.adapters.kafka.records import codec_problem
from backplane.adapters.kafka.wire import LATEST, Connection, ConnectionEndedError, Topology
from backplane.concurrency.timeouts import PatientTimeout
from backplane.errors import BrokerError, BrokerUnavailableError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from backplane.adapters.kafka.wire import Security

__all__ = ["KafkaLink", "Learned", "Target", "TopicLimits"]

logger = logging.getLogger("backplane.kafka")

_UNKNOWN_TOPIC: Final = 3
_NO_LEADER: Final = 5
_INVALID_TOPIC: Final = 17
_EXISTS: Final = 36
_PAUSE_SECONDS: Final = 0.02
# A connection that the broker ends sooner, unused, will be ended again: nothing is gained by opening it anew.
_SHORT_LIFE_SECONDS: Final = 0.2
# What a batch of one record takes beside the payload: 61 bytes of the batch, some 21 of the record, 255 of the channel.
_OVERHEAD_BYTES: Final = 400
_CONFIGS: Final = ("max.message.bytes", "cleanup.policy", "compression.type")

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a link leads to.

    Attributes:
        url: For words to a person; the password is masked in it.
        servers: Host and port of the brokers to ask first.
        topic: Name of the topic.
        partitions: How many it gets if it has to be created; `None` to refuse instead.
        replicas: On how many brokers it is created; -1 for the cluster's default.
        connect_timeout_seconds: How long connecting to one broker may take, its login included.
        request_timeout_seconds: How long an answer may take.
    """

    url: str
    servers: Sequence[tuple[str, int]]
    topic: str
    partitions: int | None
    replicas: int
    connect_timeout_seconds: float
    request_timeout_seconds: float


@dataclass(slots=True)
class Learned:
    """What links have learned of the cluster, for those that come after them.

    Attributes:
        cluster: Its id.
        addresses: Host and port of its brokers.
    """

    cluster: str | None = None
    addresses: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicLimits:
    """How the topic is set up, as far as the user may know it.

    Attributes:
        max_payload_bytes: The largest payload that it takes.
        is_compacted: The broker deletes messages that a later one of the same channel has replaced.
        codec_problem: Why nothing on it can be read here; `None` where it can.
    """

    max_payload_bytes: int | None = None
    is_compacted: bool = False
    codec_problem: str | None = None


class KafkaLink:
    """One connection to each broker that leads a partition, and those of the reader beside them.

    Args:
        target: Where to.
        security: Returns who logs in, and how; asked at each login.
        learned: Brokers that earlier links have found, to be asked after those of the URL.
        spawn: Starts a task whose failure is the link's loss.
        on_lost: Called when it is lost; more than once where several connections end.

    Attributes:
        topology: Where the partitions are, as last asked.
        limits: How the topic is set up.
        is_over: It was lost, or given up.
    """

    topology: Topology

    def __init__(
        self,
        target: Target,
        security: Callable[[], Awaitable[Security]],
        learned: Learned,
        spawn: Callable[..., asyncio.Task[None]],
        on_lost: Callable[[BrokerError], None],
    ) -> None:
        self.target = target
        self.limits = TopicLimits()
        self.is_over = False
        self._security = security
        self._logs_in = False
        self._learned = learned
        self._spawn = spawn
        self._on_lost = on_lost
        self._connections: set[Connection] = set()
        self._leaders: dict[int, Connection] = {}
        self._opening: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def open(self) -> None:
        """Find the cluster and the topic, and connect to every leader.

        Raises:
            BrokerError: As `Broadcaster.start` says.
        """
        self.topology = await self._find()
        self._learned.cluster = self.topology.cluster
        self._learned.addresses = list(self.topology.addresses.values())
        await self._connect_leaders()
        while not await self._leaders_lead():  # a topic just created, or a leader just moved: no event tells
            await asyncio.sleep(_PAUSE_SECONDS)
            await self.refresh()
        config = await self._ask_any(lambda connection: connection.topic_config(self.target.topic, _CONFIGS))
        self.limits = _limits(config)

    async def leader(self, node: int) -> Connection:
        """Return the connection for publishing to broker `node`.

        Opens it anew where the broker has closed it, and replaces it before its login runs out.

        Raises:
            BrokerError: It cannot be reached any more.
        """
        if (connection := self._usable_leader(node)) is not None:
            return connection
        async with self._opening[node]:
            if (connection := self._usable_leader(node)) is None:
                old = self._leaders.get(node)
                connection = self._leaders[node] = await self._open_leader(node)
                self._drop(old)
            return connection

    async def connect(self, node: int, old: Connection | None = None) -> Connection:
        """Open one more connection to broker `node`, in place of `old`; it ends with the link, and the link with it."""
        connection = await self._connect(self._address(node), self.lost, node)
        self._drop(old)
        return connection

    async def refresh(self) -> None:
        """Ask every leader where the partitions are now, which also keeps quiet connections from being closed.

        A broker that is cut off from the others knows less than they do: for each partition the newest leader counts.

        Raises:
            BrokerError: The topic is gone, or is another one, or a leader is gone; the link is over.
        """
        newest = self.topology
        for node in list(self._leaders):
            found = await self._ask(node, lambda connection: connection.topology(self.target.topic))
            found = _checked(found, self.target)
            if found.topic_id != self.topology.topic_id:
                raise unavailable(f"topic {self.target.topic!r} was deleted and created anew")
            if all(found.epochs.get(partition, 0) >= epoch for partition, epoch in newest.epochs.items()):
                newest = found
        self.topology = newest
        await self._connect_leaders()

    def lost(self, reason: str) -> None:
        """Report the loss."""
        self.is_over = True
        self._on_lost(unavailable(reason))

    def abort(self) -> None:
        """End every connection at once."""
        self.is_over = True
        for connection in self._connections:
            connection.abort()

    async def wait_gone(self) -> None:
        """Wait, after `abort`, until every socket is closed."""
        for connection in list(self._connections):
            await connection.wait_gone()

    def _usable_leader(self, node: int) -> Connection | None:
        connection = self._leaders.get(node)
        if connection is None or connection.is_over or (connection.expires_soon and not connection.awaited):
            return None
        return connection

    def _drop(self, old: Connection | None) -> None:
        if old is not None:
            self._connections.discard(old)
            old.abort()

    async def _find(self) -> Topology:
        """Ask the brokers of the URL, then those that it led to before; each gets its share of the time."""
        error: BrokerError = unavailable(f"{self.target.url} names no server")
        named = random.sample(self.target.servers, len(self.target.servers))
        learned = [address for address in self._learned.addresses if address not in named]
        candidates = named + random.sample(learned, len(learned))
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + self.target.connect_timeout_seconds
        for place, server in enumerate(candidates):
            share = max(0.0, ends_at - loop.time()) / (len(candidates) - place)
            try:
                async with PatientTimeout(share):
                    topology = await self._ask_server(server)
            except TimeoutError:
                error = unavailable(f"{_name(server)} did not answer within {share:.1f} s")
            except BrokerUnavailableError as unreachable:
                error = unreachable if server in named else error
            else:
                # An address can pass to another cluster: of one that the URL does not name nothing else is believed.
                if server in named or topology.cluster == self._learned.cluster:
                    return topology
        raise error

    async def _ask_server(self, server: tuple[str, int]) -> Topology:
        connection = await self._connect(server, lambda _: None)
        try:
            return await self._require_topic(connection)
        except ConnectionEndedError as error:
            hint = "does it want a login? kafka://user:password@…" if not self._logs_in else "is it going down?"
            raise unavailable(f"{_name(server)} ended the connection at the first request; {hint}") from error
        finally:
            connection.abort()  # needed once

    async def _connect(
        self, address: tuple[str, int], on_end: Callable[[str], None], node: int | None = None
    ) -> Connection:
        security = await self._security()
        self._logs_in = security.protocol.startswith("SASL")
        connection = Connection(address, security, self.target.request_timeout_seconds, on_end)
        try:
            async with PatientTimeout(self.target.connect_timeout_seconds):
                await connection.open()
        except (KafkaError, OSError, TimeoutError) as error:
            raise connect_error(error, self.target.url, _name(address), node, security) from error
        self._connections.add(connection)
        return connection

    async def _open_leader(self, node: int) -> Connection:
        loop = asyncio.get_running_loop()
        opened_at = loop.time()

        def ended(reason: str) -> None:
            """Open an unused connection anew, which the broker closes after `connections.max.idle.ms`."""
            self._connections.discard(connection)
            if self.is_over or connection.awaited:  # who waits for the answer opens it anew, or reports the loss
                return
            if loop.time() - opened_at < _SHORT_LIFE_SECONDS:
                self.lost(reason)
            else:
                self._spawn(self._reopen(node), f"kafka-reopen-{node}")

        connection = await self._connect(self._address(node), ended, node)
        return connection

    async def _reopen(self, node: int) -> None:
        if node in self._leaders and not self.is_over:
            await self.leader(node)

    def _address(self, node: int) -> tuple[str, int]:
        address = self.topology.addresses.get(node)
        if address is None:
            raise unavailable(f"broker {node} has left the cluster")
        return address

    async def _connect_leaders(self) -> None:
        for node in set(self.topology.leaders.values()):
            await self.leader(node)

    async def _ask(self, node: int, request: Callable[[Connection], Awaitable[_T]]) -> _T:
        """Ask broker `node`; once more where it closed the idle connection in that very moment."""
        try:
            return await request(await self.leader(node))
        except ConnectionEndedError:
            return await request(await self.leader(node))

    async def _ask_any(self, request: Callable[[Connection], Awaitable[_T]]) -> _T:
        return await self._ask(next(iter(self._leaders)), request)

    async def _leaders_lead(self) -> bool:
        """Whether each broker knows that it leads what the others say it does; it learns of it later than they."""
        for node in list(self._leaders):
            led = {partition: LATEST for partition, leader in self.topology.leaders.items() if leader == node}
            answers = await self._ask(node, lambda connection, led=led: connection.offsets(self.target.topic, led))  # type: ignore[misc]
            if any(code for code, _ in answers.values()):
                return False
        return True

    async def _require_topic(self, connection: Connection) -> Topology:
        topology = await connection.topology(self.target.topic)
        if topology.error == _UNKNOWN_TOPIC and self.target.partitions is not None:
            await self._create_topic(topology, self.target.partitions)
            while topology.error in (_UNKNOWN_TOPIC, _NO_LEADER) or -1 in topology.leaders.values():
                await asyncio.sleep(_PAUSE_SECONDS)  # no event tells that every broker knows it
                topology = await connection.topology(self.target.topic)
        return _checked(topology, self.target)

    async def _create_topic(self, topology: Topology, partitions: int) -> None:
        topic, replicas = self.target.topic, self.target.replicas
        if replicas == -1:
            replicas = min(3, len(topology.addresses))
        node = topology.controller if topology.controller in topology.addresses else next(iter(topology.addresses))
        controller = await self._connect(topology.addresses[node], lambda _: None, node)
        try:
            milliseconds = int(self.target.request_timeout_seconds * 1000)
            code, message = await controller.create_topic(topic, partitions, replicas, milliseconds)
        finally:
            controller.abort()
        if code == 0:
            logger.info(
                "created topic %r: %d partitions, each on %d of %d brokers",
                topic,
                partitions,
                replicas,
                len(topology.addresses),
            )
        elif code == _EXISTS:  # another process was faster
            return
        elif meaning(code) in (Meaning.PASSING, Meaning.STORED_MAYBE, Meaning.MOVED, Meaning.UNPLACED):
            raise unavailable(f"topic {topic!r} does not exist and was not created: {message}")
        else:
            raise BrokerError(
                f"topic {topic!r} does not exist and cannot be created: {message}; create it by hand, or grant CREATE",
                adapter="kafka",
            )


def _name(address: tuple[str, int]) -> str:
    return f"{address[0]}:{address[1]}"


def _limits(config: Mapping[str, str]) -> TopicLimits:
    largest = config.get("max.message.bytes", "")
    return TopicLimits(
        max_payload_bytes=max(1, int(largest) - _OVERHEAD_BYTES) if largest.isdecimal() else None,
        is_compacted="compact" in config.get("cleanup.policy", ""),
        codec_problem=codec_problem(config.get("compression.type", "")),
    )


def _checked(topology: Topology, target: Target) -> Topology:
    """Return `topology` if every partition of the topic can be used."""
    topic = target.topic
    if topology.error == _UNKNOWN_TOPIC:
        hint = "create it" if target.partitions is not None else "create it, or set create_topic=true"
        raise BrokerError(f"topic {topic!r} does not exist: {hint}", adapter="kafka")
    if meaning(topology.error) is Meaning.FORBIDDEN:
        raise BrokerError(f"not authorized for topic {topic!r}: grant DESCRIBE, READ and WRITE", adapter="kafka")
    if topology.error == _INVALID_TOPIC:
        raise BrokerError(f"{topic!r} is no legal name of a topic", adapter="kafka")
    if topology.error:
        raise unavailable(f"topic {topic!r}: {code_name(topology.error)}")
    if not topology.leaders:
        raise unavailable(f"topic {topic!r} has no partitions yet")
    if leaderless := [partition for partition, leader in topology.leaders.items() if leader not in topology.addresses]:
        raise unavailable(f"topic {topic!r} has partitions without a leader: {leaderless[:5]}")
    return topology
