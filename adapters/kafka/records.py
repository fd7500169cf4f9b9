"""Record batches in the format of Kafka's log: https://kafka.apache.org/documentation/#recordbatch."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportArgumentType=false
# aiokafka has no types for its users.

from __future__ import annotations

import struct
import time
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from aiokafka import codec  # type: ignore[import-untyped]
from aiokafka.partitioner import murmur2  # type: ignore[import-untyped]
from aiokafka.record.default_records import DefaultRecordBatchBuilder  # type: ignore[import-untyped]
from aiokafka.record.memory_records import MemoryRecords  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backplane.adapters.kafka.answers import ProducerId

__all__ = ["Batch", "Record", "Records", "codec_problem", "first_offset", "partition_hash", "read_batches"]

_CODECS: Final = {1: "gzip", 2: "snappy", 3: "lz4", 4: "zstd"}
_CODEC_MASK: Final = 7
# Base offset, length, leader epoch, magic byte, checksum, attributes, last offset delta: the same in every batch of
# magic 2. The first two and the magic byte are at the same place in older batches.
_HEADER: Final = struct.Struct(">qiibIhi")
_LENGTH_ENDS_AT: Final = 12
_MAGIC_AT: Final = 16
_OLD_EPOCH: Final = -1


@lru_cache(maxsize=65_536)
def partition_hash(key: bytes) -> int:
    """Return the hash that the default partitioners of Java and aiokafka take modulo the number of partitions.

    It takes 4 µs to compute, hence the cache.
    """
    return int(murmur2(key)) & 0x7FFFFFFF


def codec_problem(name: str) -> str | None:
    """Return what is missing for the compression `name` (a topic's `compression.type`), and how to install it."""
    if name not in _CODECS.values() or getattr(codec, f"has_{name}")():
        return None
    return f"records compressed with {name} cannot be read: pip install 'fastapi-backplane[kafka]', which has cramjam"


class Records:
    """A batch of records that is being built.

    Args:
        max_bytes: Size at which it is full; one record always fits.
    """

    def __init__(self, max_bytes: int) -> None:
        self._builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, 0, max_bytes)
        self._built: bytes | None = None
        self.count: int = 0

    def append(self, key: bytes, value: bytes) -> bool:
        """Add a record with the current time of this machine; return whether it fitted."""
        if self._built is not None:
            return False
        if self._builder.append(self.count, int(time.time() * 1000), key, value, []) is None:
            return False
        self.count += 1
        return True

    def build(self, producer_id: ProducerId, sequence: int) -> bytes:
        """Return the encoded batch, the same bytes every time; `append` refuses records from now on."""
        if self._built is None:
            self._builder.set_producer_state(producer_id.producer_id, producer_id.epoch, sequence)
            self._built = bytes(self._builder.build())
        return self._built


Record = tuple[bytes | None, bytes | None, int, int]
"""Key, value, offset, and time in milliseconds since the Unix epoch; -1 for no time."""


@dataclass(slots=True)
class Batch:
    """A batch that was read.

    Attributes:
        next: The offset after the batch.
        epoch: The leader epoch in which it was written; -1 where it has none.
        records: Key, value, offset and time (milliseconds since the Unix epoch; -1 for none) of each record from the
            wanted offset on.
        is_complete: Whether there is a record for every offset up to `next`; in a compacted log some are missing.
        problem: Why its records cannot be read; empty where they can. `next` is then an estimate.
        codec: The compression that is not installed, if that is the problem.
        size_bytes: Its size in the log.
    """

    next: int
    epoch: int
    records: list[Record] = field(default_factory=list[Record])
    is_complete: bool = True
    problem: str = ""
    codec: str = ""
    size_bytes: int = 0


def read_batches(data: bytes, position: int, end: int) -> Iterator[Batch]:
    """Yield the batches of `data` from offset `position` on; malformed data does not raise.

    A broker answers with whole batches, so records before `position` are skipped. Its last batch may be cut off.

    Args:
        data: Batches in the format of the log.
        position: The offset to read next.
        end: End of the log: a batch whose header names a later end is damaged.
    """
    start = 0
    while (span := _span(data, start)) is not None:
        piece, start = data[start:span], span
        batch = _read(piece, position, end, _offset_at(data, start))
        if batch is None:
            continue
        batch.size_bytes = len(piece)
        yield batch
        position = batch.next


def first_offset(data: bytes, default: int) -> int:
    """Return the offset of the first record in `data`; `default` where its format does not state it."""
    offset = _offset_at(data, 0) if len(data) > _MAGIC_AT and data[_MAGIC_AT] == 2 else None
    return default if offset is None or offset < 0 else offset


def _span(data: bytes, start: int) -> int | None:
    """Return where the batch at `start` ends; `None` where it is cut off. An invalid length includes all the rest."""
    if len(data) - start <= _MAGIC_AT:
        return None
    length = int.from_bytes(data[start + 8 : start + _LENGTH_ENDS_AT], "big", signed=True)
    if length <= _MAGIC_AT - _LENGTH_ENDS_AT:
        return len(data)
    span = start + _LENGTH_ENDS_AT + length
    return span if span <= len(data) else None


def _offset_at(data: bytes, start: int) -> int | None:
    """Return the first offset of the batch at `start`, if one begins there."""
    return int.from_bytes(data[start : start + 8], "big", signed=True) if len(data) - start > _MAGIC_AT else None


def _read(piece: bytes, position: int, end: int, following: int | None) -> Batch | None:
    """Return the batch in `piece`, or `None` where it ends before `position`."""
    if piece[_MAGIC_AT] != 2:
        return _read_old(piece, position)
    if len(piece) < _HEADER.size:
        return Batch(position + 1, _OLD_EPOCH, problem="damaged records")
    base, _, epoch, _, _, attributes, last_delta = _HEADER.unpack_from(piece)
    after = base + last_delta + 1
    batch = _valid_batch(piece)
    if batch is None:
        # The checksum covers neither the first offset nor the length: the offset of the next batch is more reliable.
        if following is not None and position < following <= end:
            after = following
        elif not base <= position < after <= end:
            after = position + 1
        return Batch(after, _OLD_EPOCH, problem="damaged records")
    if after <= position:
        return None
    found = Batch(after, epoch, is_complete=base <= position)
    if batch.is_control_batch:  # the end of a transaction: it has an offset and no record
        return found
    name = _CODECS.get(attributes & _CODEC_MASK, "")
    if codec_problem(name):
        return Batch(after, epoch, problem=f"records compressed with {name}", codec=name)
    return _fill(batch, found, position)


def _valid_batch(piece: bytes) -> Any:
    """Return aiokafka's batch of `piece`, or `None` where it is damaged."""
    try:
        batch: Any = MemoryRecords(piece).next_batch()
        return batch if batch.validate_crc() else None
    except Exception:  # a parser in C, whose exceptions for malformed bytes are not documented
        return None


def _read_old(piece: bytes, position: int) -> Batch | None:
    """Read a message in the format before Kafka 0.11, which has one message per batch."""
    try:
        batch: Any = MemoryRecords(piece).next_batch()
        after = int(batch.next_offset)
        if after <= position:
            return None
        if not batch.validate_crc():
            return Batch(position + 1, _OLD_EPOCH, problem="damaged records")
    except Exception as error:
        return Batch(position + 1, _OLD_EPOCH, problem=f"damaged records ({type(error).__name__})")
    return _fill(batch, Batch(after, _OLD_EPOCH), position)


def _fill(batch: Any, found: Batch, position: int) -> Batch:
    """Fill `found` with the records of `batch`."""
    try:
        for record in batch:
            if record.offset >= position:
                offset: int = record.offset
                found.is_complete &= offset == position
                found.records.append((record.key, record.value, offset, record.timestamp))
                position = offset + 1
    except Exception as error:  # codecs raise exceptions of their own
        return Batch(found.next, found.epoch, problem=f"{type(error).__name__}: {error}")
    found.is_complete &= position == found.next
    return found
