"""Four Gunicorn workers whose clients come and go; one is killed, and one is stopped."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.brokers.process import free_port
from tests.chaos.attendances import Leave
from tests.chaos.delay import Delay
from tests.chaos.presence import note
from tests.chaos.present_clients import Crowd
from tests.server_process import server_process

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection, Iterable

    from tests.server_process import ServerProcess

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(240)]

_ROOT: Final = Path(__file__).parents[2]
_WORKERS: Final = 4
# How much later than promised on a machine that others use.
_SLACK_SECONDS: Final = 3.0


@dataclass(frozen=True, slots=True)
class Size:
    """How large a case is, and its times.

    Attributes:
        clients: WebSocket clients.
        rooms: In how many rooms.
        churn: For how long they come and go before the faults.
        per_second: How many per second.
        grace: `grace_seconds`.
        heartbeat: `worker_heartbeat_seconds`.
        down: `worker_down_seconds`.
    """

    clients: int
    rooms: int
    churn: float
    per_second: float
    grace: float
    heartbeat: float
    down: float


REDUCED: Final = Size(200, 10, churn=2, per_second=50, grace=2, heartbeat=0.5, down=2.5)
WHOLE: Final = Size(2_000, 50, churn=10, per_second=100, grace=5, heartbeat=3, down=10)


@pytest.fixture(params=["ipc", "redis", "nats", "kafka"])
def url(request: pytest.FixtureRequest) -> str:
    """The URL of each broker that connects processes, in turn."""
    if request.param == "ipc":
        # Its workers wait for a stopped one as users' do.
        return str(request.getfixturevalue("ipc_url")).replace("peer_timeout_seconds=5&", "")
    return str(request.getfixturevalue(f"{request.param}_broker").own_url)


class Workers:
    """The workers of one server, each with a socket of the test.

    Args:
        folder: Where they listen, each by its pid.
        process: Their server.
    """

    def __init__(self, folder: Path, process: ServerProcess) -> None:
        self._folder = folder
        self._process = process

    @property
    def pids(self) -> set[int]:
        """All that have started, whether they run or not."""
        return {int(path.name) for path in self._folder.iterdir() if path.name.isdigit()}

    async def started(self, count: int) -> set[int]:
        """Wait until so many have started, and return their pids."""
        async with asyncio.timeout(40):
            while len(self.pids) < count:
                assert self._process.process.poll() is None, "the server has ended"
                await asyncio.sleep(0.05)
        return self.pids

    async def ask(self, pid: int, verb: str, argument: Any = None) -> Any:
        """Ask one."""
        reader, writer = await asyncio.open_unix_connection(self._folder / str(pid), limit=1 << 26)
        try:
            writer.write(json.dumps([verb, argument]).encode() + b"\n")
            async with asyncio.timeout(30):
                return json.loads(await reader.readline())
        finally:
            writer.close()

    async def leaves(self, pids: Iterable[int]) -> list[Leave]:
        """Return what these have reported as left."""
        return [Leave(pid, *leave) for pid in pids for leave in await self.ask(pid, "left")]

    async def know(self, pids: Collection[int], *, without: Collection[int]) -> float:
        """Wait until none of these takes `without` for alive; return when that was so."""
        for pid in pids:
            while not set(without).isdisjoint(await self.ask(pid, "alive")):
                await asyncio.sleep(0.02)
        return time.monotonic()

    async def true(self, crowd: Crowd, pids: Collection[int], *, seconds: float, of_clients: bool = False) -> float:
        """Wait until the lists of these are what the clients know; return how long that took.

        Args:
            crowd: The clients.
            pids: Whose lists.
            seconds: Within how many, and the delay by the machine.
            of_clients: The time begins with the last client that connects meanwhile.

        Raises:
            AssertionError: Not within so many seconds.
        """
        since, delay = time.monotonic(), Delay()
        while wrong := await self._wrong(crowd, pids):
            if of_clients:
                since = max(since, crowd.attendances.opened_at)
            late = time.monotonic() - since - delay.seconds > seconds
            assert not late, f"not true after {seconds:g} s: {wrong[:10]} of {len(wrong)}"
            await asyncio.sleep(0.05)
        return time.monotonic() - since

    async def _wrong(self, crowd: Crowd, pids: Collection[int]) -> list[str]:
        wrong: list[str] = []
        for pid in pids:
            truth, lists = crowd.truth(), await self.ask(pid, "lists")
            for room, expected in truth.items():
                if (found := lists[room]) is None:
                    wrong.append(f"{room} at {pid} is stale")
                elif found != expected:
                    difference = dict(sorted(found.items() - expected.items())[:5])
                    missing = dict(sorted(expected.items() - found.items())[:5])
                    wrong.append(f"{room} at {pid} has {difference}, and {missing} is true")
        return wrong


@asynccontextmanager
async def serving(url: str, size: Size, tmp_path: Path) -> AsyncGenerator[tuple[Workers, Crowd]]:
    """Run four Gunicorn workers, and connect all clients."""
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "tests.chaos.presence_app:app", "--workers", str(_WORKERS)]
    command += ["--worker-class", "uvicorn_worker.UvicornWorker", "--log-level", "warning", "--timeout", "600"]
    command += ["--bind", f"127.0.0.1:{port}", "--backlog", "4096"]
    with TemporaryDirectory(prefix="bp-") as folder:
        environment = {
            "BACKPLANE_URL": url,
            "TEST_FOLDER": folder,
            "TEST_ROOMS": str(size.rooms),
            "TEST_GRACE": str(size.grace),
            "TEST_HEARTBEAT": str(size.heartbeat),
            "TEST_DOWN": str(size.down),
        }
        with server_process(command, tmp_path, cwd=_ROOT, environment=environment) as process:
            workers = Workers(Path(folder), process)
            await workers.started(_WORKERS)
            crowd = Crowd(port, clients=size.clients, rooms=size.rooms, pause_seconds=size.grace)
            try:
                await crowd.open_all()
                yield workers, crowd
            finally:
                for pid in workers.pids:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGCONT)
                await crowd.end()


@pytest.mark.parametrize(
    "size",
    [
        pytest.param(REDUCED, id="200 clients"),
        pytest.param(WHOLE, id="2,000 clients", marks=[pytest.mark.full, pytest.mark.alone("it needs both cores")]),
    ],
)
async def test_workers_that_are_killed_and_stopped(
    size: Size, url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """When all is quiet every list is true, in the promised time, and no user has left that was back in time."""
    async with serving(url, size, tmp_path) as (workers, crowd):
        began = await workers.started(_WORKERS)
        first = await workers.true(crowd, began, seconds=10)

        over = asyncio.Event()
        churning = asyncio.create_task(crowd.churn(over, per_second=size.per_second, seed=1))
        await asyncio.sleep(size.churn)
        by_size = sorted(began, key=lambda pid: sum(visitor.pid == pid for visitor in crowd.visitors))
        stopped, killed = by_size[-2:]
        alive = began - {stopped, killed}

        over.set()
        await churning
        over.clear()
        os.kill(stopped, signal.SIGSTOP)
        of_stopped = crowd.stop(stopped)
        for number, visitor in enumerate(crowd.visitors):
            if visitor.pid == killed:
                visitor.wants_back = number % 5 != 0  # the others are back within the grace
        os.kill(killed, signal.SIGKILL)
        faults_at, delay = time.monotonic(), Delay()
        for visitor in of_stopped[::2]:  # these notice it, and connect to another worker
            visitor.close(abort=True)
            crowd.spawn(visitor.open())
        churning = asyncio.create_task(crowd.churn(over, per_second=size.per_second, seed=2, spared={stopped}))
        # Those that run answer in time, and the others are named: all are taken for alive still.
        witness = min(alive)
        answered, missing = await workers.ask(witness, "survey", size.down - 0.5)
        assert set(answered) >= alive
        assert set(missing) == {stopped, killed}
        noticing = asyncio.create_task(workers.know(tuple(alive), without={stopped, killed}))
        alive |= await workers.started(_WORKERS + 1) - began
        over.set()
        await churning
        await crowd.settled()
        settled_at = time.monotonic()
        async with asyncio.timeout(60):
            out = await noticing - faults_at
        assert size.down - size.heartbeat - 0.5 - delay.seconds < out
        assert out < size.down + 1 + _SLACK_SECONDS + delay.seconds
        since = max(settled_at, faults_at + size.down)
        await workers.true(crowd, alive, seconds=since + size.grace + 1 + _SLACK_SECONDS - time.monotonic())
        for pid in alive:
            assert await workers.ask(pid, "alive") == sorted(alive)

        crowd.resume(stopped)
        os.kill(stopped, signal.SIGCONT)
        resumed_at = time.monotonic()
        # Where the adapter reports a gap, clients are closed because of it, and back within `pause_seconds`.
        back = await workers.true(crowd, alive, seconds=3 + _SLACK_SECONDS, of_clients=True)
        # The others name the killed one to it: its users are in their grace from then on.
        until = max(resumed_at, crowd.attendances.opened_at) + 3 + size.grace + _SLACK_SECONDS
        await workers.true(crowd, [stopped], seconds=until - time.monotonic(), of_clients=True)
        own = time.monotonic() - resumed_at

        banned = crowd.visitors[0].user
        connections = sum(1 for visitor in crowd.visitors if visitor.user == banned and visitor.pid)
        for visitor in crowd.visitors:
            if visitor.user == banned:
                visitor.wants_back = False
        assert await workers.ask(witness, "disconnect", banned) == [connections, []]
        await workers.true(crowd, alive | {stopped}, seconds=size.grace + 1 + _SLACK_SECONDS)

        leaves = await workers.leaves(alive | {stopped})
        assert len({leave.user for leave in leaves}) > 1
        # What the stopped one had decided before it was stopped, its watch reads right after it.
        leaves = [
            replace(one, at=faults_at) if one.watcher == stopped and 0 <= one.at - resumed_at < 0.2 else one
            for one in leaves
        ]
        wrong = crowd.attendances.wrong_leaves(leaves, size.grace)
        assert not wrong, "\n".join(wrong[:10])
    note(
        request,
        "kill -9 and SIGSTOP of Gunicorn workers",
        url.partition(":")[0],
        clients=size.clients,
        complete=first,
        fault=out,
        end=back,
        own=own,
        left=len(leaves),
    )
