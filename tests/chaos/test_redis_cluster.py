"""One node of a Redis Cluster fails, hands over, or is cut off: only the channels of its shard are concerned."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import pytest

from backplane import History
from backplane.adapters.redis_cluster.slots import slot_of
from backplane.journal.events import CHANNEL_UNCONFIRMED
from tests.chaos.checker import CheckResult, GapSeen, check
from tests.chaos.kept import KEPT_QUICK
from tests.chaos.workload import GREETING, QUICK, Workload, running

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from tests.brokers.redis_cluster import RedisCluster
    from tests.chaos.checker import Event, Outcome

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]

_CHANNELS_OF_NODE: Final = 4
_MAX_KEPT: Final = 20_000
_RULES: Final = {"chaos-*": History(max_messages=_MAX_KEPT, max_age_seconds=600)}
# Logged as an error where a shard has no primary for longer than a second.
_UNCONFIRMED: Final = CHANNEL_UNCONFIRMED.name
# Longer than the node timeout of the cluster: its other nodes have noticed.
_OUTAGE_SECONDS: Final = 3.0


class ClusterWorkload(Workload):
    """A workload on some channels of each primary.

    Args:
        cluster: The cluster.
        history: The rules of all participants.
    """

    def __init__(self, cluster: RedisCluster, history: Mapping[str, History] | None = None) -> None:
        self.cluster = cluster
        self.channels_of = {
            node.port: cluster.channels_of(node, _CHANNELS_OF_NODE, start="chaos-") for node in cluster.primaries()
        }
        channels = [channel for own in self.channels_of.values() for channel in own]
        super().__init__(
            cluster.url,
            cluster.url,
            KEPT_QUICK if history else QUICK,
            lossless=False,
            channels=channels,
            history=history,
        )

    async def all_delivered(self) -> None:
        """Wait until what is published on each channel reaches every subscriber."""
        await asyncio.to_thread(self.cluster.wait_until_whole)
        async with asyncio.timeout(60):
            await self.greet()

    def check_shards(self, concerned: Collection[str], *, max_gaps: int, rebuilt: bool = False) -> CheckResult:
        """Check that only the channels `concerned` have gaps and failed publishes, and that no link was rebuilt."""
        total = CheckResult()
        for subscriber in self.subscribers:
            for channel in self.channels:
                published = {publisher.name: publisher.outcomes[channel] for publisher in self.publishers}
                most = max_gaps if channel in concerned else 0
                # What a stopped node was sent can arrive once it goes on, after later messages.
                seen = [event for event in subscriber.seen[channel] if not _is_unknown(event, published)]
                found = check(published, seen, max_gaps=most)
                total.faults += [f"{subscriber.name} on {channel}: {fault}" for fault in found.faults]
                total.gaps += found.gaps
                total.lost += found.lost
        for publisher in self.publishers:
            for channel in set(self.channels).difference(concerned):
                if (failed := {*publisher.outcomes[channel]} - {"ok"}) != set():
                    total.faults.append(f"{publisher.name} on {channel}: publishes ended as {failed}")
        if not rebuilt:
            total.faults += [f"{one.name} has rebuilt its link" for one in self.participants if one.links > 1]
        return total


class KeptClusterWorkload(ClusterWorkload):
    """The same, with a history for every channel."""

    def __init__(self, cluster: RedisCluster) -> None:
        super().__init__(cluster, _RULES)

    async def check_kept(self, may_lose: Collection[str] = ()) -> CheckResult:
        """Check that nothing is missing, that there is no gap, and that all have one order.

        Args:
            may_lose: Channels whose node was killed: of them a message that was confirmed can be lost with it. Who
                received one that is not stored has a gap, at most two, and no one else has one.
        """
        total = CheckResult()
        for channel in self.channels:
            page = await self.participants[-1].backplane.history(channel, limit=_MAX_KEPT)
            words = [str(message.data).split() for message in page.messages]
            stored = {(name, int(number)) for name, number, *_ in words if number != GREETING}
            published: dict[str, list[Outcome]] = {one.name: list(one.outcomes[channel]) for one in self.publishers}
            if channel in may_lose:
                for name, outcomes in published.items():
                    for number, outcome in enumerate(outcomes):
                        if outcome == "ok" and (name, number) not in stored:
                            outcomes[number] = "unknown"
            for subscriber in self.subscribers:
                seen = subscriber.seen[channel]
                was_lost = any(event not in stored for event in seen if not isinstance(event, GapSeen))
                is_lossy = channel in may_lose and was_lost
                found = check(published, seen, max_gaps=2 if is_lossy else 0, lossless=not is_lossy)
                total.faults += [f"{subscriber.name} on {channel}: {fault}" for fault in found.faults]
                if is_lossy and not found.gaps:
                    total.faults.append(f"{subscriber.name} on {channel}: no gap follows what was lost")
                total.gaps += found.gaps
                total.lost += found.lost
        return total


def _is_unknown(event: Event, published: Mapping[str, Sequence[Outcome]]) -> bool:
    return not isinstance(event, GapSeen) and published[event[0]][event[1]] == "unknown"


@pytest.fixture
def whole(redis_cluster: RedisCluster) -> Iterator[RedisCluster]:
    """The cluster, whole before and after the test."""
    redis_cluster.wait_until_whole()
    yield redis_cluster
    for node in redis_cluster.nodes:
        if node.is_running:
            node.thaw()
        else:
            node.start()
    redis_cluster.wait_until_whole()


async def test_a_failover_concerns_one_shard(whole: RedisCluster) -> None:
    """A replica takes over by agreement, and its channels have a gap each; the others notice nothing."""
    async with running(ClusterWorkload(whole), _UNCONFIRMED) as workload:
        primary = whole.primaries()[0]
        await asyncio.to_thread(whole.failover, primary)
        await workload.all_delivered()
        await workload.recovered()
    # The demoted node goes on serving its shard: a worker that has not seen the new map yet goes back to it once.
    result = workload.check_shards(workload.channels_of[primary.port], max_gaps=2)
    assert (result.faults, result.gaps > 0) == ([], True)


async def test_slots_that_move_concern_their_channels(whole: RedisCluster) -> None:
    """A hundred slots move to another node and back: a gap at each move for their channels, none for the others."""
    async with running(ClusterWorkload(whole), _UNCONFIRMED) as workload:
        source, target, _ = whole.primaries()
        own = workload.channels_of[source.port]
        moving = own[: len(own) // 2]
        slots = [slot_of(channel.encode()) for channel in moving]
        slots += whole.slots_of(source, 100, without={slot_of(channel.encode()) for channel in own})
        for one, other in ((source, target), (target, source)):
            await asyncio.to_thread(whole.move_slots, slots, one, other)
            await workload.all_delivered()
        await workload.recovered()
    result = workload.check_shards(moving, max_gaps=2)
    assert (result.faults, result.gaps > 0) == ([], True)


async def test_a_killed_primary_concerns_one_shard(whole: RedisCluster) -> None:
    """After SIGKILL of a primary its channels fail until the replica has taken over; then they have one gap each."""
    async with running(ClusterWorkload(whole), _UNCONFIRMED) as workload:
        primary = whole.primaries()[0]
        replica = whole.replica_of(primary)
        primary.kill9()
        await asyncio.to_thread(whole.wait_until_promoted, replica)
        primary.launch()
        await workload.all_delivered()
        await workload.recovered()
    result = workload.check_shards(workload.channels_of[primary.port], max_gaps=2)
    assert (result.faults, result.gaps > 0) == ([], True)


async def test_a_history_survives_a_move_and_a_failover(whole: RedisCluster) -> None:
    """Where slots move with their keys, and a replica takes over by agreement, kept channels have no gap."""
    async with running(KeptClusterWorkload(whole), _UNCONFIRMED) as workload:
        source, target, other = whole.primaries()
        own = workload.channels_of[source.port]
        slots = [slot_of(channel.encode()) for channel in own]
        await asyncio.to_thread(whole.move_slots, slots, source, target)
        await workload.all_delivered()
        await asyncio.to_thread(whole.failover, other)
        await workload.all_delivered()
        await asyncio.to_thread(whole.move_slots, slots, target, source)
        await workload.all_delivered()
        await workload.recovered()
        result = await workload.check_kept()
    assert (result.faults, result.gaps, result.lost) == ([], 0, 0)


@pytest.mark.parametrize("times", [1, pytest.param(5, marks=pytest.mark.full)])
async def test_a_killed_primary_loses_no_history_unnoticed(times: int, whole: RedisCluster) -> None:
    """After SIGKILL of a primary its replica has the history: all is delivered, or a gap follows what was lost."""
    for _ in range(times):
        async with running(KeptClusterWorkload(whole), _UNCONFIRMED) as workload:
            primary = whole.primaries()[0]
            replica = whole.replica_of(primary)
            primary.kill9()
            await asyncio.to_thread(whole.wait_until_promoted, replica)
            primary.launch()
            await workload.all_delivered()
            await workload.recovered()
            result = await workload.check_kept(workload.channels_of[primary.port])
        assert result.faults == []


@pytest.mark.full
async def test_a_stopped_primary_concerns_one_shard(whole: RedisCluster) -> None:
    """A primary that is silent on open connections is found by its own probe, and its replica followed."""
    async with running(ClusterWorkload(whole), _UNCONFIRMED) as workload:
        primary = whole.primaries()[0]
        replica = whole.replica_of(primary)
        primary.freeze()
        await asyncio.to_thread(whole.wait_until_promoted, replica)
        await asyncio.sleep(_OUTAGE_SECONDS)
        primary.thaw()
        await workload.all_delivered()
        await workload.recovered()
    result = workload.check_shards(workload.channels_of[primary.port], max_gaps=2)
    assert (result.faults, result.gaps > 0) == ([], True)


@pytest.mark.full
async def test_all_nodes_stopped_is_a_lost_link(whole: RedisCluster) -> None:
    """Where every node is silent the link is lost, with a gap for every channel once they are back."""
    async with running(ClusterWorkload(whole), _UNCONFIRMED) as workload:
        stopped_at = asyncio.get_running_loop().time()
        for node in whole.nodes:
            node.freeze()
        await workload.detected(stopped_at)
        for node in whole.nodes:
            node.thaw()
        await workload.all_delivered()
        await workload.recovered()
    result = workload.check_shards(workload.channels, max_gaps=4, rebuilt=True)
    assert (result.faults, result.gaps > 0) == ([], True)


@pytest.mark.full
async def test_a_minority_is_a_lost_link(whole: RedisCluster) -> None:
    """A node without the majority confirms everything, and is not believed."""
    async with running(ClusterWorkload(whole), _UNCONFIRMED) as workload:
        kept, *stopped = whole.primaries()
        stopped_at = asyncio.get_running_loop().time()
        for node in stopped:
            node.freeze()
        await workload.detected(stopped_at)
        assert whole.ask(kept, "SPUBLISH", workload.channels_of[kept.port][0], "a 0 hello") is not None
        for node in stopped:
            node.thaw()
        await workload.all_delivered()
        await workload.recovered()
    result = workload.check_shards(workload.channels, max_gaps=4, rebuilt=True)
    assert (result.faults, result.gaps > 0) == ([], True)
