"""One broker of several is killed, or restarted by an operator, under load."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING

import pytest

from tests.brokers.cluster import kafka_partitions
from tests.chaos.workload import running_workload

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from tests.brokers.broker import ProcessBroker
    from tests.brokers.cluster import Cluster
    from tests.chaos.case_table import CaseRecorder
    from tests.chaos.workload import Workload

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> Cluster:
    """A private cluster of three brokers."""
    made: Cluster = request.getfixturevalue(f"{request.param}_cluster")
    return made


def name_of(cluster: Cluster) -> str:
    """Return the adapter's name."""
    return cluster.url.partition("://")[0]


def workload_on(cluster: Cluster) -> AbstractAsyncContextManager[Workload]:
    """Run a workload on all brokers of the cluster."""
    return running_workload(cluster.url, lossless=name_of(cluster) == "kafka")


async def all_live(workload: Workload) -> float:
    """Wait until every worker is live; return how long that took, in seconds."""
    since = asyncio.get_running_loop().time()
    for participant in workload.participants:
        await participant.backplane.wait_for_state("live")
    return asyncio.get_running_loop().time() - since


async def _leads_on(node: ProcessBroker, *, without: int) -> bool:
    """Whether every partition has a leader that is not the broker `without`."""
    leaders = {leader for leader, _ in await kafka_partitions(node, "backplane")}
    return bool(leaders) and leaders.isdisjoint({-1, without})


@pytest.mark.parametrize("cluster", ["nats", pytest.param("kafka", marks=pytest.mark.full)], indirect=True)
async def test_each_is_killed_in_turn(cluster: Cluster, record_case: CaseRecorder) -> None:
    """After SIGKILL of one broker every worker goes on at the others, and again when the broker is back."""
    slowest = 0.0
    async with workload_on(cluster) as workload:
        for number, (killed, other) in enumerate(itertools.pairwise([*cluster.nodes, cluster.nodes[0]]), 1):
            killed.kill9()
            if name_of(cluster) == "kafka":  # its partitions have no leader until the controller misses its heartbeats
                while not await _leads_on(other, without=number):
                    await asyncio.sleep(0.1)
            slowest = max(slowest, await all_live(workload))
            killed.launch()
            await asyncio.to_thread(cluster.wait_until_whole)
        await workload.recovered()
    record_case("kill -9 of each of three", name_of(cluster), workload, recovered=slowest)


@pytest.mark.parametrize("cluster", ["nats", "kafka"], indirect=True)
async def test_all_are_restarted_one_after_the_other(cluster: Cluster, record_case: CaseRecorder) -> None:
    """A rolling restart, as an update does it: each broker is back before the next one stops."""
    async with workload_on(cluster) as workload:
        for node in cluster.nodes:
            await asyncio.to_thread(node.stop)
            node.launch()
            await asyncio.to_thread(cluster.wait_until_whole)
        recovered = await workload.recovered()
    record_case("rolling restart of three", name_of(cluster), workload, recovered=recovered)
