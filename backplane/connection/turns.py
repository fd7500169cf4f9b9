"""When connections that the same gap or failure of the broker closes have their turn."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from backplane.concurrency.schedule import Schedule

__all__ = ["Turns", "WaitingClose"]

_TICK_SECONDS: Final = 0.01

# A close begins tasks, which run in the passes after it: as many as cost a few milliseconds with them.
_SLICE: Final = 50


class WaitingClose(Protocol):
    """The close of one connection that waits for its turn."""

    def turn_has_come(self) -> None:
        """Begin to close."""
        ...


class Turns(Schedule[WaitingClose]):
    """Begins the closes that wait for their turn, from one timer of the event loop for all of them."""

    def __init__(self) -> None:
        super().__init__(tick_seconds=_TICK_SECONDS, slice_size=_SLICE)

    def put(self, close: WaitingClose, delay: float) -> int:
        """Begin `close` after `delay` seconds, at most a tick earlier; return its place, by which it is removed."""
        return self._add(close, asyncio.get_running_loop().time() + delay - self._tick_seconds)

    def remove(self, close: WaitingClose, place: int) -> None:
        """Do not begin `close`."""
        self._discard(close, place)

    def _call(self, item: WaitingClose, now: float) -> None:
        item.turn_has_come()
