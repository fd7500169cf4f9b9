"""WebSocket clients of real workers, over the end of their broker and of their workers."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from collections import Counter
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from tests.brokers.process import free_port
from tests.brokers.redis import RedisConfig
from tests.chaos.case_table import CLIENT_FIGURES
from tests.chaos.checker import GAP, check
from tests.chaos.target import FaultTarget
from tests.server_process import server_process

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence

    from tests.chaos.checker import Event, Outcome
    from tests.server_process import ServerProcess

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]

full = pytest.mark.full

CLIENTS: Final = 40
_ROOT: Final = Path(__file__).parents[2]


class Worker:
    """A server process with one worker, which can be killed and started again on its port."""

    def __init__(self, url: str, folder: Path, name: str) -> None:
        self.port = free_port()
        self._url = url
        self._folder = folder
        self._name = name
        self._starts = 0
        self._stack = ExitStack()
        self._process: ServerProcess | None = None

    def launch(self) -> None:
        """Start it."""
        self._starts += 1
        command = [sys.executable, "-m", "uvicorn", "tests.chaos.kept_app:app", "--log-level", "warning"]
        command += ["--ws", "backplane.server.uvicorn:DirectLaneProtocol", "--port", str(self.port)]
        made = server_process(
            command,
            self._folder,
            cwd=_ROOT,
            name=f"{self._name}-{self._starts}",
            environment={"BACKPLANE_URL": self._url},
        )
        self._process = self._stack.enter_context(made)

    async def wait_until_up(self) -> None:
        """Wait until it answers."""
        async with httpx.AsyncClient() as http:
            while True:
                with suppress(httpx.HTTPError):
                    await http.get(f"http://127.0.0.1:{self.port}/pid")
                    return
                await asyncio.sleep(0.05)

    def kill(self) -> None:
        """Kill it, as a crash does."""
        assert self._process is not None
        os.kill(self._process.process.pid, signal.SIGKILL)
        self._process.process.wait()

    def close(self) -> None:
        """End it."""
        self._stack.close()


class Page:
    """A client that keeps its last position, and comes back with it, to another worker, when its connection ends.

    Attributes:
        seen: Messages and gaps in the order of arrival.
        closed: How often its connection ended, by close code.
        resumed: How often it came back and was resumed, and how often not.
    """

    def __init__(self, workers: Sequence[Worker], room: str) -> None:
        self.seen: list[Event] = []
        self.closed = Counter[int]()
        self.resumed = Counter[bool]()
        self.joined = asyncio.Event()
        self._workers = workers
        self._room = room
        self._position = ""

    async def run(self) -> None:
        """Receive until cancelled."""
        while True:
            url = f"ws://127.0.0.1:{random.choice(self._workers).port}/ws/{self._room}?since={self._position}"
            with suppress(OSError, EOFError, WebSocketException):
                async with connect(url, compression=None, ping_interval=None, close_timeout=1, proxy=None) as socket:
                    try:
                        async for text in socket:
                            self._take(json.loads(text))
                        self.closed[1000] += 1
                    except ConnectionClosed as error:
                        self.closed[error.rcvd.code if error.rcvd else 1006] += 1
            await asyncio.sleep(0.05)

    def has_reached(self, number: int) -> bool:
        """Whether its newest message is this one or a later one."""
        newest = self.seen[-1] if self.seen else GAP
        return isinstance(newest, tuple) and newest[1] >= number

    def _take(self, message: dict[str, object]) -> None:
        if message.get("event") == "joined":
            if self._position:
                self.resumed[bool(message["resumed"])] += 1
            self.joined.set()
        elif message.get("event") == "gap":
            self.seen.append(GAP)
        elif (text := str(message["text"])) == "hello":  # without a history there is no word of a join
            self.joined.set()
        else:
            self.seen.append(("p", int(text)))
        self._position = str(message.get("position", ""))


class Beat:
    """Publishes numbers in a room through any worker, and records the outcomes.

    Attributes:
        outcomes: Of each, by number.
        is_over: Set it to end after the present one: a request that is cancelled is an error at the server.
    """

    def __init__(self, workers: Sequence[Worker], room: str) -> None:
        self.outcomes: list[Outcome] = []
        self.is_over = False
        self._workers = workers
        self._room = room

    async def publish(self, http: httpx.AsyncClient) -> Outcome:
        """Publish one."""
        number = len(self.outcomes)
        self.outcomes.append("unknown")
        url = f"http://127.0.0.1:{random.choice(self._workers).port}/rooms/{self._room}"
        with suppress(httpx.HTTPError):
            response = await http.post(url, content=str(number))
            if response.status_code == 200:
                self.outcomes[number] = "ok"
        return self.outcomes[number]

    async def run(self) -> None:
        """Publish until it is over."""
        async with httpx.AsyncClient(timeout=10) as http:
            while not self.is_over:
                await self.publish(http)
                await asyncio.sleep(0.02)

    async def greet(self) -> None:
        """Publish a greeting, which is not counted."""
        async with httpx.AsyncClient(timeout=10) as http:
            await http.post(f"http://127.0.0.1:{self._workers[0].port}/rooms/{self._room}", content="hello")

    async def end(self) -> int:
        """Publish until one is confirmed; return its number."""
        async with httpx.AsyncClient(timeout=10) as http:
            while await self.publish(http) != "ok":
                await asyncio.sleep(0.05)
        return len(self.outcomes) - 1

    async def go_on(self, count: int = 10) -> None:
        """Wait until so many more are confirmed."""
        before = self.outcomes.count("ok")
        while self.outcomes.count("ok") < before + count:
            await asyncio.sleep(0.02)


class Audience:
    """The clients of one room, and what is published to it."""

    def __init__(self, workers: Sequence[Worker], room: str, clients: int) -> None:
        self.pages = [Page(workers, room) for _ in range(clients)]
        self.beat = Beat(workers, room)
        self.room = room

    async def all_closed(self) -> None:
        """Wait until each client was closed: a gap closes them one after the other."""
        while self.closed.total() < len(self.pages):
            await asyncio.sleep(0.02)

    @property
    def closed(self) -> Counter[int]:
        """How many connections ended, by close code."""
        return sum((page.closed for page in self.pages), Counter[int]())

    @property
    def resumed(self) -> Counter[bool]:
        """How many clients came back and were resumed, and how many not."""
        return sum((page.resumed for page in self.pages), Counter[bool]())

    def faults(self, *, gaps: int = 0) -> list[str]:
        """Return every broken promise of a room with a history, where each client has so many gaps."""
        faults: list[str] = []
        for number, page in enumerate(self.pages):
            found = check({"p": self.beat.outcomes}, page.seen, max_gaps=gaps, lossless=not gaps)
            if found.gaps != gaps:
                found.faults.append(f"{found.gaps} gaps, not {gaps}")
            faults += [f"client {number} of {self.room}: {fault}" for fault in found.faults]
        return faults


@contextmanager
def workers_on(url: str, folder: Path, count: int) -> Generator[list[Worker]]:
    """Run so many workers."""
    workers = [Worker(url, folder, f"worker-{number}") for number in range(count)]
    try:
        for worker in workers:
            worker.launch()
        yield workers
    finally:
        for worker in workers:
            worker.close()


@asynccontextmanager
async def audiences(workers: Sequence[Worker], *rooms: str) -> AsyncGenerator[list[Audience]]:
    """Connect clients to each room, and publish to it until the end, which every client has received."""
    for worker in workers:
        await worker.wait_until_up()
    made = [Audience(workers, room, CLIENTS) for room in rooms]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(page.run()) for audience in made for page in audience.pages]
        for audience in made:
            async with asyncio.timeout(30):
                while not all(page.joined.is_set() for page in audience.pages):
                    await audience.beat.greet()
                    await asyncio.sleep(0.1)
        beats = [group.create_task(audience.beat.run()) for audience in made]
        for audience in made:
            await audience.beat.go_on()
        yield made
        for audience in made:
            audience.beat.is_over = True
        await asyncio.wait(beats)
        for audience in made:
            last = await audience.beat.end()
            async with asyncio.timeout(30):
                while not all(page.has_reached(last) for page in audience.pages):
                    await asyncio.sleep(0.05)
                    if not audience.room.startswith("kept"):  # a client that was closed may have come back after it
                        await audience.beat.end()
        for task in tasks:
            task.cancel()


async def kill_broker(target: FaultTarget) -> None:
    """SIGKILL and a restart."""
    target.broker.kill9()
    await asyncio.sleep(0.5)
    await target.restart_broker()


async def stop_broker(target: FaultTarget) -> None:
    """SIGTERM and a restart."""
    await asyncio.to_thread(target.broker.stop)
    await asyncio.sleep(0.5)
    await target.restart_broker()


def persistent(name: str, request: pytest.FixtureRequest) -> FaultTarget:
    """Return a private broker whose history survives a restart."""
    start = request.getfixturevalue(f"private_{name}")
    if name == "redis":
        return FaultTarget.of(name, start(RedisConfig(arguments=("--appendonly", "yes", "--appendfsync", "always"))))
    return FaultTarget.of(name, start(jetstream=True) if name == "nats" else start())


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("redis", kill_broker),
        pytest.param("redis", stop_broker, marks=full),
        ("nats", kill_broker),
        pytest.param("nats", stop_broker, marks=full),
        pytest.param("kafka", kill_broker, marks=full),
        pytest.param("kafka", stop_broker, marks=full),
    ],
)
async def test_clients_stay_connected_while_the_broker_ends(
    name: str,
    end: Callable[[FaultTarget], Awaitable[None]],
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    """No client of a kept channel is closed, and each receives everything once; without a rule all are closed."""
    target = persistent(name, request)
    with workers_on(target.url, tmp_path, 1) as workers:
        async with audiences(workers, "kept-room", "plain-room") as (kept, plain):
            await end(target)
            await kept.beat.go_on()
            await plain.beat.go_on()
            if name != "kafka":  # whose link resumes
                await plain.all_closed()
    note(request, f"clients closed: {end.__name__}", name, kept, plain)
    assert kept.closed == {}
    assert kept.faults() == []
    if name != "kafka":
        assert plain.closed == {4000: CLIENTS}


@pytest.mark.alone("sentinels that have no time do not agree on a failover", waits=True)
async def test_clients_stay_connected_over_a_failover(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """The same when Sentinel replaces the primary."""
    service = request.getfixturevalue("private_sentinels")()
    with workers_on(service.url, tmp_path, 1) as workers:
        async with audiences(workers, "kept-room", "plain-room") as (kept, plain):
            old, new = service.nodes
            for audience in (kept, plain):
                await audience.beat.go_on()
            old.kill9()
            await asyncio.to_thread(service.wait_until_promoted, new)
            await kept.beat.go_on()
            await plain.beat.go_on()
            await plain.all_closed()
    note(request, "clients closed: failover", "redis+sentinel", kept, plain)
    assert kept.closed == {}
    assert kept.faults() == []
    assert plain.closed == {4000: CLIENTS}


@pytest.mark.parametrize("name", ["ipc", "redis", "nats", pytest.param("kafka", marks=full)])
async def test_clients_of_a_killed_worker_come_back_elsewhere(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Each gets exactly what it missed; and so it is when all workers are killed and started again."""
    if name == "ipc":
        url = str(request.getfixturevalue("ipc_url"))
    elif name == "nats":
        url = request.getfixturevalue("private_nats")(jetstream=True).url
    else:
        url = request.getfixturevalue(f"{name}_broker").own_url
    with workers_on(url, tmp_path, 2) as workers:
        async with audiences(workers, "kept-room") as (kept,):
            workers[0].kill()
            await kept.beat.go_on()
            workers[0].launch()
            await workers[0].wait_until_up()
            await kept.beat.go_on()
            for worker in workers:
                worker.kill()
            for worker in workers:
                worker.launch()
            for worker in workers:
                await worker.wait_until_up()
            await kept.beat.go_on()
    note(request, "workers killed, clients come back", name, kept)
    assert kept.faults() == []
    assert kept.closed.keys() == {1006}
    assert kept.closed[1006] > CLIENTS  # all once, some twice
    assert kept.resumed == {True: kept.closed[1006]}


def note(request: pytest.FixtureRequest, case: str, broker: str, kept: Audience, plain: Audience | None = None) -> None:
    """Add a line to the table of clients."""
    closed = str(kept.closed.total())
    cells = (case, broker, str(kept.beat.outcomes.count("ok")), closed, str(kept.resumed[True]))
    rest = ("-",) if plain is None else (str(plain.closed.total()),)
    request.node.user_properties.append((CLIENT_FIGURES, (*cells, *rest)))
