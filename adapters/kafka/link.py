"""The connections of one link to a Kafka cluster.

aiokafka connects, logs in and encodes. Its producer and consumer are not used: they hide a lost link, do not
distinguish what was never sent from what may have arrived, and wait for the broker when they stop (0.14). Here the link
is lost when a broker cannot be reached or a partition has moved: the supervisor opens another link, which continues
from there.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from typing import TYPE_CHECKING, Final, TypeVar

from aiokafka.errors import KafkaError  # type: ignore[import-untyped]

from backplane.adapters.kafka.answers import LATEST, Topology
from backplane.adapters.kafka.connect_error import connect_error, unavailable
from backplane.adapters.kafka.connection import Connection, ConnectionEndedError
from backplane.adapters.kafka.topic import (
    LIMIT_CONFIGS,
    POLL_SECONDS,
    TopicLimits,
    check_topic,
    read_limits,
    require_topic,
)
from backplane.adapters.shared.hidden_secrets import hiding
from backplane.concurrency.timeouts import PatientTimeout
from backplane.errors import BrokerError, BrokerUnavailableError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from backplane.adapters.kafka.login import Security
    from backplane.adapters.kafka.target import KnownBrokers, Target

__all__ = ["KafkaLink"]

# A connection that the broker ended sooner than this, unused, would be ended again: it is not opened anew.
_SHORT_LIFE_SECONDS: Final = 0.2

_T = TypeVar("_T")


class KafkaLink:
    """One connection to each broker that leads a partition, and the connections of the reader.

    Args:
        target: The cluster and topic.
        security: Called before each login; returns how to connect, and the credentials.
        known_brokers: Brokers that earlier links have found, to be tried after those of the URL.
        spawn: Starts a task whose failure is the loss of the link.
        on_lost: Called when the link is lost; more than once if several connections end.

    Attributes:
        topology: Where the partitions are, by the last answer.
        limits: Configuration of the topic.
        is_over: The link was lost, or aborted.
    """

    topology: Topology

    def __init__(
        self,
        target: Target,
        security: Callable[[], Awaitable[Security]],
        known_brokers: KnownBrokers,
        spawn: Callable[..., asyncio.Task[None]],
        on_lost: Callable[[BrokerError], None],
    ) -> None:
        self.target: Target = target
        self.limits: TopicLimits = TopicLimits()
        self.is_over: bool = False
        self._security = security
        self._logs_in = False
        self._known_brokers = known_brokers
        self._spawn = spawn
        self._on_lost = on_lost
        self._connections: set[Connection] = set()
        self._leaders: dict[int, Connection] = {}
        self._opening: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def open(self) -> None:
        """Find the cluster and the topic, and connect to every leader.

        Raises:
            BrokerError: As for `Broadcaster.start`.
        """
        self.topology = await self._find()
        self._known_brokers.cluster = self.topology.cluster
        self._known_brokers.addresses = list(self.topology.addresses.values())
        await self._connect_leaders()
        # After the creation of a topic, or an election, no event reports that a leader is ready: poll.
        while not await self._leaders_are_ready():
            await asyncio.sleep(POLL_SECONDS)
            await self.refresh()
        config = await self.topic_config(LIMIT_CONFIGS)
        self.limits = read_limits(config)

    async def topic_config(self, names: Sequence[str]) -> dict[str, str]:
        """Return configs of the topic; none where the user lacks the right DESCRIBE_CONFIGS.

        Raises:
            BrokerError: No broker answers.
        """
        return await self._request_any(lambda connection: connection.topic_config(self.target.topic, names))

    async def leader(self, node: int) -> Connection:
        """Return the connection for publishing to broker `node`.

        It is opened anew where the broker has closed it, and replaced before its login expires.

        Raises:
            BrokerError: The broker cannot be reached.
        """
        if (connection := self._usable_leader(node)) is not None:
            return connection
        async with self._opening[node]:
            if (connection := self._usable_leader(node)) is None:
                old = self._leaders.get(node)
                connection = self._leaders[node] = await self._open_leader(node)
                self._discard(old)
            return connection

    async def connect(self, node: int, old: Connection | None = None) -> Connection:
        """Open another connection to broker `node`, in place of `old`. When it ends the link is lost."""
        connection = await self._connect(self._address(node), self.report_loss, node)
        self._discard(old)
        return connection

    async def connect_aside(self, node: int, old: Connection | None = None) -> Connection:
        """Open a connection to broker `node`, in place of `old`, whose end is not the loss of the link."""

        def ended(_: str) -> None:
            self._connections.discard(connection)

        connection = await self._connect(self._address(node), ended, node)
        self._discard(old)
        if self.is_over:
            self._discard(connection)
            raise unavailable("the link is lost")
        return connection

    async def refresh(self) -> None:
        """Update the topology from every leader, which also keeps idle connections open.

        A broker that is cut off from the others has outdated data: of each partition the highest leader epoch counts.

        Raises:
            BrokerError: The topic or a leader is gone, or the topic was replaced; the link is over.
        """
        newest = self.topology
        for node in list(self._leaders):
            found = await self._request(node, lambda connection: connection.topology(self.target.topic))
            found = check_topic(found, self.target)
            if found.topic_id != self.topology.topic_id:
                raise unavailable(f"topic {self.target.topic!r} was deleted and created anew")
            if all(found.epochs.get(partition, 0) >= epoch for partition, epoch in newest.epochs.items()):
                newest = found
        self.topology = newest
        await self._connect_leaders()

    def report_loss(self, reason: str) -> None:
        """Report that the link is lost."""
        self.is_over = True
        self._on_lost(unavailable(reason))

    def abort(self) -> None:
        """End every connection at once."""
        self.is_over = True
        for connection in self._connections:
            connection.abort()

    async def wait_closed(self) -> None:
        """Wait, after `abort`, until every socket is closed."""
        for connection in list(self._connections):
            await connection.wait_closed()

    # -- finding the cluster -----------------------------------------------------------------------------------------

    async def _find(self) -> Topology:
        """Try the brokers of the URL, then those that earlier links have found; each gets its share of the time."""
        error: BrokerError = unavailable(f"{self.target.url} names no server")
        named = random.sample(self.target.servers, len(self.target.servers))
        known = [address for address in self._known_brokers.addresses if address not in named]
        candidates = named + random.sample(known, len(known))
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + self.target.connect_timeout_seconds
        for place, server in enumerate(candidates):
            share = max(0.0, ends_at - loop.time()) / (len(candidates) - place)
            try:
                async with PatientTimeout(share):
                    topology = await self._find_from(server)
            except TimeoutError:
                error = unavailable(f"{_text(server)} did not answer within {share:.1f} s")
            except BrokerUnavailableError as unreachable:
                error = unreachable if server in named else error
            else:
                # An address can pass to another cluster: a broker that the URL does not name must be of the known one.
                if server in named or topology.cluster == self._known_brokers.cluster:
                    return topology
        raise error

    async def _find_from(self, server: tuple[str, int]) -> Topology:
        connection = await self._connect(server, lambda _: None)
        try:
            return await require_topic(connection, self.target, self._connect_to)
        except ConnectionEndedError as error:
            hint = "does it want a login? kafka://user:password@…" if not self._logs_in else "is it going down?"
            raise unavailable(f"{_text(server)} ended the connection at the first request; {hint}") from error
        finally:
            connection.abort()  # it was needed for this alone

    async def _connect_to(self, topology: Topology, node: int) -> Connection:
        return await self._connect(topology.addresses[node], lambda _: None, node)

    async def _leaders_are_ready(self) -> bool:
        """Whether each broker knows that it leads the partitions that the topology names; it may be notified later."""
        for node in list(self._leaders):
            led = {partition: LATEST for partition, leader in self.topology.leaders.items() if leader == node}
            answers = await self._request(
                node,
                lambda connection, led=led: connection.offsets(self.target.topic, led),  # type: ignore[misc]
            )
            if any(code for code, _ in answers.values()):
                return False
        return True

    # -- connections -------------------------------------------------------------------------------------------------

    async def _connect(
        self, address: tuple[str, int], on_end: Callable[[str], None], node: int | None = None
    ) -> Connection:
        security = await self._security()
        self._logs_in = security.protocol.startswith("SASL")
        connection = Connection(address, security, self.target.request_timeout_seconds, on_end)
        token = None if security.token is None else await security.token.token()
        with hiding(security.password, token, shown=(self.target.url, security.username)):
            try:
                async with PatientTimeout(self.target.connect_timeout_seconds):
                    await connection.open()
            except (KafkaError, OSError, TimeoutError) as error:
                raise connect_error(error, self.target.url, _text(address), node, security) from error
        self._connections.add(connection)
        return connection

    async def _connect_leaders(self) -> None:
        for node in set(self.topology.leaders.values()):
            await self.leader(node)

    def _usable_leader(self, node: int) -> Connection | None:
        connection = self._leaders.get(node)
        if connection is None or connection.is_over or (connection.expires_soon and not connection.unanswered):
            return None
        return connection

    async def _open_leader(self, node: int) -> Connection:
        loop = asyncio.get_running_loop()
        opened_at = loop.time()

        def ended(reason: str) -> None:
            """Open an idle connection anew, which the broker closes after `connections.max.idle.ms`."""
            self._connections.discard(connection)
            # With a request unanswered, its caller opens the connection anew or reports the loss.
            if self.is_over or connection.unanswered:
                return
            if loop.time() - opened_at < _SHORT_LIFE_SECONDS:
                self.report_loss(reason)
            else:
                self._spawn(self._reopen(node), f"kafka-reopen-{node}")

        connection = await self._connect(self._address(node), ended, node)
        return connection

    async def _reopen(self, node: int) -> None:
        if node in self._leaders and not self.is_over:
            await self.leader(node)

    def _discard(self, old: Connection | None) -> None:
        if old is not None:
            self._connections.discard(old)
            old.abort()

    def _address(self, node: int) -> tuple[str, int]:
        address = self.topology.addresses.get(node)
        if address is None:
            raise unavailable(f"broker {node} has left the cluster")
        return address

    async def _request(self, node: int, request: Callable[[Connection], Awaitable[_T]]) -> _T:
        """Send a request to broker `node`; once more if the broker closed the idle connection at that moment."""
        try:
            return await request(await self.leader(node))
        except ConnectionEndedError:
            return await request(await self.leader(node))

    async def _request_any(self, request: Callable[[Connection], Awaitable[_T]]) -> _T:
        return await self._request(next(iter(self._leaders)), request)


def _text(address: tuple[str, int]) -> str:
    return f"{address[0]}:{address[1]}"
