"""Frames of the Centrifugal client protocol, as a test writes and reads them: the same in JSON and in Protobuf.

Commands and replies are what they are in JSON. Protobuf is read here by code of the tests' own.
"""

# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, Literal

from backplane.centrifugal.protobuf import message_of
from backplane.centrifugal.schema import COMMAND, RANGES, REPLY, Kind, MessageType, Shape

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["ENCODINGS", "EncodingName", "frame_of", "replies_in", "varint"]

EncodingName = Literal["json", "protobuf"]
ENCODINGS: Final[tuple[EncodingName, ...]] = ("json", "protobuf")

_NO_COMMANDS: Final = {"ping": bytes.fromhex("5a00"), "nosuch": bytes.fromhex("fa0100")}
"""What the schema of the server does not have."""


def frame_of(encoding: EncodingName, commands: Sequence[Mapping[str, Any]]) -> str | bytes:
    """Return one frame of commands."""
    if encoding == "json":
        return "\n".join(json.dumps(command, separators=(",", ":")) for command in commands)
    return b"".join(varint(len(message)) + message for message in map(_command, commands))


def replies_in(frame: str | bytes) -> list[dict[str, Any]]:
    """Return the replies and pushes of a frame; one of Protobuf has the fields that are there."""
    if isinstance(frame, str):
        return [json.loads(line) for line in frame.split("\n")]
    found: list[dict[str, Any]] = []
    position = 0
    while position < len(frame):
        size, position = _number(frame, position)
        found.append(_message(REPLY, frame[position : position + size]))
        position += size
    return found


def varint(value: int) -> bytes:
    """Return a number as Protobuf has it."""
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*found, value))


def _command(command: Mapping[str, Any]) -> bytes:
    known = {name: value for name, value in command.items() if name not in _NO_COMMANDS}
    others = b"".join(data for name, data in _NO_COMMANDS.items() if name in command)
    return message_of(COMMAND, _with_bytes(known)) + others


def _with_bytes(value: Any, name: str = "") -> Any:
    if name == "data":
        return json.dumps(value, separators=(",", ":")).encode()
    return {name: _with_bytes(item, name) for name, item in value.items()} if isinstance(value, dict) else value


def _message(message: MessageType, data: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for number, content in _fields(data):
        field = message.by_number[number]
        value = _value(field.kind, content) if field.shape is not Shape.MAP else None
        if field.shape is Shape.LIST:
            found.setdefault(field.name, []).append(value)
        elif field.shape is Shape.MAP:
            item: dict[int, Any] = dict(_fields(content))
            found.setdefault(field.name, {})[item.get(1, b"").decode()] = _value(field.kind, item.get(2, b""))
        else:
            found[field.name] = value
    return found


def _value(kind: Kind | MessageType, content: Any) -> Any:
    if isinstance(kind, MessageType):
        return _message(kind, content)
    if kind is Kind.BOOL or kind in RANGES:
        return bool(content) if kind is Kind.BOOL else content
    return json.loads(content) if kind is Kind.BYTES else content.decode()


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    position = 0
    while position < len(data):
        key, position = _number(data, position)
        value, position = _number(data, position)
        if key & 7 == 2:
            position += value
            yield key >> 3, data[position - value : position]
        else:
            yield key >> 3, value


def _number(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, position
