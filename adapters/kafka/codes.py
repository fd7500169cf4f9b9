"""Kafka's error codes, sorted once by what they mean for whoever asked.

https://kafka.apache.org/protocol#protocol_error_codes. A code that is not in the table is one that nobody has placed:
it is never taken for a success, nor for a refusal.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportMissingTypeStubs=false
# aiokafka has no types for its users.

from __future__ import annotations

from enum import Enum, auto
from typing import Final

from aiokafka.errors import for_code  # type: ignore[import-untyped]

__all__ = ["Meaning", "code_name", "meaning"]


class Meaning(Enum):
    """What an error code means for the request that it answers."""

    OK = auto()
    """Done, now or the first time it was sent."""
    PASSING = auto()
    """Not done, for a reason that passes by itself: ask the same broker again."""
    STORED_MAYBE = auto()
    """As `PASSING`, but a batch may be in the log already: only its repetition tells."""
    MOVED = auto()
    """The partition, or the topic, is not there (any more): find out where it is."""
    WRONG_CONTENT = auto()
    """A record of the batch cannot be stored; the others can."""
    FORBIDDEN = auto()
    """The user lacks a right."""
    REFUSED = auto()
    """Asking again does not help."""
    FORGOTTEN = auto()
    """The broker does not know this producer and its sequence numbers any more."""
    OUT_OF_RANGE = auto()
    """The log does not hold the offset."""
    CORRUPT = auto()
    """A batch is damaged: on its way to the broker, or on its disk."""
    UNPLACED = auto()
    """Anything else: what became of the request is not known."""


_TABLE: Final[dict[int, Meaning]] = {
    0: Meaning.OK,
    46: Meaning.OK,  # DUPLICATE_SEQUENCE_NUMBER
    1: Meaning.OUT_OF_RANGE,
    2: Meaning.CORRUPT,
    # STALE_CONTROLLER_EPOCH, COORDINATOR_*, NOT_ENOUGH_REPLICAS, NOT_CONTROLLER, CONCURRENT_TRANSACTIONS,
    # OFFSET_NOT_AVAILABLE, UNSTABLE_OFFSET_COMMIT, THROTTLING_QUOTA_EXCEEDED
    **dict.fromkeys((11, 14, 15, 16, 19, 41, 51, 78, 88, 89), Meaning.PASSING),
    # REQUEST_TIMED_OUT, NOT_ENOUGH_REPLICAS_AFTER_APPEND
    **dict.fromkeys((7, 20), Meaning.STORED_MAYBE),
    # UNKNOWN_TOPIC_OR_PARTITION, LEADER_NOT_AVAILABLE, NOT_LEADER_OR_FOLLOWER, BROKER_NOT_AVAILABLE,
    # REPLICA_NOT_AVAILABLE, NETWORK_EXCEPTION, KAFKA_STORAGE_ERROR, LISTENER_NOT_FOUND, FENCED_LEADER_EPOCH,
    # UNKNOWN_LEADER_EPOCH, UNKNOWN_TOPIC_ID, INCONSISTENT_TOPIC_ID
    **dict.fromkeys((3, 5, 6, 8, 9, 13, 56, 72, 74, 75, 100, 103), Meaning.MOVED),
    # MESSAGE_TOO_LARGE, RECORD_LIST_TOO_LARGE, INVALID_TIMESTAMP, UNSUPPORTED_FOR_MESSAGE_FORMAT, POLICY_VIOLATION,
    # UNSUPPORTED_COMPRESSION_TYPE, INVALID_RECORD
    **dict.fromkeys((10, 18, 32, 43, 44, 76, 87), Meaning.WRONG_CONTENT),
    # TOPIC_*, CLUSTER_*, TRANSACTIONAL_ID_AUTHORIZATION_FAILED
    **dict.fromkeys((29, 31, 53), Meaning.FORBIDDEN),
    # INVALID_TOPIC, INVALID_REQUIRED_ACKS, UNSUPPORTED_VERSION, INVALID_PARTITIONS, INVALID_REPLICATION_FACTOR,
    # INVALID_REPLICA_ASSIGNMENT, INVALID_CONFIG, INVALID_REQUEST
    **dict.fromkeys((17, 21, 35, 37, 38, 39, 40, 42), Meaning.REFUSED),
    # OUT_OF_ORDER_SEQUENCE_NUMBER, INVALID_PRODUCER_EPOCH, INVALID_PRODUCER_ID_MAPPING, UNKNOWN_PRODUCER_ID,
    # PRODUCER_FENCED
    **dict.fromkeys((45, 47, 49, 59, 90), Meaning.FORGOTTEN),
}

# Those that aiokafka has no name for (0.14).
_NAMES: Final = {
    74: "FencedLeaderEpoch",
    75: "UnknownLeaderEpoch",
    76: "UnsupportedCompressionType",
    78: "OffsetNotAvailable",
    87: "InvalidRecord",
    88: "UnstableOffsetCommit",
    89: "ThrottlingQuotaExceeded",
    90: "ProducerFenced",
    100: "UnknownTopicId",
    103: "InconsistentTopicId",
}


def meaning(code: int) -> Meaning:
    """Return what `code` means."""
    return _TABLE.get(code, Meaning.UNPLACED)


def code_name(code: int) -> str:
    """Return Kafka's error `code` as its name and number."""
    return f"{_NAMES.get(code) or for_code(code).__name__} ({code})" if code else "no error"
