"""Tools of the conformance suite: workers, bounded waits, churn, open files."""

from __future__ import annotations

import asyncio
import random
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from backplane import Backplane, Message, Settings, SubscribeError
from backplane.broadcaster import SupportsResume
from backplane.broker.registry import broadcaster_from_url
from backplane.testing.recording import RecordingSink

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Sequence

    from backplane import Subscription
    from backplane.broadcaster import Broadcaster, Sink
    from backplane.broker.link_state import LinkState
    from backplane.message import Place
    from backplane.testing.proxy import FaultProxy

__all__ = [
    "Recorded",
    "Worker",
    "churn",
    "cut_repeatedly",
    "next_message",
    "open_files",
    "quick_backplane",
    "reaches_state",
    "recorded",
    "run_for_passes",
    "settled",
    "started_worker",
]


@dataclass(frozen=True, slots=True)
class Worker:
    """A started adapter with the sink it reports to: one process, seen from the broker."""

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


def quick_backplane(
    url: str | Broadcaster, *, probe_interval_seconds: float = 30, publish_timeout_seconds: float = 10
) -> Backplane:
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
    async with asyncio.timeout(30):
        await backplane.wait_for_state(state)


async def next_message(messages: Subscription) -> Message:
    """Return the next message, past any gap."""
    async with asyncio.timeout(30):
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
    """Let closed transports end: they need some passes of the event loop."""
    for _ in range(20):
        await asyncio.sleep(0.001)


def open_files() -> int:
    """Return how many files this process has open; 0 where the system does not report it."""
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.exists() else 0


class _Tee:
    """A sink that records what is delivered, and passes everything on."""

    def __init__(self, sink: Sink, delivered: list[str]) -> None:
        self._delivered = delivered
        self._sink = sink
        self.gap = sink.gap
        self.revoked = sink.revoked
        self.lost = sink.lost

    def deliver(self, channel: str, payload: bytes, place: Place | None = None) -> None:
        self._delivered.append(channel)
        self._sink.deliver(channel, payload, place)


class Recorded:
    """What an adapter was asked for and what it delivered, by its calls: of an adapter made by `recorded`.

    Attributes:
        subscribed: The channels that are subscribed on the present link.
        delivered: The channel of each delivery, in order.
    """

    def __init__(self) -> None:
        self.subscribed: set[str] = set()
        self.delivered: list[str] = []
        self._changed = asyncio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait, bounded, until `condition` holds; it is checked every 10 ms."""
        async with asyncio.timeout(30):
            while not condition():  # noqa: ASYNC110  # a delivery must cost nothing here
                await asyncio.sleep(0.01)


def recorded(url: str) -> tuple[Broadcaster, Recorded]:
    """Return the adapter for `url`, and the record of its calls."""
    adapter, record = broadcaster_from_url(url), Recorded()
    start, subscribe, unsubscribe = adapter.start, adapter.subscribe, adapter.unsubscribe

    async def recorded_start(sink: Sink) -> None:
        record.subscribed.clear()
        await start(_Tee(sink, record.delivered))

    async def recorded_subscribe(channels: Collection[str]) -> None:
        try:
            await subscribe(channels)
        except SubscribeError as error:
            record.subscribed.update(set(channels) - error.refused.keys() - error.unconfirmed.keys())
            raise
        record.subscribed.update(channels)

    async def recorded_unsubscribe(channels: Collection[str]) -> None:
        await unsubscribe(channels)
        record.subscribed.difference_update(channels)

    vars(adapter).update(start=recorded_start, subscribe=recorded_subscribe, unsubscribe=recorded_unsubscribe)
    if isinstance(adapter, SupportsResume):
        resume = adapter.resume

        async def recorded_resume(sink: Sink, channels: Collection[str]) -> None:
            await resume(_Tee(sink, record.delivered), channels)
            record.subscribed = set(channels)

        vars(adapter).update(resume=recorded_resume)
    return adapter, record


async def churn(
    messages: Subscription, names: Sequence[str], seed: int, joined: set[str], until: asyncio.Task[None]
) -> None:
    """Join and leave some of `names` at random, again and again, until a task is done; keep `joined` up to date."""
    choose = random.Random(seed)
    while not until.done():
        chosen = choose.sample(names, len(names) // 4)
        for name in joined.intersection(chosen):
            await messages.leave(name)
        entering = [name for name in chosen if name not in joined]
        joined.difference_update(chosen)
        await asyncio.gather(*(messages.join(name) for name in entering))
        joined.update(entering)


async def cut_repeatedly(proxy: FaultProxy, backplane: Backplane, times: int) -> None:
    """Cut the link as soon as it is live, `times` times, and return when it is live again."""
    for _ in range(times):
        generation = (await backplane.health()).generation
        proxy.cut()
        async with asyncio.timeout(30):
            await backplane.wait_for_state("degraded")
            await backplane.wait_for_state("live")
        assert (await backplane.health()).generation > generation
