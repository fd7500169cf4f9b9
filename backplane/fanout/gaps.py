"""When messages may be missing, and when subscribers are notified of it.

A gap is opened where delivery stops (the link is lost, the broker revokes a subscription) and reported where it goes
on: once the broker has confirmed the channel again, or before the first message that arrives earlier. A client that
reloads its state at that moment receives everything from then on. Reported earlier, it would reload too early.

Each notice is at its place between the messages of its channel. Many subscribers are notified in slices, in several
passes of the event loop, and the messages that follow wait for that.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final, Literal, get_args

from backplane.channels import RESERVED_PREFIX
from backplane.concurrency.paced import PacedCalls
from backplane.errors import SubscribeError
from backplane.fanout.delivery import GapDelivery
from backplane.journal.events import CHANNEL_REFUSED, CHANNEL_UNCONFIRMED, GAP_REPORTED
from backplane.message import All, Gap

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Container, Mapping

    from backplane.fanout.delivery import Subscriber
    from backplane.journal.journal import Journal

__all__ = ["GapCause", "GapReporter", "OpenGap"]

GapCause = Literal["link_lost", "adapter", "revoked", "refused", "unconfirmed", "history"]
"""Where a gap comes from, for a figure; its reason has the words.

- `link_lost`: the link to the broker was lost.
- `adapter`: the adapter found it on a link that goes on, such as a queue of the broker or of its client that overran.
- `revoked`: the broker took a subscription back.
- `refused`: the broker refuses a channel that it had confirmed before.
- `unconfirmed`: the broker does not confirm a channel again.
- `history`: what a kept channel misses cannot be given back.
"""

logger: Final = logging.getLogger("backplane.fanout.gaps")

# A notice takes some 3 µs beside what its subscribers do; `PacedCalls` makes 50 calls in a pass of the event loop.
_CHANNELS_AT_ONCE: Final = 1_000
_CHANNELS_PER_CALL: Final = 20

_REFUSED: Final = "the broker refused the channel"
_UNCONFIRMED: Final = "the broker has not confirmed the channel again"


class OpenGap:
    """A gap that is not reported yet.

    Attributes:
        reason: Why messages may be missing.
        cause: The same, for a figure.
        subscribers: The subscribers of the channel when the gap was opened: only these can have missed anything.
        notices: What they were notified of since, so that each notice is given once.
        resumed: Delivery goes on without loss, since the adapter resumes or a message has followed the reported gap. So
            nothing is missing from then on, unless the broker does not confirm the channel.
    """

    __slots__ = ("cause", "notices", "reason", "resumed", "subscribers")

    def __init__(self, reason: str, cause: GapCause, subscribers: tuple[Subscriber, ...], *, resumed: bool) -> None:
        self.reason: str = reason
        self.cause: GapCause = cause
        self.subscribers: tuple[Subscriber, ...] = subscribers
        self.notices: tuple[str, ...] = ()
        self.resumed: bool = resumed


class GapReporter:
    """The open gaps of one hub, and the notices to its subscribers.

    Args:
        subscribers: The hub's subscribers by channel, as it edits them.
        confirmed: The channels that the broker has confirmed, as `BrokerSubscriptions` edits them.
        flush: Delivers what the hub has collected of some channels, so that a gap follows every message received
            before it.
        start: Delivers the rest of a notice, in slices and before what follows it on its channel.
        journal: How refusals, which can concern many channels at once, are logged.
        slice_size: How many subscribers are notified at once; those after them by `start`.
        counted_by: Another one that counts what this one reports. Defaults to this one.

    Attributes:
        opened: The open gaps by channel. The hub reads it for each message.
        reported: How many gaps were reported, counted once per channel and stretch.
        causes: The same by cause.
        last_reported_at: When the last one was reported, by the event loop's clock; `None` before the first.
        last_reason: Its reason.
        on_reported: Called with the channel of an open gap before it is reported.
    """

    def __init__(
        self,
        subscribers: Mapping[str, Mapping[Subscriber, int]],
        confirmed: Container[str],
        flush: Callable[[Collection[str]], None],
        start: Callable[[GapDelivery], None],
        journal: Journal,
        slice_size: int,
        counted_by: GapReporter | None = None,
    ) -> None:
        self._counted_by = counted_by
        self._subscribers = subscribers
        self._confirmed = confirmed
        self._flush_hub = flush
        self._start = start
        self._journal = journal
        self._slice_size = slice_size
        self._left_at_once = slice_size
        self.opened: dict[str, OpenGap] = {}
        self.reported: int = 0
        self.causes: dict[GapCause, int] = dict.fromkeys(get_args(GapCause), 0)
        self.last_reported_at: float | None = None
        self.last_reason: str | None = None
        self.on_reported: Callable[[str], None] = _ignore

    def open(self, channels: Collection[str] | All, reason: str, cause: GapCause, *, resumed: bool = False) -> None:
        """Note that messages of `channels` may be missing from here on; `report` notifies the subscribers.

        Args:
            channels: The channels concerned.
            reason: Why, in words, for a log.
            cause: Why, for a figure.
            resumed: The adapter resumes without loss: the gap is reported only if the broker does not confirm the
                channel at once, or after another gap on it.
        """
        for channel in list(self._subscribers) if isinstance(channels, All) else channels:
            if (gap := self.opened.get(channel)) is not None:
                if not resumed:
                    gap.reason, gap.cause, gap.resumed = reason, cause, False
            # A join that still waits for the broker's confirmation has been promised nothing yet.
            elif channel in self._subscribers and channel in self._confirmed:
                self.opened[channel] = OpenGap(reason, cause, tuple(self._subscribers[channel]), resumed=resumed)

    def end_resumed(self, reasons: Mapping[str, str]) -> None:
        """Note that the broker does not confirm channels of a resumed link: from here on messages may be missing.

        Args:
            reasons: The channels, each with the broker's reason.
        """
        for channel, reason in reasons.items():
            gap = self.opened.get(channel)
            if gap is not None and gap.resumed:
                gap.reason, gap.cause, gap.resumed = f"{_UNCONFIRMED}: {reason}", "unconfirmed", False

    def report(self, channels: Collection[str]) -> None:
        """Notify the subscribers of the open gaps of `channels`, without those that left since."""
        if not self.opened:
            return
        self._flush(channels)
        reported: dict[str, OpenGap] = {}
        for channel in channels:
            gap = self.opened.pop(channel, None)
            if gap is not None and not gap.resumed:
                reported[channel] = gap
                self._notify_of(channel, gap)
        self._log(reported)

    def report_early(self, channel: str) -> None:
        """Notify the subscribers of `channel`, where a message has overtaken the broker's confirmation.

        The gap stays open until the confirmation: if the link is lost before it, or the channel is not confirmed,
        messages are missing after that message too.
        """
        gap = self.opened[channel]
        self._flush((channel,))
        gap.resumed = True
        gap.notices = ()
        self._notify_of(channel, gap)
        self._log({channel: gap})

    def reopen(self, channel: str, reason: str) -> None:
        """Open the gap of a channel that the broker need not have confirmed, for `notify_refused` and the like."""
        if channel not in self.opened:
            subscribers = tuple(self._subscribers.get(channel, ()))
            self.opened[channel] = OpenGap(reason, "unconfirmed", subscribers, resumed=False)

    def notify(self, gap: Gap) -> None:
        """Notify every subscriber of a kept channel of a gap at this place, after what was received before it."""
        self._flush((gap.channel,))
        subscribers = tuple(self._subscribers.get(gap.channel, ()))
        self._notify(gap, "history", subscribers)
        self._log({gap.channel: OpenGap(gap.reason, "history", subscribers, resumed=False)})

    def open_and_report(self, channels: Collection[str] | All, reason: str) -> None:
        """Open a gap and report it at once where the broker has confirmed the channel.

        On every other channel more messages are missed until the confirmation, which then reports the gap. Of many
        channels only the first are reported at once, the others in the next passes of the event loop: a message that
        arrives on one of them meanwhile is preceded by its gap all the same.
        """
        self.open(channels, reason, "adapter")
        concerned = list(self.opened if isinstance(channels, All) else channels)
        self._report_confirmed(concerned[:_CHANNELS_AT_ONCE])
        if rest := concerned[_CHANNELS_AT_ONCE:]:
            parts = [rest[at : at + _CHANNELS_PER_CALL] for at in range(0, len(rest), _CHANNELS_PER_CALL)]
            PacedCalls(self._report_confirmed, parts, after_seconds=0.0, seconds=0.0)

    def _report_confirmed(self, channels: Collection[str]) -> None:
        self.report([channel for channel in channels if channel in self._confirmed])

    def notify_refused(self, refused: Mapping[str, str]) -> None:
        """Notify the subscribers of channels that the broker now refuses, and once more when it confirms them again.

        Args:
            refused: The channels, each with the broker's reason.
        """
        if news := self._notify_while_open(refused, _REFUSED, "refused"):
            words = "the broker refuses channels, their subscribers receive nothing: %(reason)s"
            error = SubscribeError(news)
            self._journal.log(
                logger, CHANNEL_REFUSED, words, channel=next(iter(news)), channels=len(news), reason=error
            )

    def notify_unconfirmed(self, unconfirmed: Mapping[str, str]) -> None:
        """Notify the subscribers of channels that the broker does not confirm again, and once more when it does.

        Args:
            unconfirmed: The channels, each with the broker's reason.
        """
        if news := self._notify_while_open(unconfirmed, _UNCONFIRMED, "unconfirmed"):
            words = "the broker does not confirm channels, their subscribers receive nothing: %(reason)s"
            error = SubscribeError({}, unconfirmed=news)
            self._journal.log(
                logger, CHANNEL_UNCONFIRMED, words, channel=next(iter(news)), channels=len(news), reason=error
            )

    def count(self, reason: str, cause: GapCause) -> None:
        """Count a gap that is reported."""
        if self._counted_by is not None:
            return self._counted_by.count(reason, cause)
        self.reported += 1
        self.causes[cause] += 1
        self.last_reported_at = asyncio.get_running_loop().time()
        self.last_reason = reason

    def discard(self, channel: str) -> None:
        """Forget the open gap of a channel whose last subscriber left."""
        self.opened.pop(channel, None)

    def clear(self) -> None:
        """Forget every open gap."""
        self.opened.clear()

    def _notify_while_open(self, reasons: Mapping[str, str], notice: str, cause: GapCause) -> Mapping[str, str]:
        """Notify of gaps that stay open; return the channels on which the notice is new, with their reasons."""
        self._flush(reasons)  # a resumed link can have delivered messages already
        news: dict[str, str] = {}
        for channel, reason in reasons.items():
            gap = self.opened.get(channel)
            # Without an open gap no subscriber has received anything of the channel yet: nothing is missing.
            if gap is not None and notice not in gap.notices:
                news[channel] = reason
                gap.notices += (notice,)
                gap.resumed = False
                gap.reason, gap.cause = f"{notice}: {reason}", cause
                self._notify_of(channel, gap)
        return news

    def _log(self, reported: Mapping[str, OpenGap]) -> None:
        """Log gaps that were reported together, those of the channels between workers left out."""
        gaps = {channel: gap for channel, gap in reported.items() if not channel.startswith(RESERVED_PREFIX)}
        if not gaps:
            return
        channel, first = next(iter(gaps.items()))
        self._journal.log(
            logger,
            GAP_REPORTED,
            "messages may be missing on %(channels)d channels, such as %(channel)r, of %(subscribers)d subscribers: "
            "%(reason)s",
            cause=first.cause,
            channels=len(gaps),
            channel=channel,
            subscribers=sum(len(gap.subscribers) for gap in gaps.values()),
            reason=first.reason,
        )

    def _notify_of(self, channel: str, open_gap: OpenGap) -> None:
        self.on_reported(channel)
        self._notify(Gap(channel=channel, reason=open_gap.reason), open_gap.cause, open_gap.subscribers)

    def _notify(self, gap: Gap, cause: GapCause, subscribers: Collection[Subscriber]) -> None:
        self.count(gap.reason, cause)
        delivery = GapDelivery(gap, subscribers, self._subscribers.get(gap.channel, {}), self._journal)
        if not delivery.run(max(0, self._left_at_once)):
            self._start(delivery)
        self._left_at_once -= len(subscribers)

    def _flush(self, channels: Collection[str]) -> None:
        """Deliver what was received before a gap; a slice of subscribers can be notified at once from here on."""
        self._flush_hub(channels)
        self._left_at_once = self._slice_size


def _ignore(_: str) -> None:
    """Do nothing: the callback before one is set."""
