"""How many spans a process may begin in a second."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["SpanBudget"]


class SpanBudget:
    """Counts the spans of each second.

    Args:
        max_per_second: How many there may be.
        clock: Returns seconds by a clock that is never set.

    Attributes:
        skipped: How many were not made because of it.
    """

    def __init__(self, max_per_second: float, clock: Callable[[], float] = monotonic) -> None:
        self.skipped: int = 0
        self._rate = max_per_second
        self._max = max(1.0, max_per_second)  # a rate below one is one every few seconds
        self._clock = clock
        self._left = self._max
        self._filled_at = clock()

    def take(self) -> bool:
        """Return whether one more may be made now."""
        now = self._clock()
        self._left = min(self._max, self._left + (now - self._filled_at) * self._rate)
        self._filled_at = now
        if self._left < 1:
            self.skipped += 1
            return False
        self._left -= 1
        return True
