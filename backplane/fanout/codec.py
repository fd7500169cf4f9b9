"""Data to bytes on the broker, and back: a header, whose layout is in `backplane.header`, and the data.

A payload without the magic is a foreign publish (`redis-cli PUBLISH chat hello`) and is delivered unchanged, as text if
it is valid UTF-8, else as binary. A payload with the magic and an invalid header is malformed. With the option
`wire_format=plain` the data is written without a header. Both formats are read, whichever is written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, cast

from pydantic_core import PydanticSerializationError, to_json

from backplane.errors import ConfigurationError, InvalidDataError
from backplane.header import (
    BINARY,
    EXCLUDES,
    EXTENDED_VERSION,
    HEADER,
    ID_BYTES,
    JSON,
    MAGIC,
    MAX_EXTENSIONS_BYTES,
    PATH_TEST,
    SIZE_BYTES,
    VERSION,
    can_be_skipped,
    critical_types,
    extensions_at,
    extensions_of,
    pack,
    path_test_id,
    without_extensions,
)
from backplane.message import ExtendedMessage, Message

if TYPE_CHECKING:
    from backplane.broadcaster import WireFormat
    from backplane.message import Position

__all__ = [
    "JsonText",
    "decode",
    "encode",
    "encode_path_test",
    "reason_of_drop",
    "to_client_data",
]

# The end of the year 9999: `datetime`, with which applications read `published_at`, accepts no later time.
_MAX_MICROSECONDS: Final = 253_402_300_799 * 1_000_000
_KNOWN_FLAGS: Final = frozenset({0, BINARY, EXCLUDES, BINARY | EXCLUDES, JSON, JSON | EXCLUDES})


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
    extensions: bytes = b"",
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
        extensions: What `header.pack` returned; left out where it is too large, and without a header.

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
    version = VERSION
    if extensions and len(extensions) <= MAX_EXTENSIONS_BYTES:
        version = EXTENDED_VERSION
        body = b"".join((len(extensions).to_bytes(SIZE_BYTES), extensions, body))
    if excluded is not None:
        flags |= EXCLUDES
        body = excluded + body
    return HEADER.pack(MAGIC, version, flags, origin, int(published_at * 1e6)) + body


def encode_path_test(test_id: bytes, *, origin: bytes, published_at: float) -> bytes:
    """Return the payload of a path test: 33 bytes, with a header on every channel.

    Args:
        test_id: 8 bytes that name the test.
        origin: Random bytes of this process.
        published_at: In seconds since the epoch.
    """
    extensions = pack([(PATH_TEST, test_id)])
    return encode("", origin=origin, published_at=published_at, extensions=extensions)


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
    """Return the message of `payload`, or `None` if it is none to deliver: `reason_of_drop` returns why."""
    if not payload.startswith(MAGIC):
        return Message(channel=channel, data=_text_or_bytes(payload), position=position)
    if len(payload) < HEADER.size:
        return None
    _, version, flags, origin, microseconds = HEADER.unpack_from(payload)
    start = HEADER.size
    excluded = None
    if flags & EXCLUDES:
        excluded = payload[start : start + ID_BYTES]
        start += ID_BYTES
    extensions = None
    if version != VERSION:
        extensions = extensions_at(start, payload)
        if extensions is None or not can_be_skipped(extensions):
            return None
        start += SIZE_BYTES + len(extensions)
    if len(payload) < start or microseconds > _MAX_MICROSECONDS or flags not in _KNOWN_FLAGS:
        return None
    data: str | bytes = payload[start:]
    if not flags & BINARY:
        try:
            data = str(payload[start:], "utf-8")
        except UnicodeDecodeError:
            return None
    if extensions:
        return ExtendedMessage(
            channel=channel,
            data=data,
            origin=origin,
            published_at=microseconds / 1e6,
            excluded=excluded,
            position=position,
            is_json=flags & JSON != 0,
            extensions=extensions,
        )
    return Message(
        channel=channel,
        data=data,
        origin=origin,
        published_at=microseconds / 1e6,
        excluded=excluded,
        position=position,
        is_json=flags & JSON != 0,
    )


def reason_of_drop(payload: bytes) -> Literal["malformed", "unsupported", "path test"]:
    """Return why `decode` returned `None` for `payload`.

    A payload is unsupported where it has an extension that this release does not know, and that is not to be skipped.
    """
    if path_test_id(payload) is not None:
        return "path test"
    extensions = extensions_of(payload)
    critical = None if extensions is None else critical_types(extensions)
    if not critical or critical == {PATH_TEST} or decode("", without_extensions(payload)) is None:
        return "malformed"
    return "unsupported"


def _text_or_bytes(payload: bytes) -> str | bytes:
    try:
        return payload.decode()
    except UnicodeDecodeError:
        return payload
