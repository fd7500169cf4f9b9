"""The history of channels: what is found, and where the log is read for it."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import random
from typing import TYPE_CHECKING, cast
from zlib import crc32

import pytest

from backplane import History, Position
from backplane.adapters.kafka.history import KafkaHistory
from backplane.adapters.kafka.reader import FetchPolicy, KafkaReader
from backplane.adapters.kafka.ring import HistoryRings, Query
from backplane.history_rules import HistoryRules
from backplane.testing import RecordingSink
from tests.unit.adapters.kafka.memory_log import MemoryLink, MemoryLog

if TYPE_CHECKING:
    from backplane.adapters.kafka.link import KafkaLink
    from backplane.broadcaster import Recalled
    from tests.unit.adapters.kafka.doubles import Tasks

RULE = History(max_messages=3)
RULES = HistoryRules({"room*": RULE})
KEYS = [b"room-1", b"room-2", b"room-3", b"noise"]
TRANSIENT, NOT_AUTHORIZED, MOVED, CORRUPT = 78, 29, 6, 2


class Process:
    """A reader and a history of one process.

    Args:
        log: The log.
        tasks: Starts the tasks.
        max_ring_bytes: Bound of the rings.
        max_scan_bytes: Bound of one reading.
    """

    def __init__(
        self, log: MemoryLog, tasks: Tasks, *, max_ring_bytes: int = 1_000_000, max_scan_bytes: int = 1_000_000
    ) -> None:
        self.sink = RecordingSink()
        self.link = MemoryLink(log)
        self.reader = KafkaReader(FetchPolicy(wait_ms=500), tasks.spawn)
        self.reader.keep(HistoryRings(max_ring_bytes, RULES))
        self.history = KafkaHistory(
            cast("KafkaLink", self.link), self.reader, tasks.spawn, max_scan_bytes=max_scan_bytes
        )

    async def open(self) -> None:
        """Read."""
        await self.reader.open(cast("KafkaLink", self.link), self.sink)

    async def recall(self, key: bytes, after: Position | None = None, limit: int = 100) -> Recalled:
        """Ask."""
        return await self.history.recall(Query(key, RULE, after, limit, 1_000_000))


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.anyio
async def test_what_is_found_is_exactly_what_the_log_holds(seed: int, tasks: Tasks) -> None:
    """At random: a position is found if the log can be read up to its record; then exactly what follows it comes.

    With retention, truncation, restarts, little memory, and readings that are bounded.
    """
    rng = random.Random(seed)  # no secret
    bounded = seed % 3 == 0
    log, number = MemoryLog(), 0
    processes = [_new_process(log, tasks, rng, bounded=bounded) for _ in range(3)]
    given: list[tuple[bytes, Position, bytes | None]] = []
    for _ in range(150):
        place = rng.randrange(3)
        process = processes[place]
        match rng.choice(("append", "append", "append", "ask", "ask", "ask", "open", "close", "new", "trim", "lose")):
            case "append":
                records = []
                for _ in range(rng.choice((1, 1, 2, 30))):
                    number += 1
                    value = None if rng.random() < 0.05 else b"%d" % number * rng.choice((1, 1, 100))
                    records.append((rng.choice([*KEYS, None]), value))
                log.append(*records)
            case "open" if not process.reader.is_open:
                await process.open()
            case "close":
                process.reader.close()
            case "new":
                process.reader.close()
                processes[place] = _new_process(log, tasks, rng, bounded=bounded)
            case "trim" if rng.random() < 0.3:
                log.delete_before(log.end - rng.randrange(60))
            case "lose" if rng.random() < 0.3:
                for each in processes:
                    each.reader.close()
                log.truncate(rng.choice((1, 2)))
                log.append((b"noise", b"instead %d" % number))
            case "ask":
                key = rng.choice(KEYS[:3])
                asked = rng.choice(given) if given and rng.random() < 0.7 else None
                recalled = await process.recall(key, asked and asked[1], rng.choice((0, 2, 100)))
                _judge(log, key, asked, recalled, strict=not bounded)
                given.append((key, recalled.top, _payload_at(log, recalled.top)))
                given += [(key, item.place, item.payload) for item in recalled.items]
            case _:
                pass
    for process in processes:
        process.reader.close()


def _new_process(log: MemoryLog, tasks: Tasks, rng: random.Random, *, bounded: bool) -> Process:
    return Process(
        log,
        tasks,
        max_ring_bytes=rng.choice((2_000, 8_000, 1_000_000)),
        max_scan_bytes=3_000 if bounded else 10_000_000,
    )


def _payload_at(log: MemoryLog, position: Position) -> bytes | None:
    record = log.records.get(position.offset - 1)
    return record[1] if record else None


def _messages(log: MemoryLog, key: bytes, since: int = 0) -> list[tuple[int, bytes]]:
    return [
        (offset + 1, value)
        for offset, (found, value) in log.records.items()
        if found == key and value is not None and offset >= since
    ]


def _judge(
    log: MemoryLog, key: bytes, asked: tuple[bytes, Position, bytes | None] | None, recalled: Recalled, *, strict: bool
) -> None:
    items = [(item.place.offset, item.payload) for item in recalled.items]
    everything = _messages(log, key)
    if everything and (recalled.top.offset, recalled.top.check) != (everything[-1][0], crc32(everything[-1][1])):
        assert recalled.top.offset > everything[-1][0] - 1  # a place at the end of the log
    if asked is None:
        assert recalled.found
        assert [item for item in items if item in everything[-4:]] == items[-4:] or log.start != 0
        return
    owner, position, payload = asked
    later = _messages(log, key, position.offset)
    named = log.records.get(position.offset - 1)
    still_there = position.offset == 0 or (named is not None and (named[1] or b"") == (payload or b""))
    if recalled.found:
        assert owner == key
        assert not recalled.items or [item for item in later if item in items] == items == later[: len(items)]
        assert bool(recalled.more) == (len(items) < len(later))
        assert len(later) <= 3
    elif strict and owner == key and still_there and len(later) <= 3 and log.start <= max(position.offset - 1, 0):
        raise AssertionError(f"{position} is not found: {later}")
