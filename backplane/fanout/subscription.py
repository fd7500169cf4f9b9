"""`Backplane.subscribe`: channels as an async iterator, for consumers other than clients."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, ClassVar, Final

from backplane.concurrency.context import run_in
from backplane.errors import InvalidMessageError, LifecycleError, SlowConsumerError
from backplane.fanout.backlog import TOO_SLOW
from backplane.fanout.outbox import GAP_BYTES
from backplane.fanout.single_receiver import SingleReceiver
from backplane.fanout.subscriber import BaseSubscriber, JoinRules
from backplane.fanout.subscriber_options import check_without_position, is_pattern
from backplane.journal.events import CLIENT_ACCEPTED, CLIENT_ENDED, CLIENT_SLOW, MESSAGE_INVALID
from backplane.journal.journal import Journal
from backplane.message import Message
from backplane.statistics import Counters

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from backplane.fanout.batch import Batch
    from backplane.fanout.hub import Hub
    from backplane.fanout.outbox import Outbox
    from backplane.fanout.subscriber_options import Since, SubscriberOptions
    from backplane.message import Gap, Joined, Position
    from backplane.statistics import Consumer, DropReason, LossReason

__all__ = ["Subscription"]

logger: Final = logging.getLogger("backplane.fanout.subscription")


class Subscription(BaseSubscriber):
    """Messages of some channels, in order per channel, with a `Gap` wherever some may be missing.

    Iterating ends when the backplane stops. Cancelling the iteration loses nothing. One task iterates at a time; more
    consumers need a subscription each. A subscription that was made without channels joins its first one before it is
    iterated.

    Raises:
        LifecycleError: While iterating: another task does, or no channel was ever joined.
        SlowConsumerError: While iterating, once what waited is consumed: more waited than the backlog allows, and
            everything since is lost. Only with the policy `close`.
    """

    _consumer: ClassVar[Consumer] = "subscription"

    def __init__(
        self,
        hub: Hub,
        rules: JoinRules | None,
        outbox: Outbox,
        *,
        context: Any = None,
        statistics: Counters | None = None,
        journal: Journal | None = None,
        options: SubscriberOptions | None = None,
    ) -> None:
        super().__init__(hub, rules, context=context, options=options)
        self._outbox = outbox
        self._statistics = statistics or Counters()
        self._journal = journal or Journal()
        outbox.on_drop = self._dropped
        self._overrun: bool = False  # more waited than the backlog allows
        self._wakeup: asyncio.Future[None] | None = None
        self._receiver: SingleReceiver = SingleReceiver()
        self._has_joined: bool = False
        self._positions: dict[str, Position | None] = {}  # of what is taken, by channel with a history
        self._began_at: float | None = None

    @property
    def kind(self) -> str:
        """`subscription`."""
        return "subscription"

    @property
    def outbox(self) -> Outbox:
        """What waits for the consumer."""
        return self._outbox

    @property
    def dropped(self) -> int:
        """How many messages its `Backlog` dropped or replaced so far, because they were consumed too slowly."""
        return self._outbox.dropped

    def position(self, channel: str) -> Position | None:
        """Return up to where `channel` was iterated; `None` without a history, and where that is not known.

        That of the last message or gap of the channel that the iteration returned, and before the first one that where
        the subscription began. Pass it as `since`, as text, to go on from there.
        """
        return self._positions.get(channel)

    async def join(self, channel: str, *, since: Since = None, rewind: int = 0, exact: bool = False) -> None:
        """Receive what is published to `channel`; once this returns, no later publish is missed without a gap.

        A channel with a `*` is a pattern: every channel that matches is received. A message that is wanted in several
        ways is received once. Joining twice changes nothing. After a cancellation the channel is not joined.

        Args:
            channel: What to receive. In a pattern `*` is any run of characters, also none.
            since: The position up to which it was received before, as text: what was published after it is returned
                first, in order and once, or a `Gap`. Any other text counts as a position that is not found. Or a
                mapping of such positions by channel. `None` or "" the first time.
            rewind: How many of the newest messages are returned first where `since` is not given, and after a gap where
                it cannot be served. Defaults to 0.
            exact: A `*` is a plain character of a name. To be set for names that a client can choose: with a pattern it
                would receive what is not for it. Defaults to `False`.

        Raises:
            ConfigurationError: `since` or `rewind` is of another type, or no channel has a history to rewind; or it is
                a pattern, and one of them is given, or the adapter of the broker has no patterns.
            InvalidChannelError: The name is not valid.
            SubscribeError: The broker refused the channel.
            BrokerUnavailableError: The broker did not confirm in time.
            ClosedError: The subscription has ended.
        """
        if is_pattern(channel, exact=exact):
            check_without_position(channel, since, rewind)
            await self.join_pattern(channel)
        else:
            await super().join(channel, since=since, rewind=rewind)
        self._has_joined = True

    async def leave(self, channel: str, *, exact: bool = False) -> None:
        """Receive nothing more of `channel`, except what waits. Leaving a channel twice changes nothing.

        Args:
            channel: A channel, or a pattern.
            exact: As for `join`. Defaults to `False`.
        """
        if is_pattern(channel, exact=exact):
            return await self.leave_pattern(channel)
        await super().leave(channel)
        self._positions.pop(channel, None)
        self._outbox.disallow(channel)

    def _take_joined(self, joined: Joined) -> None:
        """Begin at a position, with a gap where what was missed cannot be given back."""
        if joined.position is not None:
            self._positions[joined.channel] = joined.position
        elif (rules := self._hub.rules) is not None and rules.rule_of(joined.channel) is not None:
            self._positions[joined.channel] = None
        if joined.gap is not None:
            self._outbox.allow(joined.channel, 1, GAP_BYTES)
            self._take(joined.gap)

    def offer_missed(self, batch: Batch, /) -> None:
        """Take what a join gives back: the hub's side."""
        batch = batch.for_token(self.token) if batch.excludes else batch
        if batch:
            self._outbox.allow(batch[0].channel, len(batch), batch.size_bytes)
            self.offer(batch)

    def offer(self, batch: Batch, /) -> None:
        """Take messages: the hub's side."""
        if self._options is not None:
            batch = self._options.apply(batch)
        if self._outbox.calls_application:
            run_in(self._context, self._take_all, batch)
        else:
            self._take_all(batch)

    def gap(self, gap: Gap) -> None:
        """Take a gap, in its place between the messages: the hub's side."""
        self._take(gap)

    def note_invalid(self, channel: str, error: InvalidMessageError) -> None:
        """Count a message that is not of the type its consumer expects, and log it without its content."""
        self._statistics.invalid_published += 1
        words = "dropped a message on channel %(channel)r: %(reason)s"
        self._journal.log(
            logger, MESSAGE_INVALID, words, channel=channel, reason=error.details[0]["type"], **self.named
        )

    def end(self) -> None:
        """Leave every channel; iteration ends after what already waits."""
        self._leave_all()
        self._wake()

    def discard(self) -> None:
        """End, and drop what waits: nothing iterates any more."""
        self.end()
        if waiting := self._outbox.clear():
            self._statistics.count_loss(self._consumer, "discarded", waiting)

    def log_begin(self) -> None:
        """Log that it receives from now on."""
        self._began_at = asyncio.get_running_loop().time()
        if logger.isEnabledFor(logging.DEBUG):
            self._journal.log(logger, CLIENT_ACCEPTED, "%(kind)s %(connection)s begins", **self.named)

    def log_end(self, by: str | None = None, reason: str | None = None) -> None:
        """Log and keep how it ends, if it had begun; by default by the worker, or else by the application."""
        if self._began_at is not None:
            self._journal.log(
                logger,
                CLIENT_ENDED,
                "%(kind)s %(connection)s is ended by the %(by)s",
                by=by or ("worker" if self._ended else "application"),
                reason=TOO_SLOW if self._overrun else reason,
                seconds=asyncio.get_running_loop().time() - self._began_at,
                **self.named,
            )

    def __aiter__(self) -> AsyncIterator[Message | Gap]:
        return self

    async def __anext__(self) -> Message | Gap:
        self._hub.affinity.check()
        self._receiver.check_single("this subscription", "subscribe once for each")
        while (item := self._outbox.take()) is None:
            if self._overrun:
                raise SlowConsumerError(
                    "more messages waited for this consumer than its backlog allows: reload, and subscribe again"
                )
            if self._ended:
                raise StopAsyncIteration
            if not self._has_joined:
                raise LifecycleError(
                    "this subscription has no channel: name channels in subscribe(), or join one before iterating"
                )
            await self._woken()
        if item.position is not None and item.channel in self._positions:
            self._positions[item.channel] = item.position
        return item

    async def _woken(self) -> None:
        consumer = self._receiver.begin_waiting()
        self._wakeup = asyncio.get_running_loop().create_future()
        try:
            await self._wakeup
        finally:
            self._receiver.end_waiting(consumer)

    def _take_all(self, batch: Batch) -> None:
        for place, message in enumerate(batch):
            if not self._take(message):
                reason: LossReason = "overrun" if self._overrun else "discarded"
                return self._statistics.count_loss(self._consumer, reason, len(batch) - place)

    def _take(self, item: Message | Gap) -> bool:
        """Put an item into the outbox; return whether it waits there now, or was dropped and counted by its policy."""
        if self._ended:
            return False
        if self._outbox.offer(item):
            self._wake()
            return True
        self._overrun = True
        run_in(self._context, self._note_overrun)
        self.end()
        return False

    def _note_overrun(self) -> None:
        self._statistics.slow_subscriptions += 1
        self._log_slow()

    def _log_slow(self) -> None:
        self._journal.log(
            logger,
            CLIENT_SLOW,
            "%(kind)s %(connection)s is too slow for channel %(channel)r: ending it",
            channel=next(iter(self.channels), ""),
            action="closed",
            messages=len(self._outbox),
            bytes=self._outbox.size_bytes,
            **self.named,
        )

    def _dropped(self, item: Message | Gap, reason: DropReason) -> None:
        if isinstance(item, Message):
            self._statistics.count_loss(self._consumer, reason)

    def _wake(self) -> None:
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)
