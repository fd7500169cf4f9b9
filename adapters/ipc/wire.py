"""Frames that two processes of `ipc://` exchange: a kind, a key and a payload.

A frame is `kind: u8 | key length: u16 | payload length: u32 | key | payload`, big-endian. The process that connects is
the subscriber on that connection, and sends first; the process that accepts is the publisher:

    subscriber to publisher
        HELLO(key: name of its own socket, payload: magic and version)
        SUBSCRIPTIONS(payload: channels it subscribes to or unsubscribes from); one at a time, each confirmed by ACK.
            Of a channel that the subscriber reads from the log, it wants a NUDGE instead of the messages in the log. A
            release before the log takes this for a plain subscription, and sends the messages.
            What begins with 0xFF stands for every channel that begins with the rest. A release before that takes it for
            the name of a channel, which no channel has, because it is not UTF-8
        READY: all its subscriptions have been sent
        BACKLOG, NO_BACKLOG: on the opposite connection bytes for the other wait in the sender's memory, or none
    publisher to subscriber
        WELCOME(payload: what it understands beyond the first release): the HELLO was understood. The first release
            sends and reads no payload
        ACK(payload: `NO_GAP`, or `GAP` where messages of these channels may be missing)
        MESSAGE(key: channel, payload: as published)
        BYE: no message follows
        NUDGE(payload: offset of its end): the log has a new record of a channel that the subscriber reads from it
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final

from backplane.adapters.shared.frame_buffer import FrameBuffer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = [
    "PREFIX",
    "TAKES_PREFIXES",
    "Decoder",
    "WireError",
    "check_hello",
    "frame",
    "hello_frame",
    "nudge_frame",
    "read_nudge",
    "read_subscriptions",
    "subscriptions_frame",
]

HELLO: Final = 1
WELCOME: Final = 2
SUBSCRIPTIONS: Final = 3
ACK: Final = 4
READY: Final = 5
MESSAGE: Final = 6
BACKLOG: Final = 7
NO_BACKLOG: Final = 8
BYE: Final = 9
NUDGE: Final = 10

UNWANTED: Final = 0
WANTED: Final = 1
READ_FROM_LOG: Final = 3  # a release before the log takes every number but 0 for `WANTED`

PREFIX: Final = b"\xff"
"""What the name of a channel never begins with: the rest is a prefix of channels."""

TAKES_PREFIXES: Final = b"\1"
"""In a WELCOME: the publisher takes prefixes."""

NO_GAP: Final = b"\0"
GAP: Final = b"\1"

MAX_SUBSCRIPTIONS_BYTES: Final = 64 * 1024
"""Largest payload of a SUBSCRIPTIONS frame; the kernel's buffer then still has room for a BACKLOG frame."""

_MAGIC: Final = b"backplane ipc 1"
_HEADER: Final = Struct(">BHI")
_ENTRY: Final = Struct(">BH")
_OFFSET: Final = Struct(">Q")


class WireError(Exception):
    """The other side sent something else than a frame of this protocol; the connection is unusable."""


def frame(kind: int, key: bytes = b"", payload: bytes = b"") -> bytes:
    """Build one frame."""
    return b"".join((_HEADER.pack(kind, len(key), len(payload)), key, payload))


def hello_frame(name: str) -> bytes:
    """Build the HELLO of the process that listens on the socket `name`."""
    return frame(HELLO, name.encode(), _MAGIC)


def check_hello(kind: int, payload: bytes) -> None:
    """Refuse a first frame that is not a HELLO of this version.

    Raises:
        WireError: It is another frame, or another version.
    """
    if kind != HELLO or payload != _MAGIC:
        raise WireError(f"expected {_MAGIC.decode()!r}, got a frame of kind {kind} and {len(payload):,} bytes")


def subscriptions_frame(changes: Iterable[tuple[bytes, int]]) -> bytes:
    """Build the frame of channels that are `WANTED`, `READ_FROM_LOG` or `UNWANTED`."""
    return frame(SUBSCRIPTIONS, payload=b"".join(_ENTRY.pack(wanted, len(key)) + key for key, wanted in changes))


def nudge_frame(end: int) -> bytes:
    """Build the notice of a record that ends at this offset of the log."""
    return frame(NUDGE, payload=_OFFSET.pack(end))


def read_nudge(payload: bytes) -> int:
    """Read what `nudge_frame` built.

    Raises:
        WireError: The payload is malformed.
    """
    if len(payload) != _OFFSET.size:
        raise WireError(f"a NUDGE frame of {len(payload)} bytes")
    return int.from_bytes(payload, "big")


def subscription_size(key: bytes) -> int:
    """Bytes one channel takes in a SUBSCRIPTIONS frame."""
    return _ENTRY.size + len(key)


def read_subscriptions(payload: bytes) -> list[tuple[bytes, int]]:
    """Read what `subscriptions_frame` built.

    Raises:
        WireError: The payload is malformed.
    """
    changes: list[tuple[bytes, int]] = []
    offset = 0
    while offset < len(payload):
        start = offset + _ENTRY.size
        if start > len(payload):
            raise WireError("a SUBSCRIPTIONS frame ends inside an entry")
        wanted, length = _ENTRY.unpack_from(payload, offset)
        offset = start + length
        if offset > len(payload):
            raise WireError("a SUBSCRIPTIONS frame ends inside a channel")
        changes.append((payload[start:offset], wanted))
    return changes


class Decoder:
    """Splits a stream of bytes into frames, in time linear in the bytes, whatever pieces they arrive in.

    Args:
        max_payload_bytes: Largest payload of a message; a larger one is refused when its header arrives.
    """

    __slots__ = ("_incomplete", "_limit")

    def __init__(self, max_payload_bytes: int) -> None:
        self._limit = max(max_payload_bytes, MAX_SUBSCRIPTIONS_BYTES * 2)
        self._incomplete = FrameBuffer()

    @property
    def inside_frame(self) -> bool:
        """Whether the bytes so far end inside a frame."""
        return not self._incomplete.is_empty

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
        """Yield kind, key and payload of each frame that `data` completes. Exhaust it before the next call.

        Raises:
            WireError: A frame is larger than any may be.
        """
        data = self._incomplete.take(data)
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
            self._incomplete.keep(data[offset:], missing)
