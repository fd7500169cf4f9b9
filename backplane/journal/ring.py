"""The last events of this worker, in memory: few of each kind, so that a burst of one kind displaces no other.

Parts that know no worker, such as the adapters, log too. What they log is kept by every worker of their event loop,
which is one, unless a process has several backplanes: a line names its broker then.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypedDict
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from backplane.journal.fields import Value

__all__ = ["KINDS", "Entry", "Kept", "Ring", "rings_of_loop"]

Kept = Literal["gaps", "states", "ended", "refusals", "actions", "faults", "broker", "details"]
"""The kinds of events that are kept."""

_SIZES: Final[Mapping[Kept, int]] = {
    "gaps": 200,
    "states": 100,
    "ended": 200,
    "refusals": 200,
    "actions": 100,
    "faults": 100,
    "broker": 100,
    "details": 50,
}

KINDS: Final = tuple(_SIZES)
"""All kinds."""


class Entry(TypedDict):
    """One event, as JSON.

    Attributes:
        number: Counts the events of this worker: each has a higher one than those before it.
        at: When, in seconds since the epoch.
        event: Its name, such as `link.lost`.
        level: `INFO`, `WARNING` ...
        text: The sentence of the log, with names as they are.
        fields: The fields of the log, without their prefix.
    """

    number: int
    at: float
    event: str
    level: str
    text: str
    fields: dict[str, Value]


@dataclass(frozen=True, slots=True)
class _Recorded:
    """An event before it is asked for: its text is made then."""

    number: int
    at: float
    event: str
    level: int
    message: str
    fields: Mapping[str, Value]

    def entry(self) -> Entry:
        return Entry(
            number=self.number,
            at=self.at,
            event=self.event,
            level=logging.getLevelName(self.level),
            text=self.message % self.fields,
            fields=dict(self.fields),
        )


class Ring:
    """Keeps the last events of each kind: 200 gaps and slow clients, ended connections, refusals; fewer of others."""

    __slots__ = ("_by_kind", "_count")

    def __init__(self) -> None:
        self._by_kind: dict[Kept, deque[_Recorded]] = {kind: deque(maxlen=size) for kind, size in _SIZES.items()}
        self._count = 0

    def add(self, kept: Kept, at: float, event: str, level: int, message: str, fields: Mapping[str, Value]) -> None:
        """Keep an event."""
        self._count += 1
        self._by_kind[kept].append(_Recorded(self._count, at, event, level, message, fields))

    def recent(self, *kinds: Kept, after: int = 0, limit: int | None = None) -> list[Entry]:
        """Return events, the oldest first.

        Args:
            *kinds: Which kinds. Defaults to all.
            after: Only those with a higher number. Defaults to all.
            limit: Only so many of the newest. Defaults to all.
        """
        found = [kept for kind in kinds or self._by_kind for kept in tuple(self._by_kind[kind]) if kept.number > after]
        found.sort(key=lambda kept: kept.number)
        return [kept.entry() for kept in (found if limit is None else found[max(0, len(found) - limit) :])]

    def open(self) -> None:
        """Keep what the parts of this event loop log that know no worker; until `close`."""
        _by_loop.setdefault(asyncio.get_running_loop(), {})[self] = None

    def close(self) -> None:
        """Keep it no longer; what is kept stays."""
        _by_loop.get(asyncio.get_running_loop(), {}).pop(self, None)


_by_loop: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Ring, None]]] = WeakKeyDictionary()


def rings_of_loop() -> Collection[Ring]:
    """Return the rings of the workers of this event loop; none outside of one."""
    try:
        return _by_loop.get(asyncio.get_running_loop(), {})
    except RuntimeError:
        return ()
