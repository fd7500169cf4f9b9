"""Compares quiet channels with the broker, where a message can be stored and never be delivered live."""

from __future__ import annotations

import asyncio
import logging
from itertools import islice
from typing import TYPE_CHECKING, Final

from backplane.concurrency.timeouts import PatientTimeout
from backplane.errors import BrokerError
from backplane.journal.events import ADAPTER_FAULT
from backplane.journal.writing import write

if TYPE_CHECKING:
    from backplane.broadcaster import SupportsHistory
    from backplane.history.hub import HistoryHub
    from backplane.history.kept_channel import KeptChannel

__all__ = ["QuietChannels"]

logger: Final = logging.getLogger("backplane.history.quiet_channels")

_COMPARED_AT_ONCE: Final = 200
_SKIPPED: Final = "the broker has stored a message that was not received"


class QuietChannels:
    """Once per interval, compares the newest position of some channels with that of the broker, in turn.

    On any other channel the next message shows what is missing, since it names the one before it. On a quiet one there
    is none.

    Args:
        hub: The hub with the channels.
        adapter: What keeps them.
        interval_seconds: How long from one comparison to the next, and how long one may take.
    """

    def __init__(self, hub: HistoryHub, adapter: SupportsHistory, *, interval_seconds: float) -> None:
        self._hub = hub
        self._adapter = adapter
        self._interval_seconds = interval_seconds
        self._turn: int = 0

    async def run(self) -> None:
        """Compare until cancelled: while the link is live."""
        while True:
            await asyncio.sleep(self._interval_seconds)
            await self.compare()

    async def compare(self) -> None:
        """Compare the channels whose turn it is; what a failed read concerns has its turn again later."""
        quiet = list(self._hub.quiet)
        if self._turn >= len(quiet):
            self._turn = 0
        some = list(islice(quiet, self._turn, self._turn + _COMPARED_AT_ONCE))
        self._turn += len(some)
        try:
            async with PatientTimeout(self._interval_seconds):
                await asyncio.gather(*(self._compare(kept) for kept in some))
        except TimeoutError:
            return

    async def _compare(self, kept: KeptChannel) -> None:
        last = kept.track.last
        try:
            recalled = await self._adapter.recall(kept.name, kept.rule, after=None, limit=0, max_bytes=0)
        except BrokerError:  # of this channel alone, or of all of them: each has its turn again
            return
        except Exception as error:  # a fault of the adapter: it must not end the link, each time it is compared
            words = "comparing channel %(channel)r with the broker failed unexpectedly"
            write(logger, ADAPTER_FAULT, words, channel=kept.name, exc_info=error)
            return
        if kept.track.last is last and kept.track.doubt is None and recalled.top != last:
            self._hub.gap([kept.name], _SKIPPED)
