"""An outage as clients see it: a broker is away for 4 s while clients publish through the README's loop."""

from __future__ import annotations

import asyncio
import random
import re
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from time import monotonic
from typing import TYPE_CHECKING, Literal

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.brokers.broker import ProcessBroker
from tests.e2e.clients import Client
from tests.servers import serving

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from tests.brokers.broker import Broker
    from tests.conftest import StartRedis
    from tests.servers import Server

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]

ROOM = "lobby"
SIZE = 30
AWAY_SECONDS = 4
# The time over which 100 clients are closed; 30 take three tenths of it.
ENVIRONMENT = {"TEST_DRAIN_SECONDS": "10", "TEST_LOG_LEVEL": "INFO"}
MAX_LOG_LINES = 10
# Whose connections end: those of publishing clients by a message that cannot be published, all by a gap.
Closed = Literal["none", "publishers", "all"]
# What Uvicorn's sans-I/O protocol logs for each handshake that is refused with an HTTP error.
_UVICORN_REFUSED = "ASGI callable returned without completing handshake."
# A message accepted so shortly before the connection of a client ends may still be in transit, after its close.
MARGIN_SECONDS = 1.5


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """One event loop is enough: what is tested runs in other processes."""
    return "asyncio", {"use_uvloop": True}


@dataclass
class ConnectionRecord:
    """One connection of a client: the beats it received, and its close code and time, if it was closed."""

    received: list[int]
    code: int = 0
    closed_at: float = 0.0


class TimedClient(Client):
    """A client that records when each beat first reached a client.

    Attributes:
        received_at: By number; shared by all clients.
    """

    def __init__(self, url: str, received_at: dict[int, float]) -> None:
        super().__init__(url)
        self.received_at = received_at

    def _record(self, text: str | bytes) -> tuple[str, int]:
        name, number = super()._record(text)
        if name == "beat":
            self.received_at.setdefault(number, monotonic())
        return name, number


class ReconnectingClient:
    """A client that publishes now and then, or only receives, and reconnects when it is closed."""

    def __init__(self, url: str, name: str, received_at: dict[int, float], *, publishes: bool) -> None:
        self.connections: list[ConnectionRecord] = []
        self.client = TimedClient(url, received_at)
        self.publishes = publishes
        self._name = name

    def is_back(self, closed: Closed, after: int) -> bool:
        """Whether it has received what was published long after this beat, where it is closed on a new connection."""
        is_closed = closed == "all" or (closed == "publishers" and self.publishes)
        return len(self.connections) > is_closed and self.connections[-1].received[-1:] > [after + 50]

    async def run(self) -> None:
        """Connect, publish and receive until cancelled."""
        try:
            while True:
                await self.client.reopen()
                await self._serve_connection()
        finally:
            await self.client.close()

    async def _serve_connection(self) -> None:
        client = self.client
        publishing = asyncio.create_task(self._publish())
        record = ConnectionRecord(client.received["beat"])
        self.connections.append(record)
        try:
            await client.receive_until_closed()
            record.code, record.closed_at = client.close_code, monotonic()
        finally:
            publishing.cancel()
            await asyncio.wait([publishing])

    async def _publish(self) -> None:
        with suppress(ConnectionClosed):
            while self.publishes:
                await self.client.publish(self._name, 1)
                await asyncio.sleep(random.uniform(0.5, 1.5))


class Beat:
    """Publishes numbers over HTTP, and records which were accepted, and when.

    Attributes:
        accepted: When each number was accepted.
        refused: The statuses of the others.
        under_way: Those that a broker may have confirmed when it was killed, before it sent them to a subscriber.
    """

    def __init__(self, server: Server) -> None:
        self.accepted: dict[int, float] = {}
        self.refused: Counter[int] = Counter()
        self.under_way: set[int] = set()
        self._url = f"http://127.0.0.1:{server.port}/rooms/{ROOM}"

    def note_kill(self) -> None:
        """Record what is in progress: the last number that was accepted, and the one after it."""
        last = max(self.accepted)
        self.under_way |= {last, last + 1}

    async def run(self) -> None:
        """Publish until cancelled."""
        async with httpx.AsyncClient(timeout=60) as http:
            for number in count():
                response = await http.post(self._url, content=f"beat {number}")
                if response.status_code == 200:
                    self.accepted[number] = monotonic()
                else:
                    assert int(response.headers["retry-after"]) > 0
                    self.refused[response.status_code] += 1
                await asyncio.sleep(0.03)


def lost(record: ConnectionRecord, beat: Beat, delivered_at: dict[int, float]) -> list[int]:
    """Return what was accepted, delivered before this connection was closed, and not received on it.

    Counted from the first number it received; on a connection that is still open, up to the last one.
    """
    first, last = (record.received[0], record.received[-1]) if record.received else (sys.maxsize, 0)
    expected = [
        number
        for number, at in delivered_at.items()
        if number in beat.accepted
        and first < number
        and (number < last or (record.code and at < record.closed_at - MARGIN_SECONDS))
    ]
    return sorted(set(expected).difference(record.received, beat.under_way))


async def outage(
    broker: Broker, clients: Collection[ReconnectingClient], beat: Beat, *, closed: Closed, times: int, seconds: float
) -> None:
    """Kill and restart the broker; return when every client has received new messages on an open connection."""
    async with asyncio.timeout(30):
        while not all(client.connections and len(client.connections[-1].received) > 10 for client in clients):
            await asyncio.sleep(0.05)
    for number in range(times):
        if number:
            await asyncio.sleep(seconds)
        await asyncio.to_thread(broker.kill9)
        beat.note_kill()
        await asyncio.sleep(seconds)
        if isinstance(broker, ProcessBroker):
            broker.launch()
            await asyncio.to_thread(broker.wait_until_up)
        else:
            await asyncio.to_thread(broker.start)
    back = max(beat.accepted)
    async with asyncio.timeout(60):
        while not all(client.is_back(closed, back) for client in clients):
            await asyncio.sleep(0.05)


@pytest.fixture
def broker(request: pytest.FixtureRequest) -> Broker:
    """A private broker of the kind that the parameter names."""
    made: Broker = request.getfixturevalue(f"private_{request.param}")()
    return made


@dataclass
class OutageResult:
    """The result of an outage: the connections of each client, what was published, and what the worker logged."""

    connections: list[list[ConnectionRecord]]
    beat: Beat
    received_at: dict[int, float]
    log: str

    def assert_nothing_lost(self, delivered_at: dict[int, float]) -> None:
        """Assert that every client received what was accepted, and delivered at these times, until it was closed."""
        missing = [lost(record, self.beat, delivered_at) for records in self.connections for record in records]
        assert [numbers for numbers in missing if numbers] == []

    def assert_quiet(self, *, outages: int = 1) -> None:
        """Assert that the log is short and holds no traceback."""
        lines = [line for line in self.log.splitlines() if _UVICORN_REFUSED not in line]
        assert (len(lines) <= MAX_LOG_LINES * outages, "Traceback" in self.log) == (True, False), self.log


async def outage_at(
    server: Server, broker: Broker, *, closed: Closed, times: int = 1, seconds: float = AWAY_SECONDS
) -> OutageResult:
    """Let clients publish through outages of so many seconds each, with as many between them."""
    url = f"{server.ws_url}/rooms/{ROOM}"
    received_at: dict[int, float] = {}
    # Those that only receive are still connected when the broker is back.
    clients = [
        ReconnectingClient(url, f"client{number}", received_at, publishes=number % 3 > 0) for number in range(SIZE)
    ]
    beat = Beat(server)
    before = len(server.log.read_text())
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(run) for run in (beat.run(), *(client.run() for client in clients))]
        await outage(broker, clients, beat, closed=closed, times=times, seconds=seconds)
        log = server.log.read_text()[before:]
        for task in running:
            task.cancel()
    return OutageResult([client.connections for client in clients], beat, received_at, log)


@pytest.mark.parametrize(
    ("server_name", "broker", "closed"),
    [
        ("uvicorn", "redis", "all"),
        ("gunicorn", "redis", "all"),
        ("uvicorn", "nats", "all"),
        ("uvicorn", "kafka", "publishers"),  # whose link resumes
    ],
    indirect=["broker"],
)
async def test_publishing_clients(server_name: str, broker: Broker, closed: Closed, tmp_path: Path) -> None:
    """None is closed with 1011, nor all at once; the log is short; a client receives everything until its close."""
    with serving(server_name, broker.url, tmp_path, workers=1, environment=ENVIRONMENT) as server:
        result = await outage_at(server, broker, closed=closed)
    assert {record.code for records in result.connections for record in records if record.code} <= {1013, 4000}
    ends = sorted(records[0].closed_at for records in result.connections if records[0].code)
    assert ends[-1] - ends[0] > 1
    assert set(result.beat.refused) == {503}
    result.assert_nothing_lost(result.beat.accepted)
    result.assert_quiet()


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
async def test_flapping_broker(broker: Broker, tmp_path: Path) -> None:
    """The same with a broker that stops and starts every two seconds: a gap and a failure cause one close."""
    with serving("uvicorn", broker.url, tmp_path, workers=1, environment=ENVIRONMENT) as server:
        result = await outage_at(server, broker, closed="all", times=4, seconds=2)
    assert {record.code for records in result.connections for record in records if record.code} <= {1013, 4000}
    result.assert_nothing_lost(result.received_at)
    result.assert_quiet(outages=4)


@pytest.mark.parametrize(
    ("staying", "broker"),
    [(True, "redis"), (False, "redis"), (True, "nats"), (True, "kafka")],
    ids=["stays-redis", "reloads-redis", "stays-nats", "stays-kafka"],
    indirect=["broker"],
)
async def test_buffered_messages(staying: bool, broker: Broker, tmp_path: Path) -> None:
    """With `outage="buffer"` every accepted message reaches a client that stays, or a reloading one until its close."""
    environment = {**ENVIRONMENT, "TEST_BUFFER": "1", **({"TEST_ON_GAP": "1"} if staying else {})}
    with serving("uvicorn", broker.url, tmp_path, workers=1, environment=environment) as server:
        result = await outage_at(server, broker, closed="none" if staying else "all")
    # 1013: the broker was killed before it had confirmed a message of this client.
    assert {record.code for records in result.connections for record in records} <= (
        {0, 1013} if staying else {0, 1013, 4000}
    )
    assert sum(len(records) == 1 for records in result.connections) >= (SIZE // 2 if staying else 0)
    first, last = min(result.received_at), max(result.received_at)
    expected = {number for number in result.beat.accepted if first < number < last} - result.beat.under_way
    assert expected - result.received_at.keys() == set()
    result.assert_nothing_lost(result.received_at)
    result.assert_quiet()


@pytest.mark.parametrize("server_name", ["uvicorn", "gunicorn"])
async def test_new_clients(server_name: str, private_redis: StartRedis, tmp_path: Path) -> None:
    """Clients that connect while the broker is away are refused with 503 and Retry-After, in few log lines."""
    broker = private_redis()
    with serving(server_name, broker.url, tmp_path, workers=1, environment=ENVIRONMENT) as server:
        before = len(server.log.read_text())
        broker.kill9()
        refusals = await asyncio.gather(*(refusal(f"{server.ws_url}/rooms/{ROOM}") for _ in range(SIZE)))
        broker.start()
    log = server.log.read_text()[before:]
    assert {status for status, _ in refusals} == {503}
    # Not all at the same time.
    assert {int(seconds) > 0 for _, seconds in refusals} == {True}
    assert len({seconds for _, seconds in refusals}) > 1
    refused = [line for line in log.splitlines() if "refused a WebSocket" in line]
    numbers = [int(number) for line in refused for number in re.findall(r"(\d+) within 10 s", line)]
    assert (sum(numbers), len(refused) <= 2, "Traceback" in log) == (SIZE, True, False), log


async def refusal(url: str) -> tuple[int, str]:
    """Return the status with which a new client is refused, and after how many seconds it may reconnect."""
    with pytest.raises(InvalidStatus) as refused:
        async with connect(url, open_timeout=30):
            pytest.fail("a client was accepted")
    response = refused.value.response
    return response.status_code, response.headers["retry-after"]
