"""Records of the log that the processes of `ipc://` share. No I/O.

A record is, big-endian:

    mark 8 | crc 4 | kind 1 | idempotency key length 1 | channel length 2 | payload length 4 | time 8 | check 4
    | idempotency key | channel | payload

`check` is the CRC-32 of the payload, and `crc` that of everything between itself and the payload. The mark is random
and the same in the whole log. It is in no payload, because it never leaves the folder: wherever it is found, a record
begins. A writer that is killed in its `write` leaves a *torn* record, of which only the begin is there; the next mark
is the one of the record after it.

A SEAL ends a segment: what follows the first one of a segment does not exist. Its bytes are always the same, so it can
be found without reading the records before it.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple
from zlib import crc32

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["HEADER_BYTES", "MARK_BYTES", "Record", "RecordParser", "build_record", "build_seal", "read_header"]

MARK_BYTES: Final = 8

_MESSAGE: Final = 1
_SEAL: Final = 2

_HEADER: Final = Struct(">8sIBBHIdI")
_FIELDS: Final = Struct(">BBHIdI")  # the header after its crc
_CRC_START: Final = MARK_BYTES + 4
# Half as expensive as the constructor of a `NamedTuple`.
_new: Final = tuple.__new__

HEADER_BYTES: Final = _HEADER.size


class Record(NamedTuple):
    """A message in the log.

    Attributes:
        start: Where it begins in the bytes that were parsed.
        stop: Where it ends.
        channel: The channel's name in UTF-8.
        key: The idempotency key; empty without one.
        payload: As published.
        time: When it was written, in seconds since the Unix epoch.
        check: CRC-32 of the payload.
    """

    start: int
    stop: int
    channel: bytes
    key: bytes
    payload: bytes
    time: float
    check: int


class Header(NamedTuple):
    """What the header of a record states.

    Attributes:
        names_size: Size of the idempotency key and the channel.
        payload_size: Size of the payload.
        time: When it was written, in seconds since the Unix epoch.
        check: CRC-32 of the payload.
    """

    names_size: int
    payload_size: int
    time: float
    check: int


def build_record(mark: bytes, channel: bytes, key: bytes, payload: bytes, *, time: float) -> tuple[bytes, int]:
    """Return the bytes of a record, and its check."""
    check = crc32(payload)
    fields = _FIELDS.pack(_MESSAGE, len(key), len(channel), len(payload), time, check)
    crc = crc32(b"".join((fields, key, channel)))
    return b"".join((mark, crc.to_bytes(4, "big"), fields, key, channel, payload)), check


def build_seal(mark: bytes) -> bytes:
    """Return the bytes of a SEAL."""
    fields = _FIELDS.pack(_SEAL, 0, 0, 0, 0.0, 0)
    return mark + crc32(fields).to_bytes(4, "big") + fields


def read_header(data: bytes, mark: bytes) -> Header | None:
    """Read the header with which `data` begins; `None` where it is no header of a message."""
    if len(data) < HEADER_BYTES:
        return None
    found, _crc, kind, key_size, channel_size, payload_size, time, check = _HEADER.unpack_from(data)
    if found != mark or kind != _MESSAGE:
        return None
    return Header(key_size + channel_size, payload_size, time, check)


class RecordParser:
    """Finds the records in a piece of a segment.

    Args:
        mark: The mark of the log.

    Attributes:
        position: Where to continue in the bytes that were parsed last.
        missing_bytes: At least as many bytes from `position` on are needed to decide on the record there; 0 if not
            known.
        sealed: A SEAL was read, which ends at `position`.
    """

    __slots__ = ("_mark", "missing_bytes", "position", "sealed")

    def __init__(self, mark: bytes) -> None:
        self._mark = mark
        self.position: int = 0
        self.missing_bytes: int = 0
        self.sealed: bool = False

    def parse(self, data: bytes) -> Iterator[Record]:
        """Yield the records of `data`, without those that are torn; `position` is after each that was yielded.

        The end of the last record may not be there yet: it is still being written, was not read, or is torn. Only what
        is written after it can show that it is torn; until then `position` stays at it.
        """
        mark, unpack = self._mark, _HEADER.unpack_from
        at, end = 0, len(data)
        self.position, self.missing_bytes, self.sealed = 0, 0, False
        while end - at >= HEADER_BYTES:
            found, crc, kind, key_size, channel_size, size, time, check = unpack(data, at)
            key_start = at + HEADER_BYTES
            channel_start = key_start + key_size
            start = channel_start + channel_size
            stop = start + size
            if found != mark:
                self.position = at = self._next_mark(data, at)
                continue
            # To copy the bytes costs less than a view of them.
            if start <= end and crc32(data[at + _CRC_START : start]) != crc:
                self.position = at = self._next_mark(data, at)
                continue
            if stop > end:
                following = data.find(mark, at + MARK_BYTES)
                if following < 0:
                    # Before its crc is compared, the size of the payload can be any number.
                    self.missing_bytes = (stop if start <= end else start) - at
                    return
                self.position = at = following
                continue
            payload = data[start:stop]
            if crc32(payload) != check:
                self.position = at = self._next_mark(data, at)
                continue
            self.position = stop
            if kind == _SEAL:
                self.sealed = True
                return
            key = data[key_start:channel_start]
            yield _new(Record, (at, stop, data[channel_start:start], key, payload, time, check))
            at = stop
        if at < end and (following := data.find(mark, at + 1)) >= 0:  # the record at `at` is torn in its header
            self.position = following

    def _next_mark(self, data: bytes, at: int) -> int:
        """Return where the next record begins; without one, where the begin of its mark could be."""
        following = data.find(self._mark, at + 1)
        return following if following >= 0 else max(at + 1, len(data) - MARK_BYTES + 1)
