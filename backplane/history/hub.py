"""The hub of a worker with history: it proves that nothing is missing on kept channels, and repairs them in place.

It is a `Hub` whose kept channels, those with a `History` rule, have a track each. A message that follows the one before
it is delivered as on any channel. Otherwise, and after a lost link, the channel is in doubt: what it misses is read
from the broker, and its subscribers notice nothing. They are notified of a gap only where the broker no longer has it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from backplane.fanout.batch import Batch
from backplane.fanout.codec import decode, reason_of_drop
from backplane.fanout.hub import Hub
from backplane.header import path_test_id
from backplane.history.joins import Joins, Placeholder
from backplane.history.kept_channel import KeptChannel
from backplane.history.repair import ReadBounds, Repairer
from backplane.history.replay import Start, beginning, is_ahead, needs_ring
from backplane.history.ring import Ring, RingBudget
from backplane.history.track import HELD, PROVED, Track
from backplane.journal.events import HISTORY_MISFIT
from backplane.message import All, Gap
from backplane.statistics import Counters

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from backplane.broadcaster import Recalled, SupportsHistory
    from backplane.fanout.broker_subscriptions import BrokerSubscriptions
    from backplane.fanout.channel_subscribers import ChannelSubscribers
    from backplane.fanout.delivery import Delivery, Subscriber
    from backplane.fanout.gaps import GapCause
    from backplane.fanout.traffic import Traffic
    from backplane.history.repair import Read
    from backplane.history.track import Mended
    from backplane.history_rules import History, HistoryRules
    from backplane.journal.journal import Journal
    from backplane.message import Message, Place, Position
    from backplane.settings import Settings

__all__ = ["HistoryHub"]

logger: Final = logging.getLogger("backplane.history.hub")

# What only subscribers of patterns get of a kept channel is collected by another key, which is no channel: UTF-8 has no
# lone surrogates.
_APART: Final = "\udc00"

_AHEAD: Final = "a subscriber came back with a position that was not received yet"


class HistoryHub(Hub):
    """A hub with kept channels.

    Args:
        broker_subscriptions: As for `Hub`.
        rules: Which channels are kept.
        adapter: What keeps them.
        follows: The adapter continues without loss after a lost link, and reports a gap wherever a message is missing:
            its channels are in doubt only where a join needs their history.
        parts: A part of the link can be down while it is live. That is a lost link to the channels of that part: they
            stay in doubt until it is back, and their subscribers are not notified before.
        settings: The bounds.
        statistics: Where it counts.
        journal, prefixes, traffic: As for `Hub`.

    Attributes:
        repairer: Reads from the broker. The supervisor runs it while the link is live.
    """

    def __init__(
        self,
        broker_subscriptions: BrokerSubscriptions,
        rules: HistoryRules,
        adapter: SupportsHistory,
        *,
        follows: bool,
        parts: bool = False,
        settings: Settings,
        statistics: Counters | None = None,
        journal: Journal | None = None,
        prefixes: BrokerSubscriptions | None = None,
        traffic: Traffic | None = None,
    ) -> None:
        super().__init__(broker_subscriptions, journal, prefixes=prefixes, traffic=traffic)
        self._rules = rules
        self._follows = follows
        self._parts = parts
        self._settings = settings
        self._statistics = statistics or Counters()
        self._kept: dict[str, KeptChannel] = {}
        self._budget = RingBudget(settings.max_ring_bytes)
        self._joins = Joins(settings, proves=self._proves, request=self._request)
        bounds = ReadBounds(
            settings.max_recall_messages,
            settings.max_recall_bytes,
            settings.recall_timeout_seconds,
            settings.repair_timeout_seconds,
        )
        self.repairer: Repairer = Repairer(
            adapter, bounds, on_read=self._read, on_failed=self._give_up, journal=self._journal
        )
        self.gaps.on_reported = self._gap_reported
        broker_subscriptions.on_confirmed = self._confirmed
        broker_subscriptions.on_refused = self._refused
        broker_subscriptions.on_overdue = self._overdue

    @property
    def rules(self) -> HistoryRules:
        """Which channels are kept."""
        return self._rules

    @property
    def in_doubt(self) -> int:
        """How many channels may miss messages that the broker has not given back yet."""
        return sum(kept.track.doubt is not None for kept in self._kept.values())

    @property
    def quiet(self) -> Iterable[KeptChannel]:
        """The kept channels that are not in doubt and whose position is known."""
        return [kept for kept in self._kept.values() if kept.track.doubt is None and kept.track.last is not None]

    def position(self, channel: str) -> Position | None:
        """Return the position of the newest message that the subscribers of `channel` got, if it is known."""
        kept = self._kept.get(channel)
        if kept is None:
            return None
        self._flush_channels((channel,))
        return kept.track.last

    async def join(self, channel: str, subscriber: Subscriber, *, since: str | None = None, rewind: int = 0) -> None:
        """Add `subscriber`, and give back what it missed; see `Hub.join`.

        Everything up to one moment is given back, and everything after it is received live. Until then a placeholder
        keeps the channel subscribed. Joins share the reads at the broker.
        """
        rule = self._rules.rule_of(channel)
        if rule is None:
            await super().join(channel, subscriber, since=since, rewind=rewind)
            return
        start, placeholder = Start.of(since, rewind), Placeholder()
        if channel not in self._kept:
            self._kept[channel] = self._new(channel, rule)
            self._rekey(channel, _APART + channel)
        kept = self._kept[channel]
        kept.wants_ring |= needs_ring(kept, start)
        try:
            await self._add(channel, placeholder)
            await self._joins.settled(kept, start)
            self._begin(kept, subscriber, start)
        finally:
            self.leave(channel, placeholder)
            self._budget.make_room()

    def leave(self, channel: str, subscriber: Subscriber) -> None:
        """Remove `subscriber`; with the last one the channel's track and ring go."""
        if self._patterned:
            self._note_doubt(channel, subscriber)
        super().leave(channel, subscriber)
        if channel not in self._subscribers and (kept := self._kept.pop(channel, None)) is not None:
            self.repairer.discard(kept)
            kept.ring.clear(None)
            self._rekey(_APART + channel, channel)

    def deliver(self, channel: str, payload: bytes, place: Place | None = None) -> None:
        """Collect one payload, if it follows what was delivered; hold it back, or drop it, otherwise."""
        kept = self._kept.get(channel)
        if kept is None:
            return super().deliver(channel, payload, place)
        if self._patterned:
            self._collect_apart(channel, payload, place)
        if place is None:
            if path_test_id(payload) is None:
                self._count_unkept(kept)
            super().deliver(channel, payload)
        elif (taken := kept.track.take(place, payload)) > 0:
            if taken == PROVED:
                self._statistics.proved += 1
                kept.notify()
            message = decode(channel, payload, place)
            if message is None:
                kept.ring.append(place, None)
                self._drop(channel, payload)
            else:
                (kept.ring.received or kept.ring.receive()).append(message)
                if self._open_gaps:
                    self._report_early(channel)
                self._collect(channel, message)
        elif taken == HELD:
            self._take_path_test(channel, payload)
            self._request(kept)

    def gap(self, channels: Collection[str] | All, reason: str) -> None:
        """Read again what may be missing on kept channels; notify the subscribers of every other one."""
        for kept in self._proving(channels):
            kept.lose(reason)
            self._request(kept)
        super().gap(channels, reason)

    def open_gap(
        self,
        channels: Collection[str] | All,
        reason: str,
        cause: GapCause = "link_lost",
        *,
        resumed: bool = False,
    ) -> None:
        """Put kept channels in doubt until the next link, and open a gap on every other one."""
        self.repairer.link_lost()
        for kept in self._kept.values():
            kept.end_repair()
        for kept in self._proving(channels):
            kept.lose(reason)
        super().open_gap(channels, reason, cause, resumed=resumed)

    def revoke(self, channels: Collection[str], reason: str) -> None:
        """Put kept channels in doubt until they are subscribed again, and open a gap on every other one."""
        for kept in self._proving(channels):
            kept.lose(reason)
        super().revoke(channels, reason)

    def close(self) -> None:
        """Remove every subscriber; joins that wait raise."""
        super().close()
        self._joins.close()
        kept_channels, self._kept = self._kept, {}
        for kept in kept_channels.values():
            kept.notify()

    def _start_deliveries(self) -> None:
        self._budget.settle()
        super()._start_deliveries()

    def _pattern_delivery(self, key: str, batch: Batch, subscribers: ChannelSubscribers | None) -> Delivery | None:
        if key.startswith(_APART):
            return self.patterns.delivery_apart(key, batch, self._subscribers.get(batch[0].channel, ()))
        return None if key in self._kept else super()._pattern_delivery(key, batch, subscribers)

    def _collect_apart(self, channel: str, payload: bytes, place: Place | None) -> None:
        """Collect a payload for patterns: they have no position, so no track, and get what arrives as it arrives."""
        if self.patterns.match(channel) is not None and (message := decode(channel, payload, place)) is not None:
            self._collect(_APART + channel, message)

    def _related(self, channel: str) -> Collection[str]:
        return [_APART + channel, *super()._related(channel)]

    def _rekey(self, key: str, other: str) -> None:
        """Let what was collected for patterns follow a channel that becomes kept, or is no longer kept."""
        if (replaced := self._collected.pop(other, None)) is not None:  # for subscribers of the name, who have left
            self._collected_count -= len(replaced)
            self._collected_bytes -= replaced.size_bytes
        if (batch := self._collected.pop(key, None)) is not None:
            self._collected[other] = batch

    def _note_doubt(self, channel: str, subscriber: Subscriber) -> None:
        """Notify a subscriber that leaves the name and keeps a pattern: what is held back it gets in neither way."""
        kept = self._kept.get(channel)
        if kept is None or kept.track.doubt is None or subscriber not in self._subscribers.get(channel, ()):
            return
        if self.patterns.has(channel, subscriber):
            subscriber.gap(Gap(channel=channel, reason=kept.track.doubt))

    def _new(self, channel: str, rule: History) -> KeptChannel:
        settings = self._settings
        track = Track(settings.max_held_messages, settings.max_recall_bytes, latest=rule.latest)
        return KeptChannel(channel, rule, track, Ring(rule.max_messages, rule.max_age_seconds, self._budget))

    # What the broker, the link and the adapter report.

    def _confirmed(self, channels: Collection[str]) -> None:
        """Read what confirmed channels miss: they are subscribed now, so whatever is published later arrives."""
        for channel in channels:
            kept = self._kept.get(channel)
            if kept is not None:
                if self._proves(kept):
                    self.gaps.discard(channel)
                if kept.needs_read:
                    self._request(kept)
        self.gaps.report(channels)

    def _refused(self, refused: Mapping[str, str]) -> None:
        self._open_for_notice(refused)
        self.gaps.notify_refused(refused)

    def _overdue(self, unconfirmed: Mapping[str, str]) -> None:
        if not self._parts:
            self._open_for_notice(unconfirmed)
        self.gaps.notify_unconfirmed(unconfirmed)

    def _open_for_notice(self, channels: Iterable[str]) -> None:
        """Let the subscribers of kept channels be notified that nothing arrives; and again when it does."""
        for kept in self._proving(channels):
            if kept.track.doubt is not None and kept.track.last is not None:
                self.gaps.reopen(kept.name, kept.track.doubt)

    def _gap_reported(self, channel: str) -> None:
        """An open gap is reported on a channel: what its track and ring hold does not lead up to what comes next."""
        kept = self._kept.get(channel)
        if kept is not None:
            kept.ring.clear(None)
            kept.track.forget()

    # Repair.

    def _request(self, kept: KeptChannel) -> None:
        if kept.name in self._broker_subscriptions.confirmed:
            self.repairer.request(kept)

    def _read(self, kept: KeptChannel, read: Read) -> None:
        """Take what was read: deliver what the track missed, and fill the ring where a join waits for it."""
        if self._kept.get(kept.name) is not kept:
            return
        track = kept.track
        if read.in_doubt and track.doubt is not None:
            mended = track.mend(read.recalled)
            self._take_mended(kept, mended)
            if not mended.again and not len(kept.ring):
                kept.ring.clear(track.last)
        if track.doubt is None and kept.wants_ring and read.is_whole:
            kept.end_fill(self._fill(kept, read.recalled))
        if read.after is not None:
            self._fill_after(kept, read.after, read.recalled)
        if kept.needs_read:
            self._request(kept)
        kept.notify()

    def _fill(self, kept: KeptChannel, recalled: Recalled) -> str | None:
        """Fill the ring with what was read; return why that is not possible."""
        last = kept.track.last
        if last is None:
            return "the position of the channel is not known at present"
        if not kept.ring.fill(self._decoded(kept, recalled), last, complete=True):
            return "the history has moved on while it was read"
        if recalled.more and len(recalled.items) <= kept.rule.max_messages:
            settings = self._settings
            return (
                "the history since the position that was passed is not held, or is larger than one read returns "
                f"(max_recall_messages={settings.max_recall_messages}, max_recall_bytes={settings.max_recall_bytes})"
            )
        return None

    def _fill_after(self, kept: KeptChannel, position: Position, recalled: Recalled) -> None:
        """Take what came after a position that only the broker can judge."""
        kept.wants_after = None
        last = kept.track.last
        if not recalled.found or last is None:
            return
        if self._proves(kept) and is_ahead(kept, position):
            if kept.track.doubt is None:
                kept.lose(_AHEAD)
        elif not recalled.more:
            kept.ring.fill_after(position, self._decoded(kept, recalled), last)

    def _give_up(self, kept: KeptChannel, reason: str) -> None:
        """End the doubt of a channel that cannot be read: with a gap, if it had been received before."""
        if self._kept.get(kept.name) is not kept:
            return
        kept.end_fill(reason)
        kept.wants_after = None
        if kept.track.doubt is not None:
            self._take_mended(kept, kept.track.give_up(reason))
        kept.notify()

    def _take_mended(self, kept: KeptChannel, mended: Mended) -> None:
        if mended.gap is not None:
            kept.ring.clear(None)
            self.gaps.notify(Gap(channel=kept.name, reason=mended.gap, position=mended.position))
        elif mended.items:
            self._statistics.repaired += 1
            self._statistics.repaired_messages += len(mended.items)
        batch, ring = Batch(), kept.ring
        # The broker has what was missed. Of ten thousand channels at once it would be so many objects for as many rings
        # that a full garbage collection begins: so only a ring from which joins are served takes it.
        is_collected = ring.is_complete or kept.wants_ring
        for payload, place in mended.items:
            message = decode(kept.name, payload, place)
            if is_collected:
                ring.append(place, message)
            if message is None:
                self._drop_missed(kept.name, payload)
            else:
                self._report_early(kept.name)
                batch.add(message)
        if mended.items and not is_collected:
            ring.clear(mended.items[-1].place)
        if batch:
            self._give_back(kept.name, batch)

    def _drop_missed(self, channel: str, payload: bytes) -> None:
        """Drop a payload that is no message: a path test that was held back, or read, has been reported or is none."""
        if reason_of_drop(payload) != "path test":
            self._drop(channel, payload)

    def _report_early(self, channel: str) -> None:
        """Report the open gap of a channel whose message has overtaken the broker's confirmation."""
        if (gap := self._open_gaps.get(channel)) is not None and not gap.resumed:
            self.gaps.report_early(channel)

    def _begin(self, kept: KeptChannel, subscriber: Subscriber, start: Start) -> None:
        """Give back what a subscriber missed, and add it, in one pass of the event loop."""
        self._flush_channels((kept.name,))  # what was received up to here is in the ring
        members = self._subscribers[kept.name]
        if subscriber in members:  # another join of the same subscriber was first
            return
        joined, missed = beginning(kept, start)
        if joined.resumed:
            self._statistics.resumed += 1
        elif start.is_return:
            self._statistics.not_resumed += 1
        members[subscriber] = 1
        try:
            subscriber.joined(joined)
            if missed:
                subscriber.offer_missed(missed)
                members.group.count(missed, 1, None, None)
        except BaseException:  # functions of the application run there, and can raise anything
            self.leave(kept.name, subscriber)
            raise

    # Smaller parts.

    def _proves(self, kept: KeptChannel) -> bool:
        """Whether this hub itself proves that nothing is missing, or the adapter does, and reports gaps."""
        return not self._follows or kept.rule.latest

    def _proving(self, channels: Iterable[str] | All) -> list[KeptChannel]:
        names = self._kept if isinstance(channels, All) else channels
        found = [self._kept[name] for name in names if name in self._kept]
        return [kept for kept in found if self._proves(kept)]

    def _without_proof(self, channels: Collection[str] | All) -> Collection[str] | All:
        """Return the channels on which gaps are reported as on any channel."""
        proving = {kept.name for kept in self._proving(channels)}
        if not proving:
            return channels
        return [name for name in (self._subscribers if isinstance(channels, All) else channels) if name not in proving]

    def _decoded(self, kept: KeptChannel, recalled: Recalled) -> list[tuple[Place, Message | None]]:
        return [(place, decode(kept.name, payload, place)) for payload, place in recalled.items]

    def _count_unkept(self, kept: KeptChannel) -> None:
        self._statistics.unkept += 1
        if not kept.unkept_logged:
            kept.unkept_logged = True
            self._journal.log(
                logger,
                HISTORY_MISFIT,
                "a message on channel %(channel)r was published without history, so it is received live and cannot be "
                "given back: give every process that publishes to it the same rule, Backplane(history=...)",
                channel=kept.name,
            )
