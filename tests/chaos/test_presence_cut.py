"""Workers with presence that do not reach each other, or do not run, though the link of none is lost."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import pytest

from backplane.testing import FaultProxy
from backplane.testing.loop_client import LoopClient
from tests.brokers.nats import pools_routes
from tests.brokers.process import free_port
from tests.chaos.delay import Delay
from tests.chaos.presence import DEFAULT, GRACE_SECONDS, QUICK, PresentWorker, note, running_presence
from tests.chaos.target import FaultTarget

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from backplane import Settings
    from tests.brokers.broker import Broker
    from tests.chaos.presence import PresenceWorkload
    from tests.conftest import StartNats

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

full = pytest.mark.full

_TRUE_SECONDS: Final = 3.0
_SLACK_SECONDS: Final = 1.5
# A server of NATS that has lost the route to another one dials it again after a second.
_ROUTE_SECONDS: Final = 2.0


async def count_alive(worker: PresentWorker) -> int:
    """Return how many workers a worker takes for alive."""
    return sum(other.is_alive for other in await worker.backplane.workers())


async def until_alive(workload: PresenceWorkload, count: int) -> float:
    """Wait until each worker takes so many for alive; return how long that took."""
    since = time.monotonic()
    async with asyncio.timeout(30):
        while {await count_alive(one) for one in workload.workers} != {count}:
            await asyncio.sleep(0.02)
    return time.monotonic() - since


@pytest.mark.parametrize("settings", [pytest.param(QUICK, id="quick"), pytest.param(DEFAULT, id="default", marks=full)])
async def test_a_cluster_that_is_cut_in_two(
    settings: Settings, private_nats: StartNats, request: pytest.FixtureRequest
) -> None:
    """Each half has its own users alone, after `worker_down_seconds`; after the cut all lists are true again."""
    route, proxied = free_port(), free_port()
    own = f"cluster {{ name: rooms, no_advertise: true{', pool_size: -1' if pools_routes() else ''}"
    first = private_nats(f"server_name: first\n{own}, listen: 127.0.0.1:{route} }}")
    async with FaultProxy(f"nats://127.0.0.1:{route}", port=proxied) as between:
        listen, routes = f"127.0.0.1:{free_port()}", f"nats://127.0.0.1:{proxied}"
        second = private_nats(f"server_name: second\n{own}, listen: {listen}, routes: [{routes}] }}")
        urls = [first.url, second.url, first.url, second.url]
        async with running_presence(first.url, settings=settings, urls=urls) as workload:
            halves = {one.name: one in workload.near for one in workload.workers}
            assert await workload.all_alive()
            between.refuse()
            delay = Delay()
            out = await until_alive(workload, 2)
            assert out < settings.worker_down_seconds + 1 + _SLACK_SECONDS + delay.seconds
            between.heal()
            await until_alive(workload, 4)
            back = await workload.true(seconds=_TRUE_SECONDS + _ROUTE_SECONDS + _SLACK_SECONDS)
            for leave in workload.leaves:
                there = workload.attendances.workers_of(leave.room, leave.user)
                assert not any(halves[str(worker)] == halves[str(leave.watcher)] for worker in there), leave
            for one in workload.workers:
                one.left.clear()
            async with workload.churning():
                await asyncio.sleep(1)
            await workload.true(seconds=GRACE_SECONDS + _SLACK_SECONDS)
            workload.judge()
    note(request, "cluster cut in two", "nats", fault=out, end=back, left=len(workload.leaves))


class OtherLoop(threading.Thread):
    """A worker with some clients in an event loop of its own, which can be blocked.

    Attributes:
        worker: The worker.
        users: Its users, all in one room.
    """

    def __init__(self, url: str, settings: Settings, room: str) -> None:
        super().__init__()
        self.worker = PresentWorker("blocked", url, settings)
        self.users = [f"blocked-{number}" for number in range(3)]
        self._room = room
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._over: asyncio.Event | None = None

    def run(self) -> None:
        """Serve until `end`."""
        asyncio.run(self._serve())

    def wait_until_ready(self) -> None:
        """Wait until its clients are served. Blocks."""
        assert self._ready.wait(20)

    def block(self, seconds: float) -> None:
        """Block its event loop, from its next pass on."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(time.sleep, seconds)

    def evaluate(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Return what a coroutine of its loop returns. Blocks."""
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(work(), self._loop).result(20)

    def end(self) -> None:
        """End it. Blocks."""
        assert self._loop is not None
        assert self._over is not None
        self._loop.call_soon_threadsafe(self._over.set)
        self.join(20)
        assert not self.is_alive()

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        async with self.worker.backplane as backplane:
            watching = asyncio.create_task(self.worker.watch(self._room))
            clients = [await LoopClient(backplane, self._room, user=user).open() for user in self.users]
            self._ready.set()
            await self._over.wait()
            for client in clients:
                await client.close()
            watching.cancel()
            await asyncio.wait([watching])


@pytest.mark.parametrize(
    "target", ["redis", pytest.param("nats", marks=full), pytest.param("kafka", marks=full)], indirect=True
)
@pytest.mark.parametrize("settings", [pytest.param(QUICK, id="quick"), pytest.param(DEFAULT, id="default", marks=full)])
async def test_a_worker_whose_loop_is_blocked(
    settings: Settings, target: FaultTarget, request: pytest.FixtureRequest
) -> None:
    """A worker that was blocked takes no other for ended; the others take it for ended only after the time for it."""
    async with running_presence(target.url, settings=settings) as workload:
        room = workload.rooms[0]
        other = OtherLoop(target.url, settings, room)
        with ExitStack() as stack:
            other.start()
            stack.callback(other.end)
            await asyncio.to_thread(other.wait_until_ready)
            stays = [workload.attendances.open(room, user, "blocked") for user in other.users]
            await workload.true(seconds=10)
            await until_alive(workload, 5)
            while await asyncio.to_thread(other.evaluate, lambda: count_alive(other.worker)) < 5:
                await asyncio.sleep(0.02)
            for one in workload.workers:
                one.joined.clear()

            other.block(8)
            blocked_at, delay = time.monotonic(), Delay()
            if settings is QUICK:
                for stay in stays:
                    stay.close()
                await until_alive(workload, 4)
                out = time.monotonic() - blocked_at
                assert out < settings.worker_down_seconds + 1 + _SLACK_SECONDS + delay.seconds
                await workload.true(seconds=GRACE_SECONDS + _SLACK_SECONDS)
                stays = [workload.attendances.open(room, user, "blocked") for user in other.users]
            alive = await asyncio.to_thread(other.evaluate, lambda: count_alive(other.worker))
            back_at = time.monotonic()
            assert back_at - blocked_at > 7
            assert alive == 5
            took = await workload.true(seconds=_TRUE_SECONDS + _SLACK_SECONDS)
            truth = {room: workload.truth()[room]}
            back_at, delay = time.monotonic(), Delay()
            while wrong := await asyncio.to_thread(other.evaluate, lambda: other.worker.difference(truth)):
                assert time.monotonic() - back_at < _TRUE_SECONDS + _SLACK_SECONDS + delay.seconds, wrong
                await asyncio.sleep(0.02)
            assert other.worker.left == []
            assert other.worker.faults == []
            if settings is DEFAULT:
                assert workload.leaves == []
                assert not any(one.joined for one in workload.workers)
            workload.judge()
            for stay in stays:
                stay.close()
        await workload.true(seconds=GRACE_SECONDS + _SLACK_SECONDS)
    note(request, "loop blocked for 8 s", target.name, end=took, left=len(workload.leaves))


async def test_what_kafka_replays_raises_no_worker(kafka_broker: Broker, request: pytest.FixtureRequest) -> None:
    """Workers that have ended while others were away are out for those too, at once, whatever they receive later."""
    target = FaultTarget.of("kafka", kafka_broker)
    settings = replace(QUICK, worker_down_seconds=60)
    async with target.proxy, running_presence(target.proxy.url, target.url, settings=settings) as workload:
        room = workload.rooms[0]
        far = [one for one in workload.workers if one not in workload.near]
        known, unknown = (PresentWorker(name, target.url, settings) for name in ("known", "unknown"))
        async with known.backplane as backplane:
            client = await LoopClient(backplane, room, user="known").open()
            stay = workload.attendances.open(room, "known", "known")
            await until_alive(workload, 5)
            await workload.true(seconds=10)
            target.proxy.refuse()
            await workload.all_stale()
            async with unknown.backplane as later:
                visitor = await LoopClient(later, room, user="unknown").open()
                await workload.true(seconds=10, workers=far, more={room: {"unknown": 1}})
            await visitor.close()
            stay.close()
        await client.close()
        await workload.true(seconds=GRACE_SECONDS + _SLACK_SECONDS, workers=far)
        target.proxy.heal()
        await workload.all_live()
        took = await workload.true(seconds=_TRUE_SECONDS + GRACE_SECONDS + _SLACK_SECONDS)
        await until_alive(workload, 4)
        await workload.true(seconds=_SLACK_SECONDS)
        workload.judge()
    note(request, "workers end while others are away", target.name, end=took, left=len(workload.leaves))
