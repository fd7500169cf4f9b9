"""Reads any part of the log, beside the reader: over connections of its own, opened when the first request needs one.

When one of them ends, or a request fails, the link is not lost: the caller gets the error.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, TypeVar
from zlib import crc32

from backplane.adapters.kafka.answers import EARLIEST, LATEST, Position
from backplane.adapters.kafka.codes import Meaning, error_name, meaning
from backplane.adapters.kafka.connect_error import unavailable
from backplane.adapters.kafka.connection import ConnectionEndedError
from backplane.adapters.kafka.records import first_offset, read_batches
from backplane.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping

    from backplane.adapters.kafka.answers import Fetched
    from backplane.adapters.kafka.connection import Connection
    from backplane.adapters.kafka.link import KafkaLink
    from backplane.adapters.kafka.records import Record

__all__ = ["FETCH_BYTES", "Chunk", "LogAccess", "LogDamagedError", "Slices", "fail_at_end"]

FETCH_BYTES: Final = 512 * 1024
"""Read at once."""
# For the record at one offset; a broker answers with one whole batch at least.
_ONE_BATCH_BYTES: Final = 16 * 1024
# A position that a client has made up can have a larger one.
_MAX_OFFSET: Final = 2**63 - 1
# Before a request is repeated after a transient error.
_PAUSE_SECONDS: Final = 0.05

_SLICE_SECONDS: Final = 0.003

_T = TypeVar("_T")


class Slices:
    """Lets the event loop run between the steps of a computation, every 3 ms.

    Small records cost up to 14 ms a MiB. The steps of a reading are the batches, and the channels, of which each is
    short: 30 µs for 16 kB.
    """

    __slots__ = ("_began_at",)

    def __init__(self) -> None:
        self._began_at = perf_counter()

    async def pause(self) -> None:
        """Let it run, if the last time was long enough ago."""
        if perf_counter() - self._began_at > _SLICE_SECONDS:
            await asyncio.sleep(0)
            self._began_at = perf_counter()


class LogDamagedError(Exception):
    """The broker cannot read its own log there."""


@dataclass(slots=True)
class Chunk:
    """A part of a partition that was read.

    Attributes:
        start: The offset at which reading began: that of the batch in which the wanted one is.
        next: The offset at which reading ended.
        complete_from: The offset from which on nothing is missing.
        records: The records from there on, oldest first.
        size_bytes: The size of what was read.
    """

    start: int
    next: int
    complete_from: int
    records: list[Record] = field(default_factory=list[Any])
    size_bytes: int = 0

    def begin_at(self, offset: int) -> None:
        """Forget what is before `offset`: something is missing there."""
        self.records.clear()
        self.complete_from = offset


class LogAccess:
    """Requests to the leaders of the partitions of one link.

    Args:
        link: The link.
        spawn: Starts a task that ends with the link.
    """

    def __init__(self, link: KafkaLink, spawn: Callable[..., asyncio.Task[None]]) -> None:
        self._link = link
        self._spawn = spawn
        self._connections: dict[int, Connection] = {}
        self._opening: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._next_ends: asyncio.Future[Mapping[int, int]] | None = None
        self._asking_ends = asyncio.Lock()

    async def ends(self) -> Mapping[int, int]:
        """Return the end of every partition, as of this call or later: whatever was confirmed before is before it.

        Calls share a request: those that come while one is on its way share the next one.

        Raises:
            BrokerUnavailableError: The broker does not answer, or with an error.
        """
        if self._next_ends is None:
            self._next_ends = asyncio.get_running_loop().create_future()
            fail_at_end(self._spawn(self._request_ends(self._next_ends), "kafka-history-ends"), self._next_ends)
        return await asyncio.shield(self._next_ends)

    async def read(self, partition: int, start: int, end: int, max_bytes: int) -> Chunk:
        """Read from `start` until `end`, or until more than `max_bytes` are read.

        Raises:
            LogDamagedError: The broker cannot read its log there.
            BrokerError: The broker is gone, or the user lacks the right to read.
        """
        chunk = Chunk(start=start, next=start, complete_from=start)
        while chunk.next < end and chunk.size_bytes < max_bytes:
            answer = await self._fetch(partition, chunk.next, FETCH_BYTES)
            if answer is None:
                earliest = (await self._offsets([partition], EARLIEST))[partition]
                if earliest <= chunk.next:
                    raise LogDamagedError
                chunk.next = min(earliest, end)
                chunk.begin_at(chunk.next)
                continue
            if chunk.next == start and not chunk.size_bytes:
                # All of the first batch is of use: to read it once more for what precedes `start` would be a waste.
                chunk.start = chunk.next = chunk.complete_from = min(start, first_offset(answer.records, start))
            if not await _add(chunk, answer, end):
                raise LogDamagedError
        chunk.complete_from = min(chunk.complete_from, end)
        return chunk

    async def read_check(self, partition: int, offset: int) -> int | None:
        """Return the CRC-32 of the value of the record at `offset`, of any channel; `None` if there is none.

        It is 0 for the end of a transaction, which has an offset and no record.

        Raises:
            BrokerError: As for `read`.
        """
        answer = await self._fetch(partition, offset, _ONE_BATCH_BYTES) if offset <= _MAX_OFFSET else None
        if answer is None:
            return None
        batch = next(read_batches(answer.records, offset, answer.end), None)
        if batch is None or batch.problem or batch.next <= offset:
            return None
        found = next((record for record in batch.records if record[2] == offset), None)
        if found is not None:
            return crc32(found[1] or b"")
        return 0 if batch.is_complete else None

    async def _request_ends(self, asked: asyncio.Future[Mapping[int, int]]) -> None:
        try:
            async with self._asking_ends:
                self._next_ends = None
                ends = await self._offsets(self._link.topology.leaders, LATEST)
        except BrokerError as error:
            asked.set_exception(error)
        else:
            asked.set_result(ends)

    async def _offsets(self, partitions: Collection[int], which: int) -> dict[int, int]:
        """Return the start or the end of each partition."""
        found: dict[int, int] = {}
        by_node: defaultdict[int, dict[int, int]] = defaultdict(dict)
        for partition in partitions:
            by_node[self._link.topology.leaders[partition]][partition] = which
        for node, wanted in by_node.items():
            while missing := {partition: which for partition in wanted if partition not in found}:
                for partition, (code, position) in (await self._request_offsets(node, missing)).items():
                    if code:
                        await _pause(code, partition)
                    else:
                        found[partition] = position.offset
        return found

    async def _request_offsets(self, node: int, wanted: Mapping[int, int]) -> Mapping[int, tuple[int, Position]]:
        topic = self._link.target.topic
        answers = await self._request(node, lambda connection: connection.offsets(topic, wanted))
        if unanswered := wanted.keys() - answers.keys():
            raise unavailable(f"no offset of partitions {sorted(unanswered)[:5]}")
        return answers

    async def _fetch(self, partition: int, offset: int, max_bytes: int) -> Fetched | None:
        """Return what the log holds from `offset` on; `None` if that is not in the log, or cannot be read."""
        link = self._link
        while True:
            answers = await self._request(
                link.topology.leaders[partition],
                lambda connection: connection.fetch(
                    link.target.topic,
                    link.topology.topic_id,
                    {partition: Position(offset)},
                    wait_ms=0,
                    min_bytes=1,
                    max_bytes=max_bytes,
                    max_partition_bytes=max_bytes,
                ),
            )
            answer = next((answer for answer in answers if answer.partition == partition), None)
            if answer is None:
                raise unavailable(f"no answer for partition {partition}")
            means = meaning(answer.code)
            if means is Meaning.OK:
                return answer
            if means in (Meaning.OUT_OF_RANGE, Meaning.CORRUPT):
                return None
            if means is Meaning.FORBIDDEN:
                raise BrokerError(f"not authorized to read topic {link.target.topic!r}: grant READ", adapter="kafka")
            await _pause(answer.code, partition)

    async def _request(self, node: int, request: Callable[[Connection], Awaitable[_T]]) -> _T:
        """Send a request to broker `node`; once more if the broker closed the idle connection at that moment."""
        try:
            return await request(await self._connection(node))
        except ConnectionEndedError:
            return await request(await self._connection(node))

    async def _connection(self, node: int) -> Connection:
        async with self._opening[node]:
            if self._link.is_over:
                raise unavailable("the link is lost")
            connection = self._connections.get(node)
            if connection is None or connection.is_over or (connection.expires_soon and not connection.unanswered):
                connection = self._connections[node] = await self._link.connect_aside(node, connection)
            return connection


def fail_at_end(task: asyncio.Task[None], answer: asyncio.Future[_T]) -> None:
    """Let `answer` raise when `task` ends without it, because the link was closed: also before it has begun."""

    def ended(_: asyncio.Task[None]) -> None:
        if not answer.done():
            answer.set_exception(unavailable("the link is closed"))
        answer.exception()  # marks it as retrieved: the calls that waited may have been cancelled

    task.add_done_callback(ended)


async def _add(chunk: Chunk, answer: Fetched, end: int) -> bool:
    """Add what was fetched, up to `end`; return whether that was anything."""
    before, slices = chunk.next, Slices()
    for batch in read_batches(answer.records, chunk.next, answer.end):
        if batch.problem or not batch.is_complete:
            # Where in the batch records are missing is not known: its last one is followed by the next batch.
            chunk.begin_at(batch.records[-1][2] if batch.records else batch.next)
        chunk.records += [record for record in batch.records if chunk.complete_from <= record[2] < end]
        chunk.next = batch.next
        chunk.size_bytes += batch.size_bytes
        if chunk.next >= end:
            break
        await slices.pause()
    return chunk.next > before


async def _pause(code: int, partition: int) -> None:
    """Wait before a request is repeated.

    Raises:
        BrokerUnavailableError: The error is not transient.
    """
    if meaning(code) not in (Meaning.TRANSIENT, Meaning.MAYBE_STORED):
        raise unavailable(f"the history in partition {partition} cannot be read: {error_name(code)}")
    await asyncio.sleep(_PAUSE_SECONDS)
