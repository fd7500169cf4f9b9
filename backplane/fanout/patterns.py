"""Who is subscribed to patterns of channels in this worker, and what of it concerns a channel.

The broker is asked for the prefixes of the patterns, what is before the first wildcard, and everything else is matched
here, once for each message: patterns are grouped by their prefix, and what a channel matches is remembered.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from backplane.channels import is_reserved
from backplane.errors import ConfigurationError, SubscribeError
from backplane.fanout.channel_subscribers import ChannelSubscribers
from backplane.fanout.delivery import Delivery, GapDelivery
from backplane.fanout.gaps import GapReporter
from backplane.journal.events import CHANNEL_REFUSED
from backplane.message import All, Gap
from backplane.patterns import Pattern, Prefixes

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from backplane.fanout.batch import Batch
    from backplane.fanout.broker_subscriptions import BrokerSubscriptions
    from backplane.fanout.delivery import DeliveryCounter, Subscriber
    from backplane.fanout.gaps import GapCause
    from backplane.fanout.traffic import Traffic
    from backplane.journal.journal import Journal
    from backplane.message_tracing import DeliverySpan

__all__ = ["Matched", "PatternSubscribers", "Patterns"]

logger: Final = logging.getLogger("backplane.fanout.patterns")

# Clients can name any channel: what is remembered of channels must not grow without bound.
_MAX_REMEMBERED: Final = 10_000


class PatternSubscribers(ChannelSubscribers):
    """The subscribers of one pattern, and what was received for them.

    Args:
        pattern: The pattern.
        traffic: As of `ChannelSubscribers`.

    Attributes:
        pattern: As above.
    """

    __slots__ = ("pattern",)

    def __init__(self, pattern: Pattern, traffic: Traffic) -> None:
        super().__init__(traffic, traffic.groups.rest)
        self.pattern: Pattern = pattern


class Matched:
    """The patterns that a channel matches, each with its subscribers.

    Args:
        patterns: These.
        counts: Counts what is received on the channel while its name has no subscriber.

    Attributes:
        patterns, counts: As above.
    """

    __slots__ = ("counts", "patterns")

    def __init__(self, patterns: tuple[PatternSubscribers, ...], counts: ChannelSubscribers) -> None:
        self.patterns: tuple[PatternSubscribers, ...] = patterns
        self.counts: ChannelSubscribers = counts


class _Audience:
    """Everyone that a message is for, each once, in whatever ways it is subscribed.

    Args:
        sources: The subscribers of the name and of each pattern, as the hub edits them: so a leave between two slices
            is noticed.
    """

    __slots__ = ("_source_of", "_sources")

    def __init__(self, sources: Sequence[Mapping[Subscriber, int]]) -> None:
        self._sources = sources
        self._source_of: dict[Subscriber, Mapping[Subscriber, int]] = dict.fromkeys(sources[0], sources[0])
        for source in sources[1:]:
            for subscriber in source:
                self._source_of.setdefault(subscriber, source)

    def __iter__(self) -> Iterator[Subscriber]:
        return iter(self._source_of)

    def __len__(self) -> int:
        return len(self._source_of)

    def __contains__(self, subscriber: object) -> bool:
        source = self._source_of.get(subscriber)  # type: ignore[call-overload]
        # It can have left one way and be there in another one.
        return source is not None and (subscriber in source or any(subscriber in other for other in self._sources))


class _Counter:
    """Counts a delivery once for the worker, and for each pattern."""

    __slots__ = ("_patterns", "_worker")

    def __init__(self, worker: DeliveryCounter, patterns: Iterable[PatternSubscribers]) -> None:
        self._worker = worker
        self._patterns = patterns

    def count(self, batch: Batch, offered: int, received_at: float | None, span: DeliverySpan | None, /) -> None:
        """Count one delivery."""
        self._worker.count(batch, offered, received_at, span)
        for pattern in self._patterns:
            pattern.note_received(batch)


class _Confirmed:
    """The patterns whose prefix the broker has confirmed, as a collection to look into."""

    __slots__ = ("_prefixes", "_subscribed")

    def __init__(self, subscribed: Mapping[str, PatternSubscribers], prefixes: Collection[str]) -> None:
        self._subscribed = subscribed
        self._prefixes = prefixes

    def __contains__(self, text: object) -> bool:
        subscribers = self._subscribed.get(text)  # type: ignore[call-overload]
        return subscribers is not None and subscribers.pattern.prefix in self._prefixes


class Patterns:
    """Every local subscriber by pattern.

    A pattern receives while the broker has confirmed its prefix. What overtakes the confirmation after a lost link is
    covered by the gap that is reported with it: a message alone does not show which of several prefixes brought it.

    Args:
        subscriptions: The prefixes that the broker is asked for; `None` where the adapter has none.
        flush: Delivers what the hub has collected, so that a gap follows it.
        start: Delivers the rest of a notice in slices.
        journal: As for the hub.
        traffic: As for the hub.
        slice_size: How many subscribers are notified of a gap at once.
        counted_by: Counts the gaps.

    Attributes:
        subscribed: The patterns with at least one subscriber, each with these. The hub looks into it for each message.
        gaps: The open gaps by pattern.
        broker: The broker, for an error.
    """

    def __init__(
        self,
        subscriptions: BrokerSubscriptions | None,
        flush: Callable[[], None],
        start: Callable[[GapDelivery], None],
        journal: Journal,
        traffic: Traffic,
        slice_size: int,
        counted_by: GapReporter,
    ) -> None:
        self._subscriptions = subscriptions
        self._flush = flush
        self._start = start
        self._journal = journal
        self._traffic = traffic
        self.broker: str = "this broker"
        self.subscribed: dict[str, PatternSubscribers] = {}
        self._by_prefix: dict[str, dict[str, PatternSubscribers]] = {}
        self._prefixes: Prefixes[str] = Prefixes()
        self._remembered: dict[str, Matched | None] = {}
        confirmed = _Confirmed(self.subscribed, () if subscriptions is None else subscriptions.confirmed)
        self.gaps: GapReporter = GapReporter(
            self.subscribed, confirmed, lambda _: flush(), start, journal, slice_size, counted_by
        )
        if subscriptions is not None:
            subscriptions.on_confirmed = lambda prefixes: self.gaps.report(self._texts(prefixes))
            subscriptions.on_refused = lambda reasons: self.gaps.notify_refused(self._reasons(reasons))
            subscriptions.on_unconfirmed = lambda reasons: self.gaps.end_resumed(self._reasons(reasons))
            subscriptions.on_overdue = lambda reasons: self.gaps.notify_unconfirmed(self._reasons(reasons))

    async def join(self, text: str, subscriber: Subscriber) -> None:
        """Add `subscriber` to a pattern; when this returns it misses no later publish without a gap.

        Joining twice changes nothing. Cancelling undoes this join and no other.

        Raises:
            ConfigurationError: The adapter cannot deliver channels by prefix.
            SubscribeError: The broker refused the prefix.
            BrokerUnavailableError: The broker did not confirm in time.
        """
        if self._subscriptions is None:
            raise ConfigurationError(
                f"{self.broker} cannot deliver channels by a pattern such as {text!r}: subscribe to their names, or "
                "pass exact=True if this is one. A Redis Cluster has patterns with ?pubsub=classic"
            )
        pattern = Pattern(text)
        while True:
            subscribers = self.subscribed.get(text) or self._add(pattern)
            subscribers[subscriber] = subscribers.get(subscriber, 0) + 1
            try:
                await self._subscriptions.acquire(pattern.prefix)
            except BaseException as error:
                self._undo_join(text, subscriber)
                if isinstance(error, SubscribeError):
                    words = "the broker refused pattern %(channel)r to a join: %(reason)s"
                    self._journal.log(logger, CHANNEL_REFUSED, words, channel=text, channels=1, reason=error)
                raise
            if subscriber in self.subscribed.get(text, ()):
                return
            # A concurrent join of the same subscriber was left meanwhile, and this one with it: join again.

    def leave(self, text: str, subscriber: Subscriber) -> None:
        """Remove `subscriber` from a pattern. Leaving twice changes nothing."""
        subscribers = self.subscribed.get(text)
        if subscribers is None:
            return
        subscribers.pop(subscriber, None)
        if subscribers or self._subscriptions is None:
            return
        del self.subscribed[text]
        self.gaps.discard(text)
        self._remembered.clear()
        prefix = subscribers.pattern.prefix
        same = self._by_prefix[prefix]
        del same[text]
        if not same:
            del self._by_prefix[prefix]
            self._prefixes.remove((prefix,))
            self._subscriptions.release(prefix)

    def match(self, channel: str) -> Matched | None:
        """Return the patterns that `channel` matches, or `None`: no channel that is reserved matches any."""
        try:
            return self._remembered[channel]
        except KeyError:
            pass
        if len(self._remembered) >= _MAX_REMEMBERED:
            self._remembered.clear()
        found: list[PatternSubscribers] = []
        if channel and not is_reserved(channel):
            for prefix in self._prefixes.of(channel):
                found += [each for each in self._by_prefix[prefix].values() if each.pattern.matches(channel)]
        matched = self._remembered[channel] = self._matched(channel, found) if found else None
        return matched

    def delivery(self, channel: str, batch: Batch, named: ChannelSubscribers | None) -> Delivery | None:
        """Return the delivery of a batch to the subscribers of the name and of patterns, each once.

        Returns:
            `None` where it matches no pattern that receives at present.
        """
        matched = self.match(channel)
        if matched is None or not (patterns := self._receiving(matched)):
            return None
        audience = _Audience(patterns if named is None else (named, *patterns))
        counter = _Counter(matched.counts if named is None else named, patterns)
        return Delivery(channel, batch, audience, self._journal, counter=counter)

    def delivery_apart(self, key: str, batch: Batch, named: Collection[Subscriber]) -> Delivery | None:
        """Return the delivery of a batch to the subscribers of patterns alone.

        Args:
            key: By which the hub orders it.
            batch: The messages.
            named: The subscribers of the name, which get the messages otherwise.
        """
        matched = self.match(batch[0].channel)
        if matched is None or not (patterns := self._receiving(matched)):
            return None
        audience = _Audience(patterns)
        others = [subscriber for subscriber in audience if subscriber not in named]
        counter = _Counter(matched.counts.group if named else matched.counts, patterns)
        return Delivery(key, batch, audience, self._journal, recipients=others, counter=counter)

    def held(self, busy: Collection[str], collected: Mapping[str, Batch]) -> list[str]:
        """Return the keys of messages that match a pattern whose gap is being reported: they follow it."""
        busy = self.subscribed.keys() & busy
        if not busy:
            return []
        return [key for key, batch in collected.items() if not busy.isdisjoint(self.texts(batch[0].channel))]

    def audience(self, channel: str, named: Mapping[Subscriber, int]) -> int:
        """Return how many subscribers a channel has: those of its name, and of patterns that it matches."""
        matched = self.match(channel)
        return len(named) if matched is None else len(_Audience((named, *matched.patterns)))

    def is_wanted(self, channel: str, *, confirmed: bool) -> bool:
        """Whether the broker is asked for `channel` because of a pattern, or has confirmed that."""
        if self._subscriptions is None or (matched := self.match(channel)) is None:
            return False
        prefixes = self._subscriptions.confirmed if confirmed else self._subscriptions.wanted
        return any(each.pattern.prefix in prefixes for each in matched.patterns)

    def has(self, channel: str, subscriber: Subscriber) -> bool:
        """Whether `subscriber` is subscribed to a pattern that `channel` matches."""
        matched = self.match(channel)
        return matched is not None and any(subscriber in each for each in matched.patterns)

    def texts(self, channel: str) -> list[str]:
        """Return the patterns that `channel` matches."""
        matched = self.match(channel)
        return [] if matched is None else [each.pattern.text for each in matched.patterns]

    def gap(self, channels: Collection[str] | All, reason: str, *, named: Mapping[str, Collection[Subscriber]]) -> None:
        """Notify the subscribers of patterns that messages may be missing on `channels` at this place.

        Args:
            channels: The channels concerned. For all, each pattern is notified once, under its own text.
            reason: Why.
            named: The subscribers of names, which are notified otherwise.
        """
        if not self.subscribed:
            return
        self._flush()
        if isinstance(channels, All):
            return self.gaps.open_and_report(channels, reason)
        for channel in channels:
            if (matched := self.match(channel)) is not None and (patterns := self._receiving(matched)):
                audience, others = _Audience(patterns), named.get(channel, ())
                recipients = [subscriber for subscriber in audience if subscriber not in others]
                self.gaps.count(reason, "adapter")
                self._start(GapDelivery(Gap(channel=channel, reason=reason), recipients, audience, self._journal))

    def open_gap(self, channels: Collection[str] | All, reason: str, cause: GapCause, *, resumed: bool) -> None:
        """Note that messages may be missing from here on: patterns are notified once their prefix is confirmed."""
        if self.subscribed:
            self._flush()
            concerned = channels
            if not isinstance(channels, All):
                concerned = {text for channel in channels for text in self.texts(channel)}
            self.gaps.open(concerned, reason, cause, resumed=resumed)

    def close(self) -> None:
        """Remove every subscriber."""
        self.subscribed.clear()
        self._by_prefix.clear()
        self._prefixes.clear()
        self._remembered.clear()
        self.gaps.clear()

    def _receiving(self, matched: Matched) -> tuple[PatternSubscribers, ...]:
        """Return the patterns without those whose gap is still to be reported."""
        opened = self.gaps.opened
        if not opened:
            return matched.patterns
        gaps = [(each, opened.get(each.pattern.text)) for each in matched.patterns]
        return tuple(each for each, gap in gaps if gap is None or gap.resumed)

    def _add(self, pattern: Pattern) -> PatternSubscribers:
        subscribers = self.subscribed[pattern.text] = PatternSubscribers(pattern, self._traffic)
        self._by_prefix.setdefault(pattern.prefix, {})[pattern.text] = subscribers
        self._prefixes.add((pattern.prefix,))
        self._remembered.clear()
        return subscribers

    def _undo_join(self, text: str, subscriber: Subscriber) -> None:
        joins = self.subscribed.get(text)
        if joins is not None and joins.get(subscriber, 0) > 1:
            joins[subscriber] -= 1
        else:
            self.leave(text, subscriber)

    def _matched(self, channel: str, found: Iterable[PatternSubscribers]) -> Matched:
        return Matched(tuple(found), ChannelSubscribers(self._traffic, self._traffic.groups.of(channel)))

    def _texts(self, prefixes: Iterable[str]) -> list[str]:
        return [text for prefix in prefixes for text in self._by_prefix.get(prefix, ())]

    def _reasons(self, reasons: Mapping[str, str]) -> dict[str, str]:
        return {text: reason for prefix, reason in reasons.items() for text in self._by_prefix.get(prefix, ())}
