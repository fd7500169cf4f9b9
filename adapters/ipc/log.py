"""The history of the channels of `ipc://`: one log for the host, which each process reads for itself.

A process publishes a message by one `write` to the log, and delivers it when it reads it there, as every other process
does. So there is one order, the same everywhere, and a message has the same position for all. There is no lock: a
process that is killed or stopped at any moment holds up no other.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from contextvars import Context
from math import inf
from typing import TYPE_CHECKING, Final

from backplane.adapters.ipc.log_files import LogFiles
from backplane.adapters.ipc.log_reader import LogReader
from backplane.adapters.ipc.log_recall import recall
from backplane.adapters.ipc.log_record import Record, build_record
from backplane.adapters.ipc.log_writer import LogWriter
from backplane.errors import BrokerError, BrokerUnavailableError, PublishError
from backplane.journal.events import HISTORY_LOST, HISTORY_RETRY
from backplane.message import ALL, Place, Position, Receipt
from backplane.patterns import Prefixes

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path

    from backplane.broadcaster import Recalled, Sink
    from backplane.history_rules import History, HistoryRules
    from backplane.journal.journal import Journal

__all__ = ["HistoryLog"]

logger: Final = logging.getLogger("backplane.adapters.ipc.log")

# A writer that is killed after its `write` notifies no peer.
_LOOK_SECONDS: Final = 1.0
_LOOKS_PER_TRIM: Final = 10
_SWEPT_CHANNELS: Final = 500
# Idempotency keys are looked up in the log.
_MIN_AGE_SECONDS: Final = 300.0
_MAX_ATTEMPTS: Final = 3


class HistoryLog:
    """The log as one process uses it: writes, reads what is new, recalls.

    A process that only publishes does not read the log, except for its first idempotency key.

    Args:
        folder: The private folder of the application.
        rules: The rules of the channels.
        sink: Receives what is read on the channels that were joined.
        journal: Logs errors of reading.
        announce: Called with channel, payload and the offset of the end of each record that this process has written:
            notifies the peers.
        max_bytes: How large the log may be.

    Attributes:
        channels: The joined channels, by their name in UTF-8.
        prefixes: The joined prefixes of channels, in UTF-8.

    Raises:
        BrokerError: The folder of the log cannot be used.
        BrokerUnavailableError: The disk is full, or this process is out of file descriptors.
    """

    def __init__(
        self,
        folder: Path,
        rules: HistoryRules,
        sink: Sink,
        journal: Journal,
        announce: Callable[[bytes, bytes, int], None],
        *,
        max_bytes: int,
    ) -> None:
        self.channels: dict[bytes, str] = {}
        self.prefixes: Prefixes[bytes] = Prefixes()
        self._folder = folder
        self._rules = rules
        self._sink = sink
        self._journal = journal
        self._announce = announce
        self._max_bytes = max_bytes
        self._max_age_seconds = max([_MIN_AGE_SECONDS, *(rule.max_age_seconds for _, rule in rules)])
        self._loop = asyncio.get_running_loop()
        self._files = LogFiles(folder)
        self._files.open()
        self._writer = LogWriter(self._files, max_bytes=max_bytes)
        self._reader: LogReader | None = None
        self._reading: asyncio.Handle | None = None  # there is more to read, in the next pass of the event loop
        self._limit: int | None = None  # up to where; `None` for the end
        self._sweeping: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._looks = 0
        self._checked_at = self._loop.time()
        self._closed = False
        self._keep_order = asyncio.Lock()
        self._waiting_keeps = 0
        self._written = 0  # offset of the end of the newest record of this process
        self._held: list[tuple[int, str, bytes]] = []  # what is delivered after the log up to an offset

    # -- subscriptions -----------------------------------------------------------------------------------------------

    async def join(self, keys: Mapping[bytes, str]) -> None:
        """Deliver from now on what is published to those of the channels that have a rule.

        The first call reads the whole log, for the index, in slices of 2 ms.

        Raises:
            BrokerUnavailableError: The log cannot be read, or was closed.
        """
        kept = {key: channel for key, channel in keys.items() if self._rules.rule_of(channel) is not None}
        if kept:
            reader = await self._read_to_end()
            self.channels.update(kept)
            for key in kept:
                reader.index.watch(key, reader.offset)

    async def join_prefixes(self, prefixes: Collection[bytes]) -> None:
        """Deliver from now on what is in the log of every channel that begins with one of `prefixes`.

        Raises:
            BrokerUnavailableError: The log cannot be read, or was closed.
        """
        await self._read_to_end()
        self.prefixes.add(prefixes)

    def leave(self, key: bytes) -> None:
        """Deliver nothing more of a channel."""
        if self.channels.pop(key, None) is not None and self._reader is not None:
            self._reader.index.unwatch(key)

    def read_to(self, offset: int) -> None:
        """Read up to `offset`, or somewhat further if that takes long: a peer has written up to there."""
        if self._reading is None:
            self._read(offset)
        elif self._limit is not None:
            self._limit = max(self._limit, offset)

    def _read_new(self) -> None:
        """Read everything that is new."""
        self._limit = None
        if self._reading is None:
            self._read(None)

    @property
    def is_reading(self) -> bool:
        """Whether there is more to read, in the next pass of the event loop."""
        return self._reading is not None

    def deliver(self, channel: str, payload: bytes, *, after: int | None = None) -> None:
        """Deliver a message that is not in the log.

        Args:
            channel: The channel.
            payload: What.
            after: The end of the newest record of its publisher, which is delivered first. Defaults to that of this
                process.
        """
        if self._reading is not None and self._is_joined(channel):
            self._held.append((self._written if after is None else after, channel, payload))
        else:
            self._sink.deliver(channel, payload)

    def close(self) -> None:
        """Close the descriptors and end the timers; nothing is delivered any more."""
        self._closed = True
        self.channels.clear()
        self.prefixes.clear()
        self._held.clear()
        for handle in (self._reading, self._sweeping, self._timer):
            if handle is not None:
                handle.cancel()
        self._reading = None
        self._writer.close()
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    # -- publishing --------------------------------------------------------------------------------------------------

    async def keep(self, channel: bytes, payload: bytes, key: bytes) -> Receipt:
        """Write a message to the log, and deliver everything up to it.

        Args:
            channel: The channel's name in UTF-8.
            payload: What.
            key: The idempotency key; empty without one.

        Raises:
            BrokerUnavailableError: The log was closed; nothing is written.
            PublishError: It cannot be written; no process receives it.
        """
        if not key and not self._waiting_keeps:
            offset, position = self._append(channel, payload, key)
            await self._read_until(offset)
            return Receipt(position=position)
        self._waiting_keeps += 1  # calls that are made meanwhile stay after this one
        try:
            async with self._keep_order:
                if key and (receipt := await self._find_key(channel, key)) is not None:
                    return receipt
                offset, position = self._append(channel, payload, key)
        finally:
            self._waiting_keeps -= 1
        await self._read_until(offset)
        # Another process may have written the same key in between; then each reader has skipped this record.
        use = self._reader.keys.find(channel, key, time.time()) if key and self._reader is not None else None
        if use is not None and use.offset < offset:
            return Receipt(position=Position(position.epoch, use.offset, use.check), duplicate=True)
        return Receipt(position=position)

    async def _find_key(self, channel: bytes, key: bytes) -> Receipt | None:
        """Return the receipt of the message that was published with this key before, by any process."""
        reader = await self._read_to_end()
        use = reader.keys.find(channel, key, time.time())
        if use is None:
            return None
        return Receipt(position=Position(self._files.epoch_of(channel), use.offset, use.check), duplicate=True)

    def _append(self, channel: bytes, payload: bytes, key: bytes) -> tuple[int, Position]:
        if self._closed:
            raise BrokerUnavailableError("the adapter is stopped", adapter="ipc")
        self._check_files()
        written_at = time.time()
        record, check = build_record(self._files.mark, channel, key, payload, time=written_at)
        try:
            offset = self._writer.append(record)
        except PublishError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            self._reset()  # its files were removed
            record, check = build_record(self._files.mark, channel, key, payload, time=written_at)
            offset = self._writer.append(record)
        position = Position(self._files.epoch_of(channel), offset, check)
        self._written = offset + len(record)
        self._announce(channel, payload, self._written)
        if self._reader is not None:
            own = Record(0, len(record), channel, key, payload, written_at, check)
            if self._reading is not None or not self._reader.pass_over(own, offset):
                self.read_to(self._written)
        if self._writer.switched:
            self._writer.switched = False
            self._trim()
        return offset, position

    async def _read_until(self, offset: int) -> None:
        """Read on until the record at `offset` was delivered, and let other tasks run at least once."""
        await asyncio.sleep(0)
        await self._wait_while(lambda reader: reader.offset <= offset)

    def _check_files(self) -> None:
        """Notice within a second that the files were removed."""
        now = self._loop.time()
        if now - self._checked_at < _LOOK_SECONDS:
            return
        self._checked_at = now
        if self._files.is_current():
            self._writer.release_removed()
        else:
            self._reset()

    # -- reading -----------------------------------------------------------------------------------------------------

    async def recall(
        self, channel: bytes, rule: History, *, after: Position | None, limit: int, max_bytes: int
    ) -> Recalled:
        """Read from the history of a channel, as `SupportsHistory.recall`.

        Raises:
            BrokerUnavailableError: The log cannot be read, or was closed.
        """
        for attempt in range(_MAX_ATTEMPTS):
            reader = await self._read_to_end()
            if channel in self.channels:
                reader.index.watch(channel, reader.offset)
            epoch = self._files.epoch_of(channel)
            try:
                return await recall(reader, epoch, channel, rule, after=after, limit=limit, max_bytes=max_bytes)
            except FileNotFoundError:
                self._trim()
                if attempt:  # a segment in the middle was removed by hand
                    self._forget_old(reader)
            except OSError as error:
                raise _unavailable(error) from error
        raise BrokerUnavailableError("the history is removed faster than it can be read", adapter="ipc")

    async def _read_to_end(self) -> LogReader:
        """Read everything that is in the log now; the first call builds the index."""
        if self._closed:
            raise BrokerUnavailableError("the adapter is stopped", adapter="ipc")
        try:
            if self._reader is None:
                self._reader = LogReader(self._files, self._take)
                self._timer = self._loop.call_later(_LOOK_SECONDS, self._look, context=Context())
                self._read_new()
                await self._wait_while(lambda _reader: True)
                while self._resync():
                    await self._wait_while(lambda _reader: True)
            else:
                self._read_new()
        except OSError as error:
            raise _unavailable(error) from error
        await self._wait_while(lambda _reader: True)
        if self._closed:
            raise BrokerUnavailableError("the adapter was stopped meanwhile", adapter="ipc")
        return self._reader

    async def _wait_while(self, has_to_read: Callable[[LogReader], bool]) -> None:
        """Wait for the end of the reading that goes on in each pass of the event loop, at most while `has_to_read`."""
        # An event would come a pass later than the slice that ends the wait.
        while self._reading is not None and self._reader is not None and has_to_read(self._reader):  # noqa: ASYNC110
            await asyncio.sleep(0)

    def _read(self, limit: int | None) -> None:
        """Read for 2 ms, and go on in the next pass of the event loop if there is more."""
        reader = self._reader
        if reader is None:
            return
        try:
            more = reader.read(limit)
        except OSError as error:  # the next look tries again
            self._journal.log(
                logger, HISTORY_RETRY, "cannot read the history (%(reason)s), trying again", reason=error.strerror
            )
            return
        if more and not self._closed:
            self._limit = limit
            self._reading = self._loop.call_soon(self._read_on, context=Context())
        elif reader.sealed:
            self._resync()

    def _read_on(self) -> None:
        self._reading = None
        self._read(self._limit)
        if self._reading is None:
            self._release(inf)

    def _release(self, offset: float) -> None:
        """Deliver what is held until the log is delivered up to `offset`."""
        held, self._held = self._held, []
        for after, channel, payload in held:
            if after > offset:
                self._held.append((after, channel, payload))
            elif self._is_joined(channel):
                self._sink.deliver(channel, payload)

    def _take(self, record: Record, offset: int, before: int, before_check: int) -> None:
        if self._held:
            self._release(offset)
        channel = self.channels.get(record.channel)
        if channel is None and self.prefixes.covers(record.channel):
            channel = record.channel.decode()
        if channel is not None:
            place = Place(self._files.epoch_of(record.channel), offset, record.check, before, before_check)
            self._sink.deliver(channel, record.payload, place)

    def _is_joined(self, channel: str) -> bool:
        """Return whether messages of a channel are read from the log."""
        key = channel.encode()
        return key in self.channels or (self.prefixes.covers(key) and self._rules.rule_of(channel) is not None)

    def _look(self) -> None:
        """Read what no peer has notified of, and check once per second that the log goes on from here."""
        self._timer = self._loop.call_later(_LOOK_SECONDS, self._look, context=Context())
        self._looks += 1
        self._check_files()
        if self._reader is not None:
            self._reader.lookup.release()
        self._read_new()
        if self._reading is not None:
            return
        self._resync()
        if not self._looks % _LOOKS_PER_TRIM:
            self._trim()

    def _resync(self) -> bool:
        """Go on where the log goes on, if the next segment was removed before this process has read it."""
        reader = self._reader
        if reader is None:
            return False
        try:
            skipped = reader.resync()
        except OSError as error:
            self._journal.log(
                logger, HISTORY_RETRY, "cannot read the history (%(reason)s), trying again", reason=error.strerror
            )
            return False
        if skipped:
            self._report_gap("the history was removed before this process had read it")
            for key in self.channels:
                reader.index.watch(key, reader.offset)
            self._limit = None
            self._reading = self._loop.call_soon(self._read_on, context=Context())
        return skipped

    def _trim(self) -> None:
        """Remove old segments, and what the index has of them."""
        try:
            bases = self._files.trim(self._max_bytes, self._max_age_seconds)
        except OSError as error:
            words = "cannot remove old history (%(reason)s)"
            self._journal.log(logger, HISTORY_RETRY, words, reason=error.strerror)
            return
        if self._reader is not None and bases:
            self._reader.drop_before(bases[0])
            if self._sweeping is None:
                self._sweep()

    def _forget_old(self, reader: LogReader) -> None:
        """Forget everything before the newest segment."""
        with suppress(OSError):
            reader.drop_before(max(self._files.bases(), default=0))

    def _sweep(self) -> None:
        """Drop channels without records from the index, some hundreds in each pass of the event loop."""
        self._sweeping = None
        if self._reader is not None and self._reader.index.sweep(_SWEPT_CHANNELS, self.channels):
            self._sweeping = self._loop.call_soon(self._sweep, context=Context())

    def _reset(self) -> None:
        """Begin a new log, or the one that another process has begun: the files of this one were removed.

        Its positions have another epoch, so whatever was missed shows.
        """
        self._journal.log(logger, HISTORY_LOST, "the files of the history were removed, beginning a new one")
        files = LogFiles(self._folder)
        try:
            files.open()
            writer = LogWriter(files, max_bytes=self._max_bytes)
            reader = LogReader(files, self._take) if self._reader is not None else None
        except (OSError, BrokerError) as error:
            self._journal.log(
                logger, HISTORY_RETRY, "cannot begin a new history (%(reason)s), trying again", reason=error
            )
            return
        self._writer.close()
        if self._reader is not None:
            self._reader.close()
        self._files, self._writer, self._reader = files, writer, reader
        self._report_gap("the files of the history were removed")
        self._read_new()

    def _report_gap(self, reason: str) -> None:
        if self.prefixes:
            self._sink.gap(ALL, reason)
        elif self.channels:
            self._sink.gap(list(self.channels.values()), reason)


def _unavailable(error: OSError) -> BrokerUnavailableError:
    return BrokerUnavailableError(f"cannot read the history ({error.strerror})", adapter="ipc")
