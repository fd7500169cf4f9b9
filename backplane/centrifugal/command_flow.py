"""In which order the commands of one client run, and how many at a time."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

__all__ = ["MOST_RUNNING", "CommandFlow"]

MOST_RUNNING: Final = 1_024
"""So many commands of one client run or wait: an SDK subscribes to all its channels at once when it comes back."""


class CommandFlow:
    """The commands of one client that run or wait.

    Args:
        max_running: How many of those that take a `slot` run at a time; `None` for as many as there are.
    """

    __slots__ = ("_last", "_max_running", "_room", "_running", "_slots")

    def __init__(self, max_running: int | None) -> None:
        self._max_running = max_running
        self._running = 0
        self._room: asyncio.Future[None] | None = None
        self._slots: asyncio.Semaphore | None = None  # made when it is needed: most clients only subscribe
        # By channel, what is done when its last subscribe or unsubscribe is.
        self._last: dict[str, asyncio.Future[None]] = {}

    async def enter(self) -> None:
        """Wait until there is room for one more command; `leave` is its end."""
        while self._running >= MOST_RUNNING:
            self._room = self._room or asyncio.get_running_loop().create_future()
            await asyncio.wait([self._room])
        self._running += 1

    def leave(self) -> None:
        """A command has ended."""
        self._running -= 1
        room, self._room = self._room, None
        if room is not None:
            room.set_result(None)

    def slot(self) -> asyncio.Semaphore:
        """Return what admits as many commands at a time as are allowed, in the order in which they ask."""
        if self._slots is None:
            self._slots = asyncio.Semaphore(self._max_running or MOST_RUNNING)
        return self._slots

    @asynccontextmanager
    async def in_order(self, channel: str) -> AsyncGenerator[None]:
        """Wait for the end of the block of the same channel that was entered before this one."""
        before = self._last.get(channel)
        done = self._last[channel] = asyncio.get_running_loop().create_future()
        try:
            if before is not None:
                await asyncio.wait([before])
            yield
        finally:
            done.set_result(None)
            if self._last[channel] is done:
                del self._last[channel]
