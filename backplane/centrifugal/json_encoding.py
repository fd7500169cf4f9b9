"""The JSON encoding: text frames of objects, one a line. The application's data is embedded, as JSON within JSON."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from pydantic_core import from_json

from backplane.centrifugal.command import BadFrameError, Command, append_command
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

__all__ = ["JsonEncoding"]

_BINARY_TAGS: Final = {"encoding": "base64"}
_LINE_BREAKS: Final = str.maketrans("\r\n", "  ")
_TAGS: Final = PUBLICATION.by_name["tags"]
_compact: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
_quote: Final = json.JSONEncoder(ensure_ascii=False).encode
# Each alternative takes one escape, so that the second half of a pair, or of an escaped backslash, is no escape itself.
_ESCAPE: Final = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)


class JsonEncoding:
    """Implements `encoding.Encoding`, which documents the members."""

    name: Literal["json"] = "json"
    ping: str = "{}"

    def decode(self, frame: str | bytes) -> list[Command]:
        """A line break at the end of the frame is allowed, as the reference server allows it."""
        try:
            text = frame if isinstance(frame, str) else frame.decode()
        except UnicodeDecodeError:
            raise BadFrameError("a frame that is not UTF-8") from None
        lines = text.split("\n")
        if not lines[-1]:
            lines.pop()
        if not lines:
            raise BadFrameError("an empty frame")
        commands: list[Command] = []
        for line in lines:
            try:
                value, _ = _parse(line)
            except ValueError:
                raise BadFrameError("a command that is not JSON") from None
            append_command(commands, _read(COMMAND, value), len(line.encode()))
        return commands

    def reply(self, command_id: int, name: str, result: Mapping[str, Any]) -> str:
        """See `Encoding`."""
        return _write(REPLY, {"id": command_id, name: result})

    def error(self, command_id: int, code: int, message: str, temporary: bool) -> str:
        """See `Encoding`."""
        return _write(REPLY, {"id": command_id, "error": {"code": code, "message": message, "temporary": temporary}})

    def push(self, channel: str, name: str, body: Mapping[str, Any]) -> str:
        """See `Encoding`."""
        return _write(REPLY, {"push": {"channel": channel, name: body}})

    def publication(
        self,
        channel: str,
        data: str | bytes,
        *,
        is_json: bool,
        offset: int | None,
        info: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> str:
        """See `Encoding`."""
        content, tags = _content(data, is_json, tags)
        found = f'{{"push":{{"channel":{_quote(channel)},"pub":{{"data":{content}'
        if info is not None:
            found += f',"info":{_write(CLIENT_INFO, info)}'
        if offset:
            found += f',"offset":{offset}'
        if tags:
            found += f',"tags":{_write_field(_TAGS, tags)}'
        return found + "}}}"

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
        content, tags = _content(data, is_json, tags)
        return {"data": content.encode(), "info": info, "offset": offset, "tags": tags}

    def join(self, frames: Sequence[Any]) -> str:
        """See `Encoding`."""
        return "\n".join(frames)

    def embed(self, data: str | bytes, is_json: bool) -> bytes:
        """See `Encoding`."""
        return _content(data, is_json, None)[0].encode()


def _parse(text: str) -> tuple[Any, str]:
    """Return the value of a JSON text of at most 200 levels, and the text, both with U+FFFD for lone surrogates.

    A browser escapes half a pair, which a text that was cut within an emoji holds; but UTF-8 cannot encode it, and most
    parsers refuse it: it would fail later, at another client or in the application. So it is replaced as browsers do
    where they encode.

    Raises:
        ValueError: It is not JSON. NaN and the infinities are not.
    """
    try:
        return from_json(text, allow_inf_nan=False, cache_strings="keys"), text
    except TypeError:
        raise ValueError("a lone surrogate that is not escaped") from None
    except ValueError:
        if "\\u" not in text:
            raise
    text = _ESCAPE.sub(lambda escape: r"\ufffd" if escape[1] else escape[0], text)
    return from_json(text, allow_inf_nan=False, cache_strings="keys"), text


def _content(data: str | bytes, is_json: bool, tags: Mapping[str, str] | None) -> tuple[str, Mapping[str, str] | None]:
    """Return the JSON text, in one line, that stands for `data`, and the tags of a publication that has it."""
    if isinstance(data, bytes):
        if not is_json:
            return f'"{b64encode(data).decode()}"', {**(tags or {}), **_BINARY_TAGS}
        data = data.decode("utf-8", "replace")
    try:
        _, text = _parse(data)
    except ValueError:
        return _text(data), tags
    return text.translate(_LINE_BREAKS) if "\n" in text or "\r" in text else text, tags


def _read(message: MessageType, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadFrameError("a message that is not an object")
    found: dict[str, Any] = {}
    for name, item in cast("dict[str, object]", value).items():
        field = message.by_name.get(name)
        if field is None or (item is None and name != "data"):
            continue
        read = _read_map(field.kind, item) if field.shape is Shape.MAP else _read_value(field.kind, item)
        if read or (isinstance(field.kind, MessageType) and field.shape is Shape.ONE):
            found[name] = read
    return found


def _read_map(kind: Kind | MessageType, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadFrameError("a map that is not an object")
    items = cast("dict[str, object]", value).items()
    return {key: _read_value(kind, item) for key, item in items if item is not None}


def _read_value(kind: Kind | MessageType, value: object) -> Any:
    if isinstance(kind, MessageType):
        return _read(kind, value)
    if kind is Kind.BYTES:
        try:
            return _compact(value).encode()
        except (ValueError, RecursionError):
            raise BadFrameError("a number beyond a double, or data nested too deep") from None
    integers = RANGES.get(kind)
    if integers is not None:
        if type(value) is not int or value not in integers:
            raise BadFrameError("a number that is no integer, or out of range")
    elif type(value) is not (bool if kind is Kind.BOOL else str):
        raise BadFrameError("a value of the wrong type")
    return value


def _write(message: MessageType, body: Mapping[str, Any]) -> str:
    message.check_names(body.keys())
    members: list[str] = []
    for field in message.fields:
        value = body.get(field.name)
        present = value is not None and isinstance(field.kind, MessageType) and field.shape is Shape.ONE
        if value or field.always or present:
            members.append(f'"{field.name}":{_write_field(field, value)}')
    return f"{{{','.join(members)}}}"


def _write_field(field: Field, value: Any) -> str:
    if field.shape is Shape.LIST:
        return f"[{','.join(_write_value(field.kind, item) for item in value or ())}]"
    if field.shape is Shape.MAP:
        items: Mapping[str, Any] = value or {}
        return f"{{{','.join(f'{_text(key)}:{_write_value(field.kind, item)}' for key, item in items.items())}}}"
    return _write_value(field.kind, value)


def _write_value(kind: Kind | MessageType, value: Any) -> str:
    if isinstance(kind, MessageType):
        return _write(kind, value or {})
    if kind is Kind.BYTES:
        return cast("bytes", value).decode() if value else "null"
    if kind is Kind.BOOL:
        return "true" if value else "false"
    return _text(value or "") if kind is Kind.STRING else f"{value or 0:d}"


def _text(value: str) -> str:
    """Return a text as a JSON string. A lone surrogate that is not escaped, which no frame can hold, becomes `?`."""
    quoted = _quote(value)
    return quoted if quoted.isascii() else quoted.encode("utf-8", "replace").decode()
