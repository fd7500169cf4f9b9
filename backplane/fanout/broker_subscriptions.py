"""Which channels the broker is asked to deliver to this worker.

Joins and leaves only edit the wanted set; one task brings the broker's side in line with it, in batches. A channel
whose last subscriber left lingers for a moment, so that a page reload does not cost the broker a subscription.
"""

from __future__ import annotations

import asyncio
import random
from itertools import islice
from typing import TYPE_CHECKING, Any

from backplane.concurrency.shared_future import outcome_of
from backplane.concurrency.timeouts import PatientTimeout
from backplane.errors import BrokerUnavailableError, SubscribeError
from backplane.fanout.suspect_channels import Suspects

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from backplane.broadcaster import Broadcaster

__all__ = ["BrokerSubscriptions"]

# Large enough that a round trip does not matter, small enough that handling it does not stall the event loop.
_BATCH = 500
# Behind a broker's return every worker asks for everything: their batches are spread, so that they do not stampede.
_SPREAD_SECONDS = 0.02
# All the pauses of one worker together: a hundred thousand channels must fit into the time that a link has to open.
_MOST_SPREAD_SECONDS = 1.0
# Between two tries to subscribe to what the broker could not confirm yet: doubled up to the second, and from the first
# again once nothing had to be tried for a while.
_FIRST_RETRY_SECONDS = 0.05
_MAX_RETRY_SECONDS = 1.0
_CALM_SECONDS = 5.0
_CULPRIT = "the link to the broker ended each time this channel was subscribed; it is asked for rarely now"


class BrokerSubscriptions:
    """The wanted channels, and how far the broker has confirmed them.

    Args:
        linger_seconds: How long an unwanted channel stays subscribed.
        timeout_seconds: How long `acquire` waits for the broker's confirmation.

    Attributes:
        proved: The present link has answered something.
    """

    def __init__(self, *, linger_seconds: float, timeout_seconds: float) -> None:
        self._linger_seconds = linger_seconds
        self._timeout_seconds = timeout_seconds
        self._wanted: set[str] = set()
        self._confirmed: set[str] = set()
        self._resumed: set[str] = set()  # what the link delivers since it was resumed, confirmed or not
        self._refused: set[str] = set()
        self._unconfirmed: dict[str, str] = {}  # with the last reason
        self._retry_seconds = _FIRST_RETRY_SECONDS
        self._postponed_at = float("-inf")
        self._retry: asyncio.TimerHandle | None = None
        self._suspects = Suspects()
        self._under_way: Collection[str] = ()
        self.proved = False
        self._revoked: dict[str, str] = {}  # while they were under way
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._to_subscribe: dict[str, None] = {}
        self._to_unsubscribe: dict[str, None] = {}
        self._lingering: dict[str, asyncio.TimerHandle] = {}
        self._changed = asyncio.Event()
        self.on_confirmed: Callable[[Collection[str]], None] = _ignore
        self.on_refused: Callable[[Mapping[str, str]], None] = _ignore
        self.on_overdue: Callable[[Mapping[str, str]], None] = _ignore
        self._closed = False

    @property
    def wanted(self) -> Collection[str]:
        """The channels the broker should deliver, the lingering ones included."""
        return self._wanted

    @property
    def needs_proof(self) -> bool:
        """Whether the next link must answer something harmless before it is asked for channels."""
        return self._suspects.needs_proof

    @property
    def confirmed(self) -> Collection[str]:
        """The channels the broker has confirmed on the present link."""
        return self._confirmed

    async def acquire(self, channel: str) -> None:
        """Ask for `channel`; returns when the broker has confirmed it. Concurrent calls share one request.

        Raises:
            SubscribeError: The broker refused it, or ends the link whenever it is asked for it.
            BrokerUnavailableError: No confirmation in time. The channel is not given up: `release` it.
        """
        if self._suspects.is_convicted(channel):
            raise SubscribeError({channel: _CULPRIT})
        lingering = self._lingering.pop(channel, None)
        if lingering is not None:
            lingering.cancel()
        if channel in self._to_unsubscribe:  # given up, but the broker has not been told yet
            del self._to_unsubscribe[channel]
            if channel not in self._resumed:
                self._confirmed.add(channel)
        self._wanted.add(channel)
        if channel in self._confirmed:
            return
        if self._closed:
            raise BrokerUnavailableError("the backplane was stopped")
        future = self._waiting.get(channel)
        if future is None:
            future = self._waiting[channel] = asyncio.get_running_loop().create_future()
            self._to_subscribe[channel] = None
            self._changed.set()
        try:
            async with PatientTimeout(self._timeout_seconds):
                await outcome_of(future)
        except TimeoutError:
            reason = self._unconfirmed.get(channel)
            raise BrokerUnavailableError(
                f"the broker did not confirm channel {channel!r} within {self._timeout_seconds:g} s"
                + (f": {reason}" if reason else "")
            ) from None

    def release(self, channel: str) -> None:
        """Give `channel` up after the linger time, unless it is wanted again before."""
        if channel in self._wanted and channel not in self._lingering:
            loop = asyncio.get_running_loop()
            self._lingering[channel] = loop.call_later(self._linger_seconds, self._drop, channel)

    def forget_link(self, *, ended: bool = False) -> None:
        """The link is gone, and with it every confirmation: who joins from now on waits for the next one.

        Args:
            ended: The link ended, other than by our own judgement: what was being subscribed may be the reason.
        """
        self._confirmed.clear()
        self._resumed.clear()
        self._refused.clear()
        self._to_unsubscribe.clear()
        self._to_subscribe.clear()
        self._forget_unconfirmed()
        under_way, self._under_way = self._under_way, ()
        proved, self.proved = self.proved, False
        culprit = self._suspects.link_ended(under_way, proved=proved) if ended else None
        if culprit is not None:
            self._refuse({culprit: _CULPRIT})

    def revoke(self, channels: Collection[str], reason: str) -> None:
        """Ask again, after a pause, for channels whose subscriptions the broker took away."""
        # One that is under way can have been confirmed at the adapter, though not here.
        self._revoked |= {channel: reason for channel in channels if channel in self._under_way}
        revoked = self._confirmed.intersection(channels)
        self._confirmed -= revoked
        self._postpone(dict.fromkeys(revoked, reason))

    async def subscribe_all(self, broadcaster: Broadcaster, resumed: Collection[str] = ()) -> None:
        """Ask a new link for every wanted channel, and take back what it was `resumed` with and is wanted no longer.

        What is set aside because links ended over it follows once this one stands: see `Suspects`.
        """
        self._refused = {channel for channel in self._wanted if self._suspects.is_convicted(channel)}
        apart = {channel for channel in self._wanted - self._refused if self._suspects.is_apart(channel)}
        self._to_subscribe = dict.fromkeys(self._wanted - self._refused - apart)
        self._resumed = set(resumed)
        self._to_unsubscribe = dict.fromkeys(channel for channel in resumed if channel not in self._wanted)
        self._postpone(dict.fromkeys(apart, "the link to the broker ended while it was subscribed"))
        batches = len(self._wanted) // _BATCH + 1
        await self._apply(broadcaster, stagger_window=min(_SPREAD_SECONDS, _MOST_SPREAD_SECONDS / batches))

    async def run(self, broadcaster: Broadcaster, *, answer_seconds: float | None = None) -> None:
        """Keep the broker in line with the wanted set until cancelled, or until the link fails.

        Raises:
            TimeoutError: The broker owed the answer to one batch for longer than `answer_seconds`.
        """
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self._apply(broadcaster, answer_seconds=answer_seconds)

    def retry_refused(self) -> None:
        """Ask once more for what the broker refused after a reconnect; its rules may have changed."""
        again = {channel for channel in self._refused & self._wanted if not self._suspects.is_convicted(channel)}
        if again:
            self._to_subscribe |= dict.fromkeys(again)
            self._refused -= again
            self._changed.set()

    def close(self) -> None:
        """Forget everything; whoever waits for a confirmation is told that the broker is gone."""
        self._closed = True
        for timer in self._lingering.values():
            timer.cancel()
        self._lingering.clear()
        self._wanted.clear()
        self._confirmed.clear()
        self._forget_unconfirmed()
        for channel in list(self._waiting):
            self._settle(channel, BrokerUnavailableError("the backplane was stopped"))

    def _drop(self, channel: str) -> None:
        del self._lingering[channel]
        self._wanted.discard(channel)
        self._refused.discard(channel)
        self._answered(channel)
        self._to_subscribe.pop(channel, None)
        self._settle(channel, BrokerUnavailableError(f"channel {channel!r} was given up"))
        if channel in self._confirmed or channel in self._resumed:
            self._confirmed.discard(channel)
            self._to_unsubscribe[channel] = None
            self._changed.set()

    async def _apply(
        self, broadcaster: Broadcaster, *, stagger_window: float = 0, answer_seconds: float | None = None
    ) -> None:
        # A channel stands in one of the two at most, so their order does not matter.
        while self._to_unsubscribe or self._to_subscribe:
            async with PatientTimeout(answer_seconds):
                if leaving := _take(self._to_unsubscribe):
                    self._resumed.difference_update(leaving)
                    await broadcaster.unsubscribe(leaving)
                if joining := self._next_batch():
                    await self._subscribe(broadcaster, joining)
            if stagger_window and self._to_subscribe:
                await asyncio.sleep(random.uniform(0, stagger_window))  # noqa: S311  # hides nothing

    def _next_batch(self) -> list[str]:
        """Return what is asked for next; what is set aside comes last, in pieces of its own."""
        pending, suspects = self._to_subscribe, self._suspects
        batch = list(islice((channel for channel in pending if not suspects.is_apart(channel)), _BATCH))
        batch = batch or suspects.piece(pending)
        for channel in batch:
            del pending[channel]
        return batch

    async def _subscribe(self, broadcaster: Broadcaster, channels: list[str]) -> None:
        refused: dict[str, str] = {}
        unconfirmed: dict[str, str] = {}
        self._under_way, self._revoked = frozenset(channels), {}
        try:
            await broadcaster.subscribe(channels)
        except SubscribeError as error:
            refused, unconfirmed = error.refused, error.unconfirmed
        self.proved = True
        self._under_way = ()  # not where the link ended: see `forget_link`
        self._suspects.answered(channels)
        unconfirmed = {**unconfirmed, **self._revoked}
        confirmed = [channel for channel in channels if channel not in refused and channel not in unconfirmed]
        for channel in confirmed:
            self._confirm(channel)
        self.on_confirmed(confirmed)
        self._refuse(refused)
        self._postpone(unconfirmed)
        if unconfirmed and self._retry_seconds == _MAX_RETRY_SECONDS:  # no passing state
            self.on_overdue(unconfirmed)

    def _confirm(self, channel: str) -> None:
        self._answered(channel)
        self._resumed.discard(channel)
        if channel in self._wanted:
            self._to_subscribe.pop(channel, None)
            self._refused.discard(channel)
            self._confirmed.add(channel)
            self._settle(channel, None)
        else:  # given up while the broker was being asked
            self._to_unsubscribe[channel] = None

    def _postpone(self, unconfirmed: Mapping[str, str]) -> None:
        """Ask again, after a pause, for channels on which the broker gave no final answer."""
        self._unconfirmed |= {channel: reason for channel, reason in unconfirmed.items() if channel in self._wanted}
        if not self._unconfirmed or self._retry is not None:
            return
        loop = asyncio.get_running_loop()
        if loop.time() - self._postponed_at > _CALM_SECONDS:
            self._retry_seconds = _FIRST_RETRY_SECONDS
        self._postponed_at = loop.time()
        self._retry = loop.call_later(self._retry_seconds, self._ask_again)
        self._retry_seconds = min(2 * self._retry_seconds, _MAX_RETRY_SECONDS)

    def _ask_again(self) -> None:
        self._retry = None
        self._to_subscribe |= dict.fromkeys(self._unconfirmed)
        self._changed.set()

    def _forget_unconfirmed(self) -> None:
        self._unconfirmed.clear()
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    def _answered(self, channel: str) -> None:
        """No answer is awaited for `channel` any more."""
        if self._unconfirmed.pop(channel, None) is not None and not self._unconfirmed:
            self._forget_unconfirmed()

    def _refuse(self, refused: Mapping[str, str]) -> None:
        refused = {channel: reason for channel, reason in refused.items() if channel in self._wanted}
        for channel, reason in refused.items():
            self._answered(channel)
            self._to_subscribe.pop(channel, None)
            self._resumed.discard(channel)
            self._refused.add(channel)
            self._settle(channel, SubscribeError({channel: reason}))
        if refused:
            self.on_refused(refused)

    def _settle(self, channel: str, error: Exception | None) -> None:
        future = self._waiting.pop(channel, None)
        if future is None or future.done():
            return
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
            future.exception()  # whoever waited may be gone: this is not a forgotten error


def _take(pending: dict[str, None]) -> list[str]:
    batch = list(islice(pending, _BATCH))
    for channel in batch:
        del pending[channel]
    return batch


def _ignore(*_: Any) -> None:
    """Stand in until someone listens."""
