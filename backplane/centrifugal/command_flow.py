"""In which order the commands of one client run, and how many at a time."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from backplane.centrifugal.command import Command

__all__ = ["MOST_RUNNING", "CommandFlow"]

MOST_RUNNING: Final = 1_024
"""So many commands of one client run or wait: an SDK subscribes to all its channels at once when it comes back."""

_AT_ONCE: Final = nullcontext()


class CommandFlow:
    """The commands of one client that run or wait.

    Args:
        max_running: `Limits.max_running_commands`.
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

    def turn(self, command: Command) -> AbstractAsyncContextManager[None]:
        """Return what waits for the turn of a command, which has it until the end of the block.

        A subscribe and an unsubscribe wait for those of the same channel that came before. Other commands, and
        subscribes that recover, wait until fewer than `max_running` run; but not requests for presence: what many
        channels have at first takes a second to be known, for all of them at the same time.
        """
        if command.name in ("presence", "presence_stats"):
            return _AT_ONCE
        if command.name not in ("subscribe", "unsubscribe"):
            return self._slot()
        return self._in_order(command.body["channel"], self._slot() if command.body.get("recover") else _AT_ONCE)

    def _slot(self) -> asyncio.Semaphore:
        if self._slots is None:
            self._slots = asyncio.Semaphore(self._max_running or MOST_RUNNING)
        return self._slots

    @asynccontextmanager
    async def _in_order(self, channel: str, slot: AbstractAsyncContextManager[None]) -> AsyncGenerator[None]:
        before = self._last.get(channel)
        done = self._last[channel] = asyncio.get_running_loop().create_future()
        try:
            if before is not None:
                await asyncio.wait([before])
            async with slot:
                yield
        finally:
            done.set_result(None)
            if self._last[channel] is done:
                del self._last[channel]
