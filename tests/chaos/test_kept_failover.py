"""Another server takes over from the one that kept the history, with or without the newest messages."""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
import random
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import pytest
from redis.asyncio import Redis

from backplane import Backlog, Backplane, Gap
from backplane.testing import FaultProxy
from tests.brokers.redis import RedisConfig
from tests.chaos.checker import GAP, check
from tests.chaos.kept import KEPT_QUICK, RULES, running_kept

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from tests.brokers.broker import Broker
    from tests.brokers.redis_sentinel import RedisSentinels
    from tests.chaos.checker import Event, Outcome
    from tests.chaos.kept import KeptCaseRecorder
    from tests.conftest import StartRedis, StartSentinels

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

full = pytest.mark.full

SENTINEL: Final = "redis+sentinel"


class RedisPair:
    """A primary and its replica, whose link can be silenced; workers connect to whichever serves.

    Attributes:
        primary: The primary.
        replica: The replica.
        service: In front of the one that serves.
    """

    def __init__(self, primary: Broker, replica: Broker, replication: FaultProxy, service: FaultProxy) -> None:
        self.primary = primary
        self.replica = replica
        self.service = service
        self._replication = replication

    async def lose_the_tail_from_here(self) -> None:
        """Let the replica receive nothing more; what was acknowledged before has arrived."""
        assert await command(self.primary, "WAIT", 1, 10_000) == 1
        self._replication.silence()

    async def fail_over(self) -> None:
        """Kill the primary and promote the replica, which serves from now on."""
        self.primary.kill9()
        await command(self.replica, "REPLICAOF", "NO", "ONE")
        self.service.lead_to(self.replica.url)


@asynccontextmanager
async def redis_pair(start: StartRedis) -> AsyncGenerator[RedisPair]:
    """Start a primary and a replica that is in sync."""
    at_once = ("--repl-diskless-sync-delay", "0")
    primary = start(RedisConfig(arguments=at_once))
    async with FaultProxy(primary.url) as replication, FaultProxy(primary.url) as service:
        port = replication.url.rpartition(":")[2]
        replica = start(RedisConfig(arguments=("--replicaof", "127.0.0.1", port, *at_once)))
        while (await command(replica, "ROLE"))[3] != b"connected":
            await asyncio.sleep(0.01)
        yield RedisPair(primary, replica, replication, service)


async def command(broker: Broker, *parts: str | int) -> Any:
    """Return the answer to a command."""
    client: Any
    async with Redis.from_url(broker.url) as client:
        return await client.execute_command(*parts)


@pytest.mark.parametrize("times", [1, pytest.param(10, marks=full)])
async def test_a_failover_that_loses_the_tail(
    times: int, private_redis: StartRedis, record_kept: KeptCaseRecorder
) -> None:
    """Every subscriber gets exactly one gap on each channel, at the place of what was lost, and then everything."""
    for _ in range(times):
        async with redis_pair(private_redis) as pair:
            async with running_kept(pair.service.url) as workload:
                await workload.go_on(workload.publishers[1])
                await pair.lose_the_tail_from_here()
                await workload.go_on(workload.publishers[1])
                killed_at = asyncio.get_running_loop().time()
                await pair.fail_over()
                await workload.detected(killed_at)
                await workload.all_live()
                await workload.recovered()
            result = workload.judge(gaps=1, more_plain_gaps=workload.failed_openings)
            record_kept("failover that loses the tail", "redis", result)


async def test_a_failover_that_loses_nothing(private_redis: StartRedis, record_kept: KeptCaseRecorder) -> None:
    """No subscriber notices it."""
    async with redis_pair(private_redis) as pair:
        async with running_kept(pair.service.url) as workload:
            workload.pause()
            await workload.go_on(workload.publishers[1])
            await pair.lose_the_tail_from_here()
            killed_at = asyncio.get_running_loop().time()
            await pair.fail_over()
            await workload.detected(killed_at)
            workload.resume()
            await workload.all_live()
            await workload.go_on(workload.publishers[1])
            await workload.recovered()
        result = workload.judge(more_plain_gaps=workload.failed_openings)
        record_kept("failover that loses nothing", "redis", result)


# -- a thousand of them ------------------------------------------------------------------------------------------------


class Room:
    """One channel of a failover, and what was published and received on it.

    Attributes:
        name: The channel.
        outcomes: Outcome of each publish, by number.
        seen: Messages and gaps in the order of arrival.
        lost: How many messages the failover loses.
        position: Position of the newest message before the failover.
    """

    def __init__(self, name: str, lost: int) -> None:
        self.name = name
        self.outcomes: list[Outcome] = []
        self.seen: list[Event] = []
        self.lost = lost
        self.position = ""

    async def publish(self, backplane: Backplane, count: int) -> None:
        """Publish the next numbers."""
        for _ in range(count):
            receipt = await backplane.publish(self.name, str(len(self.outcomes)))
            self.outcomes.append("ok")
            self.position = str(receipt.position)

    def faults(self) -> list[str]:
        """Return each broken promise: a gap if, and only if, messages were lost, and everything else in order."""
        found = check({"p": self.outcomes}, self.seen, max_gaps=int(self.lost > 0), lossless=not self.lost)
        if found.gaps != int(self.lost > 0):
            found.faults.append(f"{found.gaps} gaps, and {self.lost} messages were lost by the failover")
        return [f"{self.name}, which loses {self.lost}: {fault} in {self.seen}" for fault in found.faults]


class Rooms:
    """Many channels, and one worker that is subscribed to all of them.

    Args:
        count: How many.
        chance: Decides how many messages each has, and loses.
    """

    def __init__(self, count: int, chance: random.Random) -> None:
        self.all = {f"kept-{n}": Room(f"kept-{n}", chance.choice([0, 1, 1, 2, 3, 5])) for n in range(count)}
        self._chance = chance
        self._received = asyncio.Event()

    async def publish(self, backplane: Backplane, counts: range) -> None:
        """Publish some messages on each."""
        await asyncio.gather(*(room.publish(backplane, self._chance.choice(counts)) for room in self.all.values()))

    async def publish_what_is_lost(self, backplane: Backplane) -> None:
        """Publish on each as many as the failover loses."""
        await asyncio.gather(*(room.publish(backplane, room.lost) for room in self.all.values()))

    async def receive(self, backplane: Backplane, ready: asyncio.Event) -> None:
        """Receive until cancelled."""
        backlog = Backlog(max_messages=1_000_000, max_bytes=256 * 1024 * 1024)
        async with backplane.subscribe(*self.all, backlog=backlog) as messages:
            ready.set()
            async for item in messages:
                seen = self.all[item.channel].seen
                seen.append(GAP if isinstance(item, Gap) else ("p", int(str(item.data))))
                self._received.set()

    async def all_received(self) -> None:
        """Wait until the newest message of each has arrived."""
        await self._until(lambda room: room.seen[-1:] == [("p", len(room.outcomes) - 1)])

    async def gaps_received(self) -> None:
        """Wait until a gap has arrived on each that has lost something: what is published after it must arrive."""
        await self._until(lambda room: not room.lost or GAP in room.seen)

    async def _until(self, holds: Callable[[Room], bool]) -> None:
        while not all(map(holds, self.all.values())):
            self._received.clear()
            await self._received.wait()

    async def resumed(self, backplane: Backplane, since: dict[str, str]) -> dict[str, bool]:
        """Return for each channel whether a client that comes back there with its last position is resumed."""

        async def returns(name: str) -> bool:
            async with backplane.subscribe(name, since=since[name], rewind=1) as messages:
                return not isinstance(await anext(messages), Gap)

        return dict(zip(since, await asyncio.gather(*map(returns, since)), strict=True))

    def judge(self, resumed: dict[str, bool]) -> None:
        """Assert that all promises were kept, to the subscriber and to the clients that came back."""
        assert [fault for room in self.all.values() for fault in room.faults()][:10] == []
        wrong = [name for name, room in self.all.items() if resumed[name] == (room.lost > 0)]
        assert wrong == []
        assert sum(room.lost > 0 for room in self.all.values()) > len(self.all) // 2


@pytest.mark.parametrize("count", [100, pytest.param(1200, marks=full)])
@pytest.mark.parametrize("way", ["failover", "rewound during an absence", "rewound under a live link"])
async def test_a_lost_tail_is_always_reported(count: int, way: str, private_redis: StartRedis) -> None:
    """On each of many channels a gap is reported if, and only if, the newest messages were lost.

    After it the offsets are used again, for fewer, as many, or more messages. A client that comes back with a position
    that was lost is not resumed.
    """
    rooms = Rooms(count, random.Random(count))
    settings = replace(KEPT_QUICK, publish_timeout_seconds=10)
    async with (
        redis_pair(private_redis) as pair,
        Backplane(pair.service.url, settings=settings, history=RULES) as worker,
        asyncio.TaskGroup() as group,
    ):
        ready = asyncio.Event()
        receiving = group.create_task(rooms.receive(worker, ready))
        await ready.wait()
        after = pair.replica if way == "failover" else pair.primary
        async with Backplane(pair.primary.url, settings=settings, history=RULES) as publisher:
            await rooms.publish(publisher, range(1, 6))
            await pair.lose_the_tail_from_here()
            kept = await saved(pair.primary)
            await rooms.publish_what_is_lost(publisher)
            await rooms.all_received()
            since = {name: room.position for name, room in rooms.all.items()}
        if way == "failover":
            pair.service.refuse()
            await pair.fail_over()
        elif way == "rewound during an absence":
            pair.service.refuse()
            await restore(pair.primary, kept)
        else:
            await restore(pair.primary, kept)
        async with Backplane(after.url, settings=settings, history=RULES) as publisher:
            if way != "rewound under a live link":
                await worker.wait_for_state("degraded")
                await rooms.publish(publisher, range(8))
                pair.service.heal()
                await worker.wait_for_state("live")
            await rooms.publish(publisher, range(1, 8))
            async with asyncio.timeout(30):
                # What was published until then can be in what a gap covers.
                await rooms.gaps_received()
                await rooms.publish(publisher, range(1, 2))
                await rooms.all_received()
            resumed = await rooms.resumed(publisher, since)
        receiving.cancel()
    rooms.judge(resumed)


async def saved(broker: Broker) -> dict[bytes, bytes]:
    """Return all keys, as `DUMP` does."""
    async with Redis.from_url(broker.url) as client:
        keys = [key async for key in client.scan_iter("*$backplane/*", count=10_000)]
        dumps = client.pipeline(transaction=False)
        for key in keys:
            dumps.dump(key)
        return dict(zip(keys, await dumps.execute(), strict=True))


async def restore(broker: Broker, kept: dict[bytes, bytes]) -> None:
    """Bring all keys back to what they were, at one moment."""
    async with Redis.from_url(broker.url) as client:
        restores = client.pipeline(transaction=True)
        for key, dump in kept.items():
            restores.restore(key, 600_000, dump, replace=True)
        await restores.execute()


# -- sentinels ---------------------------------------------------------------------------------------------------------


async def kill(service: RedisSentinels) -> None:
    """SIGKILL; the old primary comes back and becomes a replica."""
    old, new = service.nodes
    old.kill9()
    await asyncio.to_thread(service.wait_until_promoted, new)
    old.launch()
    await asyncio.to_thread(service.wait_until_demoted, old)


async def fail_over(service: RedisSentinels) -> None:
    """SENTINEL FAILOVER."""
    await asyncio.to_thread(service.failover)
    await asyncio.to_thread(service.wait_until_demoted, service.nodes[0])


async def freeze(service: RedisSentinels) -> None:
    """SIGSTOP, and SIGCONT once another has taken over."""
    old, new = service.nodes
    old.freeze()
    await asyncio.to_thread(service.wait_until_promoted, new)
    old.thaw()
    await asyncio.to_thread(service.wait_until_demoted, old)


@pytest.mark.alone("sentinels that have no time do not agree on a failover", waits=True)
@pytest.mark.parametrize(
    "fault", [kill, pytest.param(fail_over, marks=full), pytest.param(freeze, marks=full)], ids=lambda one: one.__name__
)
async def test_a_failover_by_sentinels(
    fault: Any, private_sentinels: StartSentinels, record_kept: KeptCaseRecorder
) -> None:
    """What the new primary has is received by all; who received what only the old one had accepted has a gap, one."""
    service = private_sentinels()
    async with running_kept(service.url) as workload:
        began_at = asyncio.get_running_loop().time()
        await fault(service)
        await workload.detected(began_at)
        await workload.all_live()
        await workload.recovered()
        stored = await workload.stored()
    result = workload.judge(gaps=1, at_most="acd", more_plain_gaps=1 + workload.failed_openings, stored=stored)
    record_kept(f"Sentinel: {fault.__name__}", SENTINEL, result)
