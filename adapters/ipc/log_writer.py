"""Appends records to the log, without a lock.

The kernel orders the writes on descriptors that are open with `O_APPEND` (write(2)), and each of them is whole, unless
the process is killed meanwhile or the disk is full. So a process that is stopped at any moment holds up no other.
"""

from __future__ import annotations

import errno
import os
from io import FileIO
from typing import TYPE_CHECKING, Final

from backplane.adapters.ipc.log_record import build_seal
from backplane.concurrency.fork import close_in_children
from backplane.errors import PublishError

if TYPE_CHECKING:
    from backplane.adapters.ipc.log_files import LogFiles

__all__ = ["LogWriter"]

_MAX_SEGMENT_BYTES: Final = 4 * 1024 * 1024
_MAX_SEARCHED_BYTES: Final = 1024 * 1024


class LogWriter:
    """Writes to the newest segment, and begins a new one where that is large.

    Args:
        files: The log.
        max_bytes: How large all segments may be together.

    Attributes:
        switched: A new segment was begun since this was last set to false.
    """

    __slots__ = ("_base", "_checked", "_file", "_files", "_max_segment_bytes", "_seal", "switched")

    def __init__(self, files: LogFiles, *, max_bytes: int) -> None:
        self.switched: bool = False
        self._files = files
        self._seal = build_seal(files.mark)
        self._max_segment_bytes = max(min(_MAX_SEGMENT_BYTES, max_bytes // 16), len(self._seal))
        self._file: FileIO | None = None
        self._base = 0
        self._checked = 0  # no SEAL begins before this place of the segment

    def append(self, record: bytes) -> int:
        """Append `record`; return its offset.

        Raises:
            PublishError: It cannot be written; no process reads it.
        """
        try:
            while True:
                file = self._file or self._open_newest()
                start = self._write(file, record)
                if (seal := self._find_seal(file, start)) is None:
                    break
                self._open_next(seal)  # after a SEAL nothing exists: write it again
            self._checked = stop = start + len(record)
            offset = self._base + start
        except OSError as error:
            raise PublishError(
                f"cannot write to the history ({error.strerror}): make room in {str(self._files.path)!r}, or name "
                "another directory with ?directory=",
                adapter="ipc",
                retriable=False,
            ) from error
        if stop > self._max_segment_bytes:
            self._begin_segment(file)
        return offset

    def release_removed(self) -> None:
        """Close the descriptor where the segment was removed: sealed and old, or by hand."""
        if self._file is not None and not os.fstat(self._file.fileno()).st_nlink:
            self.close()

    def close(self) -> None:
        """Close the descriptor; the next `append` opens another."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, file: FileIO, record: bytes) -> int:
        """Append `record` to the segment; return where it begins."""
        written = file.write(record)
        if written != len(record):  # torn: readers skip it
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.lseek(file.fileno(), 0, os.SEEK_CUR) - len(record)

    def _begin_segment(self, file: FileIO) -> None:
        """Seal the segment, which is large. Where that fails, the next writer does it."""
        try:
            start = self._write(file, self._seal)
            seal = self._find_seal(file, start + len(self._seal))
            if seal is not None:
                self._open_next(seal)
        except OSError:
            self.close()

    def _find_seal(self, file: FileIO, stop: int) -> int | None:
        """Return where the first SEAL before `stop` begins; everything before `stop` is written."""
        descriptor, seal, at = file.fileno(), self._seal, self._checked
        while stop - at >= len(seal):
            data = os.pread(descriptor, min(stop - at, _MAX_SEARCHED_BYTES), at)
            found = data.find(seal)
            if found >= 0:
                return at + found
            if len(data) < len(seal):
                return None
            at += len(data) - len(seal) + 1
        return None

    def _open_newest(self) -> FileIO:
        """Open the segment to which all processes write now."""
        while True:
            bases = self._files.bases()
            if not bases:
                raise FileNotFoundError(errno.ENOENT, "its files were removed")
            base = bases[-1]
            file = self._open(base)
            if self._files.bases()[-1:] != [base]:
                continue  # another one is the newest by now
            seal = self._find_seal(file, os.fstat(file.fileno()).st_size)
            if seal is None:
                return file
            # The process that sealed it was killed before it began the next one, unless that is there by now.
            if self._files.bases()[-1:] == [base]:
                self._open(base + seal + len(self._seal))

    def _open_next(self, seal: int) -> None:
        """Go on after the SEAL at `seal`."""
        following = self._base + seal + len(self._seal)
        self.close()
        bases = self._files.bases()
        if bases and bases[-1] < following:
            self._open(following)
            self.switched = True
            if self._files.bases()[-1:] == [following]:
                return
        self._open_newest()

    def _open(self, base: int) -> FileIO:
        self.close()
        self._file = file = FileIO(self._files.open_segment(base, os.O_RDWR | os.O_APPEND | os.O_CREAT), "ab+")
        close_in_children(file)
        self._base, self._checked = base, 0
        return file
