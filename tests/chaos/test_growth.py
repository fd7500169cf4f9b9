"""A hundred outages leak nothing."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.chaos.workload import CHANNELS, QUICK, Participant, watched_loop

if TYPE_CHECKING:
    from tests.chaos.target import FaultTarget

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

_EVENT = "backplane.journal.ring._Recorded"
_OUTAGES = 100


async def test_a_hundred_outages_leak_nothing(target: FaultTarget) -> None:
    """After a hundred outages there are as many tasks, open files and objects of the package as after the first ten."""
    async with target.proxy, watched_loop(), asyncio.timeout(100):
        participant = Participant("a", target.proxy.url, replace(QUICK, max_backoff_seconds=0.01))
        async with participant.backplane:
            ready = asyncio.Event()
            receiving = asyncio.create_task(participant.receive(ready))
            await ready.wait()
            for _ in range(10):
                await _outage(target, participant)
            before = _resources()
            for _ in range(_OUTAGES):
                await _outage(target, participant)
            after = _resources()
            receiving.cancel()
            await asyncio.wait([receiving])
    assert {kind: (before[kind], count) for kind, count in after.items() if count > before[kind]} == {}


async def _outage(target: FaultTarget, participant: Participant) -> None:
    count = len(participant.degraded_at)
    target.proxy.cut()
    while len(participant.degraded_at) == count:
        await participant.backplane.wait_for_state("degraded")
    await participant.backplane.wait_for_state("live")
    for channel in CHANNELS:
        await participant.publish_last(channel)
    last = {channel: [("a", len(participant.outcomes[channel]) - 1)] for channel in CHANNELS}
    await participant.until(lambda: participant.has_received(last))


def _resources() -> Counter[str]:
    """Count tasks, open files and objects of the package, but for the last events, which are kept up to a bound."""
    gc.collect()
    names = (f"{type(found).__module__}.{type(found).__qualname__}" for found in gc.get_objects())
    counts = Counter(name for name in names if name.startswith("backplane.") and name != _EVENT)
    counts["tasks"] = len(asyncio.all_tasks())
    counts["open files"] = len(list(Path("/dev/fd").iterdir()))
    return counts
