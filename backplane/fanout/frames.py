"""WebSocket frames, built once for all sockets that a message goes to.

What a server sends: not masked, one frame a message (RFC 6455 section 5.2). The frame of a message is the same on every
connection, so it is built once and its bytes are written to each.
"""

from __future__ import annotations

import struct
import zlib
from typing import Final

__all__ = ["compress_frame", "encode_frame"]

_FINAL: Final = 0x80
_COMPRESSED: Final = 0x40  # RSV1, RFC 7692 section 6
_TEXT: Final = 0x1
_BINARY: Final = 0x2

_SHORT = struct.Struct("!BB")
_MEDIUM = struct.Struct("!BBH")
_LONG = struct.Struct("!BBQ")

# What a sync flush ends with, and what the receiver puts back (RFC 7692 section 7.2.1).
_FLUSH_TAIL: Final = b"\x00\x00\xff\xff"


def encode_frame(data: str | bytes) -> bytes:
    """Return `data` as one final frame: text for `str`, binary for `bytes`.

    Legal on every open connection, one that negotiated permessage-deflate included: compression is per message.

    Raises:
        UnicodeEncodeError: `data` holds a lone surrogate, which is no text.
    """
    opcode, payload = _parts(data)
    return _frame(_FINAL | opcode, payload)


def compress_frame(data: str | bytes, window_bits: int) -> bytes:
    """Return `data` as one final frame compressed by permessage-deflate, or as it is where that is no longer.

    It depends on no earlier message, so it is legal on every connection whose server side negotiated
    `server_no_context_takeover` and a window of at least `window_bits` (RFC 7692 section 7.2.1), and on no other.

    Args:
        data: Text or binary.
        window_bits: From 9 to 15; zlib makes no raw stream with 8.

    Raises:
        ValueError: `window_bits` is none of these.
        UnicodeEncodeError: `data` holds a lone surrogate, which is no text.
    """
    opcode, payload = _parts(data)
    deflate = zlib.compressobj(wbits=-window_bits)
    compressed = deflate.compress(payload) + deflate.flush(zlib.Z_SYNC_FLUSH)
    compressed = compressed.removesuffix(_FLUSH_TAIL)
    if len(compressed) >= len(payload):
        return _frame(_FINAL | opcode, payload)
    return _frame(_FINAL | _COMPRESSED | opcode, compressed)


def _parts(data: str | bytes) -> tuple[int, bytes]:
    return (_TEXT, data.encode()) if isinstance(data, str) else (_BINARY, data)


def _frame(first: int, payload: bytes) -> bytes:
    length = len(payload)
    if length < 126:
        return _SHORT.pack(first, length) + payload
    if length < 65536:
        return _MEDIUM.pack(first, 126, length) + payload
    return _LONG.pack(first, 127, length) + payload
