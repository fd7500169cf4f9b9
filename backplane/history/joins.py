"""Joins of kept channels that wait for what the broker has, before a subscriber is added with what it missed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from backplane.concurrency.timeouts import PatientTimeout
from backplane.errors import BrokerUnavailableError
from backplane.history.replay import is_ahead, needs_ring, unknown_start

if TYPE_CHECKING:
    from collections.abc import Callable

    from backplane.fanout.batch import Batch
    from backplane.history.kept_channel import KeptChannel
    from backplane.history.replay import Start
    from backplane.message import Gap, Joined
    from backplane.settings import Settings

__all__ = ["Joins", "Placeholder"]

# A ring that was filled for a join can be emptied, for the bound of all rings, before the join takes from it.
_MAX_FILLS: Final = 3
# Positions that only the broker can judge, which clients can make up, cost a read each.
_MAX_READS_AFTER: Final = 8
# Doubled each time: thousands of clients may come with positions that were lost.
_FIRST_PAUSE_SECONDS: Final = 0.01


class Joins:
    """Waits for what joins need. They share the reads at the broker.

    Args:
        settings: How long a join may wait.
        proves: Whether the hub itself proves that nothing is missing on a channel.
        request: Has a channel read from the broker.
    """

    def __init__(
        self, settings: Settings, *, proves: Callable[[KeptChannel], bool], request: Callable[[KeptChannel], None]
    ) -> None:
        self._seconds = settings.subscribe_timeout_seconds
        self._patience_seconds = min(settings.recall_timeout_seconds, self._seconds / 2)
        self._proves = proves
        self._request = request
        self._closed = False

    def close(self) -> None:
        """Let every join that waits raise, once its channel notifies it."""
        self._closed = True

    async def settled(self, kept: KeptChannel, start: Start) -> None:
        """Wait until the track of a channel is not in doubt, and its ring holds what a join needs.

        Another worker may have received more than this one, and the subscriber with it: what is on the way is waited
        for, or all that the subscriber has would be given back again, after a gap. Where nothing arrives, as on a link
        that is silent, the broker is asked. An adapter that follows waits itself, when it reads, until it has received
        what the broker has.

        Raises:
            BrokerUnavailableError: That took too long, or the backplane was stopped.
        """
        patience, pause = self._patience_seconds, _FIRST_PAUSE_SECONDS
        fills, starts = kept.fills + _MAX_FILLS, 1
        try:
            async with PatientTimeout(self._seconds):
                while not self._closed:
                    wants_ring = kept.fills < fills and needs_ring(kept, start)
                    if kept.track.doubt is None and not wants_ring:
                        if patience > 0 and self._proves(kept) and is_ahead(kept, start.since):
                            await asyncio.sleep(pause)
                            patience -= pause
                            pause *= 2
                            continue
                        unknown = unknown_start(kept, start, follows=not self._proves(kept))
                        if unknown is None or not starts or not kept.want_after(unknown, limit=_MAX_READS_AFTER):
                            return
                        starts -= kept.wants_after is unknown
                    kept.wants_ring |= wants_ring
                    self._request(kept)
                    kept.ring.waiting += wants_ring
                    try:
                        await kept.changed()
                    finally:
                        kept.ring.waiting -= wants_ring
        except TimeoutError:
            raise BrokerUnavailableError(
                f"the broker did not return the history of channel {kept.name!r} within {self._seconds:g} s"
            ) from None
        raise BrokerUnavailableError("the backplane was stopped")


class Placeholder:
    """Keeps a channel subscribed while a join waits, and takes nothing."""

    def __init__(self) -> None:
        self.token: bytes = b""

    def offer(self, _: Batch, /) -> None:
        """Take nothing: it is in the ring."""

    def offer_missed(self, _: Batch, /) -> None:
        """Take nothing."""

    def gap(self, _: Gap, /) -> None:
        """Take nothing: the join that waits begins after it."""

    def joined(self, _: Joined, /) -> None:
        """Take nothing."""
