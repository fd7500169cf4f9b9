"""A time limit for many awaits of the same length, at a fraction of what a timer each costs.

`asyncio.timeout` makes and cancels a timer per use (4 µs on uvloop, more than the rest of a publish). Limits of one
length run out in the order in which they began, so one timer is enough, for the oldest.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Deadlines", "PatientTimeout"]

# A timer that runs this much after its time shows that the process was paused, or its event loop blocked.
_LATE_SECONDS: Final = 0.1
# What arrived during a pause is read within the next passes of the event loop.
_GRACE_SECONDS: Final = 0.05


class PatientTimeout:
    """`async with PatientTimeout(seconds): ...` raises `TimeoutError` as `asyncio.timeout` does, but never for a pause.

    The process may be stopped, or its event loop blocked, while an answer arrives. The timer that is due then runs
    before the task which waits for that answer. So where the timer runs late it is set once more, for a moment in which
    the event loop reads what has arrived.

    Args:
        seconds: How long the block may take; `None` for no limit.
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._timeout = asyncio.timeout(None)
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        if self._seconds is not None:
            self._set(self._seconds)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        await self._timeout.__aexit__(kind, error, trace)

    def _set(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        self._timer = loop.call_at(due, self._look, due)

    def _look(self, due: float) -> None:
        now = asyncio.get_running_loop().time()
        if now - due > _LATE_SECONDS:
            self._set(_GRACE_SECONDS)
        else:
            self._timer = None
            self._timeout.reschedule(now)


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
