"""The broker of workers with presence is killed, silenced or away while clients come and go."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

import pytest

from tests.chaos.presence import DEFAULT, GRACE_SECONDS, QUICK, note, running_presence

if TYPE_CHECKING:
    from backplane import Settings
    from tests.chaos.presence import PresenceWorkload
    from tests.chaos.target import FaultTarget
    from tests.conftest import StartSentinels

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]

full = pytest.mark.full

# What is promised, beside the grace of users that have left meanwhile; and what a busy machine adds to it.
_TRUE_SECONDS: Final = 3.0
_SLACK_SECONDS: Final = 1.5


async def true_again(workload: PresenceWorkload) -> float:
    """Wait until all lists are true, in the promised time after all links are live; return how long that took."""
    await workload.all_live()
    return await workload.true(seconds=_TRUE_SECONDS + GRACE_SECONDS + _SLACK_SECONDS)


@pytest.mark.parametrize(
    ("seconds", "settings"),
    [
        pytest.param(3, QUICK, id="3 s"),
        pytest.param(3, DEFAULT, id="3 s, default times", marks=full),
        pytest.param(12, DEFAULT, id="12 s", marks=full),
        pytest.param(60, DEFAULT, id="60 s", marks=full),
    ],
)
async def test_a_broker_that_is_away(
    seconds: float, settings: Settings, private_target: FaultTarget, request: pytest.FixtureRequest
) -> None:
    """Lists are stale meanwhile and true in three seconds; no worker was taken for ended, and no user that stayed."""
    async with running_presence(private_target.url, settings=settings) as workload:
        async with workload.churning():
            await asyncio.sleep(1)
        private_target.broker.kill9()
        await workload.all_stale()
        async with workload.churning():  # clients leave, and none can come
            await asyncio.sleep(seconds)
        assert all([await one.stale(workload.rooms) for one in workload.workers])
        assert await workload.all_alive()
        await private_target.restart_broker()
        took = await true_again(workload)
        assert await workload.all_alive()
        async with workload.churning():
            await asyncio.sleep(1)
        complete = await workload.true(seconds=GRACE_SECONDS + _SLACK_SECONDS)
        workload.judge()
        left = len(workload.leaves)
    note(request, f"broker away for {seconds} s", private_target.name, complete=complete, end=took, left=left)


async def test_a_broker_that_is_silent_for_some_workers(target: FaultTarget, request: pytest.FixtureRequest) -> None:
    """Two of four workers are cut off in silence: the others take them for ended, they take none for it."""
    async with target.proxy, running_presence(target.proxy.url, target.url) as workload:
        far = [one for one in workload.workers if one not in workload.near]
        stays = workload.attendances
        target.proxy.silence()
        await workload.all_stale()
        silent_at = time.monotonic()
        async with asyncio.timeout(30):
            while sum(other.is_alive for other in await far[0].backplane.workers()) > len(far):
                await asyncio.sleep(0.02)
        out = time.monotonic() - silent_at
        for one in workload.near:
            assert all(other.is_alive for other in await one.backplane.workers())
            assert one.left == []
        target.proxy.heal()
        back = await true_again(workload)
        assert await workload.all_alive()
        workload.judge(without=[one.name for one in far])
        left = len(workload.leaves)
        assert stays.by_room()
    note(request, "two workers cut off in silence", target.name, fault=out, end=back, left=left)


async def test_links_that_are_cut_again_and_again(target: FaultTarget, request: pytest.FixtureRequest) -> None:
    """Under churn the links of two workers are cut every half second; then all lists are true, and no report wrong."""
    async with target.proxy, running_presence(target.proxy.url, target.url) as workload:
        async with workload.churning():
            cut_at = time.monotonic()
            for _ in range(8):
                target.proxy.cut()
                await asyncio.sleep(0.5)
        await workload.all_live()
        # Others know again what these state a second or two after the links are live.
        known_at = time.monotonic() + _SLACK_SECONDS
        took = await true_again(workload)
        assert await workload.all_alive()
        workload.judge(cut=(cut_at, known_at))
        left = len(workload.leaves)
    note(request, "links cut 8 times", target.name, end=took, left=left)


@pytest.mark.alone("sentinels that have no time do not agree on a failover", waits=True)
async def test_a_failover(private_sentinels: StartSentinels, request: pytest.FixtureRequest) -> None:
    """After SIGKILL of the primary the lists are true at the promoted replica, and no worker was taken for ended."""
    service = private_sentinels()
    old, new = service.nodes
    async with running_presence(service.url) as workload:
        async with workload.churning():
            old.kill9()
            await asyncio.to_thread(service.wait_until_promoted, new)
            await workload.all_live()
        took = await true_again(workload)
        assert await workload.all_alive()
        workload.judge()
        left = len(workload.leaves)
    note(request, "failover", "redis+sentinel", end=took, left=left)
