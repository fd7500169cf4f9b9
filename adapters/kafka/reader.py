"""Reading from Kafka: every partition of the topic, from positions of our own, without a consumer group.

An offset alone says nothing about the log that it belongs to, nor about what is missing before it. So a position goes
with the id of its cluster and topic and with a leader epoch, which the broker compares at every fetch; and every offset
between two records is accounted for. Where one of them does not fit, messages may be missing, and a gap is reported.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from backplane.adapters.kafka.codes import Meaning, code_name, meaning
from backplane.adapters.kafka.connect_error import unavailable
from backplane.adapters.kafka.protocol import NO_EPOCH, NO_TOPIC_ID
from backplane.adapters.kafka.records import codec_problem, read_batches
from backplane.adapters.kafka.wire import EARLIEST, LATEST, Position
from backplane.message import ALL

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from backplane.adapters.kafka.link import KafkaLink
    from backplane.adapters.kafka.wire import Connection, Fetched
    from backplane.broadcaster import Sink

__all__ = ["KafkaReader", "NotReadableError", "Pace"]

logger = logging.getLogger("backplane.kafka")

_ENDS_EARLY: Final = "ends before what was to be read next: it has lost its end"
_MEBIBYTE: Final = 1024 * 1024
# After an answer that puts the reader off.
_PAUSE_SECONDS: Final = 0.1
# Unreadable records come as often as somebody publishes them: one gap at once, then one for all of this time.
_UNREADABLE_SECONDS: Final = 5.0


class NotReadableError(Exception):
    """The topic cannot be read at all: the user lacks a right, or this process a codec."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How the brokers are asked for more: what costs is a request, hardly a message.

    Attributes:
        wait_ms: How long a broker may hold a request that it has nothing for.
        min_bytes: What it waits for.
        pause_seconds: How long to wait after an answer with messages.
    """

    wait_ms: int
    min_bytes: int = 1
    pause_seconds: float = 0.0


class KafkaReader:
    """What is read in one life of the adapter, over however many links.

    Args:
        pace: How to ask.
        spawn: Starts a task whose failure is the link's loss.

    Attributes:
        channels: What is delivered, by its key.
    """

    def __init__(self, pace: Pace, spawn: Callable[..., asyncio.Task[None]]) -> None:
        self.channels: dict[bytes, str] = {}
        self._pace = pace
        self._spawn = spawn
        self._positions: dict[int, Position] = {}
        self._cluster: str | None = None
        self._topic_id = b""
        self._steps: dict[int, int] = {}  # how far to skip next in a partition that the broker cannot read
        self._doubt = ""
        self._unreadable = ""
        self._unreadable_timer: asyncio.TimerHandle | None = None
        self._missing_codecs: set[str] = set()
        self._sink: Sink | None = None
        self._link: KafkaLink | None = None
        self._connections: dict[int, Connection] = {}
        self._reading: dict[int, asyncio.Task[None]] = {}

    @property
    def is_open(self) -> bool:
        """Whether it reads."""
        return self._link is not None

    async def open(self, link: KafkaLink, sink: Sink) -> None:
        """Read over `link`: from the end the first time, afterwards where the link before ended.

        Raises:
            NotReadableError: The user may not read the topic, or it is compressed in a way that is not installed.
            BrokerUnavailableError: The broker is gone, or does not tell where the end is.
        """
        if link.limits.codec_problem:
            raise NotReadableError(link.limits.codec_problem)
        try:
            await self._connect(link)
            await self._find_positions(link, sink)
            self._link, self._sink = link, sink
            for node in list(self._connections):
                if self._wanted(link, node):
                    await self._fetch(link, node, wait_ms=0)  # shows whether the user may read, and from this log
        except BaseException:
            self.close()
            raise
        self._read_all(link)

    async def follow(self) -> None:
        """Take in what `link.refresh` found: new partitions, and leaders that were none before, or none for a while."""
        if self._link is None or self._sink is None:
            return
        await self._connect(self._link)
        await self._compare_partitions(self._link)
        self._report_doubt(self._sink)
        self._read_all(self._link)

    def close(self) -> None:
        """Stop to deliver, at once; positions and channels stay."""
        self._link = self._sink = None
        self._doubt = self._doubt or self._unreadable
        self._unreadable = ""
        if self._unreadable_timer is not None:
            self._unreadable_timer.cancel()
            self._unreadable_timer = None
        for task in self._reading.values():
            if task is not asyncio.current_task():
                task.cancel()
        for connection in self._connections.values():
            connection.abort()
        self._connections = {}
        self._reading = {}

    def _read_all(self, link: KafkaLink) -> None:
        """Read from every broker, once."""
        for node in self._connections:
            if node not in self._reading or self._reading[node].done():
                self._reading[node] = self._spawn(self._read(link, node), f"kafka-read-{node}")

    async def _connect(self, link: KafkaLink) -> None:
        for node in set(link.topology.leaders.values()) - self._connections.keys():
            self._connections[node] = await link.connect(node)

    async def _find_positions(self, link: KafkaLink, sink: Sink) -> None:
        topology = link.topology
        ends = await self._ask_offsets(link, topology.leaders, LATEST)
        if not self._positions:
            self._positions = ends
        elif topology.cluster != self._cluster:
            # From the end: the records of another cluster can be a copy, all of which were delivered once.
            self._positions, self._doubt = ends, "another cluster answers"
        elif topology.topic_id != self._topic_id:
            # From the beginning: all that the new topic holds was published while this process was away.
            self._positions = await self._ask_offsets(link, topology.leaders, EARLIEST)
            self._doubt = "the topic was deleted and created anew"
        self._cluster, self._topic_id = topology.cluster, topology.topic_id
        self._pull_back(link, ends)
        await self._compare_partitions(link)
        self._report_doubt(sink)

    def _pull_back(self, link: KafkaLink, ends: dict[int, Position]) -> None:
        """Go to the end where it lies before a position: what is published from now on must be received.

        Not to the beginning: a log that lost its end may hold days, all of which were delivered once. Where the broker
        compares epochs the first fetch does it, to the place where the logs part: what stands there now is new.
        """
        compares = link.topology.topic_id != NO_TOPIC_ID
        for partition, end in ends.items():
            position = self._positions.get(partition, end)
            if position.offset > end.offset and not (compares and position.epoch != NO_EPOCH):
                self._positions[partition] = end
                self._doubt = f"partition {partition} {_ENDS_EARLY}"

    async def _compare_partitions(self, link: KafkaLink) -> None:
        """Hold the positions against the partitions there are."""
        there = link.topology.leaders.keys()
        if self._positions.keys() - there:
            self._positions = await self._ask_offsets(link, there, LATEST)
            self._doubt = "the topic was created anew, with fewer partitions"
        elif new := there - self._positions.keys():
            # From their beginning: whoever publishes may have known of them before. Channels have moved to them, and
            # the order of a channel does not hold across the move.
            self._positions |= await self._ask_offsets(link, new, EARLIEST)
            self._doubt = f"the topic has {len(new)} more partitions"

    def _report_doubt(self, sink: Sink) -> None:
        doubt, self._doubt = self._doubt, ""
        if doubt:
            _report_gap(sink, doubt)

    async def _ask_offsets(self, link: KafkaLink, partitions: Collection[int], which: int) -> dict[int, Position]:
        found: dict[int, Position] = {}
        for node, connection in self._connections.items():
            led = {partition: which for partition in partitions if link.topology.leaders[partition] == node}
            if not led:
                continue
            for partition, (code, position) in (await connection.offsets(link.target.topic, led)).items():
                if code:
                    raise unavailable(f"no offset of partition {partition}: {code_name(code)}")
                found[partition] = position
        if missing := set(partitions) - found.keys():
            raise unavailable(f"no offset of partitions {sorted(missing)[:5]}")
        return found

    async def _read(self, link: KafkaLink, node: int) -> None:
        """Read from one broker until the link ends, or it leads nothing any more."""
        pace, turn = self._pace, 0
        while wanted := self._wanted(link, node):
            turn = (turn + 1) % len(wanted)  # a full answer must not always leave out the same ones
            try:
                received = await self._fetch(link, node, wait_ms=pace.wait_ms, turn=turn)
            except NotReadableError as error:
                self._revoke(str(error))
                return
            if received and pace.pause_seconds:
                await asyncio.sleep(pace.pause_seconds)

    async def _fetch(self, link: KafkaLink, node: int, *, wait_ms: int, turn: int = 0) -> bool:
        """Read once from one broker; returns whether there was anything."""
        connection = self._connections[node]
        if connection.expires_soon:
            connection = self._connections[node] = await link.connect(node, connection)
        wanted = self._wanted(link, node)
        asked = {partition: self._positions[partition] for partition in wanted[turn:] + wanted[:turn]}
        answers = await connection.fetch(
            link.target.topic,
            link.topology.topic_id,
            asked,
            wait_ms=wait_ms,
            min_bytes=self._pace.min_bytes,
            max_bytes=4 * _MEBIBYTE,
            max_partition_bytes=_MEBIBYTE,
        )
        received = False
        for answer in answers:
            if self._positions.get(answer.partition) != asked.get(answer.partition):
                continue  # `follow` has moved it meanwhile
            if answer.code:
                await self._mend(link, answer.partition, answer.code)
            elif answer.shared_end is not None:
                self._skip_to(answer.partition, answer.shared_end, "has lost its end, and grown again")
            elif answer.records:
                received = True
                self._deliver(answer)
        return received

    def _wanted(self, link: KafkaLink, node: int) -> list[int]:
        leaders = link.topology.leaders
        return [partition for partition in self._positions if leaders.get(partition) == node]

    def _deliver(self, answer: Fetched) -> None:
        partition, channels = answer.partition, self.channels
        is_complete, unreadable = True, ""
        for batch in read_batches(answer.records, self._positions[partition].offset, answer.end):
            if self._sink is None:
                return
            if batch.codec and batch.codec not in self._missing_codecs:
                self._missing_codecs.add(batch.codec)
                logger.error("%s", codec_problem(batch.codec))
            unreadable = batch.problem or unreadable
            if is_complete and not batch.is_complete:
                is_complete = False  # what else is missing in this answer is older than this gap too
                _report_gap(self._sink, f"partition {partition} lacks records: it is compacted, or was damaged")
            for key, value in batch.records:
                if key is not None and value is not None and (channel := channels.get(key)) is not None:
                    self._sink.deliver(channel, value)
            self._positions[partition] = Position(batch.next, batch.epoch)
            self._steps.pop(partition, None)
        if unreadable:
            self._report_unreadable(f"partition {partition} holds what cannot be read: {unreadable}")

    def _report_unreadable(self, reason: str) -> None:
        if self._unreadable_timer is not None:
            self._unreadable = reason
        elif self._sink is not None:
            _report_gap(self._sink, reason)
            loop = asyncio.get_running_loop()
            self._unreadable_timer = loop.call_later(_UNREADABLE_SECONDS, self._unreadable_again)

    def _unreadable_again(self) -> None:
        self._unreadable_timer = None
        reason, self._unreadable = self._unreadable, ""
        if reason:
            self._report_unreadable(reason)

    async def _mend(self, link: KafkaLink, partition: int, code: int) -> None:
        """Go on after what is gone; what neither passes nor can be mended here needs a new link."""
        means = meaning(code)
        if means is Meaning.OUT_OF_RANGE:
            await self._back_into_range(link, partition)
        elif means is Meaning.FORBIDDEN:
            raise NotReadableError(f"not authorized to read topic {link.target.topic!r}: grant READ on it")
        elif means is Meaning.CORRUPT:
            step = self._steps.get(partition, 1)
            end = (await self._ask_offsets(link, [partition], LATEST))[partition]
            position = Position(min(self._positions[partition].offset + step, end.offset))
            self._steps[partition] = 2 * step
            self._skip_to(partition, position, "holds what its broker cannot read")
            await asyncio.sleep(_PAUSE_SECONDS)
        elif means in (Meaning.PASSING, Meaning.STORED_MAYBE):
            await asyncio.sleep(_PAUSE_SECONDS)
        else:
            raise unavailable(f"partition {partition} cannot be read: {code_name(code)}")

    async def _back_into_range(self, link: KafkaLink, partition: int) -> None:
        earliest = (await self._ask_offsets(link, [partition], EARLIEST))[partition]
        if self._positions[partition].offset < earliest.offset:
            deleted = "no longer holds what was to be read next: it was deleted by age or size"
            self._skip_to(partition, Position(earliest.offset), deleted)
            return
        end = (await self._ask_offsets(link, [partition], LATEST))[partition]
        offset, epoch = self._positions[partition].offset, self._positions[partition].epoch
        if offset > end.offset:
            self._skip_to(partition, end, _ENDS_EARLY)
        elif epoch != NO_EPOCH:  # it is in range, and what was read last is from an epoch that the log does not know
            self._skip_to(partition, Position(offset), "is not the log that was read before")

    def _skip_to(self, partition: int, position: Position, reason: str) -> None:
        self._positions[partition] = position
        if self._sink is not None:
            _report_gap(self._sink, f"partition {partition} {reason}")

    def _revoke(self, reason: str) -> None:
        """Report that nothing can be read any more; the core subscribes again, which opens this reader anew."""
        sink = self._sink
        self.close()
        if sink is not None:
            logger.warning("%s", reason)
            channels = list(self.channels.values())
            self.channels.clear()
            sink.revoked(channels, reason)


def _report_gap(sink: Sink, reason: str) -> None:
    logger.warning("messages may be missing: %s", reason)
    sink.gap(ALL, reason)
