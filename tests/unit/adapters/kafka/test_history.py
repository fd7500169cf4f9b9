"""The history of channels: what is found, and where the log is read for it."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, cast

import pytest

from backplane import History, Position
from backplane.adapters.kafka.history import KafkaHistory
from backplane.adapters.kafka.reader import FetchPolicy, KafkaReader
from backplane.adapters.kafka.ring import HistoryRings, Query
from backplane.broadcaster import Recalled
from backplane.errors import BrokerError, BrokerUnavailableError
from backplane.history_rules import HistoryRules
from backplane.testing import RecordingSink
from backplane.testing.resume_conformance import compacted
from tests.unit.adapters.kafka.doubles import Tasks
from tests.unit.adapters.kafka.memory_log import MemoryLink, MemoryLog
from tests.unit.doubles import until_idle

if TYPE_CHECKING:
    from backplane.adapters.kafka.link import KafkaLink

RULE = History(max_messages=6)
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


class World:
    """Some processes at one log, to which anything happens at random."""

    def __init__(self, seed: int, tasks: Tasks) -> None:
        self._rng = random.Random(seed)
        self._bounded = seed % 3 == 0
        self._tasks = tasks
        self._log = MemoryLog()
        self._number = 0
        self._processes = [self._new_process() for _ in range(3)]
        self._given: list[tuple[bytes, Position, bytes | None]] = []
        self.found = 0
        self.not_found = 0

    async def step(self) -> None:
        """Let something happen."""
        rng, place = self._rng, self._rng.randrange(3)
        process = self._processes[place]
        match rng.choice(("append", "append", "append", "ask", "ask", "ask", "open", "close", "new", "trim", "lose")):
            case "append":
                self._append()
            case "ask":
                await self._ask(process)
            case "open" if not process.reader.is_open:
                await process.open()
            case "new":
                process.reader.close()
                self._processes[place] = self._new_process()
            case "trim" if rng.random() < 0.3:
                self._trim(rng.randrange(60))
            case "lose" if rng.random() < 0.3:
                self._lose()
            case _:
                process.reader.close()

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.reader.close()

    def _new_process(self) -> Process:
        max_ring_bytes = self._rng.choice((1_500, 3_000, 8_000, 1_000_000))
        max_scan_bytes = 3_000 if self._bounded else 10_000_000
        return Process(self._log, self._tasks, max_ring_bytes=max_ring_bytes, max_scan_bytes=max_scan_bytes)

    def _append(self) -> None:
        records: list[tuple[bytes | None, bytes | None]] = []
        noise = self._rng.choice((0, 0, 0, 30))
        for _ in range(noise or self._rng.choice((1, 2))):
            self._number += 1
            value = None if self._rng.random() < 0.05 else b"%d" % self._number * self._rng.choice((1, 1, 100))
            records.append((b"noise" if noise else self._rng.choice([*KEYS, None]), value))
        self._log.append(*records)

    def _trim(self, left: int) -> None:
        """Delete old records, but never just up to where a process has read.

        A broker keeps no epoch of records that it has deleted. So where a log was truncated, and by now begins exactly
        there, no answer of the broker shows that what was deleted is not what was read.
        """
        start = self._log.end - left
        while start in {
            position.offset for process in self._processes for position in process.reader._positions.values()
        }:
            start -= 1
        self._log.delete_before(start)

    def _lose(self) -> None:
        for process in self._processes:
            process.reader.close()
        self._log.truncate(self._rng.choice((1, 2)))
        self._number += 1
        key = self._rng.choice(KEYS)
        self._log.append(*[(key, b"instead %d" % self._number)] * self._rng.choice((1, 40)))

    async def _ask(self, process: Process) -> None:
        """Ask one question, or some at once, which share a reading."""
        await asyncio.gather(*(self._ask_once(process) for _ in range(self._rng.choice((1, 1, 2, 4)))))

    async def _ask_once(self, process: Process) -> None:
        key = self._rng.choice(KEYS[:3])
        asked = self._rng.choice(self._given[-40:]) if self._given and self._rng.random() < 0.7 else None
        after = asked and asked[1]
        if after is not None and len(self._given) % 2:
            after = compacted(after)
        recalled = await process.recall(key, after, self._rng.choice((0, 2, 100)))
        assert not any(position.is_compact for position in (recalled.top, *(item.place for item in recalled.items)))
        if asked is None:
            assert recalled.found
            self._judge_newest(key, recalled)
        else:
            self._judge(key, asked, recalled)
        record = self._log.records.get(recalled.top.offset - 1)
        self._given.append((key, recalled.top, record[1] if record else None))
        self._given += [(key, item.place, item.payload) for item in recalled.items]

    def _messages(self, key: bytes, since: int = 0) -> list[tuple[int, bytes]]:
        records = self._log.records.items()
        return [(at + 1, value) for at, (owner, value) in records if owner == key and value is not None and at >= since]

    def _judge_newest(self, key: bytes, recalled: Recalled) -> None:
        everything = self._messages(key)
        items = [(item.place.offset, item.payload) for item in recalled.items]
        assert items == everything[len(everything) - len(items) :]
        if everything and recalled.top.offset != everything[-1][0]:
            assert recalled.top.offset > everything[-1][0]  # the end of the log, as the newest was not found
            assert not recalled.items

    def _judge(self, key: bytes, asked: tuple[bytes, Position, bytes | None], recalled: Recalled) -> None:
        owner, position, payload = asked
        items = [(item.place.offset, item.payload) for item in recalled.items]
        later = self._messages(key, position.offset)
        named = self._log.records.get(position.offset - 1)
        still_there = not position.offset or (named is not None and (named[1] or b"") == (payload or b""))
        self.found += recalled.found
        self.not_found += not recalled.found
        if recalled.found:
            assert (owner, still_there) == (key, True)
            assert items == later[: len(items)]
            assert recalled.more == (len(items) < len(later))
            assert len(later) <= 6
        else:
            assert not items
            can_be_read = not self._bounded and self._log.start <= max(position.offset - 1, 0)
            assert not (can_be_read and owner == key and still_there and len(later) <= 6)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("seed", [*range(40), 535])
@pytest.mark.anyio
async def test_what_is_found_is_exactly_what_the_log_holds(seed: int, tasks: Tasks) -> None:
    """At random: a position is found if the log can be read from its record on; then exactly what follows it comes.

    With retention, truncation, restarts, little memory, and readings that are bounded.
    """
    world = World(seed, tasks)
    for _ in range(250):
        await world.step()
    world.close()
    assert world.found
    assert world.not_found


@pytest.mark.anyio
async def test_a_transient_error_is_waited_out(tasks: Tasks) -> None:
    """The log is read again until the broker can; the answer is complete."""
    log = MemoryLog()
    log.append((b"room-1", b"1"))
    process = Process(log, tasks)
    log.codes += [TRANSIENT, TRANSIENT]
    assert [item.payload for item in (await process.recall(b"room-1")).items] == [b"1"]


@pytest.mark.anyio
@pytest.mark.parametrize(("code", "error"), [(MOVED, BrokerUnavailableError), (NOT_AUTHORIZED, BrokerError)])
async def test_an_error_of_the_broker_is_raised(tasks: Tasks, code: int, error: type[BrokerError]) -> None:
    """A partition that moved is a passing state; a right that is missing is refused, and named."""
    log = MemoryLog()
    log.append((b"room-1", b"1"))
    process = Process(log, tasks)
    log.codes.append(code)
    with pytest.raises(BrokerError, match=r"cannot be read|grant READ") as raised:
        await process.recall(b"room-1")
    assert type(raised.value) is error
    assert raised.value.retriable is (code == MOVED)
    assert (await process.recall(b"room-1")).items


@pytest.mark.anyio
async def test_what_the_broker_cannot_read_ends_the_history(tasks: Tasks) -> None:
    """Records that are damaged on the broker's disk, and those before them, are not found; they are asked for once."""
    log = MemoryLog()
    log.append((b"room-1", b"1"))
    process = Process(log, tasks)
    await process.open()
    log.fetches.clear()
    log.codes.append(CORRUPT)
    for _ in range(2):
        recalled = await process.recall(b"room-1")
        assert (recalled.items, recalled.found) == ([], True)
        assert recalled.top.offset == 1
    assert log.fetches == [0]
    process.reader.close()


@pytest.mark.anyio
async def test_a_connection_that_has_ended_is_opened_anew(tasks: Tasks) -> None:
    """The end of a connection beside the reader's, between two questions, costs nothing; while the link lasts."""
    log = MemoryLog()
    log.append((b"room-1", b"1"))
    process = Process(log, tasks)
    await process.recall(b"room-1")
    process.link.opened_aside[0].is_over = True
    assert (await process.recall(b"room-1")).items
    assert len(process.link.opened_aside) == 2
    process.link.is_over = True
    with pytest.raises(BrokerUnavailableError):
        await process.recall(b"room-1")


@pytest.mark.anyio
async def test_records_that_are_missing_end_what_is_known(tasks: Tasks) -> None:
    """Where the log lacks records, the position before them is not found: neither in memory nor in the log."""
    log = MemoryLog()
    log.append((b"room-1", b"1"))
    reading, asking = Process(log, tasks), Process(log, tasks)
    reading.reader.wanted.add(["room-1"])
    await reading.open()
    (first,) = (await asking.recall(b"room-1")).items
    log.append((b"room-1", b"compacted"))
    del log.batches[-1]
    log.batches.append(log.made(2, (b"room-1", b"3"), (b"room-1", b"4")))
    log.append((b"room-1", b"5"))
    for process in (reading, asking):
        recalled = await process.recall(b"room-1", first.place)
        assert (recalled.found, recalled.items) == (False, [])
        known = await process.recall(b"room-1")
        assert [item.payload for item in known.items] == [b"4", b"5"]
        assert (await process.recall(b"room-1", known.items[0].place)).found
    assert reading.sink.payloads("room-1") == [b"3", b"4", b"5"]
    assert len(reading.sink.gaps) == 1
    reading.reader.close()


@pytest.mark.anyio
async def test_another_topic_of_the_same_name_forgets_everything(tasks: Tasks) -> None:
    """After the topic was created anew nothing of the old one is in memory, and its positions are not found."""
    log = MemoryLog()
    process = Process(log, tasks)
    await process.open()
    log.append((b"room-1", b"old"))
    (old,) = (await process.recall(b"room-1")).items
    process.reader.close()
    log.batches.clear()
    process.link.replace_topic()
    log.append((b"room-1", b"old"))
    await process.open()
    recalled = await process.recall(b"room-1", old.place)
    assert (recalled.found, recalled.top.offset, recalled.top.check) == (False, old.place.offset, old.place.check)
    assert recalled.top.epoch != old.place.epoch
    process.reader.close()


@pytest.mark.anyio
async def test_a_reader_that_closes_ends_the_questions_that_wait_for_it(tasks: Tasks) -> None:
    """A question that waits until the reader has read far enough raises when the link is lost."""
    log = MemoryLog()
    process = Process(log, tasks)
    await process.open()
    await until_idle()
    tasks.first.cancel()  # it reads no more
    log.append((b"room-1", b"1"))
    asked = asyncio.create_task(process.recall(b"room-1"))
    await until_idle()
    assert not asked.done()
    process.reader.close()
    with pytest.raises(BrokerUnavailableError):
        await asked


@pytest.mark.anyio
async def test_older_records_that_are_larger_are_read_in_smaller_pieces(tasks: Tasks) -> None:
    """A reading that begins with small records is not thrown off by large ones before them, nor by a huge one."""
    log = MemoryLog()
    log.append((b"room-1", b"first"))
    for size in (5_000_000, *[300_000] * 12):
        log.append((b"noise", bytes(size)))
    for _ in range(700):
        log.append((b"noise", b"small"))
    log.append((b"room-1", b"last"))
    process = Process(log, tasks, max_scan_bytes=16 * 1024 * 1024)
    newest = await process.recall(b"room-1")
    assert [item.payload for item in newest.items] == [b"first", b"last"]
    assert process.history.scans == 1


@pytest.mark.anyio
async def test_a_reading_does_not_displace_what_is_in_memory(tasks: Tasks) -> None:
    """Channels that no question is about get what a reading finds only if there is room for all of it."""
    log = MemoryLog()
    for number in range(200):
        log.append((b"room-%d" % number, bytes(100)))
    process = Process(log, tasks, max_ring_bytes=20_000)
    await process.open()
    assert (await process.recall(b"room-0")).items
    assert process.reader.rings is not None
    assert process.reader.rings.known_from(b"room-100") == 200
    assert (await process.recall(b"room-100")).items
    assert process.history.scans == 2
    process.reader.close()


@pytest.mark.anyio
async def test_questions_end_with_the_link(tasks: Tasks) -> None:
    """Questions that wait for a reading, or for their turn, raise when the tasks of the link are cancelled."""
    log = MemoryLog()
    for number in range(200):
        log.append((b"room-%d" % number, bytes(1000)))
    for passes in range(12):
        process, link_tasks = Process(log, tasks), Tasks()
        process.history = KafkaHistory(cast("KafkaLink", process.link), process.reader, link_tasks.spawn)
        asked = [asyncio.create_task(process.recall(b"room-%d" % number)) for number in range(2)]
        for _ in range(passes):
            await asyncio.sleep(0)
        asked.append(asyncio.create_task(process.recall(b"room-3")))
        await asyncio.sleep(0)
        process.link.is_over = True
        await link_tasks.end()
        for outcome in await asyncio.gather(*asked, return_exceptions=True):
            assert isinstance(outcome, Recalled | BrokerUnavailableError)
        await link_tasks.end()
