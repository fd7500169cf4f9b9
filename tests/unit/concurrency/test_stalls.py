"""`backplane.concurrency.stalls`: the longest time without a pass of the event loop."""

from __future__ import annotations

import asyncio
import time

import pytest

from backplane.concurrency.stalls import StallMeter

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 60.0
STALL_SECONDS = 0.06


async def until_measured(meter: StallMeter, seconds: float) -> None:
    """Wait until the meter has found a stall of so many seconds."""
    async with asyncio.timeout(WAIT_SECONDS):
        while meter.longest_seconds < seconds:
            await asyncio.sleep(0)


async def test_a_stall_is_measured() -> None:
    """A stall counts from when the timer was due, and the longest one is kept beside shorter ones."""
    meter = StallMeter(tick_seconds=0.01)
    assert meter.longest_seconds == 0
    meter.start()
    time.sleep(STALL_SECONDS)  # the stall
    await until_measured(meter, STALL_SECONDS - 0.012)
    longest = meter.longest_seconds
    await asyncio.sleep(0.03)
    assert meter.longest_seconds >= longest
    meter.stop()
    meter.stop()


async def test_an_old_stall_is_forgotten() -> None:
    """After two windows a stall counts no more."""
    meter = StallMeter(tick_seconds=0.001, window_seconds=0.05)
    meter.start()
    time.sleep(0.5)  # the stall, longer than any other pause of the test
    await until_measured(meter, 0.49)
    async with asyncio.timeout(WAIT_SECONDS):
        while meter.longest_seconds > 0.4:
            await asyncio.sleep(0.001)
    meter.stop()


async def test_each_call_of_the_timer_is_counted() -> None:
    """A stall is counted once, by how late the timer was, beside the calls in time."""
    meter = StallMeter(tick_seconds=0.001)
    meter.start()
    time.sleep(STALL_SECONDS)  # the stall
    async with asyncio.timeout(WAIT_SECONDS):
        while meter.late.count < 3:
            await asyncio.sleep(0.001)
    meter.stop()
    assert meter.late.total >= STALL_SECONDS - 0.002
    place = meter.late.bounds.index(0.05)
    assert sum(meter.late.counts[place + 1 :]) == 1
