"""Reading from Kafka: every partition of the topic, from positions that are kept here, without a consumer group.

An offset alone identifies neither the log that it belongs to nor what is missing before it. Therefore a position is
kept with the ids of its cluster and topic and with a leader epoch, which the broker compares at every fetch, and the
offsets of records are checked for holes. If one of these checks fails, messages may be missing: a gap is reported.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from backplane.adapters.kafka.answers import EARLIEST, LATEST, Position
from backplane.adapters.kafka.codes import Meaning, error_name, meaning
from backplane.adapters.kafka.connect_error import unavailable
from backplane.adapters.kafka.protocol import NO_EPOCH, NO_TOPIC_ID
from backplane.adapters.kafka.records import codec_problem, read_batches
from backplane.adapters.kafka.ring import LogIdentity
from backplane.adapters.shared.wanted_channels import WantedChannels
from backplane.header import path_test_id
from backplane.journal.events import BROKER_CHANGED, BROKER_MISFIT, HISTORY_LOST
from backplane.journal.writing import write
from backplane.message import ALL, UncheckedPlace

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from backplane.adapters.kafka.answers import Fetched
    from backplane.adapters.kafka.connection import Connection
    from backplane.adapters.kafka.link import KafkaLink
    from backplane.adapters.kafka.records import Batch
    from backplane.adapters.kafka.ring import HistoryRings, Item
    from backplane.broadcaster import Sink
    from backplane.message import All

__all__ = ["FetchPolicy", "KafkaReader", "NotReadableError"]

logger: Final = logging.getLogger("backplane.adapters.kafka.reader")

_TRUNCATED: Final = "ends before the next record to read: it was truncated"
_MEBIBYTE: Final = 1024 * 1024
# Before a fetch is repeated after a transient error.
_PAUSE_SECONDS: Final = 0.1
# Unreadable records can be as frequent as messages: the first is reported at once, then at most one gap in this time.
_UNREADABLE_SECONDS: Final = 5.0


class NotReadableError(Exception):
    """The topic cannot be read at all: the user lacks a right, or a codec is not installed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchPolicy:
    """How often the brokers are sent fetch requests. The cost is per request, hardly per message.

    Attributes:
        wait_ms: How long a broker may hold a request while it has less than `min_bytes`.
        min_bytes: How many bytes it waits for.
        pause_seconds: Pause after an answer with messages.
    """

    wait_ms: int
    min_bytes: int = 1
    pause_seconds: float = 0.0


class KafkaReader:
    """Reads over one link after another, from the start of the adapter to its stop.

    Args:
        policy: How often to fetch.
        spawn: Starts a task whose failure is the loss of the link.
        unreadable_seconds: At most one gap in this time is reported because of unreadable records, after the first.

    Attributes:
        wanted: The channels to deliver, by the key of their records.
        rings: The newest messages of channels with a history, if there are any.
    """

    def __init__(
        self,
        policy: FetchPolicy,
        spawn: Callable[..., asyncio.Task[None]],
        *,
        unreadable_seconds: float = _UNREADABLE_SECONDS,
    ) -> None:
        self.wanted: WantedChannels[bytes] = WantedChannels(str.encode, bytes.decode)
        self.rings: HistoryRings | None = None
        self._awaited: list[tuple[int, int, asyncio.Future[None]]] = []
        self._policy = policy
        self._unreadable_seconds = unreadable_seconds
        self._spawn = spawn
        self._positions: dict[int, Position] = {}
        self._cluster: str | None = None
        self._topic_id = b""
        self._skip_sizes: dict[int, int] = {}  # how far to skip next in a partition that the broker cannot read
        self._pending_gap_reason = ""
        self._unreadable_reason = ""
        self._unreadable_timer: asyncio.TimerHandle | None = None
        self._missing_codecs: set[str] = set()
        self._sink: Sink | None = None
        self._link: KafkaLink | None = None
        self._connections: dict[int, Connection] = {}
        self._reading: dict[int, asyncio.Task[None]] = {}

    @property
    def is_open(self) -> bool:
        """Whether it is reading."""
        return self._link is not None

    def keep(self, rings: HistoryRings) -> None:
        """Fill `rings` from now on."""
        self.rings = rings
        if self._link is not None:
            self._follow(self._link)

    async def open(self, link: KafkaLink, sink: Sink) -> None:
        """Read over `link`: from the end the first time, later from where the last link ended.

        Raises:
            NotReadableError: The user lacks the right to read the topic, or its codec is not installed.
            BrokerUnavailableError: The broker is gone, or does not provide the end of a partition.
        """
        if link.limits.codec_problem:
            raise NotReadableError(link.limits.codec_problem)
        try:
            await self._connect(link)
            await self._find_positions(link, sink)
            self._link, self._sink = link, sink
            for node in list(self._connections):
                if self._partitions_of(link, node):
                    await self._fetch(link, node, wait_ms=0)  # checks the right to read, and the leader epochs
        except BaseException:
            self.close()
            raise
        self._start_reading(link)

    async def update_partitions(self) -> None:
        """Apply what `link.refresh` found: new partitions, and brokers that lead partitions now."""
        if self._link is None or self._sink is None:
            return
        await self._connect(self._link)
        await self._reconcile_partitions(self._link)
        self._follow(self._link)
        self._report_pending_gap(self._sink)
        self._start_reading(self._link)

    async def reached(self, partition: int, offset: int) -> None:
        """Wait until everything before `offset` was delivered.

        Raises:
            BrokerUnavailableError: The reader was closed.
        """
        if self._positions[partition].offset < offset:
            reached: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._awaited.append((partition, offset, reached))
            await reached
        if self._link is None:
            raise unavailable("the link is lost")

    def close(self) -> None:
        """Stop delivering at once; positions and channels are kept."""
        self._link = self._sink = None
        self._notify_reached()
        self._pending_gap_reason = self._pending_gap_reason or self._unreadable_reason
        self._unreadable_reason = ""
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

    def _start_reading(self, link: KafkaLink) -> None:
        """Start a task for each broker that has none."""
        for node in self._connections:
            if node not in self._reading or self._reading[node].done():
                self._reading[node] = self._spawn(self._read(link, node), f"kafka-read-{node}")

    async def _connect(self, link: KafkaLink) -> None:
        for node in set(link.topology.leaders.values()) - self._connections.keys():
            self._connections[node] = await link.connect(node)

    async def _find_positions(self, link: KafkaLink, sink: Sink) -> None:
        topology = link.topology
        ends = await self._request_offsets(link, topology.leaders, LATEST)
        if not self._positions:
            self._positions = ends
        elif topology.cluster != self._cluster:
            # From the end: the records of another cluster may be copies of records that were delivered already.
            self._positions, self._pending_gap_reason = ends, "another cluster answers"
        elif topology.topic_id != self._topic_id:
            # From the start: everything in the new topic was published while this process was disconnected.
            self._positions = await self._request_offsets(link, topology.leaders, EARLIEST)
            self._pending_gap_reason = "the topic was deleted and created anew"
        self._cluster, self._topic_id = topology.cluster, topology.topic_id
        self._clamp_to_end(link, ends)
        await self._reconcile_partitions(link)
        self._follow(link)
        self._report_pending_gap(sink)

    def _clamp_to_end(self, link: KafkaLink, ends: dict[int, Position]) -> None:
        """Move a position that is after the end of its partition to the end, so that no later message is missed.

        Not to the start: a truncated log may hold the messages of days, which were delivered already. A broker that
        compares leader epochs answers the first fetch with the offset where the logs diverge, which is more precise:
        records after it are new. So a position with an epoch is left to that.
        """
        compares_epochs = link.topology.topic_id != NO_TOPIC_ID
        for partition, end in ends.items():
            position = self._positions.get(partition, end)
            if position.offset > end.offset and not (compares_epochs and position.epoch != NO_EPOCH):
                self._set_position(partition, end)
                self._pending_gap_reason = f"partition {partition} {_TRUNCATED}"

    async def _reconcile_partitions(self, link: KafkaLink) -> None:
        """Give each partition of the topology a position, and drop positions of partitions that no longer exist."""
        partitions = link.topology.leaders.keys()
        if self._positions.keys() - partitions:
            self._positions = await self._request_offsets(link, partitions, LATEST)
            self._pending_gap_reason = "the topic was created anew, with fewer partitions"
        elif new := partitions - self._positions.keys():
            # From their start: a publisher may have used them before this process knew of them. Channels have moved to
            # them, and the order of a channel is not kept across the move, hence the gap.
            self._positions |= await self._request_offsets(link, new, EARLIEST)
            self._pending_gap_reason = f"the topic has {len(new)} more partitions"

    def _follow(self, link: KafkaLink) -> None:
        """Let the rings begin where a partition is read for the first time, or anew if it is another log."""
        if self.rings is not None:
            identity = LogIdentity.of(link.topology, link.target.topic)
            self.rings.follow(identity, {number: position.offset for number, position in self._positions.items()})

    def _report_pending_gap(self, sink: Sink) -> None:
        reason, self._pending_gap_reason = self._pending_gap_reason, ""
        if reason:
            _report_gap(sink, reason)

    async def _request_offsets(self, link: KafkaLink, partitions: Collection[int], which: int) -> dict[int, Position]:
        found: dict[int, Position] = {}
        for node, connection in self._connections.items():
            led = {partition: which for partition in partitions if link.topology.leaders[partition] == node}
            if not led:
                continue
            for partition, (code, position) in (await connection.offsets(link.target.topic, led)).items():
                if code:
                    raise unavailable(f"no offset of partition {partition}: {error_name(code)}")
                found[partition] = position
        if missing := set(partitions) - found.keys():
            raise unavailable(f"no offset of partitions {sorted(missing)[:5]}")
        return found

    async def _read(self, link: KafkaLink, node: int) -> None:
        """Read from one broker until the link ends, or the broker leads no partition any more."""
        policy, turn = self._policy, 0
        while partitions := self._partitions_of(link, node):
            turn = (turn + 1) % len(partitions)  # a full answer omits the last partitions: they differ each time
            try:
                received = await self._fetch(link, node, wait_ms=policy.wait_ms, turn=turn)
            except NotReadableError as error:
                self._revoke(str(error))
                return
            if received and policy.pause_seconds:
                await asyncio.sleep(policy.pause_seconds)

    async def _fetch(self, link: KafkaLink, node: int, *, wait_ms: int, turn: int = 0) -> bool:
        """Fetch once from one broker; return whether it answered with records."""
        connection = self._connections[node]
        if connection.expires_soon:
            connection = self._connections[node] = await link.connect(node, connection)
        partitions = self._partitions_of(link, node)
        requested = {partition: self._positions[partition] for partition in partitions[turn:] + partitions[:turn]}
        answers = await connection.fetch(
            link.target.topic,
            link.topology.topic_id,
            requested,
            wait_ms=wait_ms,
            min_bytes=self._policy.min_bytes,
            max_bytes=4 * _MEBIBYTE,
            max_partition_bytes=_MEBIBYTE,
        )
        received = False
        for answer in answers:
            if self._positions.get(answer.partition) != requested.get(answer.partition):
                continue  # `update_partitions` has changed it meanwhile
            if answer.code:
                await self._recover_partition(link, answer.partition, answer.code)
            elif answer.diverged_at is not None:
                self._skip_to(answer.partition, answer.diverged_at, "was truncated, and has grown again")
            elif answer.records:
                received = True
                self._deliver(answer)
        return received

    def _partitions_of(self, link: KafkaLink, node: int) -> list[int]:
        leaders = link.topology.leaders
        return [partition for partition in self._positions if leaders.get(partition) == node]

    def _deliver(self, answer: Fetched) -> None:
        partition, find = answer.partition, self.wanted.find
        is_complete, unreadable = True, ""
        for batch in read_batches(answer.records, self._positions[partition].offset, answer.end):
            if self._sink is None:
                return
            if batch.codec and batch.codec not in self._missing_codecs:
                self._missing_codecs.add(batch.codec)
                write(logger, BROKER_MISFIT, "%(reason)s", level=logging.ERROR, reason=codec_problem(batch.codec))
            unreadable = batch.problem or unreadable
            if is_complete and not batch.is_complete:
                is_complete = False  # one gap is enough: everything in this answer was published before it
                lacks = f"partition {partition} lacks records: it is compacted, or was damaged"
                _report_gap(self._sink, lacks, self._channels_in(partition))
            if self.rings is not None:
                self._deliver_kept(self.rings, partition, batch, self._sink)
            else:
                for key, value, _, _ in batch.records:
                    if key is not None and value is not None and (channel := find(key)) is not None:
                        self._sink.deliver(channel, value)
            self._positions[partition] = Position(batch.next, batch.epoch)
            self._skip_sizes.pop(partition, None)
        self._notify_reached()
        if unreadable:
            self._report_unreadable(f"partition {partition} holds records that cannot be read: {unreadable}")

    def _deliver_kept(self, rings: HistoryRings, partition: int, batch: Batch, sink: Sink) -> None:
        """Deliver the records of a batch, and add those of channels with a history to their rings."""
        records, find = batch.records, self.wanted.find
        known = records
        if batch.problem or not batch.is_complete:
            # Where in the batch records are missing is not known: what is resumed begins with the last one.
            known = records[-1:]
            rings.reset(partition, known[0][2] if known else batch.next)
        received: dict[bytes, list[Item]] = {}
        for key, value, offset, milliseconds in known:
            if key is not None and value is not None and path_test_id(value) is None:
                if key not in received:
                    received[key] = []
                received[key].append((offset, milliseconds, value))
        epochs = {key: rings.add(partition, key, items) for key, items in received.items()}
        for key, value, offset, _ in records:
            if key is None or value is None or (channel := find(key)) is None:
                continue
            epoch = epochs[key] if key in epochs else rings.epoch_in(partition, key)
            if path_test_id(value) is not None:
                epoch = None  # it has no place among the messages
            sink.deliver(channel, value, None if epoch is None else UncheckedPlace(epoch, offset + 1, value))
        rings.note_end(partition, batch.next, records[-1] if records else None)

    def _notify_reached(self) -> None:
        """Wake the calls whose offset was reached; all of them when the reader is closed."""
        if not self._awaited:
            return
        awaited, self._awaited = self._awaited, []
        for partition, offset, reached in awaited:
            if self._link is not None and partition in self._positions and self._positions[partition].offset < offset:
                self._awaited.append((partition, offset, reached))
            elif not reached.done():
                reached.set_result(None)

    def _report_unreadable(self, reason: str) -> None:
        if self._unreadable_timer is not None:
            self._unreadable_reason = reason
        elif self._sink is not None:
            _report_gap(self._sink, reason)
            loop = asyncio.get_running_loop()
            self._unreadable_timer = loop.call_later(self._unreadable_seconds, self._report_unreadable_again)

    def _report_unreadable_again(self) -> None:
        self._unreadable_timer = None
        reason, self._unreadable_reason = self._unreadable_reason, ""
        if reason:
            self._report_unreadable(reason)

    async def _recover_partition(self, link: KafkaLink, partition: int, code: int) -> None:
        """Continue after an error of one partition.

        Records that are gone, or that the broker cannot read, are skipped with a gap. After a transient error the next
        fetch follows, after a pause.

        Raises:
            NotReadableError: The user lacks the right to read.
            BrokerUnavailableError: Any other error: a new link is needed.
        """
        means = meaning(code)
        if means is Meaning.OUT_OF_RANGE:
            await self._return_to_range(link, partition)
        elif means is Meaning.FORBIDDEN:
            raise NotReadableError(f"not authorized to read topic {link.target.topic!r}: grant READ on it")
        elif means is Meaning.CORRUPT:
            # How many records are damaged is not known: skip one, then two, four, ... until the broker can read again.
            step = self._skip_sizes.get(partition, 1)
            end = (await self._request_offsets(link, [partition], LATEST))[partition]
            position = Position(min(self._positions[partition].offset + step, end.offset))
            self._skip_sizes[partition] = 2 * step
            self._skip_to(partition, position, "holds records that its broker cannot read")
            await asyncio.sleep(_PAUSE_SECONDS)
        elif means in (Meaning.TRANSIENT, Meaning.MAYBE_STORED):
            await asyncio.sleep(_PAUSE_SECONDS)
        else:
            raise unavailable(f"partition {partition} cannot be read: {error_name(code)}")

    async def _return_to_range(self, link: KafkaLink, partition: int) -> None:
        """Move the position of a partition into its log, where records were deleted or the log was truncated."""
        earliest = (await self._request_offsets(link, [partition], EARLIEST))[partition]
        if self._positions[partition].offset < earliest.offset:
            deleted = "no longer holds the next record to read: it was deleted by age or size"
            self._skip_to(partition, Position(earliest.offset), deleted)
            return
        end = (await self._request_offsets(link, [partition], LATEST))[partition]
        offset, epoch = self._positions[partition].offset, self._positions[partition].epoch
        if offset > end.offset:
            self._skip_to(partition, end, _TRUNCATED)
        elif epoch != NO_EPOCH:  # in range, but the record read last has an epoch that is not in the log
            self._skip_to(partition, Position(offset), "is not the log that was read before")

    def _set_position(self, partition: int, position: Position) -> None:
        """Continue at `position`, which does not follow what was read."""
        self._positions[partition] = position
        if self.rings is not None:
            self.rings.reset(partition, position.offset)

    def _skip_to(self, partition: int, position: Position, reason: str) -> None:
        self._set_position(partition, position)
        self._notify_reached()
        if self._sink is not None:
            _report_gap(self._sink, f"partition {partition} {reason}", self._channels_in(partition))

    def _channels_in(self, partition: int) -> Collection[str] | All:
        """Return the channels that can have records in `partition`.

        One without a history can have them anywhere, as other producers choose the partition as they like. One with a
        history has them in the partition of its positions. Those of a prefix are not known.
        """
        rings = self.rings
        if rings is None or self.wanted.has_prefixes:
            return ALL
        return [
            channel
            for key, channel in self.wanted.names.items()
            if rings.rule_of(key) is None or rings.partition_of(key) == partition
        ]

    def _revoke(self, reason: str) -> None:
        """Report that nothing can be read any more; the core then subscribes again, which opens this reader again."""
        sink = self._sink
        self.close()
        if sink is not None:
            write(logger, BROKER_CHANGED, "%(reason)s", reason=reason)
            if self.wanted.has_prefixes:  # which cannot be revoked
                return sink.lost(unavailable(reason))
            channels = list(self.wanted.names.values())
            self.wanted.names.clear()
            sink.revoked(channels, reason)


def _report_gap(sink: Sink, reason: str, channels: Collection[str] | All = ALL) -> None:
    write(logger, HISTORY_LOST, "messages may be missing: %(reason)s", reason=reason)
    sink.gap(channels, reason)
