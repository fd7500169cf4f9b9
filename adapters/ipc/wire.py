"""What two processes of `ipc://` say to each other: frames of a kind, a key and a payload.

A frame is `kind: u8 | key length: u16 | payload length: u32 | key | payload`, big-endian. The one who connects speaks
first:

    HELLO(key: name of its own socket, payload: magic and version)  ->
    INTEREST(payload: channels it wants or no longer wants)         ->   at most one without its ACK
    READY: everything it wants has been said                        ->
    BEHIND, CAUGHT_UP: bytes for you wait in my memory, or none     ->
                                <-  WELCOME: the HELLO was understood
                                <-  ACK(payload: 0, or 1 where messages of these channels may be missing)
                                <-  MESSAGE(key: channel, payload: as published)
                                <-  BYE: this was all
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Decoder", "WireError", "check_hello", "frame", "hello_frame", "interest_frame", "read_interest"]

HELLO: Final = 1
WELCOME: Final = 2
INTEREST: Final = 3
ACK: Final = 4
READY: Final = 5
MESSAGE: Final = 6
BEHIND: Final = 7
CAUGHT_UP: Final = 8
BYE: Final = 9

MAX_INTEREST_BYTES: Final = 64 * 1024
"""Where an INTEREST frame ends. It leaves room in the kernel's buffer for a BEHIND, to a peer that reads nothing."""

_GREETING: Final = b"backplane ipc 1"
_HEADER: Final = Struct(">BHI")
_ENTRY: Final = Struct(">BH")


class WireError(Exception):
    """The other side sent what is no frame of this protocol; the connection is of no more use."""


def frame(kind: int, key: bytes = b"", payload: bytes = b"") -> bytes:
    """Build one frame."""
    return b"".join((_HEADER.pack(kind, len(key), len(payload)), key, payload))


def hello_frame(name: str) -> bytes:
    """Build the HELLO of the process that listens on the socket `name`."""
    return frame(HELLO, name.encode(), _GREETING)


def check_hello(kind: int, payload: bytes) -> None:
    """Refuse a first frame that is no HELLO of this version.

    Raises:
        WireError: It is not.
    """
    if kind != HELLO or payload != _GREETING:
        raise WireError(f"expected {_GREETING.decode()!r}, got a frame of kind {kind} and {len(payload):,} bytes")


def interest_frame(changes: Iterable[tuple[bytes, bool]]) -> bytes:
    """Build the frame that says which channels are wanted (`True`) and which no longer."""
    return frame(INTEREST, payload=b"".join(_ENTRY.pack(wanted, len(key)) + key for key, wanted in changes))


def interest_size(key: bytes) -> int:
    """Bytes one channel takes in an INTEREST frame."""
    return _ENTRY.size + len(key)


def read_interest(payload: bytes) -> list[tuple[bytes, bool]]:
    """Read what `interest_frame` built.

    Raises:
        WireError: It was not built by it.
    """
    changes: list[tuple[bytes, bool]] = []
    offset = 0
    while offset < len(payload):
        start = offset + _ENTRY.size
        if start > len(payload):
            raise WireError("an INTEREST frame ends inside an entry")
        wanted, length = _ENTRY.unpack_from(payload, offset)
        offset = start + length
        if offset > len(payload):
            raise WireError("an INTEREST frame ends inside a channel")
        changes.append((payload[start:offset], bool(wanted)))
    return changes


class Decoder:
    """Cuts a stream of bytes into frames; the work is linear in the bytes, however they were cut on their way.

    Args:
        max_payload_bytes: Largest payload of a message; what announces more is refused before it is gathered.
    """

    __slots__ = ("_chunks", "_limit", "_missing")

    def __init__(self, max_payload_bytes: int) -> None:
        self._limit = max(max_payload_bytes, MAX_INTEREST_BYTES * 2)
        self._chunks: list[bytes] = []
        self._missing = 0

    @property
    def inside_frame(self) -> bool:
        """Whether the bytes so far end inside a frame."""
        return bool(self._chunks)

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
        """Yield kind, key and payload of each frame that `data` completes. To be exhausted before the next call.

        Raises:
            WireError: A frame is larger than any may be.
        """
        if self._chunks:
            # Chunks of one big frame are only counted until the last one is there: joining each time would be
            # quadratic.
            self._chunks.append(data)
            self._missing -= len(data)
            if self._missing > 0:
                return
            data = b"".join(self._chunks)
            self._chunks.clear()
        unpack, header_size, end = _HEADER.unpack_from, _HEADER.size, len(data)
        offset, missing = 0, header_size
        while (missing := offset + header_size - end) <= 0:
            kind, key_size, payload_size = unpack(data, offset)
            if payload_size > self._limit:
                raise WireError(f"a frame of {payload_size:,} bytes, the limit is {self._limit:,}")
            start = offset + header_size
            split = start + key_size
            stop = split + payload_size
            if stop > end:
                missing = stop - end
                break
            yield kind, data[start:split], data[split:stop]
            offset = stop
        if offset < end:
            self._chunks.append(data[offset:])
            self._missing = missing
