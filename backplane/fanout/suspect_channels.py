"""Which channel ends the link whenever it is subscribed, and how it is kept away from the others.

A broker can answer one particular name by closing the connection. That name would be part of a batch after every
reconnect, end the link again, and so cost every channel one gap after the other.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

__all__ = ["SuspectChannels"]

# One link can end by chance while a batch is being subscribed. After the second its channels are isolated.
_ISOLATED_AFTER: Final = 2
# A channel that was requested alone when the link ended is quarantined after the third.
_QUARANTINED_AFTER: Final = 3
_PIECES: Final = 16
# How long a quarantine lasts: doubled each time the same channel is quarantined.
_FIRST_QUARANTINE_SECONDS: Final = 60.0
_MAX_QUARANTINE_SECONDS: Final = 3_600.0
# Clients can name channels at will. Beyond these bounds the oldest quarantine is lifted, and all suspicion is dropped.
_MAX_QUARANTINED: Final = 1_000
_MAX_SUSPECTS: Final = 100_000


class SuspectChannels:
    """Counts, for each channel, the links that ended while it was being subscribed.

    A batch that was requested on two such links is *isolated*: its channels are requested after all others, and in
    smaller pieces after each further loss. A channel that was requested alone is then *quarantined*: its joins are
    refused, and it is tried again after a minute or more. An answer of the broker clears a channel.

    Only links that had answered something before are counted: one that never did leads nowhere, whatever is requested.

    Args:
        clock: Returns the time, in seconds.
        max_quarantined: Most channels in quarantine.
        max_suspects: Most channels that are counted.

    Attributes:
        needs_verified_link: A link ended while channels were requested on it. The next one must first answer something
            harmless, so that a link that leads nowhere is not held against them.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = monotonic,
        max_quarantined: int = _MAX_QUARANTINED,
        max_suspects: int = _MAX_SUSPECTS,
    ) -> None:
        self._clock = clock
        self._max_quarantined = max_quarantined
        self._max_suspects = max_suspects
        self._losses: dict[str, int] = {}
        self._piece_size = 0
        self._quarantines: dict[str, tuple[float, float]] = {}  # until when, and how long it lasts in all
        self.needs_verified_link: bool = False

    def is_isolated(self, channel: str) -> bool:
        """Whether the channel must not be requested together with others."""
        return self._losses.get(channel, 0) >= _ISOLATED_AFTER

    def is_quarantined(self, channel: str) -> bool:
        """Whether the channel must not be requested at present."""
        return channel in self._quarantines and self._clock() < self._quarantines[channel][0]

    def link_ended(self, requested: Collection[str], *, had_answered: bool) -> str | None:
        """Count a link that ended; return the channel that is quarantined because of it, if any.

        Args:
            requested: The channels that the broker had been asked for and had not answered yet.
            had_answered: Whether the link had answered anything before.
        """
        self.needs_verified_link = bool(requested)
        if not had_answered:
            return None
        if len(self._losses) > self._max_suspects:
            self._losses.clear()
        for channel in requested:
            self._losses[channel] = self._losses.get(channel, 0) + 1
        most_losses = max((self._losses[channel] for channel in requested), default=0)
        if most_losses >= _ISOLATED_AFTER:
            self._piece_size = max(1, len(requested) // _PIECES)
        if len(requested) != 1 or most_losses < _QUARANTINED_AFTER:
            return None
        (channel,) = requested
        self._quarantine(channel)
        return channel

    def clear(self, channels: Iterable[str]) -> None:
        """Drop the suspicion of channels on which the broker has answered, whatever the answer was."""
        if self._losses:
            for channel in channels:
                self._losses.pop(channel, None)
                self._quarantines.pop(channel, None)

    def next_piece(self, isolated: Iterable[str]) -> list[str]:
        """Return which of the isolated channels are requested next, together."""
        return [channel for channel, _ in zip(isolated, range(self._piece_size), strict=False)]

    def _quarantine(self, channel: str) -> None:
        _, seconds = self._quarantines.pop(channel, (0.0, _FIRST_QUARANTINE_SECONDS / 2))
        seconds = min(2 * seconds, _MAX_QUARANTINE_SECONDS)
        self._quarantines[channel] = (self._clock() + seconds, seconds)
        if len(self._quarantines) > self._max_quarantined:
            self.clear([next(iter(self._quarantines))])
