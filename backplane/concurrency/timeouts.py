"""Time limits for the answers of a broker, which a pause of this process does not use up.

Two rules make the difference to `asyncio.timeout`.

*A pause of this process is not counted.* The process can be stopped, its machine suspended, its event loop blocked.
When it continues, every timer is due at once, although the answers that arrived meanwhile have not been read yet, and
some questions still lie in a buffer of this process. So limits use a clock that counts only the time in which the event
loop ran, and a limit that expires late first gives the event loop a moment to read what has arrived.

*A queue that moves is not silent* (`SharedTimeout` only). A limit is measured from the last answer to a call that began
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

# How often the clock checks that the event loop runs, and the most that it counts for the time between two checks.
_TICK_SECONDS: Final = 0.1
_MAX_STEP_SECONDS: Final = 0.2
# A timer that runs this much too late runs in the same pass of the event loop as answers that are not read yet.
_LATE_SECONDS: Final = 0.1
# Within this time, what arrived during a pause is read, and what was buffered during it is sent and answered.
_GRACE_SECONDS: Final = 0.25


class PatientTimeout:
    """`async with PatientTimeout(seconds): ...` raises `TimeoutError` like `asyncio.timeout`, but not after a pause.

    Args:
        seconds: How long the block may take while the event loop runs; `None` for no limit.
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._timeout: asyncio.Timeout = asyncio.timeout(None)
        self._timer: _PatientTimer | None = None

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        if self._seconds is not None:
            self._timer = _PatientTimer(self._expire)
            self._timer.set(self._timer.clock.now() + self._seconds)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None  # a cycle, in which the task would wait for a collection
        await self._timeout.__aexit__(kind, error, trace)

    def _expire(self) -> None:
        self._timeout.reschedule(asyncio.get_running_loop().time())


class SharedTimeout:
    """Makes limits of one length: `with timeouts.limit(): await ...` raises `TimeoutError`, at a fraction of the cost.

    A timer for each limit would cost more than the rest of a publish (4 µs on uvloop). Limits of one length expire in
    the order in which they began, so one timer, for the oldest limit, is enough.

    The calls under these limits wait for a queue at the other end, which answers more or less in order. While it moves,
    it is long and not silent. So a limit is measured from its own begin, or from the last time at which a call that
    began before it ended in time, whichever is later. A burst of calls never expires because of its size. A call that
    is stuck does, even if later ones are answered.

    A cancellation from outside remains a cancellation, as with `asyncio.timeout`. Belongs to one event loop.

    Args:
        seconds: The length of every limit.

    Attributes:
        clock: The clock that the limits are measured on.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._limits: deque[_Limit] = deque()
        self._timer = _PatientTimer(self._expire_due)
        self._moved_at = 0.0  # when the queue last moved, as far as ended limits were removed
        self.clock: _AwakeClock = self._timer.clock

    def limit(self) -> _Limit:
        """Return a limit, for the current task, that begins when it is entered."""
        return _Limit(self)

    def close(self) -> None:
        """Cancel the timer: limits that are entered no longer expire."""
        self._timer.cancel()
        self._limits.clear()

    def begin(self, limit: _Limit) -> float:
        """Add `limit`; return when it expires, by the clock, if the queue does not move."""
        expires_at = self.clock.now() + self._seconds
        if self._limits and self._limits[0].has_ended:
            self._remove_ended()
        self._limits.append(limit)
        if self._timer.handle is None:
            self._timer.set(expires_at)
        return expires_at

    def _remove_ended(self) -> None:
        limits = self._limits
        while limits and limits[0].has_ended:
            self._moved_at = max(self._moved_at, limits.popleft().moved_at)

    def _expire_due(self) -> None:
        """Expire the oldest limits that are due, and set the timer for the next one."""
        now = self.clock.now()
        while True:
            self._remove_ended()
            if not self._limits:
                return
            expires_at = max(self._limits[0].expires_at, self._moved_at + self._seconds)
            if expires_at > now:
                return self._timer.set(expires_at)
            self._limits.popleft().expire()


class _Limit:
    """One limit of a `SharedTimeout`, as a context manager.

    Attributes:
        expires_at: When it expires, by the clock, if the queue does not move.
        has_ended: The block was left.
        moved_at: When the block was left with an answer, whichever it was; 0 where it was cancelled.
    """

    __slots__ = ("_cancelling", "_has_expired", "_shared", "_task", "expires_at", "has_ended", "moved_at")

    def __init__(self, shared: SharedTimeout) -> None:
        self._shared = shared
        self._has_expired = False
        self.has_ended: bool = False
        self.moved_at: float = 0.0
        self.expires_at: float = 0.0

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a time limit needs a task")
        self._task: asyncio.Task[object] = task
        self._cancelling: int = task.cancelling()
        self.expires_at = self._shared.begin(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.has_ended = True
        # A cancelled call got no answer, so it does not show that the queue moves.
        if kind is not asyncio.CancelledError:
            self.moved_at = self._shared.clock.last  # at most one tick old, and free of cost
        # `expire` has cancelled the task. That request is taken back with `uncancel` in any case. It becomes a
        # TimeoutError only if it is what ends the block, and if the task was not cancelled from outside as well: then
        # the count is still above that of the begin, and the CancelledError goes on.
        is_late = self._has_expired and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError
        del self._task  # this is kept for a while, and the task with what it has raised is not to be
        if is_late:
            raise TimeoutError from error

    def expire(self) -> None:
        """Cancel the task; `__exit__` turns the cancellation into a `TimeoutError`."""
        self._has_expired = True
        self._task.cancel()


class _PatientTimer:
    """Calls `on_expiry` at the time for which it was set, on the clock of the running event loop.

    Args:
        on_expiry: What is called.

    Attributes:
        clock: The clock.
        handle: The timer of the event loop, while it is set.
    """

    __slots__ = ("_expires_at", "_had_grace", "_loop", "_on_expiry", "clock", "handle")

    def __init__(self, on_expiry: Callable[[], None]) -> None:
        self._loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self._on_expiry = on_expiry
        self._expires_at = 0.0
        self._had_grace = False
        self.handle: asyncio.TimerHandle | None = None
        self.clock: _AwakeClock = _clocks.get(self._loop) or _clocks.setdefault(self._loop, _AwakeClock())

    def set(self, expires_at: float) -> None:
        """Set it, while it is not set, to a time of its clock."""
        self._expires_at = expires_at
        self._had_grace = False
        self.clock.enter()
        self._schedule(expires_at - self.clock.last)

    def cancel(self) -> None:
        """Unset it; a second call does nothing."""
        if self.handle is not None:
            self.handle.cancel()
            self.handle = None
            self.clock.leave()

    def _schedule(self, seconds: float) -> None:
        due_at = self._loop.time() + seconds
        self.handle = self._loop.call_at(due_at, self._run, due_at)

    def _run(self, due_at: float) -> None:
        remaining = self._expires_at - self.clock.now()
        # Late: this pass of the event loop comes after a pause, and what arrived meanwhile is read in the next ones.
        if remaining <= 0 and not self._had_grace and self._loop.time() - due_at > _LATE_SECONDS:
            self._had_grace = True
            self._expires_at += _GRACE_SECONDS - remaining
            remaining = _GRACE_SECONDS
        if remaining > 0:
            return self._schedule(remaining)
        self.handle = None
        self.clock.leave()
        self._on_expiry()


class _AwakeClock:
    """The time in which one event loop ran: the time between two of its ticks counts for 0.2 s at most.

    It ticks ten times a second while a timer uses it, and not otherwise. Between two ticks it stops after 0.2 s,
    however often it is read. Where the event loop is always that slow, limits last longer, but they do end.

    Attributes:
        last: The time when it was last read.
    """

    # Without the handle of the next tick, which refers to the event loop: `_clocks` would never free it.
    __slots__ = ("_is_ticking", "_ticked", "_ticked_at", "_users", "last")

    def __init__(self) -> None:
        self.last: float = 0.0
        self._ticked: float = 0.0
        self._ticked_at: float = monotonic()
        self._is_ticking = False
        self._users = 0

    def now(self) -> float:
        """Read the clock."""
        step = monotonic() - self._ticked_at
        self.last = self._ticked + (step if step < _MAX_STEP_SECONDS else _MAX_STEP_SECONDS)
        return self.last

    def enter(self) -> None:
        """Tick until `leave` was called as often."""
        self._users += 1
        if not self._is_ticking:
            self._tick()

    def leave(self) -> None:
        """Remove one user; the last one ends the ticks."""
        self._users -= 1

    def _tick(self) -> None:
        self._ticked = self.now()
        self._ticked_at = monotonic()
        self._is_ticking = self._users > 0
        if self._is_ticking:
            asyncio.get_running_loop().call_later(_TICK_SECONDS, self._tick)


_clocks: WeakKeyDictionary[asyncio.AbstractEventLoop, _AwakeClock] = WeakKeyDictionary()
