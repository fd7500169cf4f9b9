"""The primary of a service under Redis Sentinel is killed, frozen or replaced under load."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests.brokers.process import wait_until
from tests.chaos.workload import CHANNELS, running_workload

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.brokers.redis import RedisProcess
    from tests.brokers.redis_sentinel import RedisSentinels
    from tests.chaos.case_table import CaseRecorder
    from tests.chaos.workload import Workload
    from tests.conftest import StartSentinels

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

BROKER = "redis+sentinel"


def all_are_on(service: RedisSentinels, node: RedisProcess, workload: Workload) -> bool:
    """Whether all subscribers have every channel, or their pattern, at `node`, and none at the other node."""

    def counts(at: RedisProcess) -> Sequence[object]:
        patterns: Any = service.ask(at, "PUBSUB", "NUMPAT")
        names: Any = service.ask(at, "PUBSUB", "NUMSUB", *CHANNELS)
        return [count + patterns for count in list(names)[1::2]]

    other = service.other(node)
    return counts(node) == [len(workload.subscribers)] * len(CHANNELS) and not any(counts(other))


async def test_a_primary_that_is_killed(private_sentinels: StartSentinels, record_case: CaseRecorder) -> None:
    """After SIGKILL every worker is on the promoted replica, with a gap; the old primary becomes a replica."""
    service = private_sentinels()
    old, new = service.nodes
    async with running_workload(service.url, pattern="*") as workload:
        killed_at = asyncio.get_running_loop().time()
        old.kill9()
        detected = await workload.detected(killed_at)
        await asyncio.to_thread(service.wait_until_promoted, new)
        old.launch()
        await asyncio.to_thread(service.wait_until_demoted, old)
        recovered = await workload.recovered()
        assert all_are_on(service, new, workload)
    record_case("kill -9 of the primary", BROKER, workload, detected=detected, recovered=recovered)


async def test_a_primary_that_is_frozen_and_resumes(
    private_sentinels: StartSentinels, record_case: CaseRecorder
) -> None:
    """Under SIGSTOP every worker moves to the promoted replica; after SIGCONT none is on the old primary again."""
    service = private_sentinels()
    old, new = service.nodes
    async with running_workload(service.url, lossless=False) as workload:
        frozen_at = asyncio.get_running_loop().time()
        old.freeze()
        detected = await workload.detected(frozen_at)
        await asyncio.to_thread(service.wait_until_promoted, new)
        for participant in workload.participants:
            await participant.backplane.wait_for_state("live")
        old.thaw()
        await asyncio.to_thread(service.wait_until_demoted, old)
        recovered = await workload.recovered()
        assert all_are_on(service, new, workload)
    record_case("SIGSTOP of the primary", BROKER, workload, detected=detected, silent=True, recovered=recovered)


async def test_a_failover_by_hand(private_sentinels: StartSentinels, record_case: CaseRecorder) -> None:
    """`SENTINEL FAILOVER` leaves the old primary a primary for a while: every worker leaves it, with a gap."""
    service = private_sentinels()
    async with running_workload(service.url, lossless=False) as workload:
        began_at = asyncio.get_running_loop().time()
        await asyncio.to_thread(service.failover)
        detected = await workload.detected(began_at)
        # The sentinels may have given up a first attempt, after which every worker was on the old primary once more.
        moved = partial(all_are_on, service, service.nodes[1], workload)
        await asyncio.to_thread(wait_until, moved, "every worker is on the promoted replica")
        recovered = await workload.recovered()
        assert moved()
    record_case("SENTINEL FAILOVER", BROKER, workload, detected=detected, recovered=recovered)


async def test_a_primary_that_does_not_know_it_was_replaced(
    private_sentinels: StartSentinels, record_case: CaseRecorder
) -> None:
    """An old primary that still answers the probe is left, as the sentinels name another."""
    service = private_sentinels()
    async with running_workload(service.url, lossless=False) as workload:
        replaced_at = asyncio.get_running_loop().time()
        await asyncio.to_thread(service.replace_unseen)
        detected = await workload.detected(replaced_at)
        recovered = await workload.recovered()
        assert all_are_on(service, service.nodes[1], workload)
    record_case("isolated primary", BROKER, workload, detected=detected, silent=True, recovered=recovered)


async def test_a_primary_that_is_demoted(private_sentinels: StartSentinels, record_case: CaseRecorder) -> None:
    """A primary that becomes a replica keeps its clients and accepts PUBLISH: they leave it all the same."""
    service = private_sentinels()
    old, new = service.nodes
    async with running_workload(service.url, lossless=False) as workload:
        demoted_at = asyncio.get_running_loop().time()
        await asyncio.to_thread(service.replace_unseen)
        await asyncio.to_thread(service.demote, old)
        detected = await workload.detected(demoted_at)
        recovered = await workload.recovered()
        assert all_are_on(service, new, workload)
    record_case("REPLICAOF", BROKER, workload, detected=detected, silent=True, recovered=recovered)
