"""One broker of several dies, or is taken down and up again by an operator, while numbered messages flow."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING

import pytest

from tests.brokers.cluster import kafka_partitions
from tests.chaos.crew import talking

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from tests.brokers.broker import ProcessBroker
    from tests.brokers.cluster import Cluster
    from tests.chaos.crew import Crew
    from tests.chaos.judge import Judge

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> Cluster:
    """Three brokers of the test's own that are one."""
    made: Cluster = request.getfixturevalue(f"{request.param}_cluster")
    return made


def name_of(cluster: Cluster) -> str:
    """Return the adapter's name."""
    return cluster.url.partition("://")[0]


def talk(cluster: Cluster) -> AbstractAsyncContextManager[Crew]:
    """A crew on all brokers of the cluster."""
    return talking(cluster.url, lossless=name_of(cluster) == "kafka")


async def all_live(crew: Crew) -> float:
    """Wait until every worker is; return how long that took, in seconds."""
    since = asyncio.get_running_loop().time()
    for member in crew.members:
        await member.backplane.wait_for_state("live")
    return asyncio.get_running_loop().time() - since


async def _leads_on(node: ProcessBroker, *, without: int) -> bool:
    """Whether every partition has a leader that is not the broker `without`."""
    leaders = {leader for leader, _ in await kafka_partitions(node, "backplane")}
    return bool(leaders) and leaders.isdisjoint({-1, without})


@pytest.mark.parametrize("cluster", ["nats", pytest.param("kafka", marks=pytest.mark.full)], indirect=True)
async def test_each_is_killed_in_turn(cluster: Cluster, judge: Judge) -> None:
    """After SIGKILL of one everybody goes on at the others, and when it is back."""
    slowest = 0.0
    async with talk(cluster) as crew:
        for number, (killed, other) in enumerate(itertools.pairwise([*cluster.nodes, cluster.nodes[0]]), 1):
            killed.kill9()
            if name_of(cluster) == "kafka":  # its partitions have no leader until the controller has missed it
                while not await _leads_on(other, without=number):
                    await asyncio.sleep(0.1)
            slowest = max(slowest, await all_live(crew))
            killed.launch()
            await asyncio.to_thread(cluster.wait_until_whole)
        await crew.recovered()
    judge("kill -9 of each of three", name_of(cluster), crew, recovered=slowest)


@pytest.mark.parametrize("cluster", ["nats", "kafka"], indirect=True)
async def test_all_are_restarted_one_after_the_other(cluster: Cluster, judge: Judge) -> None:
    """A rolling restart, as an update does it: the last one is back before the next one goes."""
    async with talk(cluster) as crew:
        for node in cluster.nodes:
            await asyncio.to_thread(node.stop)
            node.launch()
            await asyncio.to_thread(cluster.wait_until_whole)
        recovered = await crew.recovered()
    judge("rolling restart of three", name_of(cluster), crew, recovered=recovered)
