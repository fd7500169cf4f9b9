"""Reads the log: what is new, in slices, and again what is asked for."""

from __future__ import annotations

import errno
import os
import time
from bisect import bisect_right
from io import FileIO
from typing import TYPE_CHECKING, Final, NamedTuple

from backplane.adapters.ipc.log_files import FIRST_OFFSET
from backplane.adapters.ipc.log_index import KeyTable, KeyUse, LogIndex
from backplane.adapters.ipc.log_record import HEADER_BYTES, RecordParser, build_seal, read_header
from backplane.concurrency.fork import close_in_children

if TYPE_CHECKING:
    from collections.abc import Callable

    from backplane.adapters.ipc.log_files import LogFiles
    from backplane.adapters.ipc.log_record import Record

__all__ = ["LogLookup", "LogReader", "StoredRecord"]

_READ_BYTES: Final = 64 * 1024
_SLICE_SECONDS: Final = 0.002
_RECORDS_PER_CLOCK: Final = 16
_LOOKUP_BYTES: Final = 2048


class LogReader:
    """The place in the log up to which this process has read, and the index of what is before it.

    Args:
        files: The log.
        read: Called with each record, its offset, and offset and check of the one before it on its channel. A record
            that repeats an idempotency key does not exist: each process skips it.

    Attributes:
        offset: Offset after the last record that was read.
        index: The records before it.
        keys: The idempotency keys that were used before it.
        lookup: Reads single records again.
        sealed: It is at the end of a segment, and the next one was not there.
    """

    def __init__(self, files: LogFiles, read: Callable[[Record, int, int, int], None]) -> None:
        self.offset: int = 0
        self.index: LogIndex = LogIndex()
        self.keys: KeyTable = KeyTable()
        self.sealed: bool = False
        self._files = files
        self._on_record = read
        self._parser = RecordParser(files.mark)
        self._seal_bytes = len(build_seal(files.mark))
        self._file: FileIO | None = None
        self._base = 0
        self._bases: list[int] = []
        self.lookup: LogLookup = LogLookup(files, self._bases)
        self._stalled_size = -1
        self._open_first()

    def read(self, limit: int | None = None) -> bool:
        """Read what is new, for at most 2 ms; return whether there may be more.

        Args:
            limit: Not further than to this offset, at which a record ends.

        Raises:
            OSError: The log cannot be read.
        """
        deadline = time.monotonic() + _SLICE_SECONDS
        size = _READ_BYTES
        while limit is None or self.offset < limit:
            if self.sealed and not self._open_next():
                return False
            assert self._file is not None
            place = self.offset - self._base
            if limit is not None:
                size = min(max(size, _READ_BYTES), limit - self.offset)
            if self._stalled_size >= 0 and os.fstat(self._file.fileno()).st_size == self._stalled_size:
                return False
            data = os.pread(self._file.fileno(), size, place)
            self._stalled_size = -1
            if not data:
                return False
            late = self._parse(data, deadline)
            self.offset = self._base + place + self._parser.position
            if late:
                return True
            self.sealed = self._parser.sealed
            if not self.sealed and not self._parser.position:
                if len(data) < size:
                    self._stalled_size = place + len(data)  # the last record is not whole: wait until more is there
                    return False
                if limit is not None and self.offset + size >= limit:
                    limit = None  # no record ends there
            size = max(_READ_BYTES, self._parser.missing_bytes)
        return False

    def pass_over(self, record: Record, offset: int) -> bool:
        """Take a record that this process has just written, without reading it; return false if there is more before.

        Args:
            record: The record.
            offset: Its offset.
        """
        if offset != self.offset or self.sealed:
            return False
        self.offset = offset + record.stop - record.start
        self._stalled_size = -1
        self._take(record, offset)
        return True

    def resync(self) -> bool:
        """Go on where the log goes on, if it does not go on from here; return whether records are missing in between.

        To be called after `read` has found no more.

        Raises:
            OSError: The log cannot be read.
        """
        bases = self._files.bases()
        if bases and bases[-1] > self._base:
            # That segment was begun after this one had been sealed, so a SEAL is there by now, and the next segment.
            if self.read():
                return False
            if self._base < bases[-1] and not (self.sealed and self.offset in bases):
                self._skip_to(next((base for base in bases if base > self.offset), bases[-1]))
                return True
        if bases:
            self.drop_before(bases[0])
        return False

    def drop_before(self, base: int) -> None:
        """Note that the first segment is the one that begins at `base`."""
        if base > FIRST_OFFSET:
            self.index.drop_before(base)
            self._bases[:] = [each for each in self._bases if each >= base] or [self._base]

    def close(self) -> None:
        """Close the descriptors."""
        self.lookup.release()
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _parse(self, data: bytes, deadline: float) -> bool:
        """Take the records in `data`; return whether the time is over."""
        start, parser = self.offset, self._parser
        for count, record in enumerate(parser.parse(data), 1):
            self._take(record, start + record.start)
            if not count % _RECORDS_PER_CLOCK and time.monotonic() > deadline:
                return True
        return time.monotonic() > deadline and parser.position > 0 and not parser.sealed

    def _take(self, record: Record, offset: int) -> None:
        _, _, channel, key, _, written, check = record
        if key and not self.keys.add(channel, key, KeyUse(offset, check, written), self.index.oldest):
            return
        before, before_check = self.index.add(channel, offset, check)
        self._on_record(record, offset, before, before_check)

    def _open_first(self) -> None:
        """Open the oldest segment."""
        for _ in range(10):
            bases = self._files.bases()
            if not bases:
                break
            try:
                self._open(bases[0])
            except FileNotFoundError:
                continue
            return self.drop_before(bases[0])
        raise FileNotFoundError(errno.ENOENT, "its files were removed")

    def _open_next(self) -> bool:
        """Open the segment after the SEAL; return whether it is there."""
        try:
            self._open(self.offset)
        except FileNotFoundError:
            return False  # not begun yet, or removed long ago: see `resync`
        return True

    def _open(self, base: int) -> None:
        file = FileIO(self._files.open_segment(base, os.O_RDONLY), "rb")
        close_in_children(file)
        self._close()
        self._file = file
        self._base = self.offset = base
        self._bases.append(base)
        self.sealed = False
        self._stalled_size = -1

    def _skip_to(self, base: int) -> None:
        """Go on at `base`, where records are missing in between: what is known of the log begins there."""
        self._open(base)
        self._bases[:] = [base]
        self.index.reset(base)


class StoredRecord(NamedTuple):
    """A record that was read again.

    Attributes:
        payload: As published.
        time: When it was written, in seconds since the Unix epoch.
        check: CRC-32 of the payload.
    """

    payload: bytes
    time: float
    check: int


class LogLookup:
    """Reads single records at offsets that the index has.

    A segment stays open until `release`, because thousands of channels may be read one after the other.

    Args:
        files: The log.
        bases: First offsets of the segments, which may change.
    """

    def __init__(self, files: LogFiles, bases: list[int]) -> None:
        self._files = files
        self._bases = bases
        self._open: dict[int, FileIO] = {}

    def release(self) -> None:
        """Close the descriptors; `read` opens them again."""
        for file in self._open.values():
            file.close()
        self._open.clear()

    def read(self, offset: int, *, header_only: bool = False) -> StoredRecord:
        """Return the record at `offset`, without its payload where only the header is wanted.

        Raises:
            FileNotFoundError: Its segment was removed.
            OSError: It cannot be read.
        """
        index = bisect_right(self._bases, offset) - 1
        if index < 0:
            raise FileNotFoundError(errno.ENOENT, "its segment was removed")
        base = self._bases[index]
        file = self._open.get(base)
        if file is None:
            file = self._open[base] = FileIO(self._files.open_segment(base, os.O_RDONLY), "rb")
            close_in_children(file)
        place = offset - base
        data = os.pread(file.fileno(), HEADER_BYTES if header_only else _LOOKUP_BYTES, place)
        header = read_header(data, self._files.mark)
        if header is None:
            raise FileNotFoundError(errno.ENOENT, "the record is not there")
        start = HEADER_BYTES + header.names_size
        stop = start + header.payload_size
        if header_only:
            return StoredRecord(b"", header.time, header.check)
        if stop > len(data):
            data = os.pread(file.fileno(), header.payload_size, place + start)
            return StoredRecord(data, header.time, header.check)
        return StoredRecord(data[start:stop], header.time, header.check)
