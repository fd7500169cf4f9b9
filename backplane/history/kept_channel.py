"""What a worker knows of one kept channel: its rule, its track, its ring, and which joins wait for them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backplane.history.ring import Ring
    from backplane.history.track import Track
    from backplane.history_rules import History
    from backplane.message import Position

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
        wants_after: A join waits for what came after this position, which only the broker can judge.
        reads_after: How many such positions were read within the last second or so.
        read_after_at: When the last of them was, by the event loop's clock.
        repair_since: When the broker was first asked, on the present link, for what the track misses; by the event
            loop's clock.
        held_since: When a read first failed while messages waited for it, likewise.
        unkept_logged: A message without a place was logged.
    """

    __slots__ = (
        "_changed",
        "fill_error",
        "fills",
        "held_since",
        "name",
        "read_after_at",
        "reads_after",
        "repair_since",
        "ring",
        "rule",
        "track",
        "unkept_logged",
        "wants_after",
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
        self.wants_after: Position | None = None
        self.reads_after: int = 0
        self.read_after_at: float = 0.0
        self.repair_since: float | None = None
        self.held_since: float | None = None
        self.unkept_logged: bool = False
        self._changed: asyncio.Future[None] | None = None

    @property
    def needs_read(self) -> bool:
        """Whether something is to be read from the broker."""
        return self.track.doubt is not None or self.wants_ring or self.wants_after is not None

    def lose(self, reason: str) -> None:
        """Put the channel in doubt: messages may be missing from here on."""
        self.track.lost(reason)
        self.end_repair()

    def end_repair(self) -> None:
        """Let the time of a repair begin anew with the next read."""
        self.repair_since = self.held_since = None

    def want_after(self, position: Position, *, limit: int) -> bool:
        """Ask for what came after a position that only the broker can judge; `False` where too many were asked for.

        Clients can make such positions up, and each costs a read: `limit` are read at once, and then as many again each
        second.
        """
        if self.wants_after is None:
            now = asyncio.get_running_loop().time()
            if now - self.read_after_at > 1:
                self.reads_after = 0
            if self.reads_after >= limit:
                return False
            self.wants_after = position
            self.reads_after += 1
            self.read_after_at = now
        return True

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
