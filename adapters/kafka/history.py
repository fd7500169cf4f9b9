"""The history of channels on Kafka is the log itself: nothing is stored beside it.

A position is a place in the log of the partition of its channel: its offset is that of a record plus one, as those of
Kafka begin at 0. It can be resumed while the record there has the same checksum, whichever channel that belongs to: so
the end of the log is a position too, for a channel whose messages are too old to be found.

What a client missed is answered from the rings. Only what is older than these is read from the log once more.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from backplane.adapters.kafka.connect_error import unavailable
from backplane.adapters.kafka.log_access import LogAccess, fail_at_end
from backplane.adapters.kafka.ring import HistoryRings, LogIdentity, Query
from backplane.adapters.kafka.scan import Scan
from backplane.concurrency.timeouts import PatientTimeout
from backplane.errors import BrokerError
from backplane.history_rules import HistoryRules
from backplane.journal.events import HISTORY_MISFIT
from backplane.journal.writing import write

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from backplane.adapters.kafka.link import KafkaLink
    from backplane.adapters.kafka.reader import KafkaReader
    from backplane.broadcaster import Recalled

__all__ = ["KafkaHistory"]

logger: Final = logging.getLogger("backplane.adapters.kafka.history")

_MAX_SCAN_BYTES: Final = 16 * 1024 * 1024


class KafkaHistory:
    """Answers questions to the history of channels, over one link.

    Args:
        link: The link.
        reader: Fills the rings while it is open.
        spawn: Starts a task that ends with the link.
        max_scan_bytes: How much of a partition is read back at most.

    Attributes:
        scans: How often the log was read.
    """

    def __init__(
        self,
        link: KafkaLink,
        reader: KafkaReader,
        spawn: Callable[..., asyncio.Task[None]],
        *,
        max_scan_bytes: int = _MAX_SCAN_BYTES,
    ) -> None:
        self.scans: int = 0
        self._link = link
        self._reader = reader
        self._spawn = spawn
        self._max_scan_bytes = max_scan_bytes
        self._log = LogAccess(link, spawn)
        self._scanning = asyncio.Lock()
        self._cut_short: set[int] = set()
        self._waiting_scans: dict[tuple[int, bool], Scan] = {}

    async def recall(self, query: Query) -> Recalled:
        """Answer from the rings, after the log was read where they do not reach back far enough.

        Raises:
            BrokerUnavailableError: The link is lost, or the broker does not answer in time.
            BrokerError: The user lacks the right to read the topic, or its codec is not installed.
        """
        if self._link.limits.codec_problem:
            raise BrokerError(self._link.limits.codec_problem, adapter="kafka")
        seconds = self._link.target.request_timeout_seconds
        try:
            async with PatientTimeout(seconds):
                return await self._recall(query)
        except TimeoutError:
            raise unavailable(f"the history was not read within {seconds:g} s") from None

    async def _recall(self, query: Query) -> Recalled:
        rings = await self._read(query)
        partition, check = rings.partition_of(query.key), None
        if query.after is not None and rings.needs_check(query):
            check = await self._log.read_check(partition, query.after.offset - 1)
        if not rings.is_found(query, check):
            rings = await self._read(replace(query, after=None, limit=0))  # for the newest position
        return rings.answer(query, check)

    async def _read(self, query: Query) -> HistoryRings:
        """Return rings that have everything up to this call, and reach back as far as needed, or possible."""
        rings = self._reader.rings
        if rings is not None and self._reader.is_open and rings.rule_of(query.key) is not None:
            partition = rings.partition_of(query.key)
            await self._reader.reached(partition, (await self._log.ends()).get(partition, 0))
            if rings.needed_from(query) is not None:
                await self._scan(partition, query, rings)
            if rings.needed_from(query) is None:
                return rings
            # What was read did not fit into `max_ring_bytes`.
        partition = LogIdentity.of(self._link.topology, self._link.target.topic).partition_of(query.key)
        rings = await self._scan(partition, query, None)
        if rings.partition_of(query.key) != partition:
            raise unavailable("the topic has more partitions now")
        return rings

    async def _scan(self, partition: int, query: Query, rings: HistoryRings | None) -> HistoryRings:
        """Read the log further back, once for all that ask before it begins; return the rings that know it then."""
        key = (partition, rings is None)
        scan = self._waiting_scans.get(key)
        if scan is None:
            scan = self._waiting_scans[key] = Scan(partition, rings, self._max_scan_bytes)
            fail_at_end(self._spawn(self._run(key, scan), "kafka-history-scan"), scan.done)
        scan.queries.append(query)
        scan.waiting += 1
        try:
            return await asyncio.shield(scan.done)
        finally:
            scan.waiting -= 1

    async def _run(self, key: tuple[int, bool], scan: Scan) -> None:
        """Read, one scan at a time."""
        try:
            async with self._scanning:
                del self._waiting_scans[key]
                rings = scan.rings or self._rings_aside(await self._log.ends())
                self.scans += 1
                await scan.run(self._log, rings)
            self._note_cut_short(key[0], scan)
        except BrokerError as error:
            scan.done.set_exception(error)
        else:
            scan.done.set_result(rings)

    def _note_cut_short(self, partition: int, scan: Scan) -> None:
        """Log, once per link and partition, that the log is longer than what is read of it."""
        if scan.is_cut_short and partition not in self._cut_short:
            self._cut_short.add(partition)
            write(
                logger,
                HISTORY_MISFIT,
                "the history of channels in partition %(partition)d of topic %(topic)r was read %(bytes)d bytes back "
                "and no further: older positions are not found; more partitions, compression, or a shorter "
                "max_age_seconds make that rarer",
                partition=partition,
                topic=self._link.target.topic,
                bytes=self._max_scan_bytes,
            )

    def _rings_aside(self, ends: Mapping[int, int]) -> HistoryRings:
        """Return rings for one scan, where no reader keeps them up to date."""
        rings = HistoryRings(4 * self._max_scan_bytes, HistoryRules({}))
        rings.follow(LogIdentity.of(self._link.topology, self._link.target.topic), ends)
        return rings
