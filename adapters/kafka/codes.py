"""Kafka's error codes, by what they mean for the request.

https://kafka.apache.org/protocol#protocol_error_codes. A code that is not in the table counts neither as a success nor
as a refusal.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportMissingTypeStubs=false
# aiokafka has no types for its users.

from __future__ import annotations

from enum import Enum, auto
from typing import Final

from aiokafka.errors import for_code  # type: ignore[import-untyped]

__all__ = ["Meaning", "error_name", "meaning"]


class Meaning(Enum):
    """What an error code means for the request."""

    OK = auto()
    """Executed, now or when it was first sent."""
    TRANSIENT = auto()
    """Not executed, for a temporary reason: repeat the request to the same broker."""
    MAYBE_STORED = auto()
    """As `TRANSIENT`, but a batch may be stored already: only the answer to its repetition is certain."""
    MOVED = auto()
    """The partition, or the topic, is not at this broker (any more): refresh the topology."""
    INVALID_RECORD = auto()
    """The broker refuses a record of the batch; it accepts the others."""
    FORBIDDEN = auto()
    """The user lacks a right."""
    REFUSED = auto()
    """Refused, and a repetition would be refused too."""
    UNKNOWN_PRODUCER = auto()
    """The broker does not know this producer id, or its sequence numbers, any more."""
    OUT_OF_RANGE = auto()
    """The offset is not in the log."""
    CORRUPT = auto()
    """A batch is damaged, in transit or on the broker's disk."""
    UNKNOWN = auto()
    """Any other code: whether the request was executed is not known."""


_TABLE: Final[dict[int, Meaning]] = {
    0: Meaning.OK,
    46: Meaning.OK,  # DUPLICATE_SEQUENCE_NUMBER
    1: Meaning.OUT_OF_RANGE,
    2: Meaning.CORRUPT,
    # STALE_CONTROLLER_EPOCH, COORDINATOR_*, NOT_ENOUGH_REPLICAS, NOT_CONTROLLER, CONCURRENT_TRANSACTIONS,
    # OFFSET_NOT_AVAILABLE, UNSTABLE_OFFSET_COMMIT, THROTTLING_QUOTA_EXCEEDED
    **dict.fromkeys((11, 14, 15, 16, 19, 41, 51, 78, 88, 89), Meaning.TRANSIENT),
    # REQUEST_TIMED_OUT, NOT_ENOUGH_REPLICAS_AFTER_APPEND
    **dict.fromkeys((7, 20), Meaning.MAYBE_STORED),
    # UNKNOWN_TOPIC_OR_PARTITION, LEADER_NOT_AVAILABLE, NOT_LEADER_OR_FOLLOWER, BROKER_NOT_AVAILABLE,
    # REPLICA_NOT_AVAILABLE, NETWORK_EXCEPTION, KAFKA_STORAGE_ERROR, LISTENER_NOT_FOUND, FENCED_LEADER_EPOCH,
    # UNKNOWN_LEADER_EPOCH, UNKNOWN_TOPIC_ID, INCONSISTENT_TOPIC_ID
    **dict.fromkeys((3, 5, 6, 8, 9, 13, 56, 72, 74, 75, 100, 103), Meaning.MOVED),
    # MESSAGE_TOO_LARGE, RECORD_LIST_TOO_LARGE, INVALID_TIMESTAMP, UNSUPPORTED_FOR_MESSAGE_FORMAT, POLICY_VIOLATION,
    # UNSUPPORTED_COMPRESSION_TYPE, INVALID_RECORD
    **dict.fromkeys((10, 18, 32, 43, 44, 76, 87), Meaning.INVALID_RECORD),
    # TOPIC_*, CLUSTER_*, TRANSACTIONAL_ID_AUTHORIZATION_FAILED
    **dict.fromkeys((29, 31, 53), Meaning.FORBIDDEN),
    # INVALID_TOPIC, INVALID_REQUIRED_ACKS, UNSUPPORTED_VERSION, INVALID_PARTITIONS, INVALID_REPLICATION_FACTOR,
    # INVALID_REPLICA_ASSIGNMENT, INVALID_CONFIG, INVALID_REQUEST
    **dict.fromkeys((17, 21, 35, 37, 38, 39, 40, 42), Meaning.REFUSED),
    # OUT_OF_ORDER_SEQUENCE_NUMBER, INVALID_PRODUCER_EPOCH, INVALID_PRODUCER_ID_MAPPING, UNKNOWN_PRODUCER_ID,
    # PRODUCER_FENCED
    **dict.fromkeys((45, 47, 49, 59, 90), Meaning.UNKNOWN_PRODUCER),
}

# Codes for which aiokafka has no name (0.14).
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
    return _TABLE.get(code, Meaning.UNKNOWN)


def error_name(code: int) -> str:
    """Return the name and number of Kafka's error `code`."""
    return f"{_NAMES.get(code) or for_code(code).__name__} ({code})" if code else "no error"
