"""One bounded reading of the end of a partition, for all the questions that wait for it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from backplane.adapters.kafka.log_access import FETCH_BYTES, LogDamagedError, Slices

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backplane.adapters.kafka.log_access import Chunk, LogAccess
    from backplane.adapters.kafka.records import Record
    from backplane.adapters.kafka.ring import HistoryRings, Query, Ring

__all__ = ["Scan"]

# How many offsets are read first: the size of the records is not known then.
_FIRST_STEP: Final = 500
_MAX_STEP: Final = 100_000


class Scan:
    """Reads a partition backwards, piece by piece, until every question can be answered, or `max_bytes` are read.

    Args:
        partition: The partition.
        rings: The rings of the reader, if it is open.
        max_bytes: How much is read at most.

    Attributes:
        queries: The questions. More can be added until `run` is called.
        rings: The rings of the reader; `None` for a scan with rings of its own.
        done: Completed with the rings when it has ended.
        waiting: How many calls wait for it. Without any it ends.
        is_cut_short: It ended because `max_bytes` were read.
    """

    def __init__(self, partition: int, rings: HistoryRings | None, max_bytes: int) -> None:
        self.queries: list[Query] = []
        self.rings: HistoryRings | None = rings
        self.done: asyncio.Future[HistoryRings] = asyncio.get_running_loop().create_future()
        self.waiting: int = 0
        self.is_cut_short: bool = False
        self._partition = partition
        self._left: int = max_bytes
        self._step = _FIRST_STEP
        self._read: list[Chunk] = []  # read too early
        self._others: dict[bytes, Ring] | None = {}
        self._others_bytes = 0

    async def run(self, log: LogAccess, rings: HistoryRings) -> None:
        """Read into `rings`; of channels that no question is about, only if there is room.

        Raises:
            BrokerError: The broker is gone, or the user lacks the right to read.
        """
        partition, forgotten = self._partition, rings.forgotten
        low = until = max(rings.known_from(query.key) for query in self.queries)
        while self.waiting and (needed := await self._needed_from(rings)) is not None and needed < low:
            try:
                chunk = await self._next_chunk(log, max(needed, low - self._step), low)
            except LogDamagedError:
                chunk = None
            if chunk is None:
                rings.end_scan(partition, low)
                break
            await self._add(rings, chunk, low, until)
            if chunk.complete_from > chunk.start or self._left <= 0:
                rings.end_scan(partition, chunk.complete_from)
            # Somewhat less than one fetch, so that one is enough.
            self._step = (low - chunk.start) * FETCH_BYTES * 3 // 4 // max(chunk.size_bytes, 1)
            self._step = min(_MAX_STEP, max(1, self._step))
            low = chunk.complete_from
        self.is_cut_short = self._left <= 0
        if self._others is not None:
            slices = Slices()
            for _ in rings.adopt(partition, self._others, low, until, forgotten):
                await slices.pause()

    async def _next_chunk(self, log: LogAccess, start: int, low: int) -> Chunk | None:
        """Return the part of the log from `start`, or from later on, until `low`; `None` if that is too much.

        Where the records turn out to be larger than expected, reading ends before `low`: what was read is kept for its
        turn, and the next attempt begins later.
        """
        while not (self._read and self._read[-1].next >= low):
            if self._left <= 0:
                return None
            if self._read:
                start = max(start, self._read[-1].next)
            chunk = await log.read(self._partition, start, low, min(self._left, 4 * FETCH_BYTES))
            self._left -= chunk.size_bytes
            self._read.append(chunk)
            start = low - max(1, min(chunk.next - start, (low - start) // 4))
        return self._read.pop()

    async def _needed_from(self, rings: HistoryRings) -> int | None:
        """Return the offset from which on anything is asked for that is not known; `None` if all is known."""
        limit = rings.scan_limit(self._partition)
        slices, needed = Slices(), list[int]()
        for query in self.queries:
            if (at := rings.needed_from(query)) is not None:
                needed.append(at)
            await slices.pause()
        return max(limit, min(needed)) if needed else None

    async def _add(self, rings: HistoryRings, chunk: Chunk, low: int, until: int) -> None:
        """Add what was read, which ends at `low`."""
        partition, slices = self._partition, Slices()
        since, records = chunk.complete_from, chunk.records
        if low == until:
            rings.note_first_end(partition, until, records[-1] if records else None)
        by_key: dict[bytes, list[Record]] = {}
        for index, record in enumerate(reversed(records)):
            if not index % 256:
                await slices.pause()
            key = record[0]
            if key is None:
                continue
            found = by_key.get(key)
            if found is None:
                by_key[key] = [record]
            else:
                found.append(record)
        for query in self.queries:
            rings.backfill(query.key, query.rule, by_key.get(query.key, ()), since, low)
            await slices.pause()
        if self._others is not None:
            for query in self.queries:
                by_key.pop(query.key, None)
            await self._collect(rings, self._others, by_key, since, until)
        if newest := max((record[3] for record in records), default=0):
            rings.note_age(partition, since, newest)

    async def _collect(
        self,
        rings: HistoryRings,
        others: dict[bytes, Ring],
        by_key: Mapping[bytes, list[Record]],
        since: int,
        until: int,
    ) -> None:
        """Collect what was read of other channels, unless it is too much."""
        slices = Slices()
        for key, records in by_key.items():
            await slices.pause()
            ring = others.get(key)
            if ring is None:
                ring = rings.ring_aside(self._partition, key, until)
                if ring is None:
                    continue
                others[key] = ring
                self._others_bytes += ring.size_bytes
            self._others_bytes += ring.prepend(records, since)
        if self._others_bytes > rings.max_bytes:
            self._others = None
