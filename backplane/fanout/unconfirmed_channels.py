"""The channels on which the broker has given no final answer, and when they are subscribed to again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

__all__ = ["UnconfirmedChannels"]

# The pause before the next try: doubled up to the longest, and the first one again after a while without any try.
_FIRST_PAUSE_SECONDS: Final = 0.05
_MAX_PAUSE_SECONDS: Final = 1.0
_CALM_SECONDS: Final = 5.0


class UnconfirmedChannels:
    """Collects channels, and calls `on_due` with all of them after a pause.

    Args:
        on_due: Called with the channels to subscribe to again; they remain here until an answer removes them.
    """

    def __init__(self, on_due: Callable[[Collection[str]], None]) -> None:
        self._on_due = on_due
        self._reasons: dict[str, str] = {}
        self._pause_seconds: float = _FIRST_PAUSE_SECONDS
        self._added_at = float("-inf")
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_persistent(self) -> bool:
        """Whether the pauses have become the longest: the broker is in no passing state."""
        return self._pause_seconds == _MAX_PAUSE_SECONDS

    def reason(self, channel: str) -> str | None:
        """Return why the broker last gave no final answer on `channel`; `None` where it was not asked, or answered."""
        return self._reasons.get(channel)

    def add(self, reasons: Mapping[str, str]) -> None:
        """Add channels, each with the broker's reason, and start the pause unless it has begun."""
        self._reasons |= reasons
        if not self._reasons or self._timer is not None:
            return
        loop = asyncio.get_running_loop()
        if loop.time() - self._added_at > _CALM_SECONDS:
            self._pause_seconds = _FIRST_PAUSE_SECONDS
        self._added_at = loop.time()
        self._timer = loop.call_later(self._pause_seconds, self._pause_over)
        self._pause_seconds = min(2 * self._pause_seconds, _MAX_PAUSE_SECONDS)

    def discard(self, channel: str) -> None:
        """Remove a channel that has its final answer, or is not wanted any more."""
        if self._reasons.pop(channel, None) is not None and not self._reasons:
            self.clear()

    def clear(self) -> None:
        """Remove every channel, and cancel the pause."""
        self._reasons.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _pause_over(self) -> None:
        self._timer = None
        self._on_due(self._reasons.keys())
