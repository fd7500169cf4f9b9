"""Channel to local subscribers, and the fan-out.

The fan-out never waits for a subscriber. Messages received in one pass of the event loop are collected per channel and
offered to each subscriber at the end of that pass, together and in order. A fan-out that is too long for one pass is
cut into slices, and the channels take turns.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from backplane.channels import RESERVED_PREFIX
from backplane.concurrency.affinity import LoopAffinity
from backplane.errors import SubscribeError
from backplane.fanout.batch import Batch
from backplane.fanout.channel_subscribers import ChannelSubscribers
from backplane.fanout.codec import decode, reason_of_drop
from backplane.fanout.delivery import Delivery, GapDelivery, LocalDelivery
from backplane.fanout.gaps import GapReporter
from backplane.fanout.patterns import Patterns
from backplane.fanout.traffic import Traffic
from backplane.header import path_test_id
from backplane.journal.events import (
    CHANNEL_REFUSED,
    CHANNEL_REVOKED,
    HOOK_FAILED,
    PAYLOAD_MALFORMED,
    PAYLOAD_UNSUPPORTED,
)
from backplane.journal.journal import Journal
from backplane.message import Gap, Joined

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from backplane.fanout.broker_subscriptions import BrokerSubscriptions
    from backplane.fanout.delivery import Subscriber
    from backplane.fanout.gaps import GapCause
    from backplane.history_rules import HistoryRules
    from backplane.message import All, Message, Place, Position
    from backplane.message_tracing import MessageTracer

__all__ = ["Hub"]

logger: Final = logging.getLogger("backplane.fanout.hub")

# A publisher that never yields to the event loop must not grow the collection of one pass without bound.
_MAX_COLLECTED: Final = 1024
_MAX_COLLECTED_BYTES: Final = 1024 * 1024
# A write takes some 5 µs, so a slice ends within 1 ms, and a pass of the event loop soon after its budget.
_SLICE: Final = 200
_PASS_SECONDS: Final = 0.005
# After a long fan-out its channel collects for a part of the time that it took.
_LONG_SECONDS: Final = 0.001
_REST_SHARE: Final = 0.25
_MOST_REST_SECONDS: Final = 0.002
# Larger writes are no cheaper a byte, and one that is larger than a backlog would hide that a client does not read.
_MOST_REST_BYTES: Final = 64 * 1024
# Timers of uvloop are rounded to whole milliseconds, where those of asyncio are rounded up.
_TIMER_ROUNDING_SECONDS: Final = 0.0005


class Hub:
    """Every local subscriber by channel.

    Args:
        broker_subscriptions: What the broker is asked to deliver to this worker. It follows the first join and the last
            leave of each channel, and reports confirmations and refusals here.
        prefixes: The prefixes that it is asked for, likewise; `None` where the adapter has no patterns.
        journal: How failures, which can concern many subscribers at once, are logged.
        traffic: Counts what passes, without reserved channels. Defaults to one of its own.
        slice_size: How many subscribers of a channel get a batch before the next channel's turn.
        pass_seconds: How long the fan-out may take in one pass of the event loop.
        most_rest_seconds: How long a channel may rest after a long fan-out; with 0 none does.

    Attributes:
        affinity: The event loop that every local object belongs to. The public methods check it first.
        gaps: The open gaps, and how many were reported.
        patterns: The subscribers of patterns.
        traffic: As above.
        malformed: Payloads dropped because their header is invalid.
        unsupported: Payloads dropped because a newer release wrote them, with an extension that this one must know.
        path_tests: Path tests that the broker delivered on a channel with a local subscriber.
        on_path_test: Called with the channel and the id of each of them, at once. It must not block; what it raises is
            logged. No subscriber notices a path test.
        tracer: Makes the spans of deliveries; `None` without tracing.
    """

    def __init__(
        self,
        broker_subscriptions: BrokerSubscriptions,
        journal: Journal | None = None,
        *,
        prefixes: BrokerSubscriptions | None = None,
        traffic: Traffic | None = None,
        slice_size: int = _SLICE,
        pass_seconds: float = _PASS_SECONDS,
        most_rest_seconds: float = _MOST_REST_SECONDS,
    ) -> None:
        self.affinity: LoopAffinity = LoopAffinity()
        self._broker_subscriptions = broker_subscriptions
        self._journal = journal or Journal()
        self._slice_size = slice_size
        self._pass_seconds = pass_seconds
        self._most_rest_seconds = most_rest_seconds
        self._subscribers: dict[str, ChannelSubscribers] = {}
        self._collected: dict[str, Batch] = {}
        self._collected_count = 0
        self._collected_bytes = 0
        self._deliveries: deque[Delivery | GapDelivery] = deque()
        self._resting: dict[str, asyncio.TimerHandle] = {}
        self._flush_handle: asyncio.Handle | None = None
        self._revocations = 0
        self.traffic: Traffic = traffic or Traffic()
        self.tracer: MessageTracer | None = None
        self.malformed: int = 0
        self.unsupported: int = 0
        self.path_tests: int = 0
        self.on_path_test: Callable[[str, bytes], object] | None = None
        self.gaps: GapReporter = GapReporter(
            self._subscribers,
            broker_subscriptions.confirmed,
            self._flush_channels,
            self._start_delivery,
            self._journal,
            slice_size,
        )
        self._open_gaps = self.gaps.opened
        self.patterns: Patterns = Patterns(
            prefixes, self._flush, self._start_delivery, self._journal, self.traffic, slice_size, self.gaps
        )
        self._patterned = self.patterns.subscribed
        broker_subscriptions.on_confirmed = self.gaps.report
        broker_subscriptions.on_refused = self.gaps.notify_refused
        broker_subscriptions.on_unconfirmed = self.gaps.end_resumed
        broker_subscriptions.on_overdue = self.gaps.notify_unconfirmed

    @property
    def rules(self) -> HistoryRules | None:
        """Which channels have a history; `None` where none has."""
        return None

    @property
    def channels(self) -> Mapping[str, ChannelSubscribers]:
        """The channels with at least one local subscriber, each with these, and what was received on it for them.

        The reserved channels are among them, but nothing is counted of those.
        """
        return self._subscribers

    def audience(self, channel: str) -> int:
        """Return how many local subscribers `channel` has, those of patterns included."""
        named = self._subscribers.get(channel)
        return len(named or ()) if not self._patterned else self.patterns.audience(channel, named or {})

    @property
    def delivered(self) -> int:
        """Messages that were received for subscribers here, once each."""
        return self.traffic.received

    @property
    def in_doubt(self) -> int:
        """How many channels may miss messages that the broker has not given back yet: none without a history."""
        return 0

    @property
    def under_way(self) -> int:
        """How many channels are being delivered to: their fan-out takes more than one pass of the event loop."""
        return len(self._deliveries)

    @property
    def resting(self) -> int:
        """How many channels collect for a moment after a long fan-out."""
        return len(self._resting)

    async def join(self, channel: str, subscriber: Subscriber, *, since: str | None = None, rewind: int = 0) -> None:
        """Add `subscriber`; when this returns it misses no later publish without a gap.

        Concurrent joins of one channel share one broker subscription. Joining twice changes nothing. Cancelling undoes
        this join and no other.

        Args:
            channel: The channel.
            subscriber: The subscriber. It is notified that it has joined.
            since: The position up to which the subscriber has received the channel. Without a history it gets the
                notice that this cannot be served.
            rewind: How many of the newest messages it gets first; without a history none.

        Raises:
            SubscribeError: The broker refused the channel.
            BrokerUnavailableError: The broker did not confirm in time.
        """
        await self._add(channel, subscriber)
        gap = Gap(channel=channel, reason="the channel keeps no history") if since else None
        try:
            subscriber.joined(Joined(channel=channel, gap=gap))
        except BaseException:  # functions of the application run there, and can raise anything
            self._undo_join(channel, subscriber)
            raise

    def position(self, channel: str) -> Position | None:
        """Return the position of the newest message that the subscribers of `channel` got; `None` without a history."""
        return None

    async def _add(self, channel: str, subscriber: Subscriber) -> None:
        while True:
            # The subscriber is added before the broker is asked: a message can arrive between the broker's
            # confirmation and the moment at which this task runs again, and it must be delivered.
            joins = self._subscribers.get(channel)
            if joins is None:
                joins = self._subscribers[channel] = self._new_channel(channel)
            joins[subscriber] = joins.get(subscriber, 0) + 1
            try:
                await self._broker_subscriptions.acquire(channel)
            except BaseException as error:
                self._undo_join(channel, subscriber)
                if isinstance(error, SubscribeError) and not channel.startswith(RESERVED_PREFIX):
                    words = "the broker refused channel %(channel)r to a join: %(reason)s"
                    self._journal.log(logger, CHANNEL_REFUSED, words, channel=channel, channels=1, reason=error)
                raise
            if subscriber in self._subscribers.get(channel, ()):
                return
            # A concurrent join of the same subscriber completed first and was then left, which also removed this one:
            # join again.

    def leave(self, channel: str, subscriber: Subscriber) -> None:
        """Remove `subscriber`: nothing more is delivered to it. Leaving twice changes nothing."""
        subscribers = self._subscribers.get(channel)
        if subscribers is None:
            return
        subscribers.pop(subscriber, None)
        if not subscribers:
            del self._subscribers[channel]
            self.gaps.discard(channel)
            self._broker_subscriptions.release(channel)

    def deliver(self, channel: str, payload: bytes, place: Place | None = None) -> None:
        """Collect one payload received from the broker for the end of this pass of the event loop."""
        if channel not in self._subscribers and not (self._patterned and self.patterns.match(channel)):
            return
        message = decode(channel, payload, place)
        if message is None:
            self._drop(channel, payload)
            return
        if (gap := self._open_gaps.get(channel)) is not None and not gap.resumed:
            self.gaps.report_early(channel)  # the message has overtaken the broker's confirmation
        self._collect(channel, message)

    def deliver_local(
        self,
        topic: str,
        batch: Batch,
        recipients: Iterable[Subscriber],
        subscribers: dict[Subscriber, int],
        done: Callable[[], None],
    ) -> None:
        """Deliver what this worker has made itself, in slices as everything else.

        Args:
            topic: Names it in the log; no channel that is subscribed. Two deliveries at a time are in no order.
            batch: The messages.
            recipients: Which subscribers get it, in this order.
            subscribers: One that is not among these when it is its turn does not get it.
            done: Called when all have it.
        """
        self._start_delivery(
            LocalDelivery(topic, batch, subscribers, self._journal, recipients, done, self.traffic.groups.rest)
        )

    def gap(self, channels: Collection[str] | All, reason: str) -> None:
        """Notify every subscriber of `channels` that messages may be missing at this place.

        Now, or, where the broker has not confirmed the channel, once it has: more is missed until then. Few are
        notified at once, the others of many in slices, each before the messages that follow the gap.
        """
        self.patterns.gap(channels, reason, named=self._subscribers)
        self.gaps.open_and_report(self._without_proof(channels), reason)

    def open_gap(
        self,
        channels: Collection[str] | All,
        reason: str,
        cause: GapCause = "link_lost",
        *,
        resumed: bool = False,
    ) -> None:
        """Note that messages may be missing from here on. See `GapReporter.open`."""
        self.patterns.open_gap(channels, reason, cause, resumed=resumed)
        self.gaps.open(self._without_proof(channels), reason, cause, resumed=resumed)

    def revoke(self, channels: Collection[str], reason: str) -> None:
        """Open a gap on subscriptions that the broker revoked, and subscribe to them again."""
        self._revocations += 1
        if _is_power_of_two(self._revocations):
            self._journal.log(
                logger,
                CHANNEL_REVOKED,
                "the broker revoked %(channels)d subscriptions (times so far: %(count)d): %(reason)s",
                channels=len(channels),
                count=self._revocations,
                reason=reason,
            )
        self.patterns.gap(channels, reason, named=self._subscribers)
        self.gaps.open(self._without_proof(channels), reason, "revoked")
        self._broker_subscriptions.revoke(channels, reason)

    def close(self) -> None:
        """Remove every subscriber, and drop what was collected."""
        self._cancel_flush()
        self._subscribers.clear()
        self._collected.clear()
        self._deliveries.clear()
        self.gaps.clear()
        self.patterns.close()

    def _without_proof(self, channels: Collection[str] | All) -> Collection[str] | All:
        """Return those of `channels` on which nothing can prove that no message is missing: all, without a history."""
        return channels

    def _undo_join(self, channel: str, subscriber: Subscriber) -> None:
        """Undo one join; the subscriber leaves the channel when that was its only one."""
        joins = self._subscribers.get(channel)
        if joins is not None and joins.get(subscriber, 0) > 1:
            joins[subscriber] -= 1
        else:
            self.leave(channel, subscriber)

    def _collect(self, channel: str, message: Message) -> None:
        """Keep a message for the end of this pass."""
        batch = self._collected.get(channel)
        if batch is None:
            batch = self._collected[channel] = Batch()
            if self.tracer is not None:
                batch.received_ns = time.time_ns()
        batch.add(message)
        self._collected_count += 1
        self._collected_bytes += message.size_bytes
        if self._resting and batch.size_bytes >= _MOST_REST_BYTES:
            self._end_rest(channel)
        if self._flush_handle is None:
            self._flush_handle = asyncio.get_running_loop().call_soon(self._flush_in_slices)
        elif self._collected_count >= _MAX_COLLECTED or self._collected_bytes >= _MAX_COLLECTED_BYTES:
            self._flush()

    def _new_channel(self, channel: str) -> ChannelSubscribers:
        if channel.startswith(RESERVED_PREFIX):
            return ChannelSubscribers(self.traffic, self.traffic.groups.rest, is_counted=False)
        return ChannelSubscribers(self.traffic, self.traffic.groups.of(channel))

    def _give_back(self, channel: str, batch: Batch) -> None:
        """Deliver messages that were missed, after what was collected: as many as they are, no subscriber is slow."""
        self._flush_channels((channel,))
        subscribers = self._subscribers[channel]
        subscribers.group.count_given_back(batch)
        delivery = Delivery(channel, batch, subscribers, self._journal, missed=True, counter=subscribers.group)
        if self.tracer is not None:
            self._trace(self.tracer, delivery, batch, len(subscribers))
        self._start_delivery(delivery)

    def _trace(self, tracer: MessageTracer, delivery: Delivery, batch: Batch, subscribers: int) -> None:
        """Give a delivery its span, if it has one."""
        delivery.span = tracer.deliver(batch[0].channel, batch, received_ns=batch.received_ns, subscribers=subscribers)

    def _start_delivery(self, delivery: Delivery | GapDelivery) -> None:
        self._deliveries.append(delivery)
        if self._flush_handle is None:
            self._flush_handle = asyncio.get_running_loop().call_soon(self._flush_in_slices)

    def _flush(self) -> None:
        """Deliver everything that was collected, now: whatever comes next must follow it."""
        self._cancel_flush()
        while self._collected or self._deliveries:
            self._start_deliveries()
            while self._deliveries:
                self._deliveries.popleft().run(None)

    def _flush_channels(self, channels: Collection[str]) -> None:
        """Deliver what was collected of some channels, now: whatever comes next on them must follow it."""
        names = set(channels)
        if self._patterned:
            names.update(*[self._related(channel) for channel in channels])
        self._run_now(names)
        while waiting := self._collected.keys() & names:
            for channel in waiting:
                self._end_rest(channel)
            self._start_deliveries()
            self._run_now(names)

    def _run_now(self, names: set[str]) -> None:
        """Finish the deliveries under way of some channels."""
        for delivery in [delivery for delivery in self._deliveries if delivery.channel in names]:
            self._deliveries.remove(delivery)
            delivery.run(None)

    def _cancel_flush(self) -> None:
        if self._flush_handle is not None:
            self._flush_handle.cancel()
            self._flush_handle = None
        for timer in self._resting.values():
            timer.cancel()
        self._resting.clear()

    def _flush_in_slices(self) -> None:
        """Deliver what fits into this pass of the event loop, one slice of each channel in turn; the rest in the next.

        The clock is first read after a slice that leaves something to do: most passes need no second one.
        """
        loop = asyncio.get_running_loop()
        deliveries, deadline = self._deliveries, 0.0
        self._start_deliveries()
        while deliveries:
            delivery = deliveries.popleft()
            if not delivery.run(self._slice_size):
                deliveries.append(delivery)
                delivery.began_at = delivery.began_at or loop.time()
            elif delivery.began_at is not None:
                self._rest(delivery.channel, loop.time() - delivery.began_at, loop)
            if not deliveries and self._collected:
                self._start_deliveries()
            if deliveries:
                deadline = deadline or loop.time() + self._pass_seconds
                if loop.time() >= deadline:
                    self._flush_handle = loop.call_soon(self._flush_in_slices)
                    return
        self._flush_handle = None

    def _rest(self, channel: str, seconds: float, loop: asyncio.AbstractEventLoop) -> None:
        """Let a channel whose fan-out took so long collect for a moment, before the next one begins.

        A publisher in this worker publishes one message after another, each after the fan-out of the one before. In
        that moment it publishes several, and they are written together. Other channels do not wait. A rest ends early
        when 64 KiB are collected.
        """
        rest = min(seconds * _REST_SHARE, self._most_rest_seconds)
        if seconds < _LONG_SECONDS or not rest or channel in self._resting:
            return
        self._resting[channel] = loop.call_later(rest + _TIMER_ROUNDING_SECONDS, self._rested, channel)

    def _end_rest(self, channel: str) -> None:
        """Let a channel that rests begin with its next fan-out."""
        if (timer := self._resting.pop(channel, None)) is not None:
            timer.cancel()

    def _rested(self, channel: str) -> None:
        del self._resting[channel]
        if channel in self._collected and self._flush_handle is None:
            self._flush_handle = asyncio.get_running_loop().call_soon(self._flush_in_slices)

    def _start_deliveries(self) -> None:
        """Begin to deliver what was collected.

        A channel whose previous delivery is not finished goes on collecting: two of one channel at a time would put its
        messages out of order. So does one that rests.
        """
        collected, self._collected = self._collected, {}
        if collected and (self._deliveries or self._resting):
            busy = {delivery.channel for delivery in self._deliveries} | self._resting.keys()
            waiting = list(busy & collected.keys())
            if self._patterned:
                waiting += self.patterns.held(busy, collected)
            for channel in set(waiting):
                self._collected[channel] = collected.pop(channel)
        for channel, batch in collected.items():
            self._collected_count -= len(batch)
            self._collected_bytes -= batch.size_bytes
            subscribers = self._subscribers.get(channel)
            delivery = self._pattern_delivery(channel, batch, subscribers) if self._patterned else None
            if delivery is None:
                if subscribers is None:  # the last one has left meanwhile
                    continue
                counter = subscribers if subscribers.is_counted else None
                delivery = Delivery(channel, batch, subscribers, self._journal, counter=counter)
            if self.tracer is not None:
                self._trace(self.tracer, delivery, batch, delivery.audience)
            self._deliveries.append(delivery)

    def _pattern_delivery(self, key: str, batch: Batch, subscribers: ChannelSubscribers | None) -> Delivery | None:
        """Return the delivery of a batch that subscribers of patterns get; `None` where only those of its name do."""
        return self.patterns.delivery(key, batch, subscribers)

    def _related(self, channel: str) -> Collection[str]:
        """Return what else `channel` is delivered under: the notices of the patterns that it matches."""
        return self.patterns.texts(channel)

    def _drop(self, channel: str, payload: bytes) -> None:
        """Take a payload that is no message: report a path test, and count any other."""
        reason = reason_of_drop(payload)
        if reason == "path test":
            self._take_path_test(channel, payload)
        elif reason == "unsupported":
            self.unsupported += 1
            if _is_power_of_two(self.unsupported):
                self._journal.log(
                    logger,
                    PAYLOAD_UNSUPPORTED,
                    "dropped a message on channel %(channel)r that only a newer release can read (%(count)d so far): "
                    "upgrade this worker",
                    channel=channel,
                    count=self.unsupported,
                )
        else:
            self.malformed += 1
            if _is_power_of_two(self.malformed):
                words = "dropped a malformed payload on channel %(channel)r (%(count)d so far)"
                self._journal.log(logger, PAYLOAD_MALFORMED, words, channel=channel, count=self.malformed)

    def _take_path_test(self, channel: str, payload: bytes) -> None:
        """Count and report `payload` if it is a path test."""
        test_id = path_test_id(payload)
        if test_id is None:
            return
        self.path_tests += 1
        if self.on_path_test is not None:
            try:
                self.on_path_test(channel, test_id)
            except Exception as error:  # what was received with it must not be lost
                self._journal.log(logger, HOOK_FAILED, "%(hook)s failed", hook="on_path_test", exc_info=error)


def _is_power_of_two(count: int) -> bool:
    """Whether a repeated event is logged: the first, second, fourth, eighth time. So it cannot fill the log."""
    return count & (count - 1) == 0
