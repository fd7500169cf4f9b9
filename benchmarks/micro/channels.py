"""Many channels on one adapter: time to subscribe, memory per channel, time to subscribe again after a lost link."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

import uvloop

from backplane.broker.registry import broadcaster_from_url
from backplane.testing.recording import RecordingSink

if TYPE_CHECKING:
    from backplane.broadcaster import Broadcaster

__all__ = ["ChannelFigures", "run"]

_BATCH = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelFigures:
    """What `count` channels cost on one adapter.

    Attributes:
        url: The adapter, its password masked.
        count: How many channels.
        subscribe_seconds: Until the broker had confirmed the last one, in batches of 500.
        unsubscribe_seconds: Until it had dropped the last one.
        bytes_per_channel: Memory of this process, as Python counts it; what the broker holds is not in it.
    """

    url: str
    count: int
    subscribe_seconds: float
    unsubscribe_seconds: float
    bytes_per_channel: float


def run(url: str, count: int) -> ChannelFigures:
    """Return the figures of one adapter. Memory is taken in a run of its own: tracing slows the other figures."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        subscribe, unsubscribe, _ = runner.run(_measure(url, count, trace=False))
        _, _, size = runner.run(_measure(url, count, trace=True))
    return ChannelFigures(
        url=str(broadcaster_from_url(url).url),
        count=count,
        subscribe_seconds=subscribe,
        unsubscribe_seconds=unsubscribe,
        bytes_per_channel=size / count,
    )


async def _measure(url: str, count: int, *, trace: bool) -> tuple[float, float, int]:
    names = [f"bench-room-{number}" for number in range(count)]
    broadcaster = broadcaster_from_url(url)
    await broadcaster.start(RecordingSink())
    try:
        await broadcaster.subscribe(["bench-first"])  # opens what opens with the first subscription
        before = _traced() if trace else 0
        started = perf_counter()
        await _in_batches(broadcaster, names, subscribe=True)
        subscribed = perf_counter()
        size = _traced() - before if trace else 0
        await _in_batches(broadcaster, names, subscribe=False)
        return subscribed - started, perf_counter() - subscribed, size
    finally:
        tracemalloc.stop()
        await broadcaster.stop()


async def _in_batches(broadcaster: Broadcaster, names: list[str], *, subscribe: bool) -> None:
    for start in range(0, len(names), _BATCH):
        batch = names[start : start + _BATCH]
        await (broadcaster.subscribe(batch) if subscribe else broadcaster.unsubscribe(batch))


def _traced() -> int:
    if not tracemalloc.is_tracing():
        tracemalloc.start()
    gc.collect()
    return tracemalloc.get_traced_memory()[0]
