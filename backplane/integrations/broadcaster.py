"""The classes of encode/broadcaster, on any broker of `Backplane`: change the import, and nothing else.

    from backplane.integrations.broadcaster import Broadcast

Needs no extra beside that of the broker. With `plain=True` the messages on the broker are those of encode/broadcaster,
and workers that still run it work side by side with workers that run this.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

from backplane.errors import ConfigurationError
from backplane.integrations.feed import notify_gap
from backplane.integrations.lease import Lease
from backplane.message import Gap

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from backplane.core import Backplane
    from backplane.fanout.backlog import Backlog
    from backplane.fanout.subscription import Subscription
    from backplane.integrations.feed import GapCallback

__all__ = ["Broadcast", "Event", "Subscriber", "Unsubscribed"]

# What all channels share on brokers where each channel of encode/broadcaster has its own.
_ONE_FOR_ALL: Final = {"postgres": "NOTIFY channel", "postgresql": "NOTIFY channel", "kafka": "topic"}


@dataclass(slots=True)
class Event:
    """What was published.

    Attributes:
        channel: Where it was published to.
        message: The text; of bytes that are no UTF-8, the bytes.
    """

    channel: str
    message: Any


class Unsubscribed(Exception):  # noqa: N818  # the name that encode/broadcaster has
    """The subscription has ended."""


class Broadcast:
    """Publishes to channels, and subscribes to them.

    As the class of encode/broadcaster, with these differences:

    - A lost link is rebuilt, a silent one too, and subscribed again. Where events may be missing, `on_gap` is called.
    - `publish` raises where the broker did not get the message; it takes anything JSON, and bytes.
    - What waits for a subscriber is bounded by `backlog`: one that is slower ends with a `SlowConsumerError`.
    - A subscription ends with the `Broadcast`, and an end of one does not concern the others.

    Args:
        url: The URL of a broker, or the application's `Backplane`, which it starts and stops. `redis-stream://` is not
            known. Defaults to the environment variable `BACKPLANE_URL`.
        plain: Whether to publish without the header of backplane, as `wire_format=plain` in the URL does: needed while
            workers run encode/broadcaster on the same Redis. Not with a `Backplane`, whose URL has the option, and not
            with PostgreSQL or Kafka, where encode/broadcaster uses a channel or topic of the broker for each channel.
        on_gap: Called with a `Gap`, for each subscription, where events may be missing, in its place between them; a
            function or a coroutine function. What it raises is logged. Defaults to nothing: the gap is logged.
        backlog: What may wait for one subscriber. Defaults to 1 MiB and 1,024 messages.

    Raises:
        ConfigurationError: The URL is wrong, or `plain` is given where it cannot be.
        MissingDependencyError: The adapter's client library is not installed.
    """

    def __init__(
        self,
        url: Backplane | str | None = None,
        *,
        plain: bool = False,
        on_gap: GapCallback | None = None,
        backlog: Backlog | None = None,
    ) -> None:
        if plain:
            if not isinstance(url, str):
                raise ConfigurationError("plain needs a URL: give a Backplane the option wire_format=plain in its own")
            if (own := _ONE_FOR_ALL.get(url.partition(":")[0])) is not None:
                raise ConfigurationError(
                    f"plain is for Redis: encode/broadcaster has a {own} of the broker for each channel, backplane one "
                    "for all, so its workers cannot run side by side with these"
                )
            url += f"{'&' if '?' in url else '?'}wire_format=plain"
        self._lease = Lease(url)
        self._on_gap = on_gap
        self._backlog = backlog

    @property
    def backplane(self) -> Backplane:
        """The backplane: its `state`, `health` and `statistics`."""
        return self._lease.backplane

    async def connect(self) -> None:
        """Start the backplane.

        Raises:
            BrokerError: The broker could not be reached.
        """
        await self._lease.start()

    async def disconnect(self) -> None:
        """Stop the backplane; the iteration of subscriptions ends."""
        await self._lease.stop()

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.disconnect()

    async def publish(self, channel: str, message: Any) -> None:
        """Publish to every subscriber of `channel`, on every worker; returns and raises as `Backplane.publish`."""
        await self.backplane.publish(channel, message)

    @asynccontextmanager
    async def subscribe(self, channel: str) -> AsyncGenerator[Subscriber]:
        """Subscribe to `channel`: once entered, no later event is missed without a call of `on_gap`.

        Raises:
            BrokerError: The broker refused the channel, or did not confirm in time.
        """
        async with self.backplane.subscribe(channel, backlog=self._backlog, exact=True) as subscription:
            yield Subscriber(subscription, self._on_gap)


class Subscriber:
    """The events of one channel: `async for event in subscriber`, or `await subscriber.get()`."""

    def __init__(self, subscription: Subscription, on_gap: GapCallback | None) -> None:
        self._subscription = subscription
        self._on_gap = on_gap

    async def __aiter__(self) -> AsyncGenerator[Event]:
        while True:
            try:
                event = await self.get()
            except Unsubscribed:
                return
            yield event

    async def get(self) -> Event:
        """Return the next event.

        Raises:
            Unsubscribed: The subscription has ended.
            SlowConsumerError: More waited than the backlog allows.
        """
        async for item in self._subscription:
            if not isinstance(item, Gap):
                return Event(item.channel, item.data)
            await notify_gap(self._on_gap, item)
        raise Unsubscribed
