"""Reads from the broker what the tracks of a worker miss, in one task for all channels."""

from __future__ import annotations

import asyncio
import logging
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

from backplane.concurrency.timeouts import SharedTimeout
from backplane.errors import BrokerError, BrokerUnavailableError
from backplane.journal.events import ADAPTER_FAULT, HISTORY_FAILED

if TYPE_CHECKING:
    from collections.abc import Callable

    from backplane.broadcaster import Recalled, SupportsHistory
    from backplane.history.kept_channel import KeptChannel
    from backplane.journal.journal import Journal
    from backplane.message import Position

__all__ = ["Read", "ReadBounds", "Repairer"]

logger: Final = logging.getLogger("backplane.history.repair")

# Channels that are read at once: so many that a round trip does not matter, and so few that their objects are gone
# before the garbage collector looks, at each 700 more. What it finds alive counts as lasting, and leads to a full
# collection, which blocks the event loop for 50 to 100 ms: with 100 channels at once, in each repair of ten thousand.
_MAX_BATCH: Final = 32
# What is read at once is held in memory at once. So the first batches are small, and those after large ones.
_MIN_BATCH: Final = 8
_LARGE_BYTES: Final = 8 * 1024 * 1024
# How much longer a channel is tried to be read while nothing has arrived on it: the election of a leader in a cluster
# can take half a minute.
_QUIET_TIMES: Final = 6
_FIRST_PAUSE_SECONDS: Final = 0.05
_MAX_PAUSE_SECONDS: Final = 1.0


class ReadBounds(NamedTuple):
    """The bounds of one read, and of all reads for one channel.

    Attributes:
        max_messages: Most messages of one read.
        max_bytes: Most bytes of one read.
        read_seconds: How long one read may take.
        repair_seconds: How long the reads for one channel may take together, on one link, while messages that have
            arrived on it wait; six times as long while none has.
    """

    max_messages: int
    max_bytes: int
    read_seconds: float
    repair_seconds: float


class Read(NamedTuple):
    """What was read for a channel.

    Attributes:
        recalled: What was read.
        in_doubt: It was read for the doubt of the channel's track.
        is_whole: It is everything that can be given back, for the ring.
        after: It is what came after this position, for a join.
    """

    recalled: Recalled
    in_doubt: bool
    is_whole: bool
    after: Position | None = None


class Repairer:
    """Brings tracks that are in doubt, and rings that a join needs, in line with the broker.

    Args:
        adapter: What keeps the histories.
        bounds: The bounds of the reads.
        on_read: Called with each channel and what was read for it.
        on_failed: Called with each channel whose repair took too long, or that the broker refuses to read, and the
            reason.
        journal: How failures, which can concern every channel at once, are logged.
    """

    def __init__(
        self,
        adapter: SupportsHistory,
        bounds: ReadBounds,
        *,
        on_read: Callable[[KeptChannel, Read], None],
        on_failed: Callable[[KeptChannel, str], None],
        journal: Journal,
    ) -> None:
        self._adapter = adapter
        self._bounds = bounds
        self._on_read = on_read
        self._on_failed = on_failed
        self._journal = journal
        self._timeouts = SharedTimeout(bounds.read_seconds)
        self._due: dict[KeptChannel, None] = {}
        self._due_first: dict[KeptChannel, None] = {}  # those that hold messages back
        self._reading: set[KeptChannel] = set()
        self._batch_size = _MIN_BATCH
        self._changed = asyncio.Event()

    def request(self, kept: KeptChannel) -> None:
        """Read for a channel once its turn comes; a second request before the end of that read changes nothing."""
        if kept in self._reading or kept in self._due_first:
            return
        if kept.track.held:
            self._due.pop(kept, None)
            self._due_first[kept] = None
        else:
            self._due[kept] = None
        self._changed.set()

    def discard(self, kept: KeptChannel) -> None:
        """Forget a channel, also where it is being read."""
        self._due.pop(kept, None)
        self._reading.discard(kept)
        self._due_first.pop(kept, None)

    def link_lost(self) -> None:
        """Forget every request: each channel is requested again once the next link has confirmed it."""
        self._due.clear()
        self._due_first.clear()
        self._reading.clear()

    async def run(self) -> None:
        """Read what is requested, until cancelled: while the link is live."""
        pause = _FIRST_PAUSE_SECONDS
        while True:
            await self._changed.wait()
            self._changed.clear()
            while batch := self._next_batch():
                if await self._read_batch(batch):
                    pause = _FIRST_PAUSE_SECONDS
                else:
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, _MAX_PAUSE_SECONDS)

    def _next_batch(self) -> list[KeptChannel]:
        """Take the next channels; those that hold messages back come first. Empty only where no channel is due."""
        batch: list[KeptChannel] = []
        while (due := self._due_first or self._due) and not batch:
            now = asyncio.get_running_loop().time()
            for kept in list(islice(due, self._batch_size)):
                del due[kept]
                if not kept.needs_read:  # a message that arrived has proved meanwhile that nothing is missing
                    kept.end_repair()
                    continue
                batch.append(kept)
                if kept.repair_since is None:
                    kept.repair_since = now
        self._reading = set(batch)
        return batch

    async def _read_batch(self, batch: list[KeptChannel]) -> bool:
        """Read for some channels at once; return whether any read succeeded."""
        sizes = await asyncio.gather(*(self._read_one(kept) for kept in batch))
        size = sum(filter(None, sizes))
        next_size = self._batch_size // 2 if size > _LARGE_BYTES else self._batch_size * 2
        self._batch_size = max(_MIN_BATCH, min(next_size, _MAX_BATCH))
        return any(size is not None for size in sizes)

    async def _read_one(self, kept: KeptChannel) -> int | None:
        """Read for a channel, and pass it on at once; return how many bytes that were, or `None` where it failed."""
        outcome = await self._read(kept)
        if kept in self._reading:
            self._reading.discard(kept)
            self._take(kept, outcome, asyncio.get_running_loop().time())
        if isinstance(outcome, Exception):
            return None
        return sum(len(item.payload) for item in outcome.recalled.items)

    def _take(self, kept: KeptChannel, outcome: Read | Exception, now: float) -> None:
        """Pass on what was read for a channel. Its failure, or what cannot be used, concerns no other channel."""
        if isinstance(outcome, Exception):
            return self._read_failed(kept, outcome, now)
        try:
            self._on_read(kept, outcome)
        except Exception as error:
            self._log_fault(kept, error)
            self._read_failed(kept, error, now)
        else:
            kept.end_repair()

    async def _read(self, kept: KeptChannel) -> Read | Exception:
        """Read what a track misses, or, where it is settled or new, what its ring should hold."""
        bounds, track = self._bounds, kept.track
        in_doubt = track.doubt is not None
        wanted = None if in_doubt or kept.wants_ring else kept.wants_after
        after, limit = track.ask(bounds.max_messages) if in_doubt else (wanted, bounds.max_messages)
        if after is None and (kept.wants_ring or not in_doubt):
            limit = min(bounds.max_messages, kept.rule.max_messages + 1)
        try:
            with self._timeouts.limit():
                recalled = await self._adapter.recall(
                    kept.name, kept.rule, after=after, limit=limit, max_bytes=bounds.max_bytes
                )
        except (BrokerError, TimeoutError) as error:
            return error
        except Exception as error:  # a fault of the adapter: it must not end the link, each time it is read again
            self._log_fault(kept, error)
            return error
        return Read(recalled, in_doubt, is_whole=after is None and limit > 0, after=wanted)

    def _read_failed(self, kept: KeptChannel, error: Exception, now: float) -> None:
        """Read again after what can pass, within the time for one channel; a refusal of the broker is final."""
        reason = str(error) or repr(error)
        if isinstance(error, TimeoutError):
            reason = f"the broker did not answer within {self._bounds.read_seconds:g} s"
        passing = isinstance(error, BrokerUnavailableError) or not isinstance(error, BrokerError)
        if passing and self._has_time(kept, now):
            self.request(kept)
            return
        kept.end_repair()
        words = "the history of channel %(channel)r cannot be read, which is a gap: %(reason)s"
        self._journal.log(logger, HISTORY_FAILED, words, channel=kept.name, reason=reason)
        self._on_failed(kept, f"the history cannot be read: {reason}")

    def _has_time(self, kept: KeptChannel, now: float) -> bool:
        """Whether a channel may be read once more.

        The time of a repair bounds how long messages that have arrived wait. Where none has, as while a stream has no
        leader, by which messages are delivered too, waiting for longer delays nothing, and saves a gap.
        """
        track, most = kept.track, self._bounds.repair_seconds
        since = kept.repair_since
        if track.held:
            if kept.held_since is None:
                kept.held_since = now
            since = kept.held_since
        elif track.doubt is not None and track.last is not None:  # a join, otherwise, would wait
            kept.held_since = None
            most *= _QUIET_TIMES
        return since is None or now - since < most

    def _log_fault(self, kept: KeptChannel, error: Exception) -> None:
        words = "reading the history of channel %(channel)r failed unexpectedly"
        self._journal.log(logger, ADAPTER_FAULT, words, channel=kept.name, exc_info=error)
