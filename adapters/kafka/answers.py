"""Answers of a Kafka broker, as values with types."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from backplane.adapters.kafka.protocol import NO_EPOCH, NO_TOPIC_ID, diverging_epoch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "EARLIEST",
    "LATEST",
    "Fetched",
    "Position",
    "ProduceAnswer",
    "ProducerId",
    "Topology",
    "read_fetched",
    "read_offset",
    "read_produce_answer",
    "read_topology",
]

EARLIEST: Final = -2
LATEST: Final = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """The brokers of the cluster, and which of them leads which partition of the topic.

    Attributes:
        addresses: Host and port of each broker, by its id.
        leaders: The id of each partition's leader; -1 for none.
        controller: Id of the broker that creates topics.
        error: Kafka's error code for the topic, 0 for none.
        cluster: Id of the cluster, where the broker provides it.
        topic_id: Id of the topic: another topic of the same name has another one. Zeros where the broker has none.
        epochs: Leader epoch of each partition, which increases with each election; empty where not provided.
    """

    addresses: Mapping[int, tuple[str, int]]
    leaders: Mapping[int, int]
    controller: int
    error: int
    cluster: str | None
    topic_id: bytes = NO_TOPIC_ID
    epochs: Mapping[int, int] = field(default_factory=dict[int, int])


@dataclass(frozen=True, slots=True, kw_only=True)
class ProducerId:
    """Id of an idempotent producer: with it and sequence numbers the broker detects a batch that is sent again."""

    producer_id: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Position:
    """A position in the log of a partition.

    Attributes:
        offset: Offset of the next record to read.
        epoch: Leader epoch of the record before it, -1 where it is not known. If the log was truncated and has grown
            past `offset` again, the record there has another epoch.
    """

    offset: int
    epoch: int = NO_EPOCH


@dataclass(frozen=True, slots=True)
class Fetched:
    """Answer to a fetch, for one partition.

    Attributes:
        partition: Number of the partition.
        code: Kafka's error code.
        records: Record batches, for `read_batches`.
        end: The offset up to which they are replicated.
        diverged_at: Where the log differs from what was read of it before; `None` where it does not.
    """

    partition: int
    code: int
    records: bytes
    end: int
    diverged_at: Position | None = None


@dataclass(frozen=True, slots=True)
class ProduceAnswer:
    """Answer to one published batch.

    Attributes:
        code: Kafka's error code.
        message: The broker's error message, or none.
        refused: Indexes of the records that the broker refused, with its reasons; empty where it names none.
        offset: Offset of the first record; -1 where the broker does not provide it, as of a repetition that it no
            longer remembers.
    """

    code: int
    message: str = ""
    refused: Mapping[int, str] = field(default_factory=dict[int, str])
    offset: int = -1


def read_topology(answer: Any) -> Topology:
    """Return the topology of an answer to `FindTopic`, old or new."""
    topic = answer.topics[0]
    has_id = len(topic) > 4
    partitions = sorted(topic[4 if has_id else 3], key=lambda partition: int(partition[1]))
    return Topology(
        addresses={broker[0]: (broker[1], broker[2]) for broker in answer.brokers},
        leaders={partition[1]: partition[2] for partition in partitions},
        controller=answer.controller_id,
        error=topic[0],
        cluster=getattr(answer, "cluster_id", None),
        topic_id=topic[2] if has_id else NO_TOPIC_ID,
        epochs={partition[1]: partition[3] for partition in partitions} if has_id else {},
    )


def read_offset(fields: Sequence[Any]) -> tuple[int, Position]:
    """Return error code and position of a partition in an answer to `ListOffsets`, old or new."""
    return fields[1], Position(fields[3], fields[4] if len(fields) > 4 else NO_EPOCH)


def read_produce_answer(fields: Sequence[Any]) -> ProduceAnswer:
    """Return the answer for a partition in an answer to `Produce`, old or new."""
    if len(fields) <= 6:
        return ProduceAnswer(fields[1], offset=fields[2])
    refused = {index: reason or "" for index, reason in fields[5] or ()}
    return ProduceAnswer(fields[1], fields[6] or "", refused, fields[2])


def read_fetched(fields: Sequence[Any]) -> Fetched:
    """Return the answer for a partition in an answer to `FetchLog`, old or new."""
    if len(fields) <= 7:
        return Fetched(fields[0], fields[1], fields[-1] or b"", fields[2])
    diverging = diverging_epoch(fields[8])
    diverged_at = None if diverging is None else Position(diverging[1], diverging[0])
    return Fetched(fields[0], fields[1], fields[7] or b"", fields[2], diverged_at)
