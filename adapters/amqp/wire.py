r"""Frames of AMQP 0-9-1, and the two kinds that carry messages; `pamqp` writes and reads the others.

A message is a method, a header and its body in frames of limited size. The routing key is the channel. Three
properties number what a worker publishes, so that every other worker notices what its queue dropped (`numbering`):

    app_id      the publishing worker, by random letters
    message_id  "<number> <milliseconds> <link> <base>": the number of the message, how old its link was, which link of
                that worker it was, and the number before the first of that link
    timestamp   when the link began, in seconds since 1970

A message without them is one of another program.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pamqp.exceptions import PAMQPException
from pamqp.header import ContentHeader

from backplane.adapters.amqp.errors import WireError
from backplane.adapters.shared.frame_buffer import FrameBuffer

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "BASIC_ACK",
    "BASIC_DELIVER",
    "BASIC_NACK",
    "BODY",
    "CHANNEL",
    "HEADER",
    "HEARTBEAT",
    "HEARTBEAT_FRAME",
    "MAX_FRAME_BYTES",
    "METHOD",
    "PROTOCOL_HEADER",
    "Content",
    "FrameReader",
    "encode_message",
    "read_confirmation",
    "read_content",
    "read_routing_key",
    "read_stream_offset",
]

PROTOCOL_HEADER: Final = b"AMQP\0\0\x09\x01"
METHOD: Final = 1
HEADER: Final = 2
BODY: Final = 3
HEARTBEAT: Final = 8
CHANNEL: Final = 1
"""The number of the one channel of AMQP that a connection has."""
MAX_FRAME_BYTES: Final = 131_072
"""Largest frame that this side proposes, with its 8 bytes around."""
BASIC_DELIVER: Final = (60 << 16 | 60).to_bytes(4, "big")
BASIC_ACK: Final = (60 << 16 | 80).to_bytes(4, "big")
BASIC_NACK: Final = (60 << 16 | 120).to_bytes(4, "big")

_FRAME: Final = struct.Struct(">BHI")
_FRAME_END: Final = b"\xce"
HEARTBEAT_FRAME: Final = _FRAME.pack(HEARTBEAT, 0, 0) + _FRAME_END
_FRAME_AROUND: Final = _FRAME.size + 1
_PUBLISH: Final = (60 << 16 | 40).to_bytes(4, "big") + b"\0\0"  # and a reserved number
_CONTENT: Final = struct.Struct(">HHQH")
_BASIC: Final = 60
_HAS_MESSAGE_ID: Final = 1 << 7
_HAS_TIMESTAMP: Final = 1 << 6
_HAS_APP_ID: Final = 1 << 3
_NUMBERED: Final = _HAS_MESSAGE_ID | _HAS_TIMESTAMP | _HAS_APP_ID
_MORE_FLAGS: Final = 1
_OFFSET: Final = "x-stream-offset"
_ONLY_OFFSET: Final = b"\0\0\0\x19\x0fx-stream-offsetl"  # a table of nothing else, as all workers publish
_MESSAGE_ID_WORDS: Final = 4
_MAX_MESSAGE_ID: Final = 80
# The properties by their bits, from the highest: how many bytes each has; None for a short string, -1 for a table.
_PROPERTIES: Final = (
    (15, None),
    (14, None),
    (13, -1),
    (12, 1),
    (11, 1),
    (10, None),
    (9, None),
    (8, None),
    (7, None),
    (6, 8),
    (5, None),
    (4, None),
    (3, None),
)


class Content(NamedTuple):
    """What the header of a message has.

    Attributes:
        size: Bytes of the body.
        app_id: The publishing worker; empty for another program.
        number: Its number among those of that worker.
        link: Which link of that worker, counted from 1 on.
        base: The number before the first message of that link.
        age_seconds: How old that link was.
        began_at: When it began, by the clock of its host, in seconds since 1970.
    """

    size: int
    app_id: bytes = b""
    number: int = 0
    link: int = 0
    base: int = 0
    age_seconds: float = 0.0
    began_at: int = 0


class FrameReader:
    """Takes the frames out of a stream of bytes."""

    def __init__(self) -> None:
        self._buffer = FrameBuffer()

    def read(self, data: bytes) -> Iterator[tuple[int, int, bytes]]:
        """Return kind, channel of AMQP and payload of each frame that `data` completes.

        Raises:
            WireError: These are no frames, or one is larger than agreed.
        """
        data = self._buffer.take(data)
        position, end = 0, len(data)
        while end - position >= _FRAME_AROUND:
            kind, number, size = _FRAME.unpack_from(data, position)
            if kind not in (METHOD, HEADER, BODY, HEARTBEAT):
                raise WireError("this is no server of AMQP 0-9-1")
            if size > MAX_FRAME_BYTES:
                raise WireError(f"a frame of {size:,} bytes is larger than agreed")
            stop = position + _FRAME.size + size
            if stop >= end:
                break
            if data[stop] != _FRAME_END[0]:
                raise WireError("a frame has no end")
            yield kind, number, data[position + _FRAME.size : stop]
            position = stop + 1
        else:
            stop = position + _FRAME.size
        if position < end:
            self._buffer.keep(data[position:], stop + 1 - end)


def encode_message(exchange: bytes, channel: str, payload: bytes, content: Content, *, frame_bytes: int) -> bytes:
    """Return the frames that publish a message.

    Args:
        exchange: The exchange.
        channel: The channel.
        payload: What is published.
        content: What its header has.
        frame_bytes: Largest frame.
    """
    age = int(content.age_seconds * 1000) + 1
    message_id = b"%d %d %d %d" % (content.number, age, content.link, content.base)
    method = _PUBLISH + _short(exchange) + _short(channel.encode()) + b"\0"
    properties = _short(message_id) + content.began_at.to_bytes(8, "big") + _short(content.app_id)
    header = _CONTENT.pack(_BASIC, 0, content.size, _NUMBERED) + properties
    parts = [_frame(METHOD, method), _frame(HEADER, header)]
    step = frame_bytes - _FRAME_AROUND
    parts += [_frame(BODY, payload[start : start + step]) for start in range(0, len(payload), step)]
    return b"".join(parts)


def read_confirmation(payload: bytes) -> tuple[int, bool]:
    """Return the number of the message that is confirmed or refused, and whether those before are as well."""
    if len(payload) < 13:  # the method, eight bytes and a flag
        raise WireError("a confirmation is cut short")
    return int.from_bytes(payload[4:12], "big"), bool(payload[12] & 1)


def read_routing_key(payload: bytes) -> bytes:
    """Return the routing key of a delivered message.

    Raises:
        WireError: It is cut short.
    """
    try:
        position = 5 + payload[4] + 9  # after the consumer, the number of the delivery, and a flag
        position += 1 + payload[position]  # after the exchange
        key = payload[position + 1 : position + 1 + payload[position]]
    except IndexError:
        raise WireError("a delivery is cut short") from None
    return key


def read_content(payload: bytes) -> Content:
    """Return what the header of a message has; properties of other programs are passed over.

    Raises:
        WireError: It is cut short.
    """
    try:
        _, _, size, flags = _CONTENT.unpack_from(payload)
        if flags & _NUMBERED != _NUMBERED or flags & _MORE_FLAGS:
            return Content(size)
        position, found = _CONTENT.size, dict[int, bytes]()
        for bit, width in _PROPERTIES:
            if not flags & 1 << bit:
                continue
            if width is None:
                start, length = position + 1, payload[position]
            elif width < 0:
                start, length = position + 4, int.from_bytes(payload[position : position + 4], "big")
            else:
                start, length = position, width
            position = start + length
            found[bit] = payload[start:position]
    except (struct.error, IndexError):
        raise WireError("the header of a message is cut short") from None
    words = found[7].split(b" ")
    if len(words) != _MESSAGE_ID_WORDS or len(found[7]) > _MAX_MESSAGE_ID or not all(map(bytes.isdigit, words)):
        return Content(size)
    number, age, link, base = map(int, words)
    return Content(size, found[3], number, link, base, age / 1000, int.from_bytes(found[6], "big"))


def read_stream_offset(payload: bytes) -> int | None:
    """Return the place of a message in its stream, from its header; `None` where it came from another kind of queue.

    Raises:
        WireError: It is cut short.
    """
    try:
        position = _CONTENT.size
        if payload.startswith(_ONLY_OFFSET, position):
            position += len(_ONLY_OFFSET)
            return int.from_bytes(payload[position : position + 8], "big")
        header = ContentHeader()
        header.unmarshal(payload)
    except (struct.error, IndexError, ValueError, PAMQPException) as error:
        raise WireError("the header of a message is cut short") from error
    offset: Any = (header.properties.headers or {}).get(_OFFSET)
    return offset if isinstance(offset, int) else None


def _frame(kind: int, payload: bytes) -> bytes:
    return _FRAME.pack(kind, CHANNEL, len(payload)) + payload + _FRAME_END


def _short(text: bytes) -> bytes:
    return bytes((len(text),)) + text
