"""Bounds how many messages a worker publishes per second for all its channels."""

from __future__ import annotations

from math import inf
from typing import Final

__all__ = ["Pacer"]

_DELIVERIES_PER_SECOND: Final = 1_000
_BURST_SECONDS: Final = 0.1


class Pacer:
    """Gives each channel that has a change its turn.

    What a worker publishes is delivered to all workers of the channel: the bound is on deliveries, 1,000 per second.
    """

    def __init__(self) -> None:
        self._free = -inf

    def reserve(self, workers: int, now: float) -> float:
        """Return when a message to a channel of so many workers may be published: now, or later and in turn."""
        at = max(now, self._free - _BURST_SECONDS)
        self._free = max(now, self._free) + workers / _DELIVERIES_PER_SECOND
        return at

    def lag(self, now: float) -> float:
        """Return for how long a message would have to wait, in seconds."""
        return max(0.0, self._free - _BURST_SECONDS - now)
