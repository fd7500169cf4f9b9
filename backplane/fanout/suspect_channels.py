"""Which channel ends the link whenever it is subscribed, and how the others are kept out of it.

A name that a broker answers by closing the connection would otherwise be part of every batch that follows a reconnect,
and cost every channel a gap again and again.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

__all__ = ["Suspects"]

# One loss can hit any batch that is under way. From the second on its channels are asked for apart from the others.
_APART: Final = 2
# A channel that was asked for alone when the link ended is guilty from the third loss on.
_GUILTY: Final = 3
_PIECES: Final = 16
# How long a culprit is not asked for again: doubled at each conviction.
_FIRST_SENTENCE_SECONDS: Final = 60.0
_MAX_SENTENCE_SECONDS: Final = 3_600.0
# A client can name channels at will. Past these bounds the oldest conviction is forgotten, and every suspicion.
_MAX_CULPRITS: Final = 1_000
_MAX_SUSPECTS: Final = 100_000


class Suspects:
    """Counts, for each channel, the links that ended while it was being subscribed.

    Only links that had answered something before count: one that never did leads nowhere, whoever is asked for on it. A
    batch that was under way twice is set aside, and divided at each further loss, until the channel is alone: its
    joins are refused from then on, and it is tried again rarely. An answer of the broker acquits.

    Attributes:
        needs_proof: A link ended before it had answered anything: the next one must answer something harmless first.
    """

    def __init__(self) -> None:
        self._losses: dict[str, int] = {}
        self.needs_proof = False
        self._piece = 0
        self._sentences: dict[str, tuple[float, float]] = {}  # until when, and for how long

    def is_apart(self, channel: str) -> bool:
        """Whether it must not be asked for together with others."""
        return self._losses.get(channel, 0) >= _APART

    def is_convicted(self, channel: str) -> bool:
        """Whether it must not be asked for at present."""
        return channel in self._sentences and monotonic() < self._sentences[channel][0]

    def link_ended(self, under_way: Collection[str], *, proved: bool) -> str | None:
        """Note what was being subscribed when a link ended; return the channel which that convicts, if any."""
        self.needs_proof = bool(under_way)
        if not proved:
            return None
        if len(self._losses) > _MAX_SUSPECTS:
            self._losses.clear()
        for channel in under_way:
            self._losses[channel] = self._losses.get(channel, 0) + 1
        worst = max((self._losses[channel] for channel in under_way), default=0)
        if worst >= _APART:
            self._piece = max(1, len(under_way) // _PIECES)
        if len(under_way) != 1 or worst < _GUILTY:
            return None
        (culprit,) = under_way
        _, seconds = self._sentences.pop(culprit, (0.0, _FIRST_SENTENCE_SECONDS / 2))
        seconds = min(2 * seconds, _MAX_SENTENCE_SECONDS)
        self._sentences[culprit] = (monotonic() + seconds, seconds)
        if len(self._sentences) > _MAX_CULPRITS:
            self.answered([next(iter(self._sentences))])
        return culprit

    def answered(self, channels: Iterable[str]) -> None:
        """Acquit what the broker has answered for."""
        if self._losses:
            for channel in channels:
                self._losses.pop(channel, None)
                self._sentences.pop(channel, None)

    def piece(self, apart: Iterable[str]) -> list[str]:
        """Return which of those set aside are asked for next, together."""
        return [channel for channel, _ in zip(apart, range(self._piece), strict=False)]
