"""What the hub hands to subscribers: the protocol of a subscriber, and the delivery of one batch."""

from __future__ import annotations

import logging
from itertools import islice
from typing import TYPE_CHECKING, ClassVar, Final, Protocol

from backplane.journal.events import DELIVERY_FAILED
from backplane.journal.place import place_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from backplane.fanout.batch import Batch
    from backplane.fanout.traffic import Traffic
    from backplane.journal.journal import Journal
    from backplane.message import Gap, Joined
    from backplane.message_tracing import DeliverySpan

__all__ = ["Delivery", "GapDelivery", "LocalDelivery", "Subscriber", "TracedDelivery"]

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


class _Slices:
    """What is delivered in slices: which subscribers are still to get it, of those that have not left since it began.

    Args:
        channel: The channel, or another name for the log.
        subscribers: The subscribers of the channel. The hub goes on editing this `dict`, which is how a leave between
            two slices is noticed.
        journal: How a subscriber that raises is logged.
        recipients: Those of them that get it, in this order.

    Attributes:
        channel: As above.
        began_at: When its first slice was done, by the event loop's clock, where that was not the only one.
    """

    __slots__ = ("_journal", "_remaining", "_subscribers", "began_at", "channel")

    def __init__(
        self,
        channel: str,
        subscribers: Mapping[Subscriber, int],
        journal: Journal,
        recipients: Iterable[Subscriber],
    ) -> None:
        self.channel: str = channel
        self.began_at: float | None = None
        self._journal = journal
        self._subscribers = subscribers
        self._remaining: Iterator[Subscriber] = iter(tuple(recipients))


class Delivery(_Slices):
    """The delivery of one batch to the subscribers that its channel had when it began, without those that left since.

    Args:
        channel: The channel of the batch.
        batch: The messages.
        subscribers: The subscribers of the channel, as the hub edits them.
        journal: How a subscriber that raises is logged.
        recipients: Those of them that get it. Defaults to all.
        missed: The messages are given back after a loss.
        traffic: Where it is counted. Defaults to nowhere.

    Attributes:
        channel, began_at: By which the hub orders deliveries, and measures one.
    """

    __slots__ = ("_batch", "_is_first", "_missed", "_traffic")

    _is_received: ClassVar[bool] = True

    def __init__(
        self,
        channel: str,
        batch: Batch,
        subscribers: Mapping[Subscriber, int],
        journal: Journal,
        *,
        recipients: Iterable[Subscriber] | None = None,
        missed: bool = False,
        traffic: Traffic | None = None,
    ) -> None:
        super().__init__(channel, subscribers, journal, subscribers if recipients is None else recipients)
        self._missed = missed
        self._batch = batch
        self._traffic = traffic
        self._is_first = True

    def run(self, count: int | None) -> bool:
        """Offer the batch to the next `count` subscribers, or to all with `None`; return whether none is left."""
        batch, subscribers = self._batch, self._subscribers
        taken = left = 0
        for subscriber in islice(self._remaining, count):
            taken += 1
            if subscriber in subscribers:
                try:
                    if self._missed:
                        subscriber.offer_missed(batch)
                    else:
                        subscriber.offer(batch.for_token(subscriber.token) if batch.excludes else batch)
                except Exception as error:  # offer() must not raise; if it does, the others still get the batch
                    _log_failure(self._journal, self.channel, error)
            else:
                left += 1
        is_done = count is None or taken < count
        if (traffic := self._traffic) is not None:
            if self._is_received and not self._missed:
                traffic.count_slice(batch, taken - left, self._is_first, is_done)
            else:
                traffic.count_offered(batch, taken - left)
            self._is_first = False
        return is_done


class LocalDelivery(Delivery):
    """The delivery of what this worker has made itself.

    Args:
        topic: Names it in the log.
        batch: The messages.
        subscribers: As of `Delivery`, edited by the caller.
        journal: As of `Delivery`.
        recipients: Those of them that get it.
        done: Called when all have it.
        traffic: As of `Delivery`.
    """

    __slots__ = ("_done",)

    _is_received = False

    def __init__(
        self,
        topic: str,
        batch: Batch,
        subscribers: dict[Subscriber, int],
        journal: Journal,
        recipients: Iterable[Subscriber],
        done: Callable[[], None],
        traffic: Traffic | None = None,
    ) -> None:
        super().__init__(topic, batch, subscribers, journal, recipients=recipients, traffic=traffic)
        self._done = done

    def run(self, count: int | None) -> bool:
        """Offer the batch, as `Delivery.run`."""
        is_done = super().run(count)
        if is_done:
            self._done()
        return is_done


class TracedDelivery:
    """A delivery of a batch that holds a sampled message: its span ends with the last subscriber.

    Args:
        delivery: The delivery.
        span: Its span.

    Attributes:
        channel, began_at: As of `Delivery`.
    """

    __slots__ = ("_delivery", "_span", "began_at", "channel")

    def __init__(self, delivery: Delivery, span: DeliverySpan) -> None:
        self.channel: str = delivery.channel
        self.began_at: float | None = None
        self._delivery = delivery
        self._span = span

    def run(self, count: int | None) -> bool:
        """Offer the batch, as `Delivery.run`."""
        is_done = self._delivery.run(count)
        if is_done:
            self._span.end()
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
        subscribers: Mapping[Subscriber, int],
        journal: Journal,
    ) -> None:
        super().__init__(gap.channel, subscribers, journal, recipients)
        self._gap = gap

    def run(self, count: int | None) -> bool:
        """Notify the next `count` subscribers, or all with `None`; return whether none is left."""
        notified = 0
        for subscriber in islice(self._remaining, count):
            notified += 1
            if subscriber in self._subscribers:
                try:
                    subscriber.gap(self._gap)
                except Exception as error:  # gap() must not raise; if it does, the others are still notified
                    _log_failure(self._journal, self.channel, error)
        return count is None or notified < count


def _log_failure(journal: Journal, channel: str, error: Exception) -> None:
    """Log a subscriber that raised, without its message, which can repeat what was published."""
    words = "a subscriber of channel %(channel)r failed: %(error)s"
    journal.log(logger, DELIVERY_FAILED, words, channel=channel, error=place_of(error))
