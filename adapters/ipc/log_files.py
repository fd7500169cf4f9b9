"""The files of the log that the processes of `ipc://` share: its identity and its segments.

    history/epoch                          epoch 8 | mark 8, both random
    history/<epoch>-<first offset>.log     a segment, both in hex

A segment begins at the offset at which the one before it was sealed. Nothing is ever renamed or locked. The identity is
written under another name and linked, so it is there as a whole or not at all, and after the first segment: an identity
without segments means that they were removed by hand.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
import time
from contextlib import suppress
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

from backplane.adapters.ipc.log_record import MARK_BYTES
from backplane.errors import BrokerError, BrokerUnavailableError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FIRST_OFFSET", "LogFiles"]

FIRST_OFFSET: Final = 1
"""Offset of the first record of a log. 0 is the position before it."""

_EPOCH_BYTES: Final = 8
_NAME: Final = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})\.log")
_MAX_ATTEMPTS: Final = 100
# A process that was killed while it made a log leaves files that belong to none.
_MAX_MAKING_SECONDS: Final = 60.0
# Not to be removed by systemd-tmpfiles: the sticky bit, as of the sockets.
_MODE: Final = 0o600 | stat.S_ISVTX
# The newest segment is where all processes write, and the one before it has just been sealed: a process that lists the
# folder meanwhile must find one of them.
_MIN_SEGMENTS: Final = 2


class LogFiles:
    """The files of one log, from `open` until they are removed by hand.

    Args:
        folder: The private folder of the application.

    Attributes:
        path: The folder of the log.
        epoch: Names the log.
        mark: Where these bytes are found, a record begins.
    """

    __slots__ = ("_identity", "epoch", "mark", "path")

    def __init__(self, folder: Path) -> None:
        self.path: Path = folder / "history"
        self.epoch: bytes = b""
        self.mark: bytes = b""
        self._identity = (0, 0, 0)

    def open(self) -> None:
        """Read the identity of the log, and make one where there is none.

        Raises:
            BrokerError: The folder cannot be used.
            BrokerUnavailableError: The disk is full, or this process is out of file descriptors.
        """
        try:
            self.path.mkdir(mode=0o700, exist_ok=True)
            for _ in range(_MAX_ATTEMPTS):
                if not self._read_identity():
                    self._make()
                elif self.epoch and self.bases():
                    return self._remove_foreign()
                else:
                    self._remove_identity()
        except PermissionError as error:
            raise BrokerError(
                f"cannot use the folder {str(self.path)!r} ({error.strerror}): the history needs to be written there",
                adapter="ipc",
            ) from error
        except OSError as error:
            raise BrokerUnavailableError(
                f"cannot open the history in {str(self.path)!r} ({error.strerror}): make room there, or name another "
                "directory with ?directory=",
                adapter="ipc",
            ) from error
        raise BrokerUnavailableError(f"the history in {str(self.path)!r} is removed all the time", adapter="ipc")

    def epoch_of(self, channel: bytes) -> bytes:
        """Return the epoch of the positions of a channel.

        Another channel has another one, because all share the log: a position of another one must not be found, not
        even one before its first message.
        """
        return _epoch_of(self.epoch, channel)

    def is_current(self) -> bool:
        """Whether the log is still the one that was opened."""
        try:
            found = (self.path / "epoch").stat()
        except OSError:
            return False
        return _identity(found) == self._identity

    def bases(self) -> list[int]:
        """Return the first offset of each segment, in their order.

        Raises:
            OSError: The folder cannot be read.
        """
        epoch, found = self.epoch.hex(), list[int]()
        for name in os.listdir(self.path):  # noqa: PTH208  # once per second: `iterdir` makes a path of each name
            match = _NAME.fullmatch(name)
            if match is not None and match[1] == epoch:
                found.append(int(match[2], 16))
        return sorted(found)

    def open_segment(self, base: int, flags: int) -> int:
        """Return a descriptor of the segment that begins at `base`.

        Raises:
            OSError: As `os.open`.
        """
        return os.open(self._segment(self.epoch, base), flags | os.O_CLOEXEC, _MODE)

    def trim(self, max_bytes: int, max_age_seconds: float) -> list[int]:
        """Remove the oldest segments where they are too old or too large together; return the first offsets left.

        Raises:
            OSError: The folder cannot be read.
        """
        bases, sizes, outdated = self.bases(), list[int](), time.time() - max_age_seconds
        ages: list[float] = []
        for base in bases:
            try:
                found = self._segment(self.epoch, base).stat()
            except FileNotFoundError:
                sizes.append(0)
                ages.append(0.0)
            else:
                sizes.append(found.st_size)
                ages.append(found.st_mtime)
        total, first = sum(sizes), 0
        while len(bases) - first > _MIN_SEGMENTS and (total > max_bytes or ages[first] < outdated):
            with suppress(OSError):
                self._segment(self.epoch, bases[first]).unlink(missing_ok=True)
            total -= sizes[first]
            first += 1
        return bases[first:]

    def _segment(self, epoch: bytes, base: int) -> Path:
        return self.path / f"{epoch.hex()}-{base:016x}.log"

    def _read_identity(self) -> bool:
        """Read the identity; return whether there is one. It may be cut: then the epoch is empty."""
        try:
            descriptor = os.open(self.path / "epoch", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            data = os.read(descriptor, _EPOCH_BYTES + MARK_BYTES + 1)
            found = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        is_whole = len(data) == _EPOCH_BYTES + MARK_BYTES
        self.epoch, self.mark = (data[:_EPOCH_BYTES], data[_EPOCH_BYTES:]) if is_whole else (b"", b"")
        self._identity = _identity(found)
        return True

    def _remove_identity(self) -> None:
        """Remove the identity that was read, and no other one that has taken its place meanwhile."""
        identity, taken = self.path / "epoch", self._temporary()
        try:
            identity.rename(taken)  # atomic: of two processes one gets it
        except FileNotFoundError:
            return
        if _identity(taken.stat()) != self._identity:
            with suppress(FileExistsError):
                os.link(taken, identity)
        taken.unlink()

    def _temporary(self) -> Path:
        return self.path / f"epoch-{secrets.token_hex(8)}"

    def _make(self) -> None:
        """Make a log, unless another process is first."""
        data = secrets.token_bytes(_EPOCH_BYTES + MARK_BYTES)
        temporary = self._temporary()
        segment = self._segment(data[:_EPOCH_BYTES], FIRST_OFFSET)
        try:
            for path, content in ((segment, b""), (temporary, data)):
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                try:
                    if os.write(descriptor, content) < len(content):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    with suppress(OSError):  # not permitted on every system
                        os.fchmod(descriptor, _MODE)
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
            os.link(temporary, self.path / "epoch")
        except FileExistsError:
            segment.unlink(missing_ok=True)
        finally:
            temporary.unlink(missing_ok=True)

    def _remove_foreign(self) -> None:
        """Remove what a process left that was killed while it made a log, and segments of a log without identity."""
        own, outdated = self.epoch.hex(), time.time() - _MAX_MAKING_SECONDS
        for name in os.listdir(self.path):  # noqa: PTH208
            match = _NAME.fullmatch(name)
            if (match is None and not name.startswith("epoch-")) or (match is not None and match[1] == own):
                continue
            with suppress(OSError):
                if (self.path / name).stat().st_mtime < outdated:
                    (self.path / name).unlink()


def _identity(found: os.stat_result) -> tuple[int, int, int]:
    """Return what distinguishes a file from one that was made in its place, with the same inode number perhaps."""
    return found.st_dev, found.st_ino, found.st_mtime_ns


@lru_cache(maxsize=65_536)
def _epoch_of(log: bytes, channel: bytes) -> bytes:
    return blake2b(channel, digest_size=_EPOCH_BYTES, key=log).digest()
