"""The broker itself dies, stands still, or cuts whom it does not like."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.chaos.crew import talking

if TYPE_CHECKING:
    from tests.chaos.judge import Judge
    from tests.chaos.site import Site

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

full = pytest.mark.full


@pytest.mark.parametrize("seconds", [0.2, pytest.param(3, marks=full), pytest.param(12, marks=full)])
async def test_a_broker_that_is_killed_and_comes_back(seconds: float, own_site: Site, judge: Judge) -> None:
    """After SIGKILL and a restart every worker is live again, with one gap on every channel."""
    async with talking(own_site.url, lossless=own_site.lossless) as crew:
        killed_at = asyncio.get_running_loop().time()
        own_site.broker.kill9()
        detected = await crew.detected(killed_at)
        await asyncio.sleep(seconds)
        await own_site.start_broker_again()
        recovered = await crew.recovered()
    judge(f"kill -9, back after {seconds:g} s", own_site.name, crew, detected=detected, recovered=recovered)


@pytest.mark.parametrize("seconds", [2, pytest.param(5, marks=full)])
async def test_a_broker_that_stands_still(seconds: float, own_site: Site, judge: Judge) -> None:
    """A broker under SIGSTOP is found by the probe, and every worker is live again after SIGCONT."""
    async with talking(own_site.url, lossless=own_site.lossless) as crew:
        frozen_at = asyncio.get_running_loop().time()
        own_site.broker.freeze()
        detected = await crew.detected(frozen_at)
        await asyncio.sleep(max(0, frozen_at + seconds - asyncio.get_running_loop().time()))
        own_site.broker.thaw()
        recovered = await crew.recovered()
    judge(f"SIGSTOP for {seconds} s", own_site.name, crew, detected=detected, silent=True, recovered=recovered)
