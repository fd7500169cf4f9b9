"""The messages that one process receives for all users of an integration, with gaps in their places."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import deque
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final

from backplane.broker.backoff import Backoff
from backplane.errors import BrokerError, ClosedError
from backplane.fanout.backlog import Backlog
from backplane.journal.events import CHANNEL_UNCONFIRMED, HOOK_FAILED
from backplane.journal.writing import write
from backplane.message import Gap

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection

    from backplane.core import Backplane
    from backplane.fanout.subscription import Subscription
    from backplane.message import Message

    GapCallback = Callable[[Gap], Awaitable[object] | object]

__all__ = ["Feed", "notify_gap"]

logger: Final = logging.getLogger("backplane.integrations.feed")

# For all clients of a process together.
_BACKLOG: Final = Backlog(when_full="drop_oldest", max_bytes=64 * 1024 * 1024, max_messages=65_536)
_MAX_PAUSE_SECONDS: Final = 5.0


class Feed:
    """A subscription that goes on: one that is consumed too slowly drops its oldest messages, which is a `Gap`.

    At most 64 MiB and 65,536 messages wait. One task iterates at a time. It belongs to the event loop in which it was
    opened, and ends with its backplane.
    """

    def __init__(self) -> None:
        self._closing = AsyncExitStack()
        self._subscription: Subscription | None = None
        self._dropped = 0
        self._joined = asyncio.Event()
        self._held: deque[Message | Gap] = deque()
        self._retries: dict[str, asyncio.Task[None]] = {}

    @property
    def channels(self) -> Collection[str]:
        """The channels that it receives; without those that are still to be confirmed."""
        return () if self._subscription is None else self._subscription.channels

    async def open(self, backplane: Backplane) -> None:
        """Subscribe to no channel yet; `backplane` must be started."""
        self._subscription = await self._closing.enter_async_context(backplane.subscribe(backlog=_BACKLOG))

    async def close(self) -> None:
        """End, and drop what waits."""
        retries = list(self._retries.values())
        for retry in retries:
            retry.cancel()
        if retries:
            await asyncio.wait(retries)
        self._joined.set()
        await self._closing.aclose()

    async def join(self, channel: str, *, insist: bool = False) -> None:
        """Receive `channel`; once this returns, no later publish is missed without a gap.

        Args:
            channel: The channel.
            insist: Whether a failure of the broker, or a cancellation, is not the end: a task goes on trying until
                `leave`, and the channel then begins with a gap.

        Raises:
            InvalidChannelError: The name is not valid.
            BrokerError: The broker refused the channel, or did not confirm it in time.
            ClosedError: The feed has ended.
        """
        try:
            await self._opened().join(channel, exact=True)
        except (BrokerError, asyncio.CancelledError) as error:
            if insist and channel not in self._retries:
                words = "not subscribed to channel %(channel)r yet, and trying again: %(reason)s"
                write(
                    logger, CHANNEL_UNCONFIRMED, words, channel=channel, reason=str(error) or "the join was cancelled"
                )
                self._retries[channel] = asyncio.create_task(self._join_in_time(channel))
            raise
        self._joined.set()

    async def leave(self, channel: str) -> None:
        """Receive nothing more of `channel`, what waits included. Leaving a channel twice changes nothing."""
        if (retry := self._retries.pop(channel, None)) is not None:
            retry.cancel()
        if self._subscription is not None and not self._subscription.is_over:
            await self._subscription.leave(channel, exact=True)

    def __aiter__(self) -> AsyncIterator[Message | Gap]:
        return self

    async def __anext__(self) -> Message | Gap:
        subscription = self._opened()
        await self._joined.wait()
        while True:
            if not self._held:
                await self._take(subscription)
            item = self._held.popleft()
            if item.channel in subscription.channels:
                return item

    async def _take(self, subscription: Subscription) -> None:
        """Wait for the next item, and put the gaps before it that the bounds have made."""
        item = await anext(subscription)
        if self._dropped != subscription.dropped:
            self._dropped = subscription.dropped
            reason = "messages were received faster than this process handled them"
            self._held.extend(Gap(channel=channel, reason=reason) for channel in subscription.channels)
        self._held.append(item)

    def _opened(self) -> Subscription:
        if self._subscription is None:
            raise ClosedError("this feed is not open")
        return self._subscription

    async def _join_in_time(self, channel: str) -> None:
        subscription, pauses = self._opened(), Backoff(_MAX_PAUSE_SECONDS)
        while channel not in subscription.channels:
            await asyncio.sleep(pauses.next())
            try:
                await subscription.join(channel, exact=True)
            except BrokerError:
                continue
            except ClosedError:
                break
            subscription.gap(Gap(channel=channel, reason="the broker had not confirmed the channel before"))
            self._joined.set()
        self._retries.pop(channel, None)


async def notify_gap(callback: GapCallback | None, gap: Gap) -> None:
    """Call the application's `on_gap`, a function or a coroutine function; what it raises is logged."""
    if callback is None:
        return
    try:
        result = callback(gap)
        if inspect.isawaitable(result):
            await result
    except Exception as error:
        write(
            logger,
            HOOK_FAILED,
            "a callback of %(hook)s failed for channel %(channel)r",
            hook="on_gap",
            channel=gap.channel,
            exc_info=error,
        )
