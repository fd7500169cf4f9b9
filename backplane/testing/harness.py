"""What the conformance suite works with: workers to talk to, waits for what must happen, churn, what is left open."""

from __future__ import annotations

import asyncio
import random
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from backplane import Backplane, Gap, Message, Settings
from backplane.broker.registry import broadcaster_from_url
from backplane.testing.recording import RecordingSink

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Coroutine, Sequence

    from backplane import Subscription
    from backplane.broadcaster import Broadcaster
    from backplane.broker.supervisor import LinkState, Supervisor
    from backplane.fanout.broker_subscriptions import BrokerSubscriptions
    from backplane.fanout.hub import Hub
    from backplane.testing.proxy import FaultProxy

__all__ = [
    "Members",
    "Worker",
    "cut_repeatedly",
    "next_message",
    "open_files",
    "quick_backplane",
    "reaches_state",
    "run_for_passes",
    "settled",
    "settled_interest",
    "started_worker",
]


@dataclass(frozen=True, slots=True)
class Worker:
    """A started adapter with the sink it reports to: what one process is to the broker."""

    broadcaster: Broadcaster
    sink: RecordingSink


@asynccontextmanager
async def started_worker(url: str) -> AsyncGenerator[Worker]:
    """Start an adapter for as long as the block."""
    broadcaster = broadcaster_from_url(url)
    sink = RecordingSink()
    await broadcaster.start(sink)
    try:
        yield Worker(broadcaster, sink)
    finally:
        await broadcaster.stop()


def quick_backplane(url: str, *, probe_interval_seconds: float = 30, publish_timeout_seconds: float = 1) -> Backplane:
    """Return a backplane that reconnects and forgets channels faster than the defaults do."""
    settings = Settings(
        publish_timeout_seconds=publish_timeout_seconds,
        subscribe_timeout_seconds=30,
        linger_seconds=0.02,
        probe_interval_seconds=probe_interval_seconds,
        max_backoff_seconds=0.2,
    )
    return Backplane(url, settings=settings)


async def reaches_state(backplane: Backplane, state: LinkState) -> None:
    """Wait, bounded, until the link is in `state`."""
    async with asyncio.timeout(10):
        await backplane.wait_for_state(state)


async def next_message(messages: Subscription) -> Message:
    """Return the next message, past any gap."""
    async with asyncio.timeout(10):
        async for item in messages:
            if isinstance(item, Message):
                return item
    raise AssertionError("the subscription ended")


async def run_for_passes(life: Coroutine[None, None, None], passes: int) -> None:
    """Run `life` for some passes of the event loop, then cancel it."""
    task = asyncio.create_task(life)
    for _ in range(passes):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])


async def settled() -> None:
    """Let closed transports go: they need some passes of the loop."""
    for _ in range(20):
        await asyncio.sleep(0.001)


def open_files() -> int:
    """Return how many files this process has open; 0 where the system does not tell."""
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.exists() else 0


class Members:
    """A subscriber of many channels that knows which it should hear."""

    def __init__(self) -> None:
        self.token = b"members."
        self.joined: set[str] = set()

    def offer(self, messages: Sequence[Message]) -> None:
        """Take nothing: the test listens at the link."""

    def gap(self, gap: Gap) -> None:
        """Take nothing: gaps are expected here."""

    async def churn(self, hub: Hub, names: Sequence[str], seed: int, until: asyncio.Task[None]) -> None:
        """Join and leave some of `names` at random, again and again, until a task is done."""
        choose = random.Random(seed)
        while not until.done():
            chosen = choose.sample(names, len(names) // 4)
            for name in self.joined.intersection(chosen):
                hub.leave(name, self)
            entering = [name for name in chosen if name not in self.joined]
            self.joined.difference_update(chosen)
            await asyncio.gather(*(hub.join(name, self) for name in entering))
            self.joined.update(entering)


async def cut_repeatedly(proxy: FaultProxy, supervisor: Supervisor, times: int) -> None:
    """Cut the link as soon as it is live, `times` times, and return when it is live again."""
    for _ in range(times):
        generation = supervisor.generation
        proxy.cut()
        while supervisor.generation == generation or supervisor.state != "live":
            await supervisor.state_changed()


async def settled_interest(broker_subscriptions: BrokerSubscriptions, expected: set[str]) -> None:
    """Wait until what lingered is dropped and what is wanted is confirmed."""
    async with asyncio.timeout(10):
        while set(broker_subscriptions.confirmed) != expected or set(broker_subscriptions.wanted) != expected:  # noqa: ASYNC110  # no event tells
            await asyncio.sleep(0.01)
