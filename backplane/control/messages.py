"""What is sent on the control channel and to the inbox of a worker that asked: commands and answers, as JSON arrays.

    ["command", id, kind, selector, arguments, inbox | null, issued at]
    ["answer", id, worker, whether it succeeded, value | error]

Further elements are ignored, so that workers of different versions can be mixed. A selector has no such freedom: what
an older worker does not know would select more than is meant.

Any program that can publish to the broker can send these, so each part is checked when it is received.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic_core import PydanticSerializationError, to_json

from backplane.cluster.topics import is_inbox, is_worker
from backplane.errors import InvalidDataError
from backplane.option_checks import is_number

__all__ = ["Answer", "Command", "Selector", "parse_answer", "parse_command"]

_ID_BYTES: Final = 8
_MAX_ID: Final = 64
_MAX_MOMENT: Final = 1e12


@dataclass(frozen=True, slots=True, kw_only=True)
class Selector:
    """Which connections a command concerns: those for which everything that is given applies.

    Attributes:
        user: Of this user.
        connection: With this id.
        channel: That have joined this channel.
        worker: Of this worker alone.
        exclude: But not the one with this id.
        opened_before: That were opened before this moment, in seconds since the epoch by the clock of their worker. Of
            those that were opened in the very same moment, the ones with a smaller id than `exclude`.
    """

    user: str | None = None
    connection: str | None = None
    channel: str | None = None
    worker: str | None = None
    exclude: str | None = None
    opened_before: float | None = None

    def as_json(self) -> dict[str, str | float]:
        """Return what is given."""
        return {name: value for name in self.__slots__ if (value := getattr(self, name)) is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command to all workers.

    Attributes:
        kind: What is to be done.
        selector: With which connections.
        arguments: What the kind needs beside.
        reply_to: The inbox to which each worker answers; `None` where none is awaited.
        id: Random name: a worker applies a command once.
        issued_at: When it was issued, in seconds since the epoch by the clock of the sender.
    """

    kind: str
    selector: Selector = field(default_factory=Selector)
    arguments: dict[str, Any] = field(default_factory=dict[str, Any])
    reply_to: str | None = None
    id: str = field(default_factory=lambda: os.urandom(_ID_BYTES).hex())
    issued_at: float = field(default_factory=time.time)

    def encode(self) -> str:
        """Return it as text.

        Raises:
            InvalidDataError: An argument is not JSON.
        """
        parts = [self.kind, self.selector.as_json(), self.arguments, self.reply_to, self.issued_at]
        return _encode(["command", self.id, *parts])


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one worker answers to one command.

    Attributes:
        id: That of the command.
        worker: Which worker.
        succeeded: Whether `value` is the answer; else it is what went wrong, in words.
        value: Anything JSON.
    """

    id: str
    worker: str
    succeeded: bool
    value: Any

    def encode(self) -> str:
        """Return it as text.

        Raises:
            InvalidDataError: The value is not JSON.
        """
        return _encode(["answer", self.id, self.worker, self.succeeded, self.value])


def parse_command(text: str) -> Command | None:
    """Return the command of a text; `None` where it is none."""
    match _parse(text):
        case ["command", str(id), str(kind), selector, arguments, reply_to, issued_at, *_] if (
            0 < len(id) <= _MAX_ID
            and (given := _object(arguments)) is not None
            and (reply_to is None or (isinstance(reply_to, str) and is_inbox(reply_to)))
            and _is_moment(issued_at)
            and (selected := _selector(selector)) is not None
        ):
            return Command(kind=kind, selector=selected, arguments=given, reply_to=reply_to, id=id, issued_at=issued_at)
        case _:
            return None


def parse_answer(text: str) -> Answer | None:
    """Return the answer of a text; `None` where it is none."""
    match _parse(text):
        case ["answer", str(id), str(worker), bool(succeeded), value, *_] if 0 < len(id) <= _MAX_ID and is_worker(
            worker
        ):
            return Answer(id=id, worker=worker, succeeded=succeeded, value=value)
        case _:
            return None


def _encode(parts: list[Any]) -> str:
    """Return JSON, as `publish` makes it: models are serialized, infinities and NaN become `null`."""
    try:
        return to_json(parts, inf_nan_mode="null").decode()
    except (PydanticSerializationError, ValueError) as error:  # the second one of a value that contains itself
        raise InvalidDataError(f"what workers exchange must be JSON: {error}") from None


def _parse(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse)
    # A syntax error, an integer of too many digits, NaN; too deep a nesting.
    except (ValueError, RecursionError):
        return None


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _is_moment(value: object) -> bool:
    """Return whether `value` is a number that can be a time, in seconds since the epoch."""
    return is_number(value) and abs(value) < _MAX_MOMENT


def _object(value: object) -> dict[str, Any] | None:
    """Return an object of JSON; `None` where it is none."""
    return value if isinstance(value, dict) else None  # pyright: ignore[reportUnknownVariableType]


def _selector(selector: object) -> Selector | None:
    """Return a selector; `None` where a worker of another version selects by more than this one knows."""
    if (given := _object(selector)) is None:
        return None
    for name, value in given.items():
        is_valid = _is_moment(value) if name == "opened_before" else isinstance(value, str)
        if name not in Selector.__slots__ or not is_valid:
            return None
    return Selector(**given)
