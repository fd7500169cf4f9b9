"""A time limit for many awaits of the same length, at a fraction of what a timer each costs.

`asyncio.timeout` makes and cancels a timer per use (4 µs on uvloop, more than the rest of a publish). Limits of one
length run out in the order in which they began, so one timer is enough, for the oldest.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Deadlines"]


class Deadlines:
    """Makes limits: `with deadlines.limit(): await ...` raises `TimeoutError` after `seconds`.

    A cancellation from outside stays a cancellation, as with `asyncio.timeout`. Belongs to one event loop.

    Args:
        seconds: The length of every limit.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._limits: deque[_Limit] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def limit(self) -> _Limit:
        """Return a limit that begins when it is entered, in the current task."""
        return _Limit(self)

    def close(self) -> None:
        """Cancel the timer: limits that are still entered run no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._limits.clear()

    def begin(self, limit: _Limit) -> float:
        """Return when `limit` runs out."""
        ends_at = self._loop.time() + self._seconds
        limits = self._limits
        while limits and limits[0].is_over:
            limits.popleft()
        limits.append(limit)
        if self._timer is None:
            self._timer = self._loop.call_at(ends_at, self._look)
        return ends_at

    def _look(self) -> None:
        self._timer = None
        now = self._loop.time()
        while self._limits:
            limit = self._limits[0]
            if not limit.is_over:
                if limit.ends_at > now:
                    self._timer = self._loop.call_at(limit.ends_at, self._look)
                    return
                limit.run_out()
            self._limits.popleft()


class _Limit:
    __slots__ = ("_cancelling", "_deadlines", "_ran_out", "_task", "ends_at", "is_over")

    def __init__(self, deadlines: Deadlines) -> None:
        self._deadlines = deadlines
        self._ran_out = False
        self.is_over = False
        self.ends_at = 0.0

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a time limit needs a task")
        self._task = task
        self._cancelling = task.cancelling()
        self.ends_at = self._deadlines.begin(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.is_over = True
        if self._ran_out and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def run_out(self) -> None:
        """Cancel the task, to be turned into a `TimeoutError` on leaving."""
        self._ran_out = True
        self._task.cancel()
