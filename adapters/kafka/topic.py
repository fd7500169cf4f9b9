"""The topic of all channels: found or created, checked, and its limits read."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from backplane.adapters.kafka.codes import Meaning, error_name, meaning
from backplane.adapters.kafka.connect_error import unavailable
from backplane.adapters.kafka.records import codec_problem
from backplane.errors import BrokerError
from backplane.journal.events import HISTORY_CREATED
from backplane.journal.writing import write

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from backplane.adapters.kafka.answers import Topology
    from backplane.adapters.kafka.connection import Connection
    from backplane.adapters.kafka.target import Target

__all__ = ["LIMIT_CONFIGS", "POLL_SECONDS", "TopicLimits", "check_topic", "read_limits", "require_topic"]

logger: Final = logging.getLogger("backplane.adapters.kafka.topic")

LIMIT_CONFIGS: Final = ("max.message.bytes", "cleanup.policy", "compression.type")
POLL_SECONDS: Final = 0.02
_UNKNOWN_TOPIC: Final = 3
_NO_LEADER: Final = 5
_INVALID_TOPIC: Final = 17
_EXISTS: Final = 36
# Size of a batch of one record without its payload: 61 bytes of the batch, some 21 of the record, 255 of the channel.
_OVERHEAD_BYTES: Final = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicLimits:
    """Configuration of the topic, as far as the user may read it.

    Attributes:
        max_payload_bytes: The largest payload that the topic accepts.
        is_compacted: The broker deletes messages that a later one of the same channel has replaced.
        codec_problem: Why its records cannot be read here; `None` where they can.
    """

    max_payload_bytes: int | None = None
    is_compacted: bool = False
    codec_problem: str | None = None


def read_limits(config: Mapping[str, str]) -> TopicLimits:
    """Return the limits of a topic with the configs `LIMIT_CONFIGS`; those that are missing limit nothing."""
    largest = config.get("max.message.bytes", "")
    return TopicLimits(
        max_payload_bytes=max(1, int(largest) - _OVERHEAD_BYTES) if largest.isdecimal() else None,
        is_compacted="compact" in config.get("cleanup.policy", ""),
        codec_problem=codec_problem(config.get("compression.type", "")),
    )


async def require_topic(
    connection: Connection, target: Target, connect_to: Callable[[Topology, int], Awaitable[Connection]]
) -> Topology:
    """Return the topology of the topic, which is created if needed.

    Args:
        connection: A connection to any broker.
        target: The topic, and how to create it.
        connect_to: Opens a connection to the broker with this id, to create the topic there.

    Raises:
        BrokerUnavailableError: It cannot be used, or be created, at the moment.
        BrokerError: It does not exist, or cannot be used by this user.
    """
    topology = await connection.topology(target.topic)
    if topology.error == _UNKNOWN_TOPIC and target.partitions is not None:
        await _create_topic(topology, target, target.partitions, connect_to)
        while topology.error in (_UNKNOWN_TOPIC, _NO_LEADER) or -1 in topology.leaders.values():
            await asyncio.sleep(POLL_SECONDS)  # no event reports that this broker knows the new topic
            topology = await connection.topology(target.topic)
    return check_topic(topology, target)


def check_topic(topology: Topology, target: Target) -> Topology:
    """Return `topology` if every partition of the topic can be used.

    Raises:
        BrokerUnavailableError: It cannot be used at the moment.
        BrokerError: It does not exist, or cannot be used by this user.
    """
    topic = target.topic
    if topology.error == _UNKNOWN_TOPIC:
        hint = "create it" if target.partitions is not None else "create it, or set create_topic=true"
        raise BrokerError(f"topic {topic!r} does not exist: {hint}", adapter="kafka")
    if meaning(topology.error) is Meaning.FORBIDDEN:
        raise BrokerError(f"not authorized for topic {topic!r}: grant DESCRIBE, READ and WRITE", adapter="kafka")
    if topology.error == _INVALID_TOPIC:
        raise BrokerError(f"{topic!r} is no legal name of a topic", adapter="kafka")
    if topology.error:
        raise unavailable(f"topic {topic!r}: {error_name(topology.error)}")
    if not topology.leaders:
        raise unavailable(f"topic {topic!r} has no partitions yet")
    if leaderless := [partition for partition, leader in topology.leaders.items() if leader not in topology.addresses]:
        raise unavailable(f"topic {topic!r} has partitions without a leader: {leaderless[:5]}")
    return topology


async def _create_topic(
    topology: Topology, target: Target, partitions: int, connect_to: Callable[[Topology, int], Awaitable[Connection]]
) -> None:
    topic, replicas = target.topic, target.replicas
    if replicas == -1:
        replicas = min(3, len(topology.addresses))
    node = topology.controller if topology.controller in topology.addresses else next(iter(topology.addresses))
    controller = await connect_to(topology, node)
    try:
        milliseconds = int(target.request_timeout_seconds * 1000)
        code, message = await controller.create_topic(topic, partitions, replicas, milliseconds)
    finally:
        controller.abort()
    if code == 0:
        write(
            logger,
            HISTORY_CREATED,
            "created topic %(topic)r: %(partitions)d partitions, each on %(replicas)d of %(brokers)d brokers",
            topic=topic,
            partitions=partitions,
            replicas=replicas,
            brokers=len(topology.addresses),
        )
    elif code == _EXISTS:  # another process has created it meanwhile
        return
    elif meaning(code) in (Meaning.TRANSIENT, Meaning.MAYBE_STORED, Meaning.MOVED, Meaning.UNKNOWN):
        raise unavailable(f"topic {topic!r} does not exist and was not created: {message}")
    else:
        raise BrokerError(
            f"topic {topic!r} does not exist and cannot be created: {message}; create it by hand, or grant CREATE",
            adapter="kafka",
        )
