"""The fields of a log line: flat values under names such as `backplane.channel`, which no formatter uses itself."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["PREFIX", "Value", "extra", "flat"]

Value = str | int | float | bool
"""What a field can be: every formatter and exporter can write it."""

PREFIX: Final = "backplane."
"""In front of each name: a plain `event` would replace the message where structlog formats the line."""

_MAX_CHARACTERS: Final = 1_000

# Of a URL that an error of a broker or a library quotes; the adapters mask their own.
_PASSWORD: Final = re.compile(r"(://[^\s:/@\[]*):(?!\d+[/?])[^\s,]+@")


def flat(fields: Mapping[str, object]) -> dict[str, Value]:
    """Return fields as values that can be logged: texts are cut, passwords of URLs masked, `None` is left out."""
    return {name: _flat(value) for name, value in fields.items() if value is not None}


def extra(event: str, fields: Mapping[str, Value]) -> dict[str, Value]:
    """Return what `logging` takes as `extra`.

    Control characters are escaped: in a log of plain text, a line break in a name would begin a line of its own.
    """
    return {PREFIX + "event": event} | {
        PREFIX + name: _printable(value) if isinstance(value, str) else value for name, value in fields.items()
    }


def _flat(value: object) -> Value:
    if isinstance(value, bool | int | float):
        return value
    text = str(value)
    if "://" in text:
        text = _PASSWORD.sub(r"\1:***@", text)
    return text[:_MAX_CHARACTERS]


def _printable(text: str) -> str:
    return text if text.isprintable() else repr(text)[1:-1]
