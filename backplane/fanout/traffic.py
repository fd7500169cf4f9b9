"""What passes the hub of a worker, counted once for a batch: messages, bytes, and how late they are.

It is plain integers, which are read on demand. Nothing is counted per subscriber: a batch for a thousand of
them takes as long to count as one for a single subscriber.
"""

from __future__ import annotations

from bisect import bisect_left
from time import time
from typing import TYPE_CHECKING, Final

from backplane.histogram import Histogram

if TYPE_CHECKING:
    from backplane.fanout.batch import Batch
    from backplane.fanout.channel_subscribers import ChannelSubscribers

__all__ = ["LAG_SECONDS", "Traffic"]

LAG_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""The bounds of the histograms of lag."""

# A clock that is ahead by less than this counts as exact: two clocks of one machine differ by some microseconds.
_EXACT_SECONDS: Final = 0.001


class Traffic:
    """The counters of one hub.

    The lag of a batch is the one of its first message, which has waited longest. The clock of the publisher is read in
    `publish`, that of this worker here: so the lag of what other workers publish holds the difference of their clocks,
    and the lag of what this worker publishes itself, through the broker and back, holds none.

    Messages without a header state neither who published them nor when: they have no lag.

    Args:
        origin: The random bytes of this process, by which it knows its own messages.

    Attributes:
        received: Messages of channels with a subscriber here, as the hub took them from the broker, without those of
            reserved channels.
        received_bytes: Their size, without header (of text: characters).
        offered: The same messages, once for each subscriber that they were offered to, and what the worker itself
            offers (users of presence). A subscriber that a message excludes counts too.
        offered_bytes: Their size.
        clock_ahead: Batches whose publisher's clock is ahead of the one of this worker: their lag counts as 0.
        received_self: From `publish` in this worker until the first subscribers here (200 at most) were offered the
            batch, in seconds: what the broker takes, and what this worker has before it.
        received_other: The same of what other workers publish.
        written_self: From `publish` in this worker until the last subscriber here was offered the batch: it is written
            to the transport of a client, or in its outbox. Whether the client has read it is not known.
        written_other: The same of what other workers publish.
    """

    __slots__ = (
        "_origin",
        "clock_ahead",
        "offered",
        "offered_bytes",
        "received",
        "received_bytes",
        "received_other",
        "received_self",
        "written_other",
        "written_self",
    )

    def __init__(self, origin: bytes = b"") -> None:
        self._origin = origin
        self.received: int = 0
        self.received_bytes: int = 0
        self.offered: int = 0
        self.offered_bytes: int = 0
        self.clock_ahead: int = 0
        self.received_self: Histogram = Histogram(*LAG_SECONDS)
        self.received_other: Histogram = Histogram(*LAG_SECONDS)
        self.written_self: Histogram = Histogram(*LAG_SECONDS)
        self.written_other: Histogram = Histogram(*LAG_SECONDS)

    def count_received(
        self, subscribers: ChannelSubscribers, batch: Batch, offered: int, received_at: float | None, /
    ) -> None:
        """Count a batch that was received, once its last subscriber was offered it.

        It is one call for a batch, as it is on the way of every message.

        Args:
            subscribers: Those of the channel.
            batch: The messages.
            offered: How many of the subscribers were offered it.
            received_at: When the first of them were, in seconds since the epoch; `None` where all were at once.
        """
        now = time()
        messages, size = len(batch), batch.size_bytes
        if batch.excludes or subscribers.excluded is not None:
            subscribers.note_excluded(batch)
        subscribers.messages += messages
        subscribers.size_bytes += size
        subscribers.last_received_at = now
        self.received += messages
        self.received_bytes += size
        self.offered += messages * offered
        self.offered_bytes += size * offered
        first = batch[0]
        published_at = first.published_at
        if published_at is None:
            return
        is_own = first.origin == self._origin
        received = self.received_self if is_own else self.received_other
        written = self.written_self if is_own else self.written_other
        lag = now - published_at
        if lag < 0.0:
            self.clock_ahead += lag < -_EXACT_SECONDS
            lag = 0.0
        place = bisect_left(LAG_SECONDS, lag)
        written.counts[place] += 1
        written.total += lag
        if received_at is not None:
            lag = max(0.0, received_at - published_at)
            place = bisect_left(LAG_SECONDS, lag)
        received.counts[place] += 1
        received.total += lag

    def count_given_back(self, batch: Batch) -> None:
        """Count a batch that the broker has given back after a loss; its lag would be that of the loss."""
        self.received += len(batch)
        self.received_bytes += batch.size_bytes

    def count_offered(self, batch: Batch, subscribers: int) -> None:
        """Count a batch of another kind that was offered to so many subscribers: given back, or made here."""
        self.offered += len(batch) * subscribers
        self.offered_bytes += batch.size_bytes * subscribers
