"""The channels of one SDK client: what it has subscribed to, and the messages that wait until it knows of that.

A subscribe reply precedes every publication of its channel: what arrives before it is held. After a gap nothing of the
channel is sent until the client has subscribed again, as its position must not move beyond the gap.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from backplane.centrifugal.codes import Unsubscribe
from backplane.centrifugal.expiry import latest_end, seconds_left
from backplane.centrifugal.subscriptions import Recovery, SdkSubscription
from backplane.close_codes import CloseCode

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from backplane.centrifugal.audience import Audiences
    from backplane.centrifugal.client import SdkClient
    from backplane.connection.driver import ConnectionDriver
    from backplane.fanout.batch import Batch
    from backplane.message import Gap, Joined

__all__ = ["ClientChannels"]


class ClientChannels:
    """The subscriptions of one client, by channel. Iterating yields them.

    Args:
        client: The client.
        audiences: What notifies clients of joins and leaves of others.

    Attributes:
        held: The channels whose messages are not sent at present, each with those that are kept, or `None` to drop
            them. The connection adds to the lists.
        driver: The connection, once there is one.
    """

    __slots__ = ("_audiences", "_by_channel", "_client", "driver", "held")

    driver: ConnectionDriver

    def __init__(self, client: SdkClient, audiences: Audiences) -> None:
        self._client = client
        self._audiences = audiences
        self._by_channel: dict[str, SdkSubscription] = {}
        self.held: dict[str, list[Batch] | None] = {}

    def __iter__(self) -> Iterator[SdkSubscription]:
        return iter(tuple(self._by_channel.values()))

    def __contains__(self, channel: str) -> bool:
        return channel in self._by_channel

    def get(self, channel: str) -> SdkSubscription | None:
        """Return the subscription of a channel, if there is one."""
        return self._by_channel.get(channel)

    def clear(self) -> None:
        """End: no timer is left that calls this, and nothing refers to the client."""
        for channel in tuple(self._by_channel):
            self._remove(channel)
        del self.driver, self._client

    # --- by the client's commands ---

    async def join(self, subscription: SdkSubscription) -> None:
        """Join a channel; what arrives is held from then on."""
        channel = subscription.channel
        self._by_channel[channel] = subscription
        self.held[channel] = []
        try:
            if subscription.shows_presence:
                await self._audiences.prepare(channel, self._client)
            if subscription.is_permitted:
                await self.driver.join_permitted(channel, subscription.recovery.since)
            else:
                await self._client.connection.join(channel, since=subscription.recovery.since)
        except BaseException:
            self._remove(channel)
            raise

    async def join_all(self, subscriptions: Sequence[SdkSubscription]) -> None:
        """Join several channels at once: all of them, or none."""
        try:
            ends = await asyncio.gather(*map(self.join, subscriptions), return_exceptions=True)
        except asyncio.CancelledError:
            self._leave_all(subscriptions)
            raise
        for error in ends:
            if error is not None:
                self._leave_all(subscriptions)
                raise error

    def release(self, subscription: SdkSubscription) -> None:
        """Send what came before the client was notified of its subscription, which it is now."""
        held = self.held.get(subscription.channel)
        if held is None:  # a gap came meanwhile, and nothing more is sent
            return
        del self.held[subscription.channel]
        missed, subscription.missed = subscription.missed, None
        if missed is not None:  # of a join by the application
            self.driver.sender.offer_missed(missed.enveloped(self._client.envelope))
        for batch in held:
            self.driver.offer(batch)

    def expire(self, subscription: SdkSubscription, expires_at: float | None) -> None:
        """End a subscription some time after its permission, if that is not renewed; `None`: never."""
        if subscription.expiry is not None:
            subscription.expiry.cancel()
            subscription.expiry = None
        if (end := latest_end(expires_at)) is not None:
            subscription.expiry = asyncio.get_running_loop().call_later(
                seconds_left(end), self.end_expired, subscription
            )

    def end_expired(self, subscription: SdkSubscription) -> None:
        """End a subscription whose permission has run out: the client subscribes again, with a new token."""
        self._end(subscription, Unsubscribe.EXPIRED, "subscription expired")

    def leave(self, channel: str) -> None:
        """Leave a channel, of which the client is not notified."""
        self._remove(channel)
        self.driver.leave_now(channel)

    # --- by the connection: backplane.connection.client_protocol ---

    def joined(self, joined: Joined) -> None:
        """Take the notice of a join: of a subscribe, or of a command of the application for this connection."""
        subscription = self._by_channel.get(joined.channel)
        if subscription is None:
            subscription = SdkSubscription(joined.channel, Recovery({}), is_server_side=True)
            self._by_channel[joined.channel] = subscription
            self.held[joined.channel] = []
            asyncio.get_running_loop().call_soon(self._announce, subscription)
        subscription.joined = joined

    def missed(self, batch: Batch) -> None:
        """Take what is given back before the reply: the first is part of it, what comes after other messages is not."""
        channel = batch[0].channel
        held = self.held[channel]
        if held is None:  # after a gap
            return
        subscription = self._by_channel[channel]
        if held or subscription.missed is not None:
            held.append(batch)
        else:
            subscription.missed = batch

    def left(self, channel: str) -> None:
        """Notify the client that the application let it leave a channel; not before it knows that it has joined."""
        is_known = self.held.get(channel) is None
        if self._remove(channel) is not None and is_known:
            self._push_unsubscribe(channel, Unsubscribe.SERVER, "server unsubscribe")

    def gap(self, gap: Gap) -> None:
        """Notify the client, in its turn, that messages may be missing; until then it gets nothing of the channel."""
        channel = gap.channel
        subscription = self._by_channel.get(channel)
        held = self.held.get(channel, ())
        if subscription is None or held is None:  # it is to be notified already
            return
        if subscription.joined is None:  # it begins after the gap
            self.held[channel] = []
            return
        self.held[channel] = None
        if subscription.is_server_side:
            self.driver.closing.close_in_turn(CloseCode.MESSAGES_MISSED, "")
        else:
            policy = self.driver.policy
            subscription.on_turn = self._lost
            subscription.turn = policy.turns.put(subscription, policy.reload_delay())

    # --- ends, and what the client is notified of ---

    def _announce(self, subscription: SdkSubscription) -> None:
        """Notify the client that the application let it join a channel, if the reply to its connect does not."""
        channel = subscription.channel
        is_current = self._by_channel.get(channel) is subscription
        if is_current and channel in self.held and self._client.is_connected:
            encoding = self._client.encoding
            self._client.push(encoding.push(channel, "subscribe", subscription.result(encoding)))
            self.release(subscription)

    def _lost(self, subscription: SdkSubscription) -> None:
        """Let the client subscribe again: it learns by that whether what it missed can be given back."""
        subscription.turn = None
        self._end(subscription, Unsubscribe.INSUFFICIENT_STATE, "insufficient state")

    def _end(self, subscription: SdkSubscription, code: Unsubscribe, reason: str) -> None:
        if self._by_channel.get(subscription.channel) is subscription:
            self.leave(subscription.channel)
            self._push_unsubscribe(subscription.channel, code, reason)

    def _push_unsubscribe(self, channel: str, code: Unsubscribe, reason: str) -> None:
        self._client.push(self._client.encoding.push(channel, "unsubscribe", {"code": int(code), "reason": reason}))

    def _leave_all(self, subscriptions: Sequence[SdkSubscription]) -> None:
        for subscription in subscriptions:
            self.leave(subscription.channel)

    def _remove(self, channel: str) -> SdkSubscription | None:
        subscription = self._by_channel.pop(channel, None)
        self.held.pop(channel, None)
        if subscription is not None:
            if subscription.shows_presence:
                self._audiences.discard(channel, self._client)
            if subscription.expiry is not None:
                subscription.expiry.cancel()
            if subscription.turn is not None:
                self.driver.policy.turns.remove(subscription, subscription.turn)
                subscription.turn = None
        return subscription
