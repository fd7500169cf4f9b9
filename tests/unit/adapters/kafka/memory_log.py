"""A Kafka of one broker and one partition in memory, for the reader and the history."""

# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import asyncio
from bisect import bisect_right
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

from aiokafka.record.default_records import DefaultRecordBatchBuilder  # type: ignore[import-untyped]

from backplane.adapters.kafka.answers import EARLIEST, Fetched, Position, Topology
from backplane.adapters.kafka.topic import TopicLimits

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["MemoryConnection", "MemoryLink", "MemoryLog"]

OUT_OF_RANGE = 1


@dataclass(frozen=True, slots=True)
class _StoredBatch:
    base: int
    next: int
    epoch: int
    data: bytes
    records: tuple[tuple[bytes | None, bytes | None], ...]


def _next(batch: _StoredBatch) -> int:
    return batch.next


class MemoryLog:
    """The log of a partition.

    Attributes:
        start: The first offset that is not deleted.
        batches: What it holds.
        epoch: Leader epoch of what is appended.
        codes: Kafka's error codes of the next fetches.
        fetches: Offset of each fetch that did not wait.
    """

    def __init__(self) -> None:
        self.start = 0
        self.batches: list[_StoredBatch] = []
        self.epoch = 0
        self.codes: list[int] = []
        self.fetches: list[int] = []
        self._changed = asyncio.Event()
        self._deleted: list[_StoredBatch] = []

    @property
    def end(self) -> int:
        """The offset after the last record."""
        return self.batches[-1].next if self.batches else self.start

    @property
    def records(self) -> dict[int, tuple[bytes | None, bytes | None]]:
        """Key and value by offset, also of those that are deleted."""
        batches = (*self._deleted, *self.batches)
        return {batch.base + place: record for batch in batches for place, record in enumerate(batch.records)}

    def append(self, *records: tuple[bytes | None, bytes | None], milliseconds: int = 2_000_000_000_000) -> int:
        """Append a batch; return the offset of its first record."""
        self.batches.append(self.made(self.end, *records, milliseconds=milliseconds))
        self._changed.set()
        return self.batches[-1].base

    def made(
        self, base: int, *records: tuple[bytes | None, bytes | None], milliseconds: int = 2_000_000_000_000
    ) -> _StoredBatch:
        """Return a batch, without appending it."""
        builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, 0, 10_000_000)
        for place, (key, value) in enumerate(records):
            assert builder.append(place, milliseconds, key, value, []) is not None
        data = bytearray(builder.build())
        data[0:8] = base.to_bytes(8, "big")
        data[12:16] = self.epoch.to_bytes(4, "big")
        return _StoredBatch(base, base + len(records), self.epoch, bytes(data), records)

    def delete_before(self, offset: int) -> None:
        """Delete the oldest records, as retention does."""
        self.start = max(self.start, min(offset, self.end))
        gone = [batch for batch in self.batches[:-1] if batch.next <= self.start]
        self._deleted += gone
        self.batches = self.batches[len(gone) :]

    def truncate(self, count: int) -> None:
        """Lose the last batches, as an unclean election does."""
        if len(self.batches) > count and self.batches[-count - 1].next > self.start:
            del self.batches[len(self.batches) - count :]
        self.epoch += 1

    async def read(self, position: Position, max_bytes: int, wait_ms: int) -> Fetched:
        """Answer a fetch."""
        if not wait_ms:
            self.fetches.append(position.offset)
            if self.codes:
                return Fetched(0, self.codes.pop(0), b"", self.end)
        while position.offset == self.end and wait_ms and self._diverged_at(position) is None:
            self._changed.clear()
            await self._changed.wait()
        if (diverged_at := self._diverged_at(position)) is not None:
            return Fetched(0, 0, b"", self.end, diverged_at)
        if not self.start <= position.offset <= self.end:
            return Fetched(0, OUT_OF_RANGE, b"", self.end)
        pieces: list[bytes] = []
        size = 0
        for batch in islice(self.batches, bisect_right(self.batches, position.offset, key=_next), None):
            size += len(batch.data)
            if pieces and size > max_bytes:
                break
            pieces.append(batch.data)
        return Fetched(0, 0, b"".join(pieces), self.end)

    def _diverged_at(self, position: Position) -> Position | None:
        if position.epoch < 0:
            return None
        older = [batch for batch in self.batches if batch.epoch <= position.epoch]
        if not older:  # the broker knows no more of a deleted epoch than that it ended before the log begins
            return Position(self.start, position.epoch) if self.start < position.offset else None
        last = older[-1]
        if last.epoch == position.epoch and last.next >= position.offset:
            return None
        return Position(last.next, last.epoch)


class MemoryConnection:
    """A connection to the broker of a log.

    Attributes:
        is_over: It has ended.
        expires_soon: Its login expires.
        unanswered: Requests without an answer.
    """

    is_over = False
    expires_soon = False
    unanswered = 0

    def __init__(self, log: MemoryLog) -> None:
        self._log = log

    async def offsets(self, _: str, partitions: Mapping[int, int]) -> dict[int, tuple[int, Position]]:
        """Return the start or the end."""
        await asyncio.sleep(0)
        log = self._log
        at = {
            partition: Position(
                log.start if which == EARLIEST else log.end, log.batches[-1].epoch if log.batches else -1
            )
            for partition, which in partitions.items()
        }
        return {partition: (0, position) for partition, position in at.items()}

    async def fetch(
        self, _: str, __: bytes, positions: Mapping[int, Position], *, wait_ms: int, max_bytes: int, **___: int
    ) -> list[Fetched]:
        """Read."""
        await asyncio.sleep(0)
        return [await self._log.read(positions[0], max_bytes, wait_ms)]

    def abort(self) -> None:
        """End it."""
        self.is_over = True


class _Target:
    topic = "topic"
    request_timeout_seconds = 5.0


class MemoryLink:
    """A link to it.

    Attributes:
        log: The log.
        opened_aside: The connections that were opened beside the reader's.
    """

    def __init__(self, log: MemoryLog) -> None:
        self.log = log
        self.target = _Target()
        self.limits = TopicLimits()
        self.is_over = False
        self.opened_aside: list[MemoryConnection] = []
        self.topology = Topology(
            addresses={1: ("a", 1)}, leaders={0: 1}, controller=1, error=0, cluster="cluster", topic_id=b"i" * 16
        )

    def replace_topic(self) -> None:
        """Let the topic have another id."""
        self.topology = replace(self.topology, topic_id=b"j" * 16)

    async def connect(self, _: int, __: MemoryConnection | None = None) -> MemoryConnection:
        """Return a connection for the reader."""
        return MemoryConnection(self.log)

    async def connect_aside(self, _: int, __: MemoryConnection | None = None) -> MemoryConnection:
        """Return another connection."""
        self.opened_aside.append(MemoryConnection(self.log))
        return self.opened_aside[-1]
