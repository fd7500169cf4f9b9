"""A node of a RabbitMQ cluster is killed, or cut off: what a worker at another node has missed is a gap."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import pytest

from tests.chaos.workload import running_workload

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractAsyncContextManager

    from tests.brokers.rabbitmq import RabbitCluster, RabbitProcess
    from tests.chaos.case_table import CaseRecorder
    from tests.chaos.workload import Workload

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(240)]

# A node that cannot reach the queue of a worker at the other one does not confirm what is on its way there.
_MAY_BE_UNKNOWN: Final = True


@pytest.fixture
def whole(amqp_cluster: RabbitCluster) -> RabbitCluster:
    """The cluster; what a test has killed runs again for the next one."""
    for node in amqp_cluster.nodes:
        if not node.is_running:
            node.launch()
    amqp_cluster.wait_until_whole()
    return amqp_cluster


def at_two_nodes(cluster: RabbitCluster) -> AbstractAsyncContextManager[Workload]:
    """Run workers at each of the nodes, which go to the other one if theirs is away."""

    def url(nodes: Sequence[RabbitProcess]) -> str:
        return f"amqp://{','.join(node.url.partition('://')[2] for node in nodes)}"

    return running_workload(url(cluster.nodes), url(cluster.nodes[::-1]))


async def test_a_killed_node(whole: RabbitCluster, record_case: CaseRecorder) -> None:
    """Its workers go on at the other node, with a gap each; the workers that were there miss nothing."""
    async with at_two_nodes(whole) as workload:
        since = asyncio.get_running_loop().time()
        whole.nodes[0].kill9()
        detected = await workload.detected(since)
        recovered = await workload.recovered()
        assert [one.links for one in workload.participants if one not in workload.near] == [1, 1]
    record_case(
        "kill -9 of one of two nodes",
        "amqp",
        workload,
        detected=detected,
        recovered=recovered,
        may_be_unknown=_MAY_BE_UNKNOWN,
    )


@pytest.mark.full
async def test_each_node_is_killed_in_turn(whole: RabbitCluster, record_case: CaseRecorder) -> None:
    """The second node has the workers of both by then, and is killed when the first one is back."""
    async with at_two_nodes(whole) as workload:
        for node in whole.nodes:
            node.kill9()
            for participant in workload.participants:
                await participant.backplane.wait_for_state("live")
            node.launch()
            await asyncio.to_thread(whole.wait_until_whole)
        recovered = await workload.recovered()
    record_case("kill -9 of each of two nodes", "amqp", workload, recovered=recovered, may_be_unknown=_MAY_BE_UNKNOWN)


@pytest.mark.full
async def test_two_nodes_that_are_cut_off_from_each_other(whole: RabbitCluster, record_case: CaseRecorder) -> None:
    """RabbitMQ restarts one part (`autoheal`); what was published there is a gap for the workers of the other one."""
    one, two = whole.nodes
    async with at_two_nodes(whole) as workload:
        await asyncio.to_thread(one.part_from, two)
        await asyncio.sleep(1)  # both parts publish meanwhile
        await asyncio.to_thread(one.rejoin, two)
        while not any(participant.degraded_at for participant in workload.participants):
            await asyncio.sleep(0.1)
        await asyncio.to_thread(whole.wait_until_whole)
        recovered = await workload.recovered()
    # One for what was published before the restart of the other part, and others while it comes back.
    record_case(
        "two nodes cut off from each other",
        "amqp",
        workload,
        recovered=recovered,
        more_gaps=5,
        may_be_unknown=_MAY_BE_UNKNOWN,
    )
