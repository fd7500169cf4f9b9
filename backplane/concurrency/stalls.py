"""How long an event loop makes no pass: what any of its callbacks, or a pause of the process, costs all the others."""

from __future__ import annotations

import asyncio
from typing import Final

from backplane.histogram import Histogram

__all__ = ["LATE_SECONDS", "StallMeter"]

LATE_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""The bounds of the histogram of how late the timer is called."""

_TICK_SECONDS: Final = 0.05
_WINDOW_SECONDS: Final = 30.0


class StallMeter:
    """Measures stalls of an event loop by a timer, and how late it is called: some 5 µs, twenty times a second.

    A stall begins between two calls of the timer, so that it can have been longer by the time between them; one that is
    shorter than that is found by chance.

    Args:
        tick_seconds: The time between two calls.
        window_seconds: The longest stall of this time and of the time before it counts.

    Attributes:
        late: How late the timer was called, each time. A loop that is stalled for long is counted once for it.
    """

    def __init__(self, *, tick_seconds: float = _TICK_SECONDS, window_seconds: float = _WINDOW_SECONDS) -> None:
        self._tick_seconds = tick_seconds
        self._window_seconds = window_seconds
        self.late: Histogram = Histogram(*LATE_SECONDS)
        self._longest = 0.0
        self._longest_before = 0.0
        self._window_ends_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def longest_seconds(self) -> float:
        """The longest stall, between one window and two ago at most."""
        return max(self._longest, self._longest_before)

    def start(self) -> None:
        """Measure until `stop`."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._window_ends_at = now + self._window_seconds
        self._call_at(now + self._tick_seconds, loop)

    def stop(self) -> None:
        """Measure no more; a second call changes nothing."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _call_at(self, due: float, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = loop.call_at(due, self._called, due, loop)

    def _called(self, due: float, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        if now >= self._window_ends_at:
            self._longest_before, self._longest = self._longest, 0.0
            self._window_ends_at = now + self._window_seconds
        self._longest = max(self._longest, now - due)
        self.late.observe(max(0.0, now - due))
        self._call_at(now + self._tick_seconds, loop)
