"""Requests of Kafka's protocol that aiokafka does not have: those that carry the identity of a topic and its log.

Laid out as in https://kafka.apache.org/protocol, in aiokafka's types. Where a broker is too old for one of them
(before Kafka 3.1), aiokafka's own older version is sent, without that identity.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportArgumentType=false, reportUntypedBaseClass=false
# pyright: reportIncompatibleMethodOverride=false, reportAssignmentType=false, reportMissingTypeArgument=false
# mypy: disable-error-code="misc, import-untyped"
# aiokafka has no types for its users.

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.fetch import FetchRequest_v4
from aiokafka.protocol.metadata import MetadataRequest_v5
from aiokafka.protocol.offset import OffsetRequest_v1
from aiokafka.protocol.produce import ProduceRequest_v3
from aiokafka.protocol.types import (
    Array,
    Boolean,
    Bytes,
    CompactArray,
    CompactBytes,
    CompactString,
    Int8,
    Int16,
    Int32,
    Int64,
    Schema,
    String,
    TaggedFields,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from io import BytesIO

__all__ = ["NO_EPOCH", "NO_TOPIC_ID", "FetchLog", "FindTopic", "ListOffsets", "Produce", "diverging_epoch"]

NO_EPOCH: Final = -1
"""Stands for a leader epoch that is not known."""
NO_TOPIC_ID: Final = bytes(16)
"""Stands for the id of a topic where the broker has none."""

_CONSUMER: Final = -1
_ALL_REPLICAS: Final = -1
_NO_TAGS: Final[dict[int, bytes]] = {}
_TEXT: Final = String("utf-8")
_COMPACT_TEXT: Final = CompactString("utf-8")
_DIVERGING_TAG: Final = 0
_DIVERGING: Final = struct.Struct(">iq")


class _Uuid(AbstractType):
    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return value

    @classmethod
    def decode(cls, data: BytesIO) -> bytes:
        value = data.read(16)
        if len(value) != 16:
            raise ValueError("Buffer underrun decoding a UUID")
        return value


class _MetadataResponseV10(Response):
    API_KEY = 3
    API_VERSION = 10
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", _COMPACT_TEXT),
                ("port", Int32),
                ("rack", _COMPACT_TEXT),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", _COMPACT_TEXT),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("name", _COMPACT_TEXT),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline_replicas", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_authorized_operations", Int32),
        ("tags", TaggedFields),
    )


class _MetadataRequestV10(RequestStruct):
    API_KEY = 3
    API_VERSION = 10
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _MetadataResponseV10
    SCHEMA = Schema(
        ("topics", CompactArray(("topic_id", _Uuid), ("name", _COMPACT_TEXT), ("tags", TaggedFields))),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class FindTopic(Request[MetadataRequest_v5 | _MetadataRequestV10]):
    """Asks where the partitions of a topic are; does not create it."""

    API_KEY = 3

    def __init__(self, topic: str) -> None:
        self._topic = topic

    def build(self, request_struct_class: Any) -> Any:
        """Return the request in the given version."""
        if request_struct_class is _MetadataRequestV10:
            return _MetadataRequestV10([(NO_TOPIC_ID, self._topic, _NO_TAGS)], False, False, False, _NO_TAGS)
        return MetadataRequest_v5([self._topic], False)


class _OffsetResponseV4(Response):
    API_KEY = 2
    API_VERSION = 4
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "topics",
            Array(
                ("topic", _TEXT),
                (
                    "partitions",
                    Array(
                        ("partition", Int32),
                        ("error_code", Int16),
                        ("timestamp", Int64),
                        ("offset", Int64),
                        ("leader_epoch", Int32),
                    ),
                ),
            ),
        ),
    )


class _OffsetRequestV4(RequestStruct):
    API_KEY = 2
    API_VERSION = 4
    RESPONSE_TYPE = _OffsetResponseV4
    SCHEMA = Schema(
        ("replica_id", Int32),
        ("isolation_level", Int8),
        (
            "topics",
            Array(
                ("topic", _TEXT),
                ("partitions", Array(("partition", Int32), ("current_leader_epoch", Int32), ("timestamp", Int64))),
            ),
        ),
    )


class ListOffsets(Request[OffsetRequest_v1 | _OffsetRequestV4]):
    """Asks for the offset at a timestamp (or at the begin or end) of partitions, and for the leader epoch there."""

    API_KEY = 2

    def __init__(self, topic: str, timestamps: Sequence[tuple[int, int]]) -> None:
        self._topic = topic
        self._timestamps = timestamps

    def build(self, request_struct_class: Any) -> Any:
        """Return the request in the given version."""
        if request_struct_class is _OffsetRequestV4:
            partitions = [(partition, NO_EPOCH, timestamp) for partition, timestamp in self._timestamps]
            return _OffsetRequestV4(_CONSUMER, 0, [(self._topic, partitions)])
        return OffsetRequest_v1(_CONSUMER, [(self._topic, list(self._timestamps))])


class _FetchResponseV13(Response):
    API_KEY = 1
    API_VERSION = 13
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("error_code", Int16),
        ("session_id", Int32),
        (
            "topics",
            CompactArray(
                ("topic_id", _Uuid),
                (
                    "partitions",
                    CompactArray(
                        ("partition", Int32),
                        ("error_code", Int16),
                        ("high_watermark", Int64),
                        ("last_stable_offset", Int64),
                        ("log_start_offset", Int64),
                        (
                            "aborted_transactions",
                            CompactArray(("producer_id", Int64), ("first_offset", Int64), ("tags", TaggedFields)),
                        ),
                        ("preferred_read_replica", Int32),
                        ("records", CompactBytes),
                        ("tags", TaggedFields),
                    ),
                ),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _FetchRequestV13(RequestStruct):
    API_KEY = 1
    API_VERSION = 13
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _FetchResponseV13
    SCHEMA = Schema(
        ("replica_id", Int32),
        ("max_wait_ms", Int32),
        ("min_bytes", Int32),
        ("max_bytes", Int32),
        ("isolation_level", Int8),
        ("session_id", Int32),
        ("session_epoch", Int32),
        (
            "topics",
            CompactArray(
                ("topic_id", _Uuid),
                (
                    "partitions",
                    CompactArray(
                        ("partition", Int32),
                        ("current_leader_epoch", Int32),
                        ("fetch_offset", Int64),
                        ("last_fetched_epoch", Int32),
                        ("log_start_offset", Int64),
                        ("max_bytes", Int32),
                        ("tags", TaggedFields),
                    ),
                ),
                ("tags", TaggedFields),
            ),
        ),
        (
            "forgotten_topics_data",
            CompactArray(("topic_id", _Uuid), ("partitions", CompactArray(Int32)), ("tags", TaggedFields)),
        ),
        ("rack_id", _COMPACT_TEXT),
        ("tags", TaggedFields),
    )


class FetchLog(Request[FetchRequest_v4 | _FetchRequestV13]):
    """Reads from partitions of a topic.

    With the topic's id the broker refuses to read another topic of the same name. With the leader epoch of what was
    read last it finds that the log has lost its end since, and what stands there now is something else.
    """

    API_KEY = 1

    def __init__(
        self,
        topic: str,
        topic_id: bytes,
        positions: Sequence[tuple[int, int, int]],
        *,
        wait_ms: int,
        min_bytes: int,
        max_bytes: int,
        max_partition_bytes: int,
    ) -> None:
        self._topic = topic
        self._topic_id = topic_id
        self._positions = positions
        self._limits = (wait_ms, min_bytes, max_bytes)
        self._max_partition_bytes = max_partition_bytes

    def prepare(self, versions: dict[int, tuple[int, int]]) -> Any:
        """Return the request in the newest version that the broker knows and that fits."""
        if self._topic_id == NO_TOPIC_ID:
            lowest, highest = versions[self.API_KEY]
            versions = {self.API_KEY: (lowest, min(highest, _FetchRequestV13.API_VERSION - 1))}
        return super().prepare(versions)

    def build(self, request_struct_class: Any) -> Any:
        """Return the request in the given version."""
        if request_struct_class is FetchRequest_v4:
            old = [(partition, offset, self._max_partition_bytes) for partition, offset, _ in self._positions]
            return FetchRequest_v4(_CONSUMER, *self._limits, 0, [(self._topic, old)])
        new = [
            (partition, NO_EPOCH, offset, epoch, -1, self._max_partition_bytes, _NO_TAGS)
            for partition, offset, epoch in self._positions
        ]
        topics = [(self._topic_id, new, _NO_TAGS)]
        return _FetchRequestV13(_CONSUMER, *self._limits, 0, 0, -1, topics, [], "", _NO_TAGS)


def diverging_epoch(tags: dict[int, bytes]) -> tuple[int, int] | None:
    """Return the last epoch that a log shares with what was read from it, and its end; `None` where all is the same."""
    value = tags.get(_DIVERGING_TAG)
    return None if value is None or len(value) < _DIVERGING.size else _DIVERGING.unpack_from(value)


class _ProduceResponseV8(Response):
    API_KEY = 0
    API_VERSION = 8
    SCHEMA = Schema(
        (
            "topics",
            Array(
                ("topic", _TEXT),
                (
                    "partitions",
                    Array(
                        ("partition", Int32),
                        ("error_code", Int16),
                        ("offset", Int64),
                        ("timestamp", Int64),
                        ("log_start_offset", Int64),
                        ("record_errors", Array(("index", Int32), ("message", _TEXT))),
                        ("error_message", _TEXT),
                    ),
                ),
            ),
        ),
        ("throttle_time_ms", Int32),
    )


class _ProduceRequestV8(RequestStruct):
    API_KEY = 0
    API_VERSION = 8
    RESPONSE_TYPE = _ProduceResponseV8
    SCHEMA = Schema(
        ("transactional_id", _TEXT),
        ("required_acks", Int16),
        ("timeout_ms", Int32),
        ("topics", Array(("topic", _TEXT), ("partitions", Array(("partition", Int32), ("records", Bytes))))),
    )


class Produce(Request[ProduceRequest_v3 | _ProduceRequestV8]):
    """Has batches stored on every replica in sync; the answer names the records that the broker does not take."""

    API_KEY = 0

    def __init__(self, topic: str, batches: Sequence[tuple[int, bytes]], timeout_ms: int) -> None:
        self._topic = topic
        self._batches = batches
        self._timeout_ms = timeout_ms

    def build(self, request_struct_class: Any) -> Any:
        """Return the request in the given version."""
        return request_struct_class(None, _ALL_REPLICAS, self._timeout_ms, [(self._topic, list(self._batches))])
