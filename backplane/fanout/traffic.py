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

__all__ = ["LAG_SECONDS", "Traffic"]

LAG_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""The bounds of the histograms of lag."""

# A clock that is ahead by less than this counts as exact: two clocks of one machine differ by some microseconds.
_EXACT_SECONDS: Final = 0.001

# So many channels are counted one by one.
_MAX_CHANNELS: Final = 20_000


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
        of_channels: By channel, its messages and their size since this was set to an empty `dict`; `None` while no
            process watches, and then nothing is counted by channel.
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
        "of_channels",
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
        self.of_channels: dict[str, list[int]] | None = None
        self.received_self: Histogram = Histogram(*LAG_SECONDS)
        self.received_other: Histogram = Histogram(*LAG_SECONDS)
        self.written_self: Histogram = Histogram(*LAG_SECONDS)
        self.written_other: Histogram = Histogram(*LAG_SECONDS)

    def count_slice(self, batch: Batch, subscribers: int, is_first: bool, is_last: bool, /) -> None:
        """Count a batch that a slice of its subscribers was offered, so many of them; most have one slice alone.

        One call and one reading of the clock for such a batch, as it is on the way of every message.
        """
        messages, size = len(batch), batch.size_bytes
        self.offered += messages * subscribers
        self.offered_bytes += size * subscribers
        if is_first:
            self.received += messages
            self.received_bytes += size
            if self.of_channels is not None:
                self._count_channel(self.of_channels, batch)
        first = batch[0]
        if first.published_at is None or not (is_first or is_last):
            return
        lag = time() - first.published_at
        if lag < 0.0:
            self.clock_ahead += is_first and lag < -_EXACT_SECONDS
            lag = 0.0
        is_own = first.origin == self._origin
        place = bisect_left(LAG_SECONDS, lag)
        if is_first:
            received = self.received_self if is_own else self.received_other
            received.counts[place] += 1
            received.total += lag
        if is_last:
            written = self.written_self if is_own else self.written_other
            written.counts[place] += 1
            written.total += lag

    def count_given_back(self, batch: Batch) -> None:
        """Count a batch that the broker has given back after a loss; its lag would be that of the loss."""
        self.received += len(batch)
        self.received_bytes += batch.size_bytes

    def count_offered(self, batch: Batch, subscribers: int) -> None:
        """Count a batch of another kind that was offered to so many subscribers: given back, or made here."""
        self.offered += len(batch) * subscribers
        self.offered_bytes += batch.size_bytes * subscribers

    def _count_channel(self, channels: dict[str, list[int]], batch: Batch) -> None:
        channel = batch[0].channel
        counts = channels.get(channel)
        if counts is None:
            if len(channels) >= _MAX_CHANNELS:  # most of them have no subscriber any more
                channels.clear()
            counts = channels[channel] = [0, 0]
        counts[0] += len(batch)
        counts[1] += batch.size_bytes
