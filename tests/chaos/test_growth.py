"""A hundred outages leave nothing behind."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.chaos.crew import CHANNELS, QUICK, Member, watched_loop

if TYPE_CHECKING:
    from tests.chaos.site import Site

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

_OUTAGES = 100


async def test_a_hundred_outages_leave_nothing_behind(site: Site) -> None:
    """After a hundred outages there are as many tasks, open files and objects of ours as after the first ten."""
    async with site.proxy, watched_loop(), asyncio.timeout(100):
        member = Member("a", site.proxy.url, replace(QUICK, max_backoff_seconds=0.01))
        async with member.backplane:
            ready = asyncio.Event()
            listening = asyncio.create_task(member.listen(ready))
            await ready.wait()
            for _ in range(10):
                await _outage(site, member)
            before = _census()
            for _ in range(_OUTAGES):
                await _outage(site, member)
            after = _census()
            listening.cancel()
            await asyncio.wait([listening])
    assert {kind: (before[kind], count) for kind, count in after.items() if count > before[kind]} == {}


async def _outage(site: Site, member: Member) -> None:
    count = len(member.degraded_at)
    site.proxy.cut()
    while len(member.degraded_at) == count:
        await member.backplane.wait_for_state("degraded")
    await member.backplane.wait_for_state("live")
    for channel in CHANNELS:
        await member.say_last(channel)
    last = {channel: [("a", len(member.outcomes[channel]) - 1)] for channel in CHANNELS}
    await member.until(lambda: member.has_heard(last))


def _census() -> Counter[str]:
    """Count what there is."""
    gc.collect()
    names = (f"{type(found).__module__}.{type(found).__qualname__}" for found in gc.get_objects())
    census = Counter(name for name in names if name.startswith("backplane."))
    census["tasks"] = len(asyncio.all_tasks())
    census["open files"] = len(list(Path("/dev/fd").iterdir()))
    return census
