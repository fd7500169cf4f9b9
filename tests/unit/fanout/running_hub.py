"""A hub with its broker subscriptions over a broker that a test controls."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from backplane.fanout.broker_subscriptions import BrokerSubscriptions
from backplane.fanout.hub import Hub
from backplane.message import ALL, Gap
from tests.unit.doubles import ControlledBroadcaster, RecordingSubscriber

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


__all__ = ["AT_ONCE", "NEVER", "Worker", "counts", "crowd", "lost", "running"]

AT_ONCE = 1e-9
NEVER = 3_600.0


@dataclass
class Worker:
    """A hub over a link that a test opens and loses, wired as in production."""

    broker_subscriptions: BrokerSubscriptions
    hub: Hub
    broadcaster: ControlledBroadcaster = field(default_factory=ControlledBroadcaster)
    link: asyncio.Task[None] | None = None

    async def joined(self, *channels: str) -> RecordingSubscriber:
        """Return a subscriber that has joined `channels`."""
        subscriber = RecordingSubscriber()
        for channel in channels:
            await self.hub.join(channel, subscriber)
        return subscriber

    def deliver(self, channel: str, *payloads: str) -> None:
        """Report foreign texts as received from the broker."""
        for payload in payloads:
            self.hub.deliver(channel, payload.encode())

    async def lose_link(self, reason: str = "the link was lost") -> None:
        """Lose the link, and with it what the broker had subscribed."""
        await self.end_link()
        self.hub.open_gap(ALL, reason)
        self.broker_subscriptions.forget_link()
        self.broadcaster.channels.clear()

    def open_link(self) -> None:
        """Open a link: every wanted channel is subscribed, and then what is wanted from then on."""
        self.link = asyncio.create_task(self._follow())

    async def end_link(self) -> None:
        """End the task of the link."""
        if self.link is not None:
            self.link.cancel()
            await asyncio.wait([self.link])

    async def _follow(self) -> None:
        await self.broker_subscriptions.subscribe_all(self.broadcaster)
        await self.broker_subscriptions.run(self.broadcaster)


@asynccontextmanager
async def running(
    *,
    linger_seconds: float = NEVER,
    timeout_seconds: float = 10.0,
    slice_size: int = 200,
    pass_seconds: float = 0.005,
) -> AsyncGenerator[Worker]:
    """Run a worker with its link open."""
    broker_subscriptions = BrokerSubscriptions(linger_seconds=linger_seconds, timeout_seconds=timeout_seconds)
    hub = Hub(broker_subscriptions, slice_size=slice_size, pass_seconds=pass_seconds)
    worker = Worker(broker_subscriptions, hub)
    worker.open_link()
    try:
        yield worker
    finally:
        await worker.end_link()
        worker.broker_subscriptions.close()
        worker.hub.close()


def lost(channel: str = "a", reason: str = "the link was lost") -> Gap:
    """Return the gap of a lost link."""
    return Gap(channel=channel, reason=reason)


async def crowd(worker: Worker, channel: str, size: int) -> list[RecordingSubscriber]:
    """Return `size` subscribers of a channel."""
    return [await worker.joined(channel) for _ in range(size)]


def counts(*crowds: list[RecordingSubscriber]) -> tuple[int, ...]:
    """Return how many of each crowd have received something."""
    return tuple(sum(bool(member.received) for member in members) for members in crowds)
