"""When users were connected to which room, as their clients know it, and what watchers may report of that."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from math import inf
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Attendances", "Leave", "Stay"]

# How long it may take until all watchers know of a join, on a machine that others use too.
_WAY_SECONDS: Final = 1.5
# A shorter stay may be reported to no watcher; and a worker that ends may not have announced it.
_MIN_STAY_SECONDS: Final = 0.5


@dataclass(slots=True)
class Stay:
    """One connection of a user: since when it was served, and until when.

    Attributes:
        worker: Names the worker that serves it.
        opened: When its worker had it, by the monotonic clock of the machine.
        closed: When its client began to close it; `None` while it is open.
    """

    worker: object
    opened: float = field(default_factory=time.monotonic)
    closed: float | None = None

    def before(self, at: float) -> str:
        """Return from when to when it was open, in seconds before `at`, and its worker."""
        closed = "now" if self.closed is None else f"{at - self.closed:.2f}"
        return f"{at - self.opened:.2f} to {closed} at {self.worker}"

    def close(self) -> None:
        """Note the end; a second one changes nothing."""
        if self.closed is None:
            self.closed = time.monotonic()


@dataclass(frozen=True, slots=True)
class Leave:
    """What one watcher reported: that a user has left a room.

    Attributes:
        watcher: Names the watcher.
        room: The room.
        user: The user.
        at: When, by the monotonic clock of the machine.
    """

    watcher: object
    room: str
    user: str
    at: float


class Attendances:
    """The connections of all clients.

    Attributes:
        opened_at: When the last one was opened.
    """

    def __init__(self) -> None:
        self.opened_at = -inf
        self._stays: defaultdict[tuple[str, str], list[Stay]] = defaultdict(list)

    def open(self, room: str, user: str, worker: object) -> Stay:
        """Note that a user is connected."""
        stay = Stay(worker)
        self.opened_at = stay.opened
        self._stays[room, user].append(stay)
        return stay

    def workers_of(self, room: str, user: str) -> set[object]:
        """Return the workers at which a user is connected."""
        return {stay.worker for stay in self._stays[room, user] if stay.closed is None}

    def by_room(self) -> dict[str, Counter[str]]:
        """Return the users of each room, and how many connections each has."""
        found: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for (room, user), stays in self._stays.items():
            if count := sum(stay.closed is None for stay in stays):
                found[room][user] = count
        return found

    def wrong_leaves(
        self,
        leaves: Iterable[Leave],
        grace_seconds: float,
        *,
        cut: Mapping[object, tuple[float, float] | None] = MappingProxyType({}),
    ) -> list[str]:
        """Return the reports of users that were back within their grace, or had never gone, with their connections.

        Each had one at some moment after its grace began, long enough ago for all to know.

        Args:
            leaves: The reports.
            grace_seconds: The grace.
            cut: From when to when a worker could not be relied on to reach the others, by its name.
        """
        return [
            f"{leave.watcher} reported {leave.user} in {leave.room} as left, whose connections were there "
            f"{[stay.before(leave.at) for stay in self._stays[leave.room, leave.user]]} before it"
            for leave in leaves
            if self._was_there(leave, grace_seconds, cut)
        ]

    def _was_there(self, leave: Leave, grace_seconds: float, cut: Mapping[object, tuple[float, float] | None]) -> bool:
        for stay in self._stays[leave.room, leave.user]:
            opened, window = stay.opened, cut.get(stay.worker)
            if window is not None and window[0] < opened < window[1] and stay.worker != leave.watcher:
                opened = window[1]
            if opened < leave.at - _WAY_SECONDS and (
                stay.closed is None or stay.closed > max(leave.at - grace_seconds, opened + _MIN_STAY_SECONDS)
            ):
                return True
        return False
