"""Channel to local subscribers, and the fan-out.

Nothing here awaits a subscriber. Messages that arrive in one pass of the event loop are collected per channel and
handed to each subscriber at the end of that pass, at once and in order. A fan-out too long for one pass is cut in
slices, and the channels take turns.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Protocol

from backplane.concurrency.affinity import LoopAffinity
from backplane.errors import SubscribeError
from backplane.fanout.batch import Batch
from backplane.fanout.codec import decode
from backplane.log_bursts import LogBursts, place_of
from backplane.message import All, Gap, Message

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from backplane.fanout.broker_subscriptions import BrokerSubscriptions
    from backplane.message import Position

__all__ = ["Hub", "Subscriber"]

logger = logging.getLogger("backplane.fanout.hub")

# A publisher that never yields to the event loop must not grow the collection of one pass without bound.
_MAX_COLLECTED = 1024
_MAX_COLLECTED_BYTES = 1024 * 1024
# A write takes some 5 µs: a slice is over in 1 ms, and a pass of the loop in little more than the budget.
_SLICE = 200
_PASS_SECONDS = 0.005


class Subscriber(Protocol):
    """Anything local that receives: a connection, a subscription. Its methods return at once and never raise."""

    @property
    def token(self) -> bytes:
        """What a publisher names to leave this subscriber out."""
        ...

    def offer(self, batch: Batch, /) -> None:
        """Take messages of one channel, in order."""
        ...

    def gap(self, gap: Gap) -> None:
        """Learn that messages may be missing here."""
        ...


class _OpenGap:
    """A gap that has to be told, with those who were there when it opened.

    `notices`: of what else they were notified since. `bridged`: nothing is missing so far, the adapter resumes.
    """

    __slots__ = ("bridged", "notices", "reason", "witnesses")

    def __init__(self, reason: str, witnesses: tuple[Subscriber, ...], *, bridged: bool) -> None:
        self.reason = reason
        self.witnesses = witnesses
        self.notices: set[str] = set()
        self.bridged = bridged


class Hub:
    """Every local subscriber by channel.

    Args:
        interest: What the broker is asked to deliver; it follows the first join and the last leave of each channel.
        bursts: How refusals, which can concern many channels at once, are logged.

    Attributes:
        affinity: The event loop in which all that is local lives; what users call checks it first.
        delivered: Messages handed to subscribers, counted once per message.
        malformed: Payloads dropped because their header made no sense.
        gaps: How many gaps were told, counted once per channel and stretch.
        last_gap_at: When the last one was, by the event loop's clock.
        last_gap_reason: Why.
    """

    def __init__(self, broker_subscriptions: BrokerSubscriptions, bursts: LogBursts | None = None) -> None:
        self.affinity = LoopAffinity()
        self._broker_subscriptions = broker_subscriptions
        self._bursts = bursts or LogBursts()
        # How many joins of a subscriber stand or are under way: one that fails must not undo another.
        self._members: dict[str, dict[Subscriber, int]] = {}
        self._collected: dict[str, Batch] = {}
        self._collected_count = 0
        self._collected_bytes = 0
        self._fan_outs: deque[_FanOut] = deque()
        self._flush_handle: asyncio.Handle | None = None
        self._open_gaps: dict[str, _OpenGap] = {}
        self.delivered = 0
        self._revocations = 0
        self.malformed = 0
        self.gaps = 0
        self.last_gap_at: float | None = None
        self.last_gap_reason: str | None = None

    @property
    def channels(self) -> Collection[str]:
        """The channels with at least one local subscriber."""
        return self._members.keys()

    async def join(self, channel: str, subscriber: Subscriber) -> None:
        """Add `subscriber`; when this returns it misses no later publish without a gap.

        Concurrent joins of one channel share one broker subscription. Joining twice changes nothing.

        Raises:
            SubscribeError: The broker refused the channel.
            BrokerUnavailableError: The broker did not confirm in time.
        """
        # First here, then at the broker: a message can arrive between its confirmation and this task's next turn.
        while True:
            members = self._members.setdefault(channel, {})
            members[subscriber] = members.get(subscriber, 0) + 1
            try:
                await self._broker_subscriptions.acquire(channel)
            except BaseException:
                self._take_back(channel, subscriber)
                raise
            if subscriber in self._members.get(channel, ()):
                return
            # Another join of it came through before this one, and was left again: that took this one along.

    def leave(self, channel: str, subscriber: Subscriber) -> None:
        """Remove `subscriber`: nothing more reaches it. Leaving twice changes nothing."""
        members = self._members.get(channel)
        if members is None:
            return
        members.pop(subscriber, None)
        if not members:
            del self._members[channel]
            self._open_gaps.pop(channel, None)
            self._broker_subscriptions.release(channel)

    def deliver(self, channel: str, payload: bytes, position: Position | None = None) -> None:
        """Collect one payload from the broker for the end of this pass of the event loop."""
        if channel not in self._members:
            return
        message = decode(channel, payload, position)
        if message is None:
            self._count_malformed(channel)
            return
        if (gap := self._open_gaps.get(channel)) is not None and not gap.bridged:
            self.report_gaps([channel])
        self._collect(channel, message)
        if self._flush_handle is None:
            self._flush_handle = asyncio.get_running_loop().call_soon(self._flush_in_slices)
        elif self._collected_count >= _MAX_COLLECTED or self._collected_bytes >= _MAX_COLLECTED_BYTES:
            self._flush()

    def gap(self, channels: Collection[str] | All, reason: str) -> None:
        """Tell every subscriber of `channels` that messages may be missing at this place.

        Now, and where the broker has not confirmed the channel once it has: more is missing until then.
        """
        self.open_gap(channels, reason)
        concerned = list(self._open_gaps) if isinstance(channels, All) else channels
        self.report_gaps([channel for channel in concerned if channel in self._broker_subscriptions.confirmed])

    def refuse(self, refused: Mapping[str, str]) -> None:
        """Notify the subscribers of channels that the broker no longer grants, now, and again when it does.

        Args:
            refused: The channels, each with the broker's reason.
        """
        if news := self._notify(refused, "the broker refused the channel"):
            words = "the broker refuses channels, their subscribers receive nothing: %s"
            self._bursts.log(logger, logging.ERROR, words, SubscribeError(news))

    def doubt(self, unconfirmed: Mapping[str, str]) -> None:
        """Notify the subscribers of channels that the broker does not confirm again, now, and again when it does.

        Args:
            unconfirmed: The channels, each with the broker's reason.
        """
        if news := self._notify(unconfirmed, "the broker has not confirmed the channel again"):
            shown = SubscribeError({}, unconfirmed=news)
            words = "the broker does not confirm channels, their subscribers receive nothing: %s"
            self._bursts.log(logger, logging.ERROR, words, shown)

    def _notify(self, reasons: Mapping[str, str], notice: str) -> Mapping[str, str]:
        """Notify the subscribers of those channels to whom it is news; return these channels with their reasons."""
        news: dict[str, str] = {}
        for channel, reason in reasons.items():
            gap = self._open_gaps.get(channel)
            # Without an open gap nobody received the channel before; and once is enough.
            if gap is not None and notice not in gap.notices:
                news[channel] = reason
                gap.notices.add(notice)
                gap.bridged = False
                gap.reason = f"{notice}: {reason}"
                self._tell(channel, gap)
        return news

    def revoke(self, channels: Collection[str], reason: str) -> None:
        """Open a gap on subscriptions that the broker took away, and ask for them again."""
        self._revocations += 1
        if self._revocations & (self._revocations - 1) == 0:  # rate-limited by powers of two
            logger.warning(
                "the broker took away %d subscriptions (times so far: %d): %s", len(channels), self._revocations, reason
            )
        self.open_gap(channels, reason)
        self._broker_subscriptions.revoke(channels, reason)

    def open_gap(self, channels: Collection[str] | All, reason: str, *, bridged: bool = False) -> None:
        """Remember that messages may be missing from here on.

        It is reported once, by `report_gaps` or before the next message of the channel, whichever comes first: a
        subscriber that reloads at that moment must receive everything from then on.

        Args:
            channels: Where.
            reason: Why.
            bridged: The adapter resumes: it is told only if the broker refuses the channel, or after another gap there.
        """
        self._flush()
        for channel in list(self._members) if isinstance(channels, All) else channels:
            if (gap := self._open_gaps.get(channel)) is not None:
                if not bridged:
                    gap.reason, gap.bridged = reason, False
            # Whoever still waits for the broker's confirmation has been promised nothing yet.
            elif channel in self._members and channel in self._broker_subscriptions.confirmed:
                self._open_gaps[channel] = _OpenGap(reason, tuple(self._members[channel]), bridged=bridged)

    def report_gaps(self, channels: Collection[str]) -> None:
        """Tell the open gaps of `channels` to those who were there when they opened and still are."""
        if not self._open_gaps:
            return
        self._flush()
        for channel in channels:
            gap = self._open_gaps.pop(channel, None)
            if gap is not None and not gap.bridged:
                self._tell(channel, gap)

    def close(self) -> None:
        """Drop every subscriber and what was collected."""
        if self._flush_handle is not None:
            self._flush_handle.cancel()
            self._flush_handle = None
        self._members.clear()
        self._collected.clear()
        self._fan_outs.clear()
        self._open_gaps.clear()

    def _tell(self, channel: str, open_gap: _OpenGap) -> None:
        gap = Gap(channel=channel, reason=open_gap.reason)
        self.gaps += 1
        self.last_gap_at = asyncio.get_running_loop().time()
        self.last_gap_reason = gap.reason
        for subscriber in open_gap.witnesses:
            if subscriber in self._members.get(channel, ()):
                try:
                    subscriber.gap(gap)
                except Exception as error:  # it must not; the others, and the link's owner, would suffer for it
                    _log_failed(self._bursts, channel, error)

    def _take_back(self, channel: str, subscriber: Subscriber) -> None:
        """Undo one join, and leave when it was the only one."""
        members = self._members.get(channel, {})
        if members.get(subscriber, 0) > 1:
            members[subscriber] -= 1
        else:
            self.leave(channel, subscriber)

    def _collect(self, channel: str, message: Message) -> None:
        batch = self._collected.get(channel)
        if batch is None:
            batch = self._collected[channel] = Batch()
        batch.add(message)
        self._collected_count += 1
        self._collected_bytes += message.size_bytes

    def _flush(self) -> None:
        """Hand over everything, now: what comes next must stand behind it."""
        if self._flush_handle is None:
            return
        self._flush_handle.cancel()
        self._flush_handle = None
        while self._collected or self._fan_outs:
            self._start_fan_outs()
            while self._fan_outs:
                self._fan_outs.popleft().run(None)

    def _flush_in_slices(self) -> None:
        """Hand over what fits into this pass of the event loop, each channel a slice in turn, and go on in the next."""
        loop = asyncio.get_running_loop()
        fan_outs, deadline = self._fan_outs, 0.0
        self._start_fan_outs()
        while fan_outs:
            fan_out = fan_outs.popleft()
            if not fan_out.run(_SLICE):
                fan_outs.append(fan_out)
            if not fan_outs and self._collected:
                self._start_fan_outs()
            if fan_outs:  # most passes end with their first slice, and need no clock
                deadline = deadline or loop.time() + _PASS_SECONDS
                if loop.time() >= deadline:
                    self._flush_handle = loop.call_soon(self._flush_in_slices)
                    return
        self._flush_handle = None

    def _start_fan_outs(self) -> None:
        """Begin with what was collected; a channel whose last fan-out is under way goes on collecting."""
        collected, self._collected = self._collected, {}
        if self._fan_outs:
            for channel in {fan_out.channel for fan_out in self._fan_outs} & collected.keys():
                self._collected[channel] = collected.pop(channel)
        for channel, batch in collected.items():
            self._collected_count -= len(batch)
            self._collected_bytes -= batch.size_bytes
            self.delivered += len(batch)
            self._fan_outs.append(_FanOut(channel, batch, self._members.get(channel, {}), self._bursts))

    def _count_malformed(self, channel: str) -> None:
        self.malformed += 1
        # Rate-limited by powers of two: one hostile publisher must not fill the log.
        if self.malformed & (self.malformed - 1) == 0:
            logger.warning("dropped a malformed payload on channel %r (%d so far)", channel, self.malformed)


def _log_failed(bursts: LogBursts, channel: str, error: Exception) -> None:
    bursts.log(logger, logging.ERROR, "a subscriber of channel %r failed: %s", channel, place_of(error))


class _FanOut:
    """One batch on its way to the subscribers that its channel had when it began, and still has."""

    def __init__(self, channel: str, batch: Batch, members: dict[Subscriber, int], bursts: LogBursts) -> None:
        self.channel = channel
        self._bursts = bursts
        self._batch = batch
        self._members = members
        self._left: Iterator[Subscriber] = iter(tuple(members))

    def run(self, most: int | None) -> bool:
        """Offer it to so many, `None` for all; return whether that was the last."""
        batch, members = self._batch, self._members
        offered = 0
        for subscriber in islice(self._left, most):
            offered += 1
            if subscriber in members:  # it may have left since
                try:
                    subscriber.offer(batch.for_token(subscriber.token) if batch.excludes else batch)
                except Exception as error:  # it must not; the others, and all that comes, would be lost with it
                    _log_failed(self._bursts, self.channel, error)
        return most is None or offered < most
