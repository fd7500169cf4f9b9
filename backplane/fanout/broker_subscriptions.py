"""Which channels the broker is asked to deliver to this worker.

Joins and leaves only edit the set of wanted channels. One task, `BrokerSubscriptions.run`, brings the broker in line
with that set, in batches. A channel whose last subscriber left stays subscribed for the linger time, so that a client
that reloads its page does not cost the broker an unsubscription and a subscription.
"""

from __future__ import annotations

import asyncio
import random
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Protocol

from backplane.concurrency.shared_future import outcome_of
from backplane.concurrency.timeouts import PatientTimeout
from backplane.errors import BrokerUnavailableError, SubscribeError
from backplane.fanout.suspect_channels import SuspectChannels
from backplane.fanout.unconfirmed_channels import UnconfirmedChannels

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

__all__ = ["BrokerSubscriptions", "Subscribes"]

# Large enough that a round trip does not matter, small enough that handling the answer does not block the event loop.
_BATCH_SIZE: Final = 500
# When a broker returns, every worker subscribes to everything at once: pauses between the batches spread that load.
_PAUSE_SECONDS: Final = 0.02
# All pauses of one worker together: a hundred thousand channels must fit into the time that a link has to open.
_MAX_PAUSES_SECONDS: Final = 1.0
_QUARANTINED: Final = (
    "the link to the broker ended each time this channel was subscribed; it is not tried again for a minute or more"
)


class Subscribes(Protocol):
    """Where channels are subscribed to: an adapter, or what passes prefixes to one."""

    async def subscribe(self, channels: Collection[str]) -> None:
        """See `Broadcaster.subscribe`."""

    async def unsubscribe(self, channels: Collection[str]) -> None:
        """See `Broadcaster.unsubscribe`."""


class BrokerSubscriptions:
    """The wanted channels, and which of them the broker has confirmed. Another one has the wanted prefixes.

    Args:
        linger_seconds: How long a channel stays subscribed after its release.
        timeout_seconds: How long `acquire` waits for the broker's confirmation.
        batch_size: Most channels of one request to the broker.

    Attributes:
        on_confirmed: Called with the channels of each request that the broker has confirmed.
        on_refused: Called with wanted channels that the broker refuses, each with its reason.
        on_unconfirmed: Called with channels of each request on which the broker gave no final answer, each with its
            reason.
        on_overdue: Called with channels that the broker has not confirmed after several tries, each with its reason.
        link_answered: Whether the broker has answered anything on the present link.
    """

    def __init__(self, *, linger_seconds: float, timeout_seconds: float, batch_size: int = _BATCH_SIZE) -> None:
        self._linger_seconds = linger_seconds
        self._timeout_seconds = timeout_seconds
        self._batch_size = batch_size
        self._closed = False
        # What the application wants. A lingering channel is still wanted.
        self._wanted: set[str] = set()
        self._lingering: dict[str, asyncio.TimerHandle] = {}
        self._confirmations: dict[str, asyncio.Future[None]] = {}  # what `acquire` waits for
        # What is known of the broker on the present link.
        self._confirmed: set[str] = set()
        self._refused: dict[str, str] = {}  # with the reason
        self._resumed: set[str] = set()  # delivered since the link was resumed, though not confirmed yet
        self._unconfirmed = UnconfirmedChannels(self._subscribe_again)
        self._suspects = SuspectChannels()
        self.link_answered: bool = False
        # What `run` does next. A channel is in one of the two at most. They are `dict`s to keep the order.
        self._to_subscribe: dict[str, None] = {}
        self._to_unsubscribe: dict[str, None] = {}
        self._changed = asyncio.Event()
        # The request that awaits the broker's answer, and which of its channels were revoked meanwhile.
        self._requested: Collection[str] = ()
        self._revoked: dict[str, str] = {}
        self.on_confirmed: Callable[[Collection[str]], None] = _ignore
        self.on_refused: Callable[[Mapping[str, str]], None] = _ignore
        self.on_unconfirmed: Callable[[Mapping[str, str]], None] = _ignore
        self.on_overdue: Callable[[Mapping[str, str]], None] = _ignore

    @property
    def wanted(self) -> Collection[str]:
        """The channels that the broker should deliver, the lingering ones included."""
        return self._wanted

    @property
    def confirmed(self) -> Collection[str]:
        """The channels that the broker has confirmed on the present link."""
        return self._confirmed

    def refusal(self, channel: str) -> str | None:
        """Return why the broker has refused a wanted channel on the present link; `None` where it has not."""
        return self._refused.get(channel)

    @property
    def needs_verified_link(self) -> bool:
        """Whether the next link must answer something harmless before channels are requested on it."""
        return self._suspects.needs_verified_link

    async def acquire(self, channel: str) -> None:
        """Subscribe to `channel`; returns when the broker has confirmed it. Concurrent calls share one request.

        Cancelling, like a timeout, leaves the channel wanted: `release` it.

        Raises:
            SubscribeError: The broker refused it, or ends the link each time it is subscribed.
            BrokerUnavailableError: The broker did not confirm in time.
        """
        if self._suspects.is_quarantined(channel):
            raise SubscribeError({channel: _QUARANTINED})
        lingering = self._lingering.pop(channel, None)
        if lingering is not None:
            lingering.cancel()
        if channel in self._to_unsubscribe:  # it was released, and the broker does not know yet
            del self._to_unsubscribe[channel]
            if channel not in self._resumed:
                self._confirmed.add(channel)
        self._wanted.add(channel)
        if channel in self._confirmed:
            return
        if self._closed:
            raise BrokerUnavailableError("the backplane was stopped")
        confirmation = self._confirmations.get(channel)
        if confirmation is None:
            confirmation = self._confirmations[channel] = asyncio.get_running_loop().create_future()
            self._to_subscribe[channel] = None
            self._changed.set()
        try:
            async with PatientTimeout(self._timeout_seconds):
                await outcome_of(confirmation)
        except TimeoutError:
            reason = self._unconfirmed.reason(channel)
            raise BrokerUnavailableError(
                f"the broker did not confirm channel {channel!r} within {self._timeout_seconds:g} s"
                + (f": {reason}" if reason else "")
            ) from None

    def release(self, channel: str) -> None:
        """Unsubscribe from `channel` after the linger time, unless it is acquired again before."""
        if channel in self._wanted and channel not in self._lingering:
            loop = asyncio.get_running_loop()
            self._lingering[channel] = loop.call_later(self._linger_seconds, self._drop, channel)

    async def run(self, broadcaster: Subscribes, *, answer_seconds: float | None = None) -> None:
        """Keep the broker in line with the wanted channels until cancelled, or until the link fails.

        Raises:
            TimeoutError: The broker did not answer a request within `answer_seconds`.
        """
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self._apply(broadcaster, answer_seconds=answer_seconds)

    async def subscribe_all(self, broadcaster: Subscribes, resumed: Collection[str] = ()) -> None:
        """Subscribe to every wanted channel on a new link, and unsubscribe what it `resumed` that is no longer wanted.

        Isolated channels are subscribed by `run` once the link is live: they must not keep it from getting there.
        """
        self._refused = {channel: _QUARANTINED for channel in self._wanted if self._suspects.is_quarantined(channel)}
        allowed = self._wanted - self._refused.keys()
        isolated = {channel for channel in allowed if self._suspects.is_isolated(channel)}
        self._to_subscribe = dict.fromkeys(allowed - isolated)
        self._resumed = set(resumed)
        self._to_unsubscribe = dict.fromkeys(channel for channel in resumed if channel not in self._wanted)
        self._postpone(dict.fromkeys(isolated, "the link to the broker ended while it was subscribed"))
        batches = len(self._wanted) // self._batch_size + 1
        await self._apply(broadcaster, max_pause_seconds=min(_PAUSE_SECONDS, _MAX_PAUSES_SECONDS / batches))

    def forget_link(self, *, ended: bool = False) -> None:
        """Forget every confirmation, since the link is lost: a join waits for the next link from now on.

        Args:
            ended: The link ended by itself, and was not given up by this process: the channels that were being
                subscribed may be the reason.
        """
        self._confirmed.clear()
        self._resumed.clear()
        self._refused.clear()
        self._to_unsubscribe.clear()
        self._to_subscribe.clear()
        self._unconfirmed.clear()
        requested, self._requested = self._requested, ()
        had_answered, self.link_answered = self.link_answered, False
        quarantined = self._suspects.link_ended(requested, had_answered=had_answered) if ended else None
        if quarantined is not None:
            self._refuse({quarantined: _QUARANTINED})

    def revoke(self, channels: Collection[str], reason: str) -> None:
        """Subscribe again, after a pause, to channels whose subscriptions the broker revoked."""
        # A requested channel can be confirmed at the adapter already, though not here.
        self._revoked |= {channel: reason for channel in channels if channel in self._requested}
        for channel in channels:  # `acquire` takes a channel whose unsubscription is due for subscribed
            self._to_unsubscribe.pop(channel, None)
        revoked = self._confirmed.intersection(channels)
        self._confirmed -= revoked
        self._postpone(dict.fromkeys(revoked, reason))

    def retry_refused(self) -> None:
        """Subscribe once more to what the broker refused on this link; its rules may have changed."""
        refused = self._refused.keys() & self._wanted
        again = {channel for channel in refused if not self._suspects.is_quarantined(channel)}
        if again:
            for channel in again:
                del self._refused[channel]
            self._subscribe_again(again)

    def close(self) -> None:
        """Forget everything; every `acquire` that waits raises."""
        self._closed = True
        for timer in self._lingering.values():
            timer.cancel()
        self._lingering.clear()
        self._wanted.clear()
        self._confirmed.clear()
        self._unconfirmed.clear()
        for channel in list(self._confirmations):
            self._settle(channel, BrokerUnavailableError("the backplane was stopped"))

    def _drop(self, channel: str) -> None:
        """The linger time of `channel` is over."""
        del self._lingering[channel]
        self._wanted.discard(channel)
        self._refused.pop(channel, None)
        self._unconfirmed.discard(channel)
        self._to_subscribe.pop(channel, None)
        self._settle(
            channel, BrokerUnavailableError(f"channel {channel!r} was released before the broker confirmed it")
        )
        if channel in self._confirmed or channel in self._resumed:
            self._confirmed.discard(channel)
            self._to_unsubscribe[channel] = None
            self._changed.set()

    async def _apply(
        self, broadcaster: Subscribes, *, max_pause_seconds: float = 0, answer_seconds: float | None = None
    ) -> None:
        """Unsubscribe and subscribe until nothing is left to do. The order of the two does not matter."""
        while self._to_unsubscribe or self._to_subscribe:
            async with PatientTimeout(answer_seconds):
                if unwanted := _take(self._to_unsubscribe, self._batch_size):
                    self._resumed.difference_update(unwanted)
                    await broadcaster.unsubscribe(unwanted)
                if wanted := self._next_batch():
                    await self._request(broadcaster, wanted)
            if max_pause_seconds and self._to_subscribe:
                await asyncio.sleep(random.uniform(0, max_pause_seconds))  # noqa: S311  # no secret

    def _next_batch(self) -> list[str]:
        """Take the channels to request next; isolated ones come last, in pieces of their own."""
        pending, suspects = self._to_subscribe, self._suspects
        others = (channel for channel in pending if not suspects.is_isolated(channel))
        batch = list(islice(others, self._batch_size)) or suspects.next_piece(pending)
        for channel in batch:
            del pending[channel]
        return batch

    async def _request(self, broadcaster: Subscribes, channels: list[str]) -> None:
        """Subscribe to `channels`, and sort them by the broker's answer."""
        refused: dict[str, str] = {}
        unconfirmed: dict[str, str] = {}
        self._requested, self._revoked = frozenset(channels), {}
        try:
            await broadcaster.subscribe(channels)
        except SubscribeError as error:
            refused, unconfirmed = error.refused, error.unconfirmed
        self.link_answered = True
        self._requested = ()  # kept where `subscribe` raised anything else: `forget_link` reads it
        self._suspects.clear(channels)
        unconfirmed = {**unconfirmed, **self._revoked}
        confirmed = [channel for channel in channels if channel not in refused and channel not in unconfirmed]
        for channel in confirmed:
            self._confirm(channel)
        self.on_confirmed(confirmed)
        self._refuse(refused)
        self._postpone(unconfirmed)
        self.on_unconfirmed(unconfirmed)
        if unconfirmed and self._unconfirmed.is_persistent:
            self.on_overdue(unconfirmed)

    def _confirm(self, channel: str) -> None:
        self._unconfirmed.discard(channel)
        self._resumed.discard(channel)
        if channel in self._wanted:
            self._to_subscribe.pop(channel, None)
            self._refused.pop(channel, None)
            self._confirmed.add(channel)
            self._settle(channel, None)
        else:  # dropped while the broker was being asked
            self._to_unsubscribe[channel] = None

    def _refuse(self, refused: Mapping[str, str]) -> None:
        refused = {channel: reason for channel, reason in refused.items() if channel in self._wanted}
        for channel, reason in refused.items():
            self._unconfirmed.discard(channel)
            self._to_subscribe.pop(channel, None)
            self._resumed.discard(channel)
            self._refused[channel] = reason
            self._settle(channel, SubscribeError({channel: reason}))
        if refused:
            self.on_refused(refused)

    def _postpone(self, unconfirmed: Mapping[str, str]) -> None:
        """Subscribe again, after a pause, to channels on which the broker gave no final answer."""
        self._unconfirmed.add({channel: reason for channel, reason in unconfirmed.items() if channel in self._wanted})

    def _subscribe_again(self, channels: Collection[str]) -> None:
        self._to_subscribe |= dict.fromkeys(channels)
        self._changed.set()

    def _settle(self, channel: str, error: Exception | None) -> None:
        """End every `acquire` of `channel` that waits: confirmed, or with `error`."""
        confirmation = self._confirmations.pop(channel, None)
        if confirmation is None or confirmation.done():
            return
        if error is None:
            confirmation.set_result(None)
        else:
            confirmation.set_exception(error)
            confirmation.exception()  # marks it as retrieved: every caller may have been cancelled


def _take(pending: dict[str, None], count: int) -> list[str]:
    batch = list(islice(pending, count))
    for channel in batch:
        del pending[channel]
    return batch


def _ignore(*_: Any) -> None:
    """Do nothing: the callback before one is set."""
