"""The last events of this worker, in memory: few of each kind, so that a burst of one kind displaces no other."""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypedDict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backplane.journal.fields import Value

__all__ = ["Entry", "Kept", "Ring"]

Kept = Literal["gaps", "states", "ended", "refusals", "actions", "faults"]
"""The kinds of events that are kept."""

_SIZES: Final[Mapping[Kept, int]] = {
    "gaps": 200,
    "states": 100,
    "ended": 200,
    "refusals": 200,
    "actions": 100,
    "faults": 100,
}


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
    """Keeps the last events of each kind: 200 gaps and slow clients, ended connections, refusals; 100 of the others."""

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
