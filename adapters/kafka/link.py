"""The connections of one link to a Kafka cluster, and the topic on it.

aiokafka connects, logs in, and encodes; its producer and consumer are left aside, because they hide a lost link, cannot
tell what was never sent from what may have arrived, and wait for the broker when they are to stop (0.14). Here any
connection that ends, or a partition that moved, is the link lost: the supervisor opens another one, and that goes on
where this one was.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aiokafka.errors import (  # type: ignore[import-untyped]
    AuthenticationFailedError,
    IllegalSaslStateError,
    KafkaError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)

from backplane.adapters.kafka.wire import LATEST, Connection, Topology, words
from backplane.errors import BrokerAuthenticationError, BrokerError, BrokerUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backplane.adapters.kafka.wire import Security

__all__ = ["KafkaLink", "Target", "unavailable"]

logger = logging.getLogger("backplane.kafka")

_UNKNOWN_TOPIC: Final = 3
_NO_LEADER: Final = 5
_INVALID_TOPIC: Final = 17
_NOT_AUTHORIZED: Final = 29
_EXISTS: Final = 36
_LOGIN_ERRORS: Final = (
    AuthenticationFailedError,
    IllegalSaslStateError,
    SaslAuthenticationFailed,
)
_PAUSE_SECONDS: Final = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a link leads to.

    Attributes:
        url: For words to a person; the password is masked in it.
        servers: Host and port of the brokers to ask first.
        topic: Name of the topic.
        partitions: How many it gets if it has to be created; `None` to refuse instead.
        replicas: On how many brokers it is created; -1 for the cluster's default.
        request_timeout_seconds: How long an answer may take.
    """

    url: str
    servers: Sequence[tuple[str, int]]
    topic: str
    partitions: int | None
    replicas: int
    request_timeout_seconds: float


class KafkaLink:
    """One connection to each broker that leads a partition, and those of the reader beside them.

    Args:
        target: Where to.
        security: Who logs in, and how.
        on_lost: Called when any of its connections ended; more than once where several do.

    Attributes:
        topology: Where the partitions are, as last asked.
    """

    topology: Topology

    def __init__(self, target: Target, security: Security, on_lost: Callable[[BrokerError], None]) -> None:
        self.target = target
        self._security = security
        self._on_lost = on_lost
        self._connections: set[Connection] = set()
        self._leaders: dict[int, Connection] = {}
        self.is_over = False

    async def open(self) -> None:
        """Find the cluster and the topic, and connect to every leader.

        Raises:
            BrokerError: As `Broadcaster.start` says.
        """
        self.topology = await self._find()
        await self._connect_leaders(self.topology)
        while not await self._leaders_lead():  # a topic just created, or a leader just moved: no event tells
            await asyncio.sleep(_PAUSE_SECONDS)
            await self.refresh()

    def leader(self, node: int) -> Connection:
        """Return the connection for publishing to broker `node`."""
        return self._leaders[node]

    async def connect(self, node: int) -> Connection:
        """Open one more connection to broker `node`; it ends with the link."""
        return await self._connect(self.topology.addresses[node], self.lost)

    async def refresh(self) -> None:
        """Ask every leader where the partitions are now, which also keeps quiet connections from being closed.

        Raises:
            BrokerError: The topic is gone, or a leader; the link is over.
        """
        topology = self.topology
        for connection in list(self._leaders.values()):
            topology = _checked(await connection.topology(self.target.topic), self.target)
        await self._connect_leaders(topology)
        self.topology = topology

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

    async def _find(self) -> Topology:
        error: BrokerError = unavailable(f"{self.target.url} names no server")
        for server in random.sample(self.target.servers, len(self.target.servers)):
            try:
                connection = await self._connect(server, lambda _: None)
                try:
                    return await self._require_topic(connection)
                finally:
                    connection.abort()  # needed once
            except BrokerUnavailableError as unreachable:
                error = unreachable
        raise error

    async def _connect(self, address: tuple[str, int], on_end: Callable[[str], None]) -> Connection:
        connection = Connection(address, self._security, self.target.request_timeout_seconds, on_end)
        try:
            await connection.open()
        except (KafkaError, OSError, TimeoutError) as error:
            raise _connect_error(error, self.target.url, self._security.mechanism) from error
        self._connections.add(connection)
        return connection

    async def _connect_leaders(self, topology: Topology) -> None:
        for node in set(topology.leaders.values()) - self._leaders.keys():
            self._leaders[node] = await self._connect(topology.addresses[node], self.lost)

    async def _leaders_lead(self) -> bool:
        """Whether each broker knows that it leads what the others say it does; it learns of it later than they."""
        for node, connection in self._leaders.items():
            led = {partition: LATEST for partition, leader in self.topology.leaders.items() if leader == node}
            answers = await connection.offsets(self.target.topic, led)
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
        address = topology.addresses.get(topology.controller, next(iter(topology.addresses.values())))
        controller = await self._connect(address, lambda _: None)
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
        elif code != _EXISTS:  # else another process was faster
            raise BrokerError(
                f"topic {topic!r} does not exist and cannot be created: {message}; create it by hand, or grant CREATE",
                adapter="kafka",
            )


def unavailable(reason: str) -> BrokerUnavailableError:
    """Return the error for a link that is not there."""
    return BrokerUnavailableError(reason, adapter="kafka")


def _checked(topology: Topology, target: Target) -> Topology:
    """Return `topology` if every partition of the topic can be used."""
    topic = target.topic
    if topology.error == _UNKNOWN_TOPIC:
        hint = "create it" if target.partitions is not None else "create it, or set create_topic=true"
        raise BrokerError(f"topic {topic!r} does not exist: {hint}", adapter="kafka")
    if topology.error == _NOT_AUTHORIZED:
        raise BrokerError(f"not authorized for topic {topic!r}: grant DESCRIBE, READ and WRITE", adapter="kafka")
    if topology.error == _INVALID_TOPIC:
        raise BrokerError(f"{topic!r} is no legal name of a topic", adapter="kafka")
    if topology.error:
        raise unavailable(f"topic {topic!r}: {words(topology.error)}")
    if leaderless := [partition for partition, leader in topology.leaders.items() if leader not in topology.addresses]:
        raise unavailable(f"topic {topic!r} has partitions without a leader: {leaderless[:5]}")
    return topology


def _connect_error(error: Exception, url: str, mechanism: str) -> BrokerError:
    if isinstance(error, UnsupportedSaslMechanismError):
        return BrokerAuthenticationError(f"{url} offers no login by {mechanism}; set sasl_mechanism", adapter="kafka")
    if isinstance(error, _LOGIN_ERRORS):
        return BrokerAuthenticationError(f"{url} refused the credentials: {error}", adapter="kafka")
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return BrokerError(f"{url} shows a certificate that is not trusted: {cause}", adapter="kafka")
        cause = cause.__cause__ or cause.__context__
    return unavailable(f"cannot reach {url}: {str(error) or type(error).__name__}")
