"""What is sent on the control channel and to the inbox of a worker that asked: commands and answers, as JSON arrays.

    ["command", id, kind, selector, arguments, inbox | null, issued at]
    ["answer", id, worker, whether it succeeded, value | error]

Unknown kinds and further elements are ignored, so that workers of different versions can be mixed.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from typing import Any, Final

__all__ = ["Answer", "Command", "Selector", "parse_answer", "parse_command"]

_ID_BYTES: Final = 8
_MAX_ID: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Selector:
    """Which connections a command concerns: those for which everything that is given applies.

    Attributes:
        user: Of this user.
        connection: With this id.
        channel: That have joined this channel.
        worker: Of this worker alone.
        exclude: But not the one with this id.
    """

    user: str | None = None
    connection: str | None = None
    channel: str | None = None
    worker: str | None = None
    exclude: str | None = None

    def as_json(self) -> dict[str, str]:
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
        """Return it as text."""
        parts = [self.kind, self.selector.as_json(), self.arguments, self.reply_to, self.issued_at]
        return json.dumps(["command", self.id, *parts], separators=(",", ":"))


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
            TypeError, ValueError: The value is not JSON.
        """
        parts = ["answer", self.id, self.worker, self.succeeded, self.value]
        return json.dumps(parts, separators=(",", ":"), allow_nan=False)


def parse_command(text: str) -> Command | None:
    """Return the command of a text; `None` where it is none."""
    match _parse(text):
        case ["command", str(id), str(kind), dict(selector), dict(arguments), reply_to, issued_at, *_] if (
            0 < len(id) <= _MAX_ID
            and isinstance(reply_to, str | None)
            and isinstance(issued_at, int | float)
            and (selected := _selector(selector)) is not None
        ):
            return Command(
                kind=kind,
                selector=selected,
                arguments=arguments,
                reply_to=reply_to,
                id=id,
                issued_at=issued_at,
            )
    return None


def parse_answer(text: str) -> Answer | None:
    """Return the answer of a text; `None` where it is none."""
    match _parse(text):
        case ["answer", str(id), str(worker), bool(succeeded), value, *_] if (
            len(id) <= _MAX_ID and len(worker) <= _MAX_ID
        ):
            return Answer(id=id, worker=worker, succeeded=succeeded, value=value)
    return None


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _selector(selector: dict[Any, Any]) -> Selector | None:
    """Return a selector; `None` where a worker of another version selects by more than this one knows."""
    if any(name not in Selector.__slots__ or not isinstance(value, str) for name, value in selector.items()):
        return None
    return Selector(**selector)
