"""The task that is inside a connection's block: it is cancelled if it stays there after its connection has ended."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Handler"]


class Handler:
    """The task that makes it. A handler that iterates learns of the end there; one that waits for something else, here.

    The cancellation is taken back when the block is left, as `asyncio.timeout` does, so that one of somebody else's is
    never swallowed.

    Args:
        grace_seconds: How long the handler may stay in the block after `connection_ended`; if it swallows the
            cancellation, it is cancelled again after the same time.
        on_cancel: Called when it is cancelled for the first time, with whether that is possible: a task of a server's
            own making may not know how.
    """

    __slots__ = ("_cancelling", "_cancels", "_grace_seconds", "_on_cancel", "_task", "_timer")

    def __init__(self, grace_seconds: float, on_cancel: Callable[[bool], None]) -> None:
        self._task = asyncio.current_task()
        self._cancelling = 0 if self._task is None else self._task.cancelling()
        self._cancels = 0
        self._grace_seconds = grace_seconds
        self._on_cancel = on_cancel
        self._timer: asyncio.TimerHandle | None = None

    def connection_ended(self) -> None:
        """Begin to wait for the handler. Once is enough."""
        if self._timer is None:
            self._set_timer()

    def left(self, error: BaseException | None) -> bool:
        """Take note that the block is left; return whether `error` is the cancellation from here and nothing else."""
        if self._timer is not None:
            self._timer.cancel()
        if self._task is None or not self._cancels:
            return False
        for _ in range(self._cancels):
            self._task.uncancel()
        return isinstance(error, asyncio.CancelledError) and self._task.cancelling() <= self._cancelling

    def _set_timer(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._grace_seconds, self._cancel)

    def _cancel(self) -> None:
        is_cancelled = self._task is not None and self._task.cancel()
        if not self._cancels:
            self._on_cancel(is_cancelled)
        if is_cancelled:
            self._cancels += 1
            self._set_timer()
