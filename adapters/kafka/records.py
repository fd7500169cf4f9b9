"""Batches of records as they stand in Kafka's log: https://kafka.apache.org/documentation/#recordbatch."""

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

    from backplane.adapters.kafka.wire import Identity

__all__ = ["Batch", "Records", "codec_problem", "partition_hash", "read_batches"]

_CODECS: Final = {1: "gzip", 2: "snappy", 3: "lz4", 4: "zstd"}
_CODEC_MASK: Final = 7
# Base offset, length, leader epoch, magic byte, checksum, attributes, last offset delta: the same in every batch of
# magic 2. The first two and the magic byte stand at the same places in older ones.
_HEADER: Final = struct.Struct(">qiibIhi")
_LENGTH_ENDS_AT: Final = 12
_MAGIC_AT: Final = 16
_OLD_EPOCH: Final = -1


@lru_cache(maxsize=65_536)
def partition_hash(key: bytes) -> int:
    """Return what Java's and aiokafka's default partitioners take modulo the number of partitions. Costs 4 µs new."""
    return int(murmur2(key)) & 0x7FFFFFFF


def codec_problem(name: str) -> str | None:
    """Return what is missing for the compression `name` (a topic's `compression.type`), with the cure."""
    if name not in _CODECS.values() or getattr(codec, f"has_{name}")():
        return None
    return f"records compressed with {name} cannot be read: pip install 'fastapi-backplane[kafka]', which has cramjam"


class Records:
    """A batch of records in the making.

    Args:
        max_bytes: Size at which it is full; one record is always taken.
    """

    def __init__(self, max_bytes: int) -> None:
        self._builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, 0, max_bytes)
        self._built: bytes | None = None
        self.count = 0

    def append(self, key: bytes, value: bytes) -> bool:
        """Add a record, with the time by this machine's clock; returns whether there was room."""
        if self._built is not None:
            return False
        if self._builder.append(self.count, int(time.time() * 1000), key, value, []) is None:
            return False
        self.count += 1
        return True

    def build(self, identity: Identity, sequence: int) -> bytes:
        """Return it as it goes to the broker, and take no more records; the same bytes every time."""
        if self._built is None:
            self._builder.set_producer_state(identity.producer_id, identity.epoch, sequence)
            self._built = bytes(self._builder.build())
        return self._built


@dataclass(slots=True)
class Batch:
    """A batch as it was read.

    Attributes:
        next: The offset after it.
        epoch: The leader epoch in which it was written; -1 where it carries none.
        records: Key and value of each record from the wanted offset on.
        is_complete: Whether every offset up to `next` is accounted for: those of a compacted log are not.
        problem: Why its records cannot be read; empty where they can. `next` is then the best guess at the next batch.
        codec: The compression that cannot be undone here, where that is the problem.
    """

    next: int
    epoch: int
    records: list[tuple[bytes | None, bytes | None]] = field(default_factory=list[tuple[bytes | None, bytes | None]])
    is_complete: bool = True
    problem: str = ""
    codec: str = ""


def read_batches(data: bytes, position: int, end: int) -> Iterator[Batch]:
    """Yield the batches of `data` from offset `position` on, whatever `data` holds; never raises.

    A broker answers with whole batches, so records before `position` are left out, and may break off in the last one.

    Args:
        data: Batches as the broker keeps them.
        position: The offset to read next.
        end: Where the log ends: no batch that is damaged is believed to reach further.
    """
    start = 0
    while (span := _span(data, start)) is not None:
        piece, start = data[start:span], span
        batch = _read(piece, position, end, _offset_at(data, start))
        if batch is None:
            continue
        yield batch
        position = batch.next


def _span(data: bytes, start: int) -> int | None:
    """Return where the batch at `start` ends; `None` where it is not whole. A senseless length takes all the rest."""
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
    """Return the batch that `piece` is, or `None` where it ends before `position`."""
    if piece[_MAGIC_AT] != 2:
        return _read_old(piece, position)
    if len(piece) < _HEADER.size:
        return Batch(position + 1, _OLD_EPOCH, problem="damaged records")
    base, _, epoch, _, _, attributes, last_delta = _HEADER.unpack_from(piece)
    after = base + last_delta + 1
    batch = _sound_batch(piece)
    if batch is None:
        # The checksum covers neither the first offset nor the length: the batch that follows is the better witness.
        if following is not None and position < following <= end:
            after = following
        elif not base <= position < after <= end:
            after = position + 1
        return Batch(after, _OLD_EPOCH, problem="damaged records")
    if after <= position:
        return None
    found = Batch(after, epoch, is_complete=base <= position)
    if batch.is_control_batch:  # the mark at a transaction's end takes an offset and holds no record
        return found
    name = _CODECS.get(attributes & _CODEC_MASK, "")
    if codec_problem(name):
        return Batch(after, epoch, problem=f"records compressed with {name}", codec=name)
    return _take(batch, found, position)


def _sound_batch(piece: bytes) -> Any:
    """Return the batch that aiokafka finds in `piece`, or `None` where it is damaged."""
    try:
        batch: Any = MemoryRecords(piece).next_batch()
        return batch if batch.validate_crc() else None
    except Exception:  # whatever a parser in C raises for bytes that are no batch
        return None


def _read_old(piece: bytes, position: int) -> Batch | None:
    """Read what a broker keeps from before Kafka 0.11, one message at a time."""
    try:
        batch: Any = MemoryRecords(piece).next_batch()
        after = int(batch.next_offset)
        if after <= position:
            return None
        if not batch.validate_crc():
            return Batch(position + 1, _OLD_EPOCH, problem="damaged records")
    except Exception as error:
        return Batch(position + 1, _OLD_EPOCH, problem=f"damaged records ({type(error).__name__})")
    return _take(batch, Batch(after, _OLD_EPOCH), position)


def _take(batch: Any, found: Batch, position: int) -> Batch:
    """Fill `found` with the records of `batch`."""
    try:
        for record in batch:
            if record.offset >= position:
                found.is_complete &= record.offset == position
                found.records.append((record.key, record.value))
                position = record.offset + 1
    except Exception as error:  # whatever a codec raises
        return Batch(found.next, found.epoch, problem=f"{type(error).__name__}: {error}")
    found.is_complete &= position == found.next
    return found
