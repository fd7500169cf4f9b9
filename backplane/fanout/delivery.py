"""What the hub hands to subscribers: the protocol of a subscriber, and the delivery of one batch."""

from __future__ import annotations

import logging
from time import time
from typing import TYPE_CHECKING, Final, Protocol

from backplane.journal.events import DELIVERY_FAILED
from backplane.journal.place import place_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from backplane.fanout.batch import Batch
    from backplane.journal.journal import Journal
    from backplane.message import Gap, Joined
    from backplane.message_tracing import DeliverySpan

__all__ = ["Delivery", "DeliveryCounter", "GapDelivery", "LocalDelivery", "Subscriber"]

logger: Final = logging.getLogger("backplane.fanout.delivery")


class Subscriber(Protocol):
    """Anything in this process that joins channels: a connection, an event stream, a subscription.

    Its methods return at once and never raise.
    """

    @property
    def token(self) -> bytes:
        """Random bytes that name this subscriber; a message whose `excluded` equals them is not delivered to it."""
        ...

    def offer(self, batch: Batch, /) -> None:
        """Take messages of one channel, in order."""
        ...

    def gap(self, gap: Gap, /) -> None:
        """Take the notice that messages of a channel may be missing at this place."""
        ...

    def joined(self, joined: Joined, /) -> None:
        """Take the notice that this subscriber has joined a channel, before the first message of a kept channel."""
        ...

    def offer_missed(self, batch: Batch, /) -> None:
        """Take messages of one channel that are given back, at a join or after a loss, in order: they may be many."""
        ...


class DeliveryCounter(Protocol):
    """Counts deliveries, each once, when the last subscriber was offered its batch."""

    def count(self, batch: Batch, offered: int, received_at: float | None, span: DeliverySpan | None, /) -> None:
        """Count one delivery.

        Args:
            batch: Its messages.
            offered: How many subscribers were offered it.
            received_at: When its first slice was done, in seconds since the Unix epoch; `None` where it had no other.
            span: Its span, if it is traced.
        """
        ...


class _Slices:
    """What is delivered in slices: which subscribers are still to get it, of those that have not left since it began.

    Args:
        channel: The channel, or another name for the log.
        subscribers: The subscribers of the channel. The hub goes on editing them, which is how a leave between two
            slices is noticed.
        journal: How a subscriber that raises is logged.
        recipients: Those of them that get it, in this order.

    Attributes:
        channel: As above.
        began_at: When its first slice was done, by the event loop's clock, where that was not the only one.
    """

    __slots__ = ("_journal", "_place", "_recipients", "_subscribers", "began_at", "channel")

    def __init__(
        self,
        channel: str,
        subscribers: Collection[Subscriber],
        journal: Journal,
        recipients: Iterable[Subscriber],
    ) -> None:
        self.channel: str = channel
        self.began_at: float | None = None
        self._journal = journal
        self._subscribers = subscribers
        self._recipients = tuple(recipients)
        self._place = 0

    @property
    def audience(self) -> int:
        """How many get it, unless they leave before."""
        return len(self._recipients)

    def _next(self, count: int | None) -> tuple[Subscriber, ...]:
        """Return the next `count` recipients, or all that are left with `None`."""
        begin = self._place
        self._place = len(self._recipients) if count is None else begin + count
        return self._recipients[begin : self._place]


class Delivery(_Slices):
    """The delivery of one batch to the subscribers that its channel had when it began, without those that left since.

    Args:
        channel: The channel of the batch.
        batch: The messages.
        subscribers: The subscribers of the channel, as the hub edits them.
        journal: How a subscriber that raises is logged.
        recipients: Those of them that get it. Defaults to all.
        missed: The messages are given back after a loss.
        counter: Where it is counted, once all have it. Defaults to nowhere.

    Attributes:
        channel, began_at: By which the hub orders deliveries, and measures one.
        span: Ends when all have it; `None` where it is not traced.
    """

    __slots__ = ("_batch", "_counter", "_missed", "_offered", "_received_at", "span")

    def __init__(
        self,
        channel: str,
        batch: Batch,
        subscribers: Collection[Subscriber],
        journal: Journal,
        *,
        recipients: Iterable[Subscriber] | None = None,
        missed: bool = False,
        counter: DeliveryCounter | None = None,
    ) -> None:
        super().__init__(channel, subscribers, journal, subscribers if recipients is None else recipients)
        self.span: DeliverySpan | None = None
        self._missed = missed
        self._batch = batch
        self._counter = counter
        self._offered = 0
        self._received_at: float | None = None  # where it takes more than one slice

    def run(self, count: int | None) -> bool:
        """Offer the batch to the next `count` subscribers, or to all with `None`; return whether none is left."""
        batch, subscribers = self._batch, self._subscribers
        recipients, left = self._next(count), 0
        for subscriber in recipients:
            if subscriber in subscribers:
                try:
                    if self._missed:
                        subscriber.offer_missed(batch)
                    else:
                        subscriber.offer(batch.for_token(subscriber.token) if batch.excludes else batch)
                except Exception as error:  # offer() must not raise; if it does, the others still get the batch
                    _log_failure(self._journal, batch[0].channel, error)
            else:
                left += 1
        self._offered += len(recipients) - left
        if self._place < len(self._recipients):
            if self._received_at is None and self._counter is not None:
                self._received_at = time()
            return False
        span = self.span
        if (counter := self._counter) is not None:
            counter.count(batch, self._offered, self._received_at, span)
        if span is not None:
            span.end()
        return True


class LocalDelivery(Delivery):
    """The delivery of what this worker has made itself.

    Args:
        topic: Names it in the log.
        batch: The messages.
        subscribers: As of `Delivery`, edited by the caller.
        journal: As of `Delivery`.
        recipients: Those of them that get it.
        done: Called when all have it.
        counter: As of `Delivery`.
    """

    __slots__ = ("_done",)

    def __init__(
        self,
        topic: str,
        batch: Batch,
        subscribers: dict[Subscriber, int],
        journal: Journal,
        recipients: Iterable[Subscriber],
        done: Callable[[], None],
        counter: DeliveryCounter | None = None,
    ) -> None:
        super().__init__(topic, batch, subscribers, journal, recipients=recipients, counter=counter)
        self._done = done

    def run(self, count: int | None) -> bool:
        """Offer the batch, as `Delivery.run`."""
        is_done = super().run(count)
        if is_done:
            self._done()
        return is_done


class GapDelivery(_Slices):
    """The notice of a gap, to those subscribers of its channel that have not left since.

    It is in the queue of the hub's deliveries, so that messages which follow the gap are delivered after it.

    Args:
        gap: The notice.
        recipients: The subscribers concerned.
        subscribers: As of `Delivery`.
        journal: As of `Delivery`.

    Attributes:
        channel, began_at: As of `Delivery`.
    """

    __slots__ = ("_gap",)

    def __init__(
        self,
        gap: Gap,
        recipients: Iterable[Subscriber],
        subscribers: Collection[Subscriber],
        journal: Journal,
    ) -> None:
        super().__init__(gap.channel, subscribers, journal, recipients)
        self._gap = gap

    def run(self, count: int | None) -> bool:
        """Notify the next `count` subscribers, or all with `None`; return whether none is left."""
        for subscriber in self._next(count):
            if subscriber in self._subscribers:
                try:
                    subscriber.gap(self._gap)
                except Exception as error:  # gap() must not raise; if it does, the others are still notified
                    _log_failure(self._journal, self.channel, error)
        return self._place >= len(self._recipients)


def _log_failure(journal: Journal, channel: str, error: Exception) -> None:
    """Log a subscriber that raised, without its message, which can repeat what was published."""
    words = "a subscriber of channel %(channel)r failed: %(error)s"
    journal.log(logger, DELIVERY_FAILED, words, channel=channel, error=place_of(error))
