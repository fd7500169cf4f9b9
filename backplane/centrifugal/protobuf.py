"""The Protobuf encoding: binary frames of messages, each after its length.

Source: https://protobuf.dev/programming-guides/encoding/. Of the wire types the protocol uses two, numbers and what has
a length; fields of the two that have a fixed size are skipped, as other unknown fields are; groups are refused. Of a
field that is there more than once the last one counts.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final, Literal

from backplane.centrifugal.command import MAX_COMMANDS, BadFrameError, Command, append_command
from backplane.centrifugal.schema import (
    CLIENT_INFO,
    COMMAND,
    PUBLICATION,
    RANGES,
    REPLY,
    Field,
    Kind,
    MessageType,
    Shape,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["ProtobufEncoding", "message_of"]

_NUMBER: Final = 0
_DELIMITED: Final = 2
_FIXED_SIZES: Final = {1: 8, 5: 4}
_WRAP: Final = 1 << 64
_SHORT: Final = [bytes((value,)) for value in range(0x80)]
_SIGNED: Final = {Kind.INT32, Kind.INT64}
_NUMBERS: Final = {Kind.BOOL, *RANGES}
_FIELD_NUMBERS: Final = 1 << 29
# A subscribe that recovers has eleven.
_MAX_FIELDS: Final = 12 * MAX_COMMANDS
_MOST_BITS: Final = 10 * 7
_TAGS: Final = PUBLICATION.by_name["tags"]


class ProtobufEncoding:
    """Implements `encoding.Encoding`, which documents the members."""

    name: Literal["protobuf"] = "protobuf"
    ping: bytes = b"\x00"

    def decode(self, frame: str | bytes) -> list[Command]:
        """A text frame is a bad one."""
        if isinstance(frame, str):
            raise BadFrameError("a text frame")
        if not frame:
            raise BadFrameError("an empty frame")
        commands: list[Command] = []
        reader = _Reader(frame)
        position = 0
        while position < len(frame):
            start, position = _read_length(frame, position, len(frame))
            append_command(commands, reader.message(COMMAND, start, position), position - start)
        return commands

    def reply(self, command_id: int, name: str, result: Mapping[str, Any]) -> bytes:
        """See `Encoding`."""
        return _framed({"id": command_id, name: result})

    def error(self, command_id: int, code: int, message: str, temporary: bool) -> bytes:
        """See `Encoding`."""
        return _framed({"id": command_id, "error": {"code": code, "message": message, "temporary": temporary}})

    def push(self, channel: str, name: str, body: Mapping[str, Any]) -> bytes:
        """See `Encoding`."""
        return _framed({"push": {"channel": channel, name: body}})

    def publication(
        self,
        channel: str,
        data: str | bytes,
        *,
        is_json: bool,
        offset: int | None,
        info: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> bytes:
        """See `Encoding`."""
        content = self.embed(data, is_json)
        pub = b"".join((b"\x22", _varint_of(len(content)), content)) if content else b""
        if info is not None:
            pub += _delimited(5, message_of(CLIENT_INFO, info))
        if offset:
            pub += b"\x30" + _varint_of(offset)
        if tags:
            pub += _map_of(_TAGS, tags)
        name = channel.encode()
        push = b"".join((b"\x12", _varint_of(len(name)), name, b"\x22", _varint_of(len(pub)), pub))
        size = _varint_of(len(push))
        return b"".join((_varint_of(1 + len(size) + len(push)), b"\x22", size, push))

    def publication_body(
        self,
        data: str | bytes,
        *,
        is_json: bool,
        offset: int | None,
        info: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """See `Encoding`."""
        return {"data": self.embed(data, is_json), "info": info, "offset": offset, "tags": tags}

    def join(self, frames: Sequence[Any]) -> bytes:
        """See `Encoding`."""
        return b"".join(frames)

    def embed(self, data: str | bytes, is_json: bool) -> bytes:
        """See `Encoding`."""
        return data if isinstance(data, bytes) else data.encode("utf-8", "replace")


def message_of(message: MessageType, body: Mapping[str, Any]) -> bytes:
    """Return the message of these fields, of which those that are `None`, 0 or empty are left out."""
    message.check_names(body.keys())
    fields = ((field, body.get(field.name)) for field in message.fields)
    return b"".join(_field_of(field, value) for field, value in fields if value is not None)


def _framed(reply: Mapping[str, Any]) -> bytes:
    message = message_of(REPLY, reply)
    return _varint_of(len(message)) + message


def _field_of(field: Field, value: Any) -> bytes:
    if field.shape is Shape.MAP:
        return _map_of(field, value)
    if field.shape is Shape.LIST:
        return b"".join(_value_of(field.number, field.kind, item) for item in value)
    return _value_of(field.number, field.kind, value) if value or isinstance(field.kind, MessageType) else b""


def _map_of(field: Field, value: Mapping[str, Any]) -> bytes:
    """Return one message for each item: a map is a list of those."""
    return b"".join(
        _delimited(field.number, _value_of(1, Kind.STRING, key) + _value_of(2, field.kind, item))
        for key, item in value.items()
    )


def _value_of(number: int, kind: Kind | MessageType, value: Any) -> bytes:
    if isinstance(kind, MessageType):
        return _delimited(number, message_of(kind, value))
    if kind in _NUMBERS:
        return _varint_of(number << 3 | _NUMBER) + _varint_of(value % _WRAP)
    return _delimited(number, value if kind is Kind.BYTES else value.encode("utf-8", "replace"))


def _delimited(number: int, content: bytes) -> bytes:
    return b"".join((_varint_of(number << 3 | _DELIMITED), _varint_of(len(content)), content))


def _varint_of(value: int) -> bytes:
    if value < 0x80:
        return _SHORT[value]
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


class _Reader:
    """Reads the messages of one frame, of which the number of fields is bounded.

    A field can be as short as two bytes, and takes longer to read than JSON of that size: without the bound, a frame of
    1 MiB could occupy the event loop for half a second.
    """

    __slots__ = ("_data", "_fields_left")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._fields_left = _MAX_FIELDS

    def message(self, message: MessageType, position: int, end: int) -> dict[str, Any]:
        """Return the fields of the message that is there."""
        data = self._data
        found: dict[str, Any] = {}
        while position < end:
            self._fields_left -= 1
            if self._fields_left < 0:
                raise BadFrameError("too many fields in a frame")
            key, position = _read_varint(data, position, end)
            field = message.by_number.get(key >> 3)
            if field is None:
                position = _skip(data, key, position, end)
                continue
            wire_type = key & 7
            if wire_type != (_NUMBER if field.kind in _NUMBERS else _DELIMITED):
                raise BadFrameError("a field of the wrong type")
            if wire_type == _NUMBER:
                number, position = _read_varint(data, position, end)
                value: Any = _number(field.kind, number)
            else:
                start, position = _read_length(data, position, end)
                if field.shape is Shape.MAP:
                    item = self.message(_item_type(field.kind), start, position)
                    found.setdefault(field.name, {})[item.get("key", "")] = item.get("value", _default(field.kind))
                    continue
                value = self._value(field.kind, start, position)
            if value or isinstance(field.kind, MessageType):
                found[field.name] = value
            else:
                found.pop(field.name, None)
        return found

    def _value(self, kind: Kind | MessageType, start: int, end: int) -> Any:
        if isinstance(kind, MessageType):
            return self.message(kind, start, end)
        content = self._data[start:end]
        if kind is Kind.BYTES:
            return content
        try:
            return content.decode()
        except UnicodeDecodeError:
            raise BadFrameError("a text that is not UTF-8") from None


def _number(kind: Kind | MessageType, value: int) -> int:
    if kind is Kind.BOOL:
        return value != 0
    if kind in _SIGNED and value >= _WRAP >> 1:
        value -= _WRAP
    if value not in RANGES[kind]:
        raise BadFrameError("a number out of range")
    return value


@cache
def _item_type(kind: Kind | MessageType) -> MessageType:
    """Return the type of the messages of which a map of such values is a list."""
    return MessageType(Field(1, "key", Kind.STRING), Field(2, "value", kind))


def _default(kind: Kind | MessageType) -> Any:
    return {} if isinstance(kind, MessageType) else ""


def _skip(data: bytes, key: int, position: int, end: int) -> int:
    """Return where a field that is not known ends."""
    if not 0 < key >> 3 < _FIELD_NUMBERS:
        raise BadFrameError("a field number out of range")
    wire_type = key & 7
    if wire_type == _NUMBER:
        return _read_varint(data, position, end)[1]
    if wire_type == _DELIMITED:
        return _read_length(data, position, end)[1]
    if wire_type not in _FIXED_SIZES:
        raise BadFrameError("a group, or a field of an unknown type")
    position += _FIXED_SIZES[wire_type]
    if position > end:
        raise BadFrameError("a message that ends within a field")
    return position


def _read_length(data: bytes, position: int, end: int) -> tuple[int, int]:
    """Return where what follows its length starts and ends. Nothing is allocated before the length is checked."""
    length, start = _read_varint(data, position, end)
    if length > end - start:
        raise BadFrameError("a length beyond the end")
    return start, start + length


def _read_varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    """Return the number that is there, of at most ten bytes, and where it ends."""
    value = shift = 0
    while position < end and shift < _MOST_BITS:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >= _WRAP:
                break
            return value, position
        shift += 7
    raise BadFrameError("a number of more than 64 bits, or that does not end")
