"""Time limits that judge a broker's silence by what came, not by our own clock.

Two rules make the difference to `asyncio.timeout`.

*A pause of this process is not time.* The process may be stopped, its machine frozen, its event loop blocked. When it
goes on, every timer is due at once; the answers that arrived meanwhile are not read yet, and some are not even sent,
because the question still lay in a buffer of ours. So limits run on a clock that counts only the time in which the
event loop turned, and one that runs late all the same gives the loop a moment to read what has arrived.

*A queue that moves is not silent* (`SharedTimeout` only). A limit counts from the last answer to one that began
before it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Final, Self
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

__all__ = ["PatientTimeout", "SharedTimeout"]

# How often the clock looks whether the event loop turns, and what one of its steps counts at most.
_TICK_SECONDS: Final = 0.1
_MAX_STEP_SECONDS: Final = 0.2
# A timer that runs this much after its time shares its pass of the event loop with answers that nobody has read.
_LATE_SECONDS: Final = 0.1
# What arrived during a pause, or is only sent after it, is read within this time.
_GRACE_SECONDS: Final = 0.25


class PatientTimeout:
    """`async with PatientTimeout(seconds): ...` raises `TimeoutError` as `asyncio.timeout` does, but never for a pause.

    Args:
        seconds: How long the block may take while the event loop turns; `None` for no limit.
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._timeout = asyncio.timeout(None)
        self._timer: _PatientTimer | None = None

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        if self._seconds is not None:
            self._timer = _PatientTimer(self._end)
            self._timer.set(self._timer.clock.now() + self._seconds)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        await self._timeout.__aexit__(kind, error, trace)

    def _end(self) -> None:
        self._timeout.reschedule(asyncio.get_running_loop().time())


class SharedTimeout:
    """Makes limits of one length: `with deadlines.limit(): await ...` raises `TimeoutError`, at a fraction of the cost.

    A timer for each would cost more than the rest of a publish (4 µs on uvloop). Limits of one length run out in the
    order in which they began, so one timer is enough, for the oldest.

    What the limits wait for is a queue at the other end, worked off more or less in order. While it moves, it is a long
    queue and not a silent one: a limit counts from its own begin, or from the moment at which the last of those that
    began before it was left in time. So a burst never runs out for its size, and what is stuck does, though answers to
    later ones come in.

    A cancellation from outside stays a cancellation, as with `asyncio.timeout`. Belongs to one event loop.

    Args:
        seconds: The length of every limit.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._limits: deque[_Limit] = deque()
        self._timer = _PatientTimer(self._look)
        self._moved_at = 0.0
        self.clock: _AwakeClock = self._timer.clock

    def limit(self) -> _Limit:
        """Return a limit that begins when it is entered, in the current task."""
        return _Limit(self)

    def close(self) -> None:
        """Cancel the timer: limits that are still entered run no more."""
        self._timer.cancel()
        self._limits.clear()

    def begin(self, limit: _Limit) -> float:
        """Return when `limit` runs out, by the clock of these limits, if the queue does not move."""
        ends_at = self.clock.now() + self._seconds
        if self._limits and self._limits[0].is_left:
            self._forget_left()
        self._limits.append(limit)
        if self._timer.handle is None:
            self._timer.set(ends_at)
        return ends_at

    def _forget_left(self) -> None:
        limits = self._limits
        while limits and limits[0].is_left:
            self._moved_at = max(self._moved_at, limits.popleft().moved_at)

    def _look(self) -> None:
        now = self.clock.now()
        while True:
            self._forget_left()
            if not self._limits:
                return
            ends_at = max(self._limits[0].ends_at, self._moved_at + self._seconds)
            if ends_at > now:
                return self._timer.set(ends_at)
            self._limits.popleft().run_out()


class _Limit:
    __slots__ = ("_cancelling", "_deadlines", "_ran_out", "_task", "ends_at", "is_left", "moved_at")

    def __init__(self, deadlines: SharedTimeout) -> None:
        self._deadlines = deadlines
        self._ran_out = False
        self.is_left: bool = False
        self.moved_at: float = 0.0
        self.ends_at: float = 0.0

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a time limit needs a task")
        self._task = task
        self._cancelling = task.cancelling()
        self.ends_at = self._deadlines.begin(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.is_left = True
        if kind is not asyncio.CancelledError:  # what was given up is no sign that the queue moves
            self.moved_at = self._deadlines.clock.last  # near enough
        if self._ran_out and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def run_out(self) -> None:
        """Cancel the task, to be turned into a `TimeoutError` on leaving."""
        self._ran_out = True
        self._task.cancel()


class _PatientTimer:
    """Calls `on_over` when the time for which it was set has come, on the clock of the running event loop.

    Attributes:
        clock: The clock it runs on.
        handle: While it is set.
    """

    __slots__ = ("_ends_at", "_is_graced", "_loop", "_on_over", "clock", "handle")

    def __init__(self, on_over: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_over = on_over
        self.handle: asyncio.TimerHandle | None = None
        self._ends_at = 0.0
        self._is_graced = False
        self.clock = _clocks.get(self._loop) or _clocks.setdefault(self._loop, _AwakeClock())

    def set(self, ends_at: float) -> None:
        """Set it, while it is not set, to a time by its clock."""
        self._ends_at = ends_at
        self._is_graced = False
        self.clock.enter()
        self._schedule(ends_at - self.clock.last)

    def cancel(self) -> None:
        """Call nothing any more; cancelling again does nothing."""
        if self.handle is not None:
            self.handle.cancel()
            self.handle = None
            self.clock.leave()

    def _schedule(self, seconds: float) -> None:
        due = self._loop.time() + seconds
        self.handle = self._loop.call_at(due, self._run, due)

    def _run(self, due: float) -> None:
        left = self._ends_at - self.clock.now()
        if left <= 0 and not self._is_graced and self._loop.time() - due > _LATE_SECONDS:
            self._is_graced = True
            self._ends_at += _GRACE_SECONDS - left
            left = _GRACE_SECONDS
        if left > 0:
            return self._schedule(left)
        self.handle = None
        self.clock.leave()
        self._on_over()


class _AwakeClock:
    """The time in which one event loop turned: what passes between two of its turns counts 0.2 s at most.

    While somebody needs it, it ticks ten times a second; between two ticks, however often it is looked at, it stops
    after 0.2 s. Where the event loop is always that slow, limits on this clock last longer, and still end.

    Attributes:
        last: The time at the last look.
    """

    __slots__ = ("_ticked", "_ticked_at", "_ticking", "_users", "last")

    def __init__(self) -> None:
        self.last: float = 0.0
        self._ticked = 0.0
        self._ticked_at = monotonic()
        self._ticking: asyncio.TimerHandle | None = None
        self._users = 0

    def now(self) -> float:
        """Look, and return the time."""
        step = monotonic() - self._ticked_at
        self.last = self._ticked + (step if step < _MAX_STEP_SECONDS else _MAX_STEP_SECONDS)
        return self.last

    def enter(self) -> None:
        """Tick, until `leave` was called as often."""
        self._users += 1
        if self._ticking is None:
            self._tick()

    def leave(self) -> None:
        """Be needed once less."""
        self._users -= 1

    def _tick(self) -> None:
        self._ticked = self.now()
        self._ticked_at = monotonic()
        self._ticking = asyncio.get_running_loop().call_later(_TICK_SECONDS, self._tick) if self._users else None


_clocks: WeakKeyDictionary[asyncio.AbstractEventLoop, _AwakeClock] = WeakKeyDictionary()
