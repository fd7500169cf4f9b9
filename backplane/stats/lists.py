"""Lists of channels and clients of all workers: each worker answers with a page of its own, and these are merged."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from functools import cache
from math import inf
from typing import TYPE_CHECKING, Any, Final

from pydantic import TypeAdapter, ValidationError

from backplane.control.messages import Selector
from backplane.errors import ConfigurationError
from backplane.stats.overview import worker_name
from backplane.stats.queries import ChannelQuery, ConnectionQuery, query_of

if TYPE_CHECKING:
    from backplane.cluster_types import Answers, Worker
    from backplane.control.commands import CommandReceiver
    from backplane.control.messages import Command
    from backplane.control.requests import Requests
    from backplane.stats.source import StatsSource

__all__ = ["ChannelList", "ChannelRow", "ConnectionList", "ConnectionRow", "Lists", "answer_lists"]

_CHANNELS: Final = "list_channels"
_CONNECTIONS: Final = "list_connections"
_DESCRIBE: Final = "describe"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelRow:
    """One channel.

    Attributes:
        name: The channel.
        subscribers: How many have joined it, on the workers that answered.
        workers: On how many workers.
    """

    name: str
    subscribers: int
    workers: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionRow:
    """One client: a WebSocket or an event stream.

    Attributes:
        id: Its random name.
        position: Its place in the order that was asked for: pass that of the last row as `after`.
        worker: The name of its worker, such as `web-1/31-9f2c`.
        kind: `connection` or `event stream`.
        transport: `lane`, `handed over`, `asgi` or `sse`.
        state: Where it is between its handshake and its end: `joining`, `open`, `closing` ...
        user: Its user, or the `client_key` that the application named; `None` where it has none.
        opened_at: When it began its handshake, in seconds since the epoch, by the clock of its worker.
        channel_count: How many channels it has joined.
        channels: Some of them: a hundred where at most ten rows were asked for, else five.
        waiting_messages: What waits for it, as it does not take it as fast as it is published.
        waiting_bytes: The size of that.
        transport_bytes: What the server has buffered for it; `None` where that is not known.
        dropped: Messages that its backlog dropped or replaced so far.
        received_seconds_ago: How long ago it last sent something, its answers to pings included where that is known;
            `None` for an event stream, which sends nothing.
    """

    id: str
    position: str = ""
    worker: str = ""
    kind: str = "connection"
    transport: str = ""
    state: str = "open"
    user: str | None = None
    opened_at: float = 0.0
    channel_count: int = 0
    channels: tuple[str, ...] = ()
    waiting_messages: int = 0
    waiting_bytes: int = 0
    transport_bytes: int | None = None
    dropped: int = 0
    received_seconds_ago: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _List:
    """A page of a list, and which workers it is of.

    Attributes:
        asked: How many workers are alive.
        answered: How many of them are in the rows.
        missing: The names of the others: what they have is not in the rows.
        errors: Why, for those that answered with an error, by name.
        total: How many there are in all on the workers that answered, on this page and on others.
    """

    asked: int
    answered: int
    missing: tuple[str, ...]
    errors: dict[str, str]
    total: int

    def to_json(self) -> dict[str, Any]:
        """Return it as what `json.dumps` takes."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelList(_List):
    """A page of the channels of all workers.

    A channel that is on several workers counts as often in `total`. In the order of subscribers, a channel with few on
    each of many workers can be missing where there are more channels than were asked for; the numbers are exact.

    Attributes:
        rows: The channels.
    """

    rows: tuple[ChannelRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionList(_List):
    """A page of the clients of all workers.

    Attributes:
        rows: The clients. Their values change meanwhile: one can be on two pages, or on none.
    """

    rows: tuple[ConnectionRow, ...]


def answer_lists(commands: CommandReceiver, source: StatsSource) -> None:
    """Answer questions for lists by what `source` has."""

    async def channels(command: Command) -> dict[str, Any]:
        return source.channels(query_of(ChannelQuery, command.arguments))

    async def connections(command: Command) -> dict[str, Any]:
        return await source.connections(query_of(ConnectionQuery, command.arguments))

    async def describe(command: Command) -> dict[str, Any]:
        return source.describe(in_full=command.arguments.get("in_full") is True)

    commands.add_slow_kind(_DESCRIBE, describe)
    commands.add_slow_kind(_CHANNELS, channels)
    commands.add_slow_kind(_CONNECTIONS, connections)


class Lists:
    """Asks all workers for lists.

    Args:
        requests: Asks them.
    """

    def __init__(self, requests: Requests) -> None:
        self._requests = requests

    async def describe(self, seconds: float, *, worker: str | None = None, in_full: bool = False) -> Answers:
        """Return what one worker or every one is configured with; raises as `Requests`.

        Args:
            seconds: How long to wait.
            worker: The id of the only one that is asked.
            in_full: Whether all settings, limits and options are asked for.
        """
        return await self._requests.ask(_DESCRIBE, Selector(worker=worker), {"in_full": in_full}, seconds)

    async def channels(self, query: ChannelQuery, seconds: float) -> ChannelList:
        """Return a page of the channels, within `seconds`, or twice that where there are many; raises as `Requests`."""
        page = _Page(await self._requests.ask(_CHANNELS, Selector(), query.as_json(), seconds), _channel_rows())
        rows = _merged(page.rows, query)
        if page.is_cut and len(page.by_worker) > 1:
            # A worker can have left out a channel that others named: ask for the numbers of these.
            named = replace(query, names=tuple(row.name for row in rows), after=None)
            exact = _Page(await self._requests.ask(_CHANNELS, Selector(), named.as_json(), seconds), _channel_rows())
            if not exact.missing:
                rows = _merged(exact.rows, query)
        return ChannelList(rows=rows, **page.figures())

    async def connections(self, query: ConnectionQuery, worker: str | None, seconds: float) -> ConnectionList:
        """Return a page of the clients of one worker or all, within `seconds`; raises as `Requests`."""
        answers = await self._requests.ask(_CONNECTIONS, Selector(worker=worker), query.as_json(), seconds)
        page = _Page(answers, _connection_rows())
        rows = [replace(row, worker=name) for name, rows in page.by_worker.items() for row in rows]
        rows.sort(key=_place)
        return ConnectionList(rows=tuple(rows[: query.limit]), **page.figures())


class _Page:
    """What the workers answered, checked."""

    def __init__(self, answers: Answers, check: TypeAdapter[Any]) -> None:
        self.by_worker: dict[str, Any] = {}
        self.errors = {_name(worker): error for worker, error in answers.errors.items()}
        self.missing = [_name(worker) for worker in answers.missing]
        self.total = 0
        self.is_cut = False
        for worker, answer in answers.by_worker.items():
            try:
                rows = check.validate_python(answer["rows"])
                total = int(answer["total"])
            except (ValidationError, ValueError, TypeError, KeyError):
                self.errors[_name(worker)] = "the answer is none of this version"
                continue
            self.by_worker[_name(worker)] = rows
            self.total += total
            self.is_cut = self.is_cut or total > len(rows)

    @property
    def rows(self) -> list[Any]:
        return [row for rows in self.by_worker.values() for row in rows]

    def figures(self) -> dict[str, Any]:
        without = sorted([*self.missing, *self.errors])
        answered = len(self.by_worker)
        return {
            "asked": answered + len(without),
            "answered": answered,
            "missing": tuple(without),
            "errors": self.errors,
            "total": self.total,
        }


def _merged(rows: list[ChannelRow], query: ChannelQuery) -> tuple[ChannelRow, ...]:
    """Return the rows of all workers by channel, in order."""
    sizes: defaultdict[str, list[int]] = defaultdict(list)
    for row in rows:
        sizes[row.name].append(row.subscribers)
    merged = [ChannelRow(name=name, subscribers=sum(each), workers=len(each)) for name, each in sizes.items()]
    merged.sort(key=lambda row: row.name if query.sort == "name" else (-row.subscribers, row.name))
    return tuple(merged[: query.limit])


def _place(row: ConnectionRow) -> tuple[float, str]:
    """Return where a row is in the order; the worker has made it so that what comes first is smallest."""
    try:
        return ConnectionQuery(after=row.position).begins_after() or (0.0, row.id)
    except ConfigurationError:  # another program has answered
        return inf, row.id


@cache  # made where a list is first asked for
def _channel_rows() -> TypeAdapter[list[ChannelRow]]:
    return TypeAdapter(list[ChannelRow])


@cache
def _connection_rows() -> TypeAdapter[list[ConnectionRow]]:
    return TypeAdapter(list[ConnectionRow])


def _name(worker: Worker) -> str:
    return worker_name(worker.host, worker.pid, worker.id)
