"""What passes the hub of a worker, counted once for a batch: messages, bytes, and how late they are.

It is plain integers, which are read on demand. Nothing is counted per subscriber: a batch for a thousand of
them takes as long to count as one for a single subscriber.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from backplane.fanout.channel_groups import ChannelGroups
from backplane.fanout.lags import Lags
from backplane.lag import lag_of

if TYPE_CHECKING:
    from backplane.message import Message
    from backplane.message_tracing import DeliverySpan

__all__ = ["Traffic"]

# A clock that is ahead by less than this counts as exact: two clocks of one machine differ by some microseconds.
_EXACT_SECONDS: Final = 0.001

# A lag below this needs no further look.
_USUAL_SECONDS: Final = 60.0


class Traffic:
    """The counters of one hub.

    The lag of a batch is the one of its first message, which has waited longest. The clock of the publisher is read in
    `publish`, that of this worker here: so the lag of what other workers publish holds the difference of their clocks,
    and the lag of what this worker publishes itself, through the broker and back, holds none.

    Args:
        origin: The random bytes of this process, by which it knows its own messages.
        groups: By which the channels are grouped. Defaults to one group.

    Attributes:
        groups: The figures of messages and bytes, by the group of their channel.
        own: The lag of what this worker publishes itself.
        others: The lag of what other workers publish.
        clock_ahead: Batches whose publisher's clock is ahead of the one of this worker: their lag counts as 0.
        unknown_lags: Batches whose publisher states no time, or one that cannot be: they are in no lag. See `lag_of`.
    """

    __slots__ = ("_origin", "clock_ahead", "groups", "others", "own", "unknown_lags")

    def __init__(self, origin: bytes = b"", groups: ChannelGroups | None = None) -> None:
        self._origin = origin
        self.groups: ChannelGroups = groups or ChannelGroups()
        self.own: Lags = Lags()
        self.others: Lags = Lags()
        self.clock_ahead: int = 0
        self.unknown_lags: int = 0

    @property
    def received(self) -> int:
        """Messages of channels with a subscriber here, once each, without those of reserved channels."""
        return sum(group.messages for group in self.groups.all)

    @property
    def received_bytes(self) -> int:
        """Their size, without header (of text: characters)."""
        return sum(group.size_bytes for group in self.groups.all)

    @property
    def offered(self) -> int:
        """The same messages, once for each subscriber that they were offered to, and what the worker itself offers.

        That is users of presence. A subscriber that a message excludes counts too.
        """
        return sum(group.offered for group in self.groups.all)

    @property
    def offered_bytes(self) -> int:
        """Their size."""
        return sum(group.offered_bytes for group in self.groups.all)

    def count_lag(self, first: Message, now: float, received_at: float | None, span: DeliverySpan | None, /) -> None:
        """Count the lag of a batch.

        Args:
            first: Its first message.
            now: When its last subscriber was offered it, in seconds since the epoch.
            received_at: When its first subscribers were; `None` where these were all.
            span: The span of its delivery, if it is traced.
        """
        published_at = first.published_at or 0.0
        lag = now - published_at
        if not 0.0 <= lag < _USUAL_SECONDS:
            known = self._known(published_at, now)
            if known is None:
                return
            lag = known
        lags = self.own if first.origin == self._origin else self.others
        received_lag = None if received_at is None else max(0.0, received_at - published_at)
        lags.count(lag, received_lag)
        if span is not None and (trace_id := span.trace_id):
            lags.note(trace_id, lag, received_lag, now)

    def _known(self, published_at: float, now: float) -> float | None:
        """Return the lag that counts for a time which is long ago or ahead; `None` where it cannot be."""
        lag = lag_of(published_at, now)
        if lag is None:
            self.unknown_lags += 1
            return None
        self.clock_ahead += lag < -_EXACT_SECONDS
        return max(0.0, lag)
