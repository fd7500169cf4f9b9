"""What a worker knows of one kept channel: its rule, its track, its ring, and which joins wait for them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backplane.history.ring import Ring
    from backplane.history.track import Track
    from backplane.history_rules import History

__all__ = ["KeptChannel"]


class KeptChannel:
    """A channel with a `History` rule and subscribers, or joins that wait, in this worker.

    Attributes:
        name: The channel.
        rule: Its rule.
        track: How far it was received, and whether that is proved.
        ring: The messages that were delivered, for subscribers that come back.
        wants_ring: A join waits for the ring to be filled.
        fills: How many reads that should fill the ring have ended.
        fill_error: Why the last of them failed.
        repair_since: When the broker was first asked, on the present link, for what the track misses; by the event
            loop's clock.
        unkept_logged: A message without a place was logged.
    """

    __slots__ = (
        "_changed",
        "fill_error",
        "fills",
        "name",
        "repair_since",
        "ring",
        "rule",
        "track",
        "unkept_logged",
        "wants_ring",
    )

    def __init__(self, name: str, rule: History, track: Track, ring: Ring) -> None:
        self.name: str = name
        self.rule: History = rule
        self.track: Track = track
        self.ring: Ring = ring
        self.wants_ring: bool = False
        self.fills: int = 0
        self.fill_error: str | None = None
        self.repair_since: float | None = None
        self.unkept_logged: bool = False
        self._changed: asyncio.Future[None] | None = None

    def lose(self, reason: str) -> None:
        """Put the channel in doubt: messages may be missing from here on."""
        self.track.lost(reason)
        self.repair_since = None

    def end_fill(self, error: str | None) -> None:
        """Note the end of a read that should fill the ring."""
        self.wants_ring = False
        self.fills += 1
        self.fill_error = error

    async def changed(self) -> None:
        """Wait for the next `notify`."""
        if self._changed is None:
            self._changed = asyncio.get_running_loop().create_future()
        await asyncio.wait([self._changed])

    def notify(self) -> None:
        """Wake every join that waits, to look at the track and the ring again."""
        changed, self._changed = self._changed, None
        if changed is not None:
            changed.set_result(None)
