"""Data to bytes on the broker, and back.

A payload is a 21-byte header (29 with an excluded connection) and the data. All numbers are big-endian:

    offset  size  field
         0     3  magic: BF 42 50. Text in UTF-8 never starts with BF, so foreign text is never taken for a header.
         3     1  version: 1
         4     1  flags: bit 0 the data is binary (else UTF-8 text), bit 1 a connection is excluded, bit 2 the text is
                  JSON (not with bit 0); the rest is zero
         5     8  origin: random bytes of the publishing process
        13     8  publish time, microseconds since the epoch
        21     8  id of the excluded connection, only with bit 1
      then        the data

A payload without the magic is a foreign publish (`redis-cli PUBLISH chat hello`) and is delivered unchanged, as text if
it is valid UTF-8, else as binary. A payload with the magic and an invalid header is malformed. With the option
`wire_format=plain` the data is written without a header. Both formats are read, whichever is written.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final, cast

from pydantic_core import PydanticSerializationError, to_json

from backplane.errors import ConfigurationError, InvalidDataError
from backplane.message import Message

if TYPE_CHECKING:
    from backplane.broadcaster import WireFormat
    from backplane.message import Position

__all__ = ["JsonText", "decode", "encode", "to_client_data"]

MAGIC: Final = b"\xbfBP"
VERSION: Final = 1
BINARY: Final = 1
EXCLUDES: Final = 2
JSON: Final = 4

_HEADER: Final = Struct(">3sBB8sQ")
_ID_BYTES: Final = 8
# The end of the year 9999: `datetime`, with which applications read `published_at`, accepts no later time.
_MAX_MICROSECONDS: Final = 253_402_300_799 * 1_000_000


class JsonText(str):
    """JSON text that is published as JSON, where a `str` would be published as text."""

    __slots__ = ()


def encode(
    data: object,
    *,
    origin: bytes,
    published_at: float,
    excluded: bytes | None = None,
    wire_format: WireFormat = "header",
    states_json: bool = False,
) -> bytes:
    """Return the payload for `data`: `bytes` are binary, `str` is text, anything else becomes JSON text.

    Pydantic serializes models, dataclasses, datetimes and so on; infinities and NaN become `null`.

    Args:
        data: The data.
        origin: Random bytes of this process.
        published_at: In seconds since the epoch.
        excluded: Id of a connection that does not receive it.
        wire_format: Whether there is a header.
        states_json: Whether the header states that a text is JSON, which a build from before that flag cannot read.

    Raises:
        InvalidDataError: Text that UTF-8 cannot encode, a value that is not JSON, or, without a header, bytes that
            would be taken for one.
        ConfigurationError: A connection is excluded, and without a header it cannot be named.
    """
    if wire_format == "plain":
        return _encode_plain(data, excluded)
    flags = 0
    if isinstance(data, bytes | bytearray | memoryview):
        flags, body = BINARY, bytes(cast("bytes", data))
    else:
        body = _encode_text(data)
        if states_json and (not isinstance(data, str) or isinstance(data, JsonText)):
            flags = JSON
    if excluded is not None:
        flags |= EXCLUDES
        body = excluded + body
    return _HEADER.pack(MAGIC, VERSION, flags, origin, int(published_at * 1e6)) + body


def _encode_plain(data: object, excluded: bytes | None) -> bytes:
    if excluded is not None:
        raise ConfigurationError(
            "exclude needs the header that wire_format=plain leaves out: publish to all, or take off that option"
        )
    body = bytes(cast("bytes", data)) if isinstance(data, bytes | bytearray | memoryview) else _encode_text(data)
    if body.startswith(MAGIC):
        raise InvalidDataError("with wire_format=plain, bytes that start with BF 42 50 would be taken for a header")
    return body


def to_client_data(data: object) -> str | bytes:
    """Return `data` as a client receives it: `bytes` as binary, `str` as text, anything else as JSON text.

    Raises:
        InvalidDataError: Text that UTF-8 cannot encode, or a value that is not JSON.
    """
    if isinstance(data, bytes | bytearray | memoryview):
        return bytes(cast("bytes", data))
    return _encode_text(data).decode()


def _encode_text(data: object) -> bytes:
    # JSON has no infinities and no NaN: they become null.
    try:
        return data.encode() if isinstance(data, str) else to_json(data, inf_nan_mode="null")
    except UnicodeEncodeError as error:
        raise InvalidDataError(
            f"text with a lone surrogate (position {error.start}) cannot be sent: encode it first"
        ) from None
    except PydanticSerializationError as error:
        raise InvalidDataError(
            f"publish takes str, bytes or anything JSON, not {type(data).__name__}: {error}"
        ) from None


def decode(channel: str, payload: bytes, position: Position | None = None) -> Message | None:
    """Return the message of `payload`, or `None` if it is malformed."""
    if not payload.startswith(MAGIC):
        return Message(channel=channel, data=_text_or_bytes(payload), position=position)
    if len(payload) < _HEADER.size:
        return None
    _, version, flags, origin, microseconds = _HEADER.unpack_from(payload)
    start = _HEADER.size
    excluded = None
    if flags & EXCLUDES:
        excluded = payload[start : start + _ID_BYTES]
        start += _ID_BYTES
    if version != VERSION or len(payload) < start or microseconds > _MAX_MICROSECONDS:
        return None
    if flags & ~(BINARY | EXCLUDES | JSON) or flags & (BINARY | JSON) == BINARY | JSON:
        return None
    data: str | bytes = payload[start:]
    if not flags & BINARY:
        try:
            data = str(payload[start:], "utf-8")
        except UnicodeDecodeError:
            return None
    return Message(
        channel=channel,
        data=data,
        origin=origin,
        published_at=microseconds / 1e6,
        excluded=excluded,
        position=position,
        is_json=flags & JSON != 0,
    )


def _text_or_bytes(payload: bytes) -> str | bytes:
    try:
        return payload.decode()
    except UnicodeDecodeError:
        return payload
