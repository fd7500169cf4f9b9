"""The primary of a service under Redis Sentinel dies, stands still, or is replaced, while numbered messages flow."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.brokers.process import wait_until
from tests.chaos.crew import CHANNELS, talking

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.brokers.redis import RedisProcess
    from tests.brokers.redis_sentinel import RedisSentinels
    from tests.chaos.crew import Crew
    from tests.chaos.judge import Judge
    from tests.conftest import StartSentinels

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

BROKER = "redis+sentinel"


def everyone_is_on(service: RedisSentinels, node: RedisProcess, crew: Crew) -> bool:
    """Whether all who listen have every channel at `node`, and no one is at the other."""

    def counts(at: RedisProcess) -> Sequence[object]:
        return list(service.ask(at, "PUBSUB", "NUMSUB", *CHANNELS) or ())[1::2]

    other = service.other(node)
    return counts(node) == [len(crew.listeners)] * len(CHANNELS) and not any(counts(other))


async def test_a_primary_that_is_killed(private_sentinels: StartSentinels, judge: Judge) -> None:
    """After SIGKILL everybody is on the promoted replica, with a gap over what was lost; it comes back as a replica."""
    service = private_sentinels()
    old, new = service.nodes
    async with talking(service.url, lossless=False) as crew:
        killed_at = asyncio.get_running_loop().time()
        old.kill9()
        detected = await crew.detected(killed_at)
        await asyncio.to_thread(service.wait_until_promoted, new)
        old.launch()
        await asyncio.to_thread(service.wait_until_demoted, old)
        recovered = await crew.recovered()
        assert everyone_is_on(service, new, crew)
    judge("kill -9 of the primary", BROKER, crew, detected=detected, recovered=recovered)


async def test_a_primary_that_stands_still_and_comes_back(private_sentinels: StartSentinels, judge: Judge) -> None:
    """Under SIGSTOP everybody moves to the promoted replica; after SIGCONT nobody is on the old primary again."""
    service = private_sentinels()
    old, new = service.nodes
    async with talking(service.url, lossless=False) as crew:
        frozen_at = asyncio.get_running_loop().time()
        old.freeze()
        detected = await crew.detected(frozen_at)
        await asyncio.to_thread(service.wait_until_promoted, new)
        for member in crew.members:
            await member.backplane.wait_for_state("live")
        old.thaw()
        await asyncio.to_thread(service.wait_until_demoted, old)
        recovered = await crew.recovered()
        assert everyone_is_on(service, new, crew)
    judge("SIGSTOP of the primary", BROKER, crew, detected=detected, silent=True, recovered=recovered)


async def test_a_failover_by_hand(private_sentinels: StartSentinels, judge: Judge) -> None:
    """`SENTINEL FAILOVER` leaves the old primary a primary for a while: everybody leaves it, with a gap."""
    service = private_sentinels()
    async with talking(service.url, lossless=False) as crew:
        began_at = asyncio.get_running_loop().time()
        await asyncio.to_thread(service.failover)
        detected = await crew.detected(began_at)
        # The sentinels may have given up a first try, after which everybody was on the old one once more.
        moved = partial(everyone_is_on, service, service.nodes[1], crew)
        await asyncio.to_thread(wait_until, moved, "everybody is on the promoted replica")
        recovered = await crew.recovered()
        assert moved()
    judge("SENTINEL FAILOVER", BROKER, crew, detected=detected, recovered=recovered)


async def test_a_primary_that_does_not_know_it_was_replaced(private_sentinels: StartSentinels, judge: Judge) -> None:
    """An old primary that answers, and carries the probe, is left: the sentinels name another."""
    service = private_sentinels()
    async with talking(service.url, lossless=False) as crew:
        replaced_at = asyncio.get_running_loop().time()
        await asyncio.to_thread(service.replace_unseen)
        detected = await crew.detected(replaced_at)
        recovered = await crew.recovered()
        assert everyone_is_on(service, service.nodes[1], crew)
    judge("an island", BROKER, crew, detected=detected, silent=True, recovered=recovered)


async def test_a_primary_that_is_demoted(private_sentinels: StartSentinels, judge: Judge) -> None:
    """A primary that becomes a replica keeps its clients and takes PUBLISH: they leave it all the same."""
    service = private_sentinels()
    old, new = service.nodes
    async with talking(service.url, lossless=False) as crew:
        demoted_at = asyncio.get_running_loop().time()
        await asyncio.to_thread(service.replace_unseen)
        await asyncio.to_thread(service.demote, old)
        detected = await crew.detected(demoted_at)
        recovered = await crew.recovered()
        assert everyone_is_on(service, new, crew)
    judge("REPLICAOF", BROKER, crew, detected=detected, silent=True, recovered=recovered)
