"""The messages of the presence protocol as text: JSON arrays, of which unknown kinds and extra fields are ignored.

What is decoded is checked field by field: it comes from whatever can publish to the broker.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from backplane.channels import MAX_CHANNEL_BYTES
from backplane.presence_types import MAX_INFO_BYTES, MAX_USER_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "MAX_TEXT",
    "Beacon",
    "Delta",
    "Entry",
    "Fact",
    "Goodbye",
    "Heartbeat",
    "Message",
    "Refused",
    "Request",
    "Snapshot",
    "State",
    "decode",
    "encode",
]

MAX_TEXT: Final = 4 << 20
"""Longest message that is decoded, in characters."""

_MAX_CONNECTION: Final = 64
_MAX_NUMBER: Final = 1 << 53
_MAX_SECONDS: Final = 1e12
_MAX_LABEL: Final = 255
_WORKER_LENGTH: Final = 16
_NO_INFO: Final = "null"


@dataclass(slots=True)
class Entry:
    """A connection in a channel, as its worker states it. It is not changed: another one takes its place.

    Attributes:
        connection: Its id, unique on its worker.
        user: Its user.
        info: What it states of itself, as JSON.
        since: When it entered, or stated another info, in seconds since the epoch by the clock of its worker.
    """

    connection: str
    user: str
    info: str
    since: float


class Heartbeat(NamedTuple):
    """A worker is alive.

    Attributes:
        worker: Which one.
        number: Grows with each heartbeat and goodbye of the worker.
        info: What the worker states of itself.
    """

    worker: str
    number: int
    info: dict[str, object]


class Goodbye(NamedTuple):
    """A worker has ended in order. The attributes are those of `Heartbeat`."""

    worker: str
    number: int


class Request(NamedTuple):
    """A worker asks what it does not know of a channel.

    Attributes:
        worker: Which one.
        known: The version that it holds, by owner.
        everyone: Every owner answers with what it states itself; otherwise one responder answers with all it holds.
        version: What the worker states of the channel has this version; 0 for nothing.
        number: Repeated in the answer.
    """

    worker: str
    known: dict[str, int]
    everyone: bool
    version: int
    number: int


class Delta(NamedTuple):
    """What has changed of an owner's entries.

    Attributes:
        worker: The owner.
        base: The version to which this is the difference; 0 if `changed` is all there is.
        version: The version that it leads to.
        changed: The new and the changed entries, by connection.
        gone: The connections that left.
        request: The owner asks at the same time.
        size: How many entries there are now.
    """

    worker: str
    base: int
    version: int
    changed: dict[str, Entry]
    gone: list[str]
    request: Request | None
    size: int


class Snapshot(NamedTuple):
    """All entries of an owner, or how many there are.

    Attributes:
        worker: The owner.
        version: The version.
        entries: The entries, by connection, or their number in a channel that has only counts.
    """

    worker: str
    version: int
    entries: dict[str, Entry] | int


class Beacon(NamedTuple):
    """The version of an owner, where it has not changed for some time.

    Attributes:
        worker: The owner.
        version: The version.
        size: How many entries there are.
    """

    worker: str
    version: int
    size: int


class Fact(NamedTuple):
    """What an owner states of a channel, as another worker holds it.

    Attributes:
        version: The version.
        entries: The entries, or their number, or `None` if only the version is named.
        age: How long ago a message of the owner in this channel was last received, in seconds.
        silent: How long ago a heartbeat of the owner was last received, in seconds.
    """

    version: int
    entries: dict[str, Entry] | int | None
    age: float
    silent: float


class State(NamedTuple):
    """The answer to a request.

    Attributes:
        worker: The worker that answers.
        channel: The channel.
        facts: By owner.
        whole: Nothing is missing from it that the worker knows, and the worker knows of nothing that it misses.
        number: The number of the request.
    """

    worker: str
    channel: str
    facts: dict[str, Fact]
    whole: bool
    number: int


Message = Heartbeat | Goodbye | Delta | Snapshot | Beacon | Request | State


class Refused(Enum):
    """Why a text is no message."""

    INVALID = "invalid"
    UNKNOWN = "unknown"


class _InvalidError(Exception):
    """A field is not what it must be."""


def _constant(_: str) -> object:
    raise _InvalidError


# Made once: `json.loads` with an option makes a decoder at each call.
_decoder: Final = json.JSONDecoder(parse_constant=_constant)
_loads: Final = _decoder.decode
_first_value: Final = _decoder.raw_decode
_dumps: Final = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


def encode(message: Message) -> str:
    """Return a message as text."""
    return _dumps(_ENCODERS[type(message)](message))


def decode(text: str) -> Message | Refused:
    """Return the message that a text holds, or why it holds none. Nothing is raised, whatever the text holds."""
    if len(text) > MAX_TEXT:
        return Refused.INVALID
    try:
        # What workers send begins with a bracket and ends after the value: `decode` looks for whitespace around it.
        fields, end = _first_value(text) if text[:1] == "[" else (_loads(text), len(text))
        if end != len(text):
            fields = _loads(text)
        if fields.__class__ is not list or not isinstance(kind := fields[0], str):
            return Refused.INVALID
        reader = _DECODERS.get(kind)
        return Refused.UNKNOWN if reader is None else reader(fields)
    # Of JSON: a syntax error, an integer of too many digits, too deep a nesting. Of fields: one that is missing.
    except (ValueError, RecursionError, IndexError, _InvalidError):
        return Refused.INVALID


# -- encoding ----------------------------------------------------------------------------------------------------------


def _entries(entries: Mapping[str, Entry]) -> dict[str, list[object]]:
    return {connection: [entry.user, entry.info, entry.since] for connection, entry in entries.items()}


def _counted(entries: dict[str, Entry] | int | None) -> object:
    return _entries(entries) if isinstance(entries, dict) else entries


def _heartbeat(message: Heartbeat) -> list[object]:
    return ["beat", message.worker, message.number, message.info]


def _goodbye(message: Goodbye) -> list[object]:
    return ["bye", message.worker, message.number]


def _delta(message: Delta) -> list[object]:
    request = message.request
    asks = None if request is None else [request.known, request.everyone, request.number]
    changed = _entries(message.changed)
    return ["delta", message.worker, message.base, message.version, changed, message.gone, asks, message.size]


def _snapshot(message: Snapshot) -> list[object]:
    return ["snap", message.worker, message.version, _counted(message.entries)]


def _beacon(message: Beacon) -> list[object]:
    return ["beacon", message.worker, message.version, message.size]


def _request(message: Request) -> list[object]:
    return ["ask", message.worker, message.known, message.everyone, message.version, message.number]


def _state(message: State) -> list[object]:
    facts = {
        owner: [fact.version, _counted(fact.entries), round(fact.age, 1), round(fact.silent, 1)]
        for owner, fact in message.facts.items()
    }
    return ["view", message.worker, message.channel, facts, message.whole, message.number]


_ENCODERS: Final[dict[type, Callable[[Any], list[object]]]] = {
    Heartbeat: _heartbeat,
    Goodbye: _goodbye,
    Delta: _delta,
    Snapshot: _snapshot,
    Beacon: _beacon,
    Request: _request,
    State: _state,
}


# -- decoding ----------------------------------------------------------------------------------------------------------


def _number(value: object) -> int:
    """Return a version, a count or the like. `True` is no number, nor is 1.0."""
    if type(value) is not int or not 0 <= value < _MAX_NUMBER:
        raise _InvalidError
    return value


def _version(value: object) -> int:
    """Return the version of something that was published: 0 stands for nothing."""
    number = _number(value)
    if not number:
        raise _InvalidError
    return number


def _flag(value: object) -> bool:
    if value is not True and value is not False:
        raise _InvalidError
    return value


def _seconds(value: object) -> float:
    if (type(value) is not float and type(value) is not int) or not 0 <= value <= _MAX_SECONDS:
        raise _InvalidError
    return value


def _worker(value: object) -> str:
    if not isinstance(value, str) or len(value) != _WORKER_LENGTH or not (value.isascii() and value.isalnum()):
        raise _InvalidError
    return value


def _text(value: object, most: int) -> str:
    """Return a text of at most so many bytes that UTF-8 can encode: JSON can escape what it cannot."""
    if not isinstance(value, str) or len(value) > most:
        raise _InvalidError
    # A lone surrogate is a `UnicodeEncodeError`, which is a `ValueError`.
    if not value.isascii() and len(value.encode()) > most:
        raise _InvalidError
    return value


def _array(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise _InvalidError
    return value  # pyright: ignore[reportUnknownVariableType]


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _InvalidError
    return value  # pyright: ignore[reportUnknownVariableType]


def _connection(value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_CONNECTION or not value.isascii():
        raise _InvalidError
    return value


def _read_entries(value: Any) -> dict[str, Entry]:
    """Return entries. Its checks are in line: most of what is received are a few entries."""
    entries: dict[str, Entry] = {}
    if value.__class__ is not dict:
        raise _InvalidError
    for connection, fields in value.items():
        if not 0 < len(connection) <= _MAX_CONNECTION or not connection.isascii():
            raise _InvalidError
        if fields.__class__ is not list:
            raise _InvalidError
        user, info, since = fields[:3]
        if type(user) is not str or len(user) > MAX_USER_BYTES or not user.isascii():
            _text(user, MAX_USER_BYTES)
        if info == _NO_INFO:
            info = _NO_INFO  # one text for all entries without an info
        elif type(info) is not str or len(info) > MAX_INFO_BYTES or not info.isascii():
            _text(info, MAX_INFO_BYTES)
        if type(since) is not float or not 0 <= since <= _MAX_SECONDS:
            _seconds(since)
        entries[connection] = Entry(connection, user, info, since)
    return entries


def _read_counted(value: object) -> dict[str, Entry] | int:
    return _read_entries(value) if isinstance(value, dict) else _number(value)


def _read_known(value: object) -> dict[str, int]:
    return {_worker(worker): _number(version) for worker, version in _object(value).items()}


_LABELS: Final = ("host", "package")
_NUMBERS: Final = ("pid", "started", "connections")


def _read_info(value: object) -> dict[str, object]:
    """Return the fields that are known and well-formed: what a worker states of itself is for people alone."""
    given = _object(value)
    info: dict[str, object] = {}
    for name in _LABELS:
        label = given.get(name)
        if isinstance(label, str) and len(label) <= _MAX_LABEL:
            info[name] = label
    for name in _NUMBERS:
        number = given.get(name)
        if isinstance(number, int | float) and not isinstance(number, bool) and 0 <= number <= _MAX_SECONDS:
            info[name] = number
    return info


def _read_heartbeat(fields: list[Any]) -> Heartbeat:
    return Heartbeat(_worker(fields[1]), _version(fields[2]), _read_info(fields[3]))


def _read_goodbye(fields: list[Any]) -> Goodbye:
    return Goodbye(_worker(fields[1]), _version(fields[2]))


def _read_delta(fields: list[Any]) -> Delta:
    """Return a delta. Its checks are in line as well: most messages are deltas."""
    _, worker, base, version, changed, gone, asks, size = fields[:8]
    if type(worker) is not str or len(worker) != _WORKER_LENGTH or not (worker.isascii() and worker.isalnum()):
        raise _InvalidError
    if type(base) is not int or type(version) is not int or not 0 <= base < version < _MAX_NUMBER:
        raise _InvalidError
    if type(size) is not int or not 0 <= size < _MAX_NUMBER or gone.__class__ is not list:
        raise _InvalidError
    for connection in gone:
        _connection(connection)
    request = None
    if asks is not None:
        asks = _array(asks)
        request = Request(worker, _read_known(asks[0]), _flag(asks[1]), version, _number(asks[2]))
    return Delta(worker, base, version, _read_entries(changed), gone, request, size)


def _read_snapshot(fields: list[Any]) -> Snapshot:
    return Snapshot(_worker(fields[1]), _version(fields[2]), _read_counted(fields[3]))


def _read_beacon(fields: list[Any]) -> Beacon:
    return Beacon(_worker(fields[1]), _version(fields[2]), _number(fields[3]))


def _read_request(fields: list[Any]) -> Request:
    known = _read_known(fields[2])
    return Request(_worker(fields[1]), known, _flag(fields[3]), _number(fields[4]), _number(fields[5]))


def _read_fact(value: object) -> Fact:
    fields = _array(value)
    entries = None if fields[1] is None else _read_counted(fields[1])
    return Fact(_version(fields[0]), entries, _seconds(fields[2]), _seconds(fields[3]))


def _read_state(fields: list[Any]) -> State:
    facts = {_worker(owner): _read_fact(fact) for owner, fact in _object(fields[3]).items()}
    channel = _text(fields[2], MAX_CHANNEL_BYTES)
    return State(_worker(fields[1]), channel, facts, _flag(fields[4]), _number(fields[5]))


_DECODERS: Final[dict[str, Callable[[list[Any]], Message]]] = {
    "beat": _read_heartbeat,
    "bye": _read_goodbye,
    "delta": _read_delta,
    "snap": _read_snapshot,
    "beacon": _read_beacon,
    "ask": _read_request,
    "view": _read_state,
}
