"""A replicated stream of JetStream: its leader is killed, and replicas lag."""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from nats import connect as connect_nats
from nats.errors import Error as NatsError

from tests.brokers.broker import BrokerMissingError
from tests.brokers.cluster import nats_cluster
from tests.chaos.kept import running_kept

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator
    from pathlib import Path

    from tests.brokers.broker import ProcessBroker
    from tests.brokers.cluster import Cluster
    from tests.chaos.kept import KeptCaseRecorder

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(240), pytest.mark.full]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Three servers with JetStream."""
    try:
        made = nats_cluster(tmp_path, jetstream=True)
    except BrokerMissingError as error:
        pytest.skip(f"Tests on nats were skipped: {error}.")
    with made:
        yield made


@asynccontextmanager
async def client_of(cluster: Cluster) -> AsyncGenerator[Any]:
    """A client of any server."""
    client = await connect_nats([node.url for node in cluster.nodes if node.is_running], allow_reconnect=False)
    try:
        yield client
    finally:
        await client.close()


async def leader_of(cluster: Cluster) -> ProcessBroker:
    """Return the leader of the stream, once it has one and all replicas are in sync."""
    while True:
        try:
            async with client_of(cluster) as client:
                (stream,) = await client.jetstream().streams_info()
            replicas = stream.cluster.replicas
            if stream.cluster.leader and replicas and all(one.current and not one.offline for one in replicas):
                port = stream.cluster.leader.removeprefix("server-")
                return next(node for node in cluster.nodes if number_of(node) == port)
        except (NatsError, OSError, ValueError):
            pass
        await asyncio.sleep(0.1)


def number_of(node: ProcessBroker) -> str:
    """Return the number in the name of a server, which is that of its folder."""
    return node.folder.name


async def has_meta_leader(cluster: Cluster) -> None:
    """Wait until JetStream is available."""
    while True:
        try:
            async with client_of(cluster) as client:
                await client.jetstream().account_info()
                return
        except (NatsError, OSError):
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("times", [2, 6])
async def test_the_leader_is_killed(times: int, cluster: Cluster, record_kept: KeptCaseRecorder) -> None:
    """Another replica leads the stream, and no subscriber notices it."""
    await has_meta_leader(cluster)
    async with running_kept(f"{cluster.url}?history_replicas=3") as workload:
        for _ in range(times):
            leader = await leader_of(cluster)
            leader.kill9()
            await workload.go_on(workload.publishers[1])
            leader.launch()
            await asyncio.to_thread(cluster.wait_until_whole)
            await workload.go_on(workload.publishers[1])
        await workload.all_live()
        await workload.recovered()
    result = workload.judge(more_plain_gaps=2 * times + workload.failed_openings)
    record_kept(f"leader of 3 replicas killed, {times} times", "nats", result)


async def test_a_replica_lags(cluster: Cluster, record_kept: KeptCaseRecorder) -> None:
    """A replica that was frozen, and answers while it lags, gives no worker less than the stream has."""
    await has_meta_leader(cluster)
    async with running_kept(f"{cluster.url}?history_replicas=3") as workload:
        for _ in range(3):
            leader = await leader_of(cluster)
            lagging = next(node for node in cluster.nodes if node is not leader)
            lagging.freeze()
            await workload.go_on(workload.publishers[1], 50)
            lagging.thaw()
            await workload.go_on(workload.publishers[1])
        await workload.all_live()
        await workload.recovered()
    record_kept("replica frozen and late, 3 times", "nats", workload.judge(more_plain_gaps=workload.failed_openings))
