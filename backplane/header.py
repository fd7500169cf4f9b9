"""The header of a payload: its layout, the extensions of version 2, and path tests. `backplane.fanout.codec` uses it.

All numbers are big-endian:

    offset  size  field
         0     3  magic: BF 42 50. Text in UTF-8 never starts with BF, so foreign text is never taken for a header.
         3     1  version: 1, or 2 with extensions
         4     1  flags: bit 0 the data is binary (else UTF-8 text), bit 1 a connection is excluded, bit 2 the text is
                  JSON (not with bit 0); the rest is zero
         5     8  origin: random bytes of the publishing process
        13     8  publish time, microseconds since the epoch
        21     8  id of the excluded connection, only with bit 1
      then     2  size of the extensions, at most 1,024; only in version 2
      then        the extensions, only in version 2
      then        the data

Version 2 is written only where there are extensions: a reader of version 1 alone takes it for malformed.

One extension is its type (1 byte), the size of its value (1 byte) and the value. Extensions of one type are parts of
one value, in order: so a value can be longer than 255 bytes.

    type   value
    01     trace context: the flags of W3C Trace Context (1 byte), trace id (16), id of the span (8)
    02     `tracestate` of W3C Trace Context, text
    03     `baggage` of W3C Baggage, text
    04-06  reserved: message id, position, content type
    81     path test: its id (8)

A reader that does not know a type below 80 skips it. One that does not know a type from 80 on drops the payload.

A path test has no data and is no message. It takes the way of every message of its channel up to the hubs of the
workers, and no subscriber receives it. An adapter whose `publish` stores messages in the history of a channel must not
store a path test there: `path_test_id` recognizes it.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "BAGGAGE",
    "BINARY",
    "EXCLUDES",
    "EXTENDED_VERSION",
    "HEADER",
    "ID_BYTES",
    "JSON",
    "MAGIC",
    "MAX_EXTENSIONS_BYTES",
    "PATH_TEST",
    "SIZE_BYTES",
    "TRACESTATE",
    "TRACE_CONTEXT",
    "VERSION",
    "body_size",
    "can_be_skipped",
    "critical_types",
    "extensions_at",
    "extensions_of",
    "pack",
    "path_test_id",
    "value_of",
    "without_extensions",
]

MAGIC: Final = b"\xbfBP"
VERSION: Final = 1
EXTENDED_VERSION: Final = 2

BINARY: Final = 1
EXCLUDES: Final = 2
JSON: Final = 4

HEADER: Final = Struct(">3sBB8sQ")
ID_BYTES: Final = 8
"""Size of the id of a connection, and of that of a path test."""
SIZE_BYTES: Final = 2
MAX_EXTENSIONS_BYTES: Final = 1_024

TRACE_CONTEXT: Final = 0x01
TRACESTATE: Final = 0x02
BAGGAGE: Final = 0x03
PATH_TEST: Final = 0x81

_CRITICAL: Final = 0x80  # the first type that a reader must know
_MAX_VALUE_BYTES: Final = 255
_EXTENDED: Final = MAGIC + bytes((EXTENDED_VERSION,))
# Size of a path test, and where in it its id begins: nothing else is in its header.
_PATH_TEST_BYTES: Final = HEADER.size + SIZE_BYTES + 2 + ID_BYTES
_PATH_TEST_MARK: Final = bytes((0, 2 + ID_BYTES, PATH_TEST, ID_BYTES))
_PATH_TEST_ID_AT: Final = HEADER.size + len(_PATH_TEST_MARK)


def pack(values: Iterable[tuple[int, bytes]]) -> bytes:
    """Return extensions as they are written, from types and values."""
    packed = bytearray()
    for kind, value in values:
        for start in range(0, max(len(value), 1), _MAX_VALUE_BYTES):
            part = value[start : start + _MAX_VALUE_BYTES]
            packed += bytes((kind, len(part))) + part
    return bytes(packed)


def value_of(extensions: bytes, kind: int) -> bytes | None:
    """Return the value of a type, or `None` without one. The extensions must be well-formed."""
    found, index = None, 0
    while index < len(extensions):
        end = index + 2 + extensions[index + 1]
        if extensions[index] == kind:
            found = (found or b"") + extensions[index + 2 : end]
        index = end
    return found


def can_be_skipped(extensions: bytes) -> bool:
    """Return whether extensions are well-formed, and none of a type that a reader must know."""
    index, size = 0, len(extensions)
    while index + 1 < size:
        if extensions[index] >= _CRITICAL:
            return False
        index += 2 + extensions[index + 1]
    return index == size


def critical_types(extensions: bytes) -> set[int] | None:
    """Return the types that a reader must know; `None` if the extensions are not well-formed."""
    found = set[int]()
    index, size = 0, len(extensions)
    while index + 1 < size:
        if extensions[index] >= _CRITICAL:
            found.add(extensions[index])
        index += 2 + extensions[index + 1]
    return found if index == size else None


def extensions_at(start: int, payload: bytes) -> bytes | None:
    """Return the extensions whose size is at `start`; `None` in a header that is cut short, or is not of version 2."""
    if payload[3] != EXTENDED_VERSION or len(payload) < start + SIZE_BYTES:
        return None
    size = int.from_bytes(payload[start : start + SIZE_BYTES])
    extensions = payload[start + SIZE_BYTES : start + SIZE_BYTES + size]
    return extensions if len(extensions) == size <= MAX_EXTENSIONS_BYTES else None


def extensions_of(payload: bytes) -> bytes | None:
    """Return the extensions of any payload; `None` if it has no header of version 2, or one that is cut short."""
    if not payload.startswith(_EXTENDED) or len(payload) < HEADER.size:
        return None
    return extensions_at(_start(payload), payload)


def without_extensions(payload: bytes) -> bytes:
    """Return a payload that has extensions without them, of version 1; any other as it is."""
    extensions = extensions_of(payload)
    if extensions is None:
        return payload
    start = _start(payload)
    end = start + SIZE_BYTES + len(extensions)
    return b"".join((MAGIC, bytes((VERSION,)), payload[4:start], payload[end:]))


def body_size(payload: bytes) -> int:
    """Return the size of the data in a payload that was encoded here."""
    if not payload.startswith(MAGIC):
        return len(payload)
    extensions = extensions_of(payload)
    return len(payload) - _start(payload) - (0 if extensions is None else SIZE_BYTES + len(extensions))


def path_test_id(payload: bytes) -> bytes | None:
    """Return the id of a path test; `None` of any other payload, in some 0.1 µs."""
    if len(payload) != _PATH_TEST_BYTES or not payload.startswith(_EXTENDED) or payload[4]:
        return None
    if payload[HEADER.size : _PATH_TEST_ID_AT] != _PATH_TEST_MARK:
        return None
    return payload[_PATH_TEST_ID_AT:]


def _start(payload: bytes) -> int:
    """Return where the part of a header ends that both versions have."""
    return HEADER.size + (ID_BYTES if payload[4] & EXCLUDES else 0)
