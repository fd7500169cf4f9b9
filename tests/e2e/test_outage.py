"""An outage as clients see it: a broker away for 4 s under talking clients, as README's loop serves them."""

from __future__ import annotations

import asyncio
import random
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
# Over how long the clients are closed: 30 take three tenths of it.
ENVIRONMENT = {"TEST_DRAIN_SECONDS": "10", "TEST_LOG_LEVEL": "INFO"}
MAX_LOG_LINES = 10
# Whose connections end: those of talking clients by a message that cannot be published, all of them by a gap.
Closed = Literal["nobody", "talking", "everybody"]
# What Uvicorn's sans-I/O protocol logs of each handshake that is answered with an HTTP error.
_UVICORN_REFUSED = "ASGI callable returned without completing handshake."
# What is accepted so shortly before a client reads its close can be on its way to it.
MARGIN_SECONDS = 0.5


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """One event loop is enough: what is tested runs in other processes."""
    return "asyncio", {"use_uvloop": True}


@dataclass
class Stay:
    """One connection of a client: the beats it received, and how and when it was closed, if it was."""

    received: list[int]
    code: int = 0
    closed_at: float = 0.0


class Reception(Client):
    """A client that keeps when each beat first reached any of them.

    Attributes:
        received_at: By number; shared by all.
    """

    def __init__(self, url: str, received_at: dict[int, float]) -> None:
        super().__init__(url)
        self.received_at = received_at

    def _take(self, text: str | bytes) -> tuple[str, int]:
        name, number = super()._take(text)
        if name == "beat":
            self.received_at.setdefault(number, monotonic())
        return name, number


class Talker:
    """A client that sends something every now and then, or only listens, and connects again when it is closed."""

    def __init__(self, url: str, name: str, received_at: dict[int, float], *, talks: bool) -> None:
        self.stays: list[Stay] = []
        self.client = Reception(url, received_at)
        self.talks = talks
        self._name = name

    def is_back(self, closed: Closed, after: int) -> bool:
        """Whether it has received what was published long after this beat, where it is closed on a new connection."""
        is_closed = closed == "everybody" or (closed == "talking" and self.talks)
        return len(self.stays) > is_closed and self.stays[-1].received[-1:] > [after + 50]

    async def run(self) -> None:
        """Talk until cancelled."""
        try:
            while True:
                await self.client.reopen()
                await self._stay()
        finally:
            await self.client.close()

    async def _stay(self) -> None:
        client = self.client
        talking = asyncio.create_task(self._talk())
        stay = Stay(client.heard["beat"])
        self.stays.append(stay)
        try:
            await client.hear_until_cut()
            stay.code, stay.closed_at = client.close_code, monotonic()
        finally:
            talking.cancel()
            await asyncio.wait([talking])

    async def _talk(self) -> None:
        with suppress(ConnectionClosed):
            while self.talks:
                await self.client.publish(self._name, 1)
                await asyncio.sleep(random.uniform(0.5, 1.5))


class Beat:
    """Publishes numbers over HTTP, and keeps which were accepted, and when.

    Attributes:
        accepted: When each number was accepted.
        refused: The statuses of the others.
        under_way: Those that a broker may have answered in the moment it was killed, before it sent them to anybody.
    """

    def __init__(self, server: Server) -> None:
        self.accepted: dict[int, float] = {}
        self.refused: Counter[int] = Counter()
        self.under_way: set[int] = set()
        self._url = f"http://127.0.0.1:{server.port}/rooms/{ROOM}"

    def note_kill(self) -> None:
        """Note what is under way: the last number that was accepted, and the one after it."""
        last = max(self.accepted)
        self.under_way |= {last, last + 1}

    async def run(self) -> None:
        """Publish until cancelled."""
        async with httpx.AsyncClient(timeout=30) as http:
            for number in count():
                answer = await http.post(self._url, content=f"beat {number}")
                if answer.status_code == 200:
                    self.accepted[number] = monotonic()
                else:
                    assert int(answer.headers["retry-after"]) > 0
                    self.refused[answer.status_code] += 1
                await asyncio.sleep(0.03)


def lost(stay: Stay, beat: Beat, delivered_at: dict[int, float]) -> list[int]:
    """Return what was accepted, delivered before this client was closed, and did not reach it.

    Counted from the first number it received; of a client that is not closed yet, up to the last one.
    """
    first, last = (stay.received[0], stay.received[-1]) if stay.received else (sys.maxsize, 0)
    owed = [
        number
        for number, at in delivered_at.items()
        if number in beat.accepted
        and first < number
        and (number < last or (stay.code and at < stay.closed_at - MARGIN_SECONDS))
    ]
    return sorted(set(owed).difference(stay.received, beat.under_way))


async def outage(
    broker: Broker, talkers: Collection[Talker], beat: Beat, *, closed: Closed, times: int, seconds: float
) -> None:
    """Take the broker away, and return when every client has received something new on a connection that stays."""
    async with asyncio.timeout(30):
        while not all(talker.stays and len(talker.stays[-1].received) > 10 for talker in talkers):
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
        while not all(talker.is_back(closed, back) for talker in talkers):
            await asyncio.sleep(0.05)


@pytest.fixture
def broker(request: pytest.FixtureRequest) -> Broker:
    """The broker of the test's own that its parameter names."""
    made: Broker = request.getfixturevalue(f"private_{request.param}")()
    return made


@dataclass
class Trial:
    """What came of an outage: the connections of each client, what was published, and what the worker logged."""

    stays: list[list[Stay]]
    beat: Beat
    received_at: dict[int, float]
    log: str

    def assert_nothing_lost(self, delivered_at: dict[int, float]) -> None:
        """Assert that every client received what was accepted, and delivered at these times, until it was closed."""
        missed = [lost(stay, self.beat, delivered_at) for stays in self.stays for stay in stays]
        assert [numbers for numbers in missed if numbers] == []

    def assert_quiet(self, *, outages: int = 1) -> None:
        """Assert that the log is short and holds no traceback."""
        ours = [line for line in self.log.splitlines() if _UVICORN_REFUSED not in line]
        assert (len(ours) <= MAX_LOG_LINES * outages, "Traceback" in self.log) == (True, False), self.log


async def outage_at(
    server: Server, broker: Broker, *, closed: Closed, times: int = 1, seconds: float = AWAY_SECONDS
) -> Trial:
    """Let clients talk through outages of so many seconds each, with as many between."""
    url = f"{server.ws_url}/rooms/{ROOM}"
    received_at: dict[int, float] = {}
    # Those that only listen are still there when the broker is back.
    talkers = [Talker(url, f"talk{number}", received_at, talks=number % 3 > 0) for number in range(SIZE)]
    beat = Beat(server)
    before = len(server.log.read_text())
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(run) for run in (beat.run(), *(talker.run() for talker in talkers))]
        await outage(broker, talkers, beat, closed=closed, times=times, seconds=seconds)
        log = server.log.read_text()[before:]
        for task in running:
            task.cancel()
    return Trial([talker.stays for talker in talkers], beat, received_at, log)


@pytest.mark.parametrize(
    ("server_name", "broker", "closed"),
    [
        ("uvicorn", "redis", "everybody"),
        ("gunicorn", "redis", "everybody"),
        ("uvicorn", "nats", "everybody"),
        ("uvicorn", "kafka", "talking"),  # whose link resumes
    ],
    indirect=["broker"],
)
async def test_talking_clients(server_name: str, broker: Broker, closed: Closed, tmp_path: Path) -> None:
    """Nobody is closed with 1011, nor all at once; the log is short; a client receives everything until its close."""
    with serving(server_name, broker.url, tmp_path, workers=1, environment=ENVIRONMENT) as server:
        trial = await outage_at(server, broker, closed=closed)
    assert {stay.code for stays in trial.stays for stay in stays if stay.code} <= {1013, 4000}
    ends = sorted(stays[0].closed_at for stays in trial.stays if stays[0].code)
    assert ends[-1] - ends[0] > 1
    assert set(trial.beat.refused) == {503}
    trial.assert_nothing_lost(trial.beat.accepted)
    trial.assert_quiet()


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
async def test_flapping_broker(broker: Broker, tmp_path: Path) -> None:
    """A broker that comes and goes every two seconds changes none of that: gaps and failures meet in one close."""
    with serving("uvicorn", broker.url, tmp_path, workers=1, environment=ENVIRONMENT) as server:
        trial = await outage_at(server, broker, closed="everybody", times=4, seconds=2)
    assert {stay.code for stays in trial.stays for stay in stays if stay.code} <= {1013, 4000}
    trial.assert_nothing_lost(trial.received_at)
    trial.assert_quiet(outages=4)


@pytest.mark.parametrize(
    ("staying", "broker"),
    [(True, "redis"), (False, "redis"), (True, "nats"), (True, "kafka")],
    ids=["stays-redis", "reloads-redis", "stays-nats", "stays-kafka"],
    indirect=["broker"],
)
async def test_buffered_messages(staying: bool, broker: Broker, tmp_path: Path) -> None:
    """With `outage="buffer"` every accepted message reaches a client that stays, and one that reloads until then."""
    environment = {**ENVIRONMENT, "TEST_BUFFER": "1", **({"TEST_ON_GAP": "1"} if staying else {})}
    with serving("uvicorn", broker.url, tmp_path, workers=1, environment=environment) as server:
        trial = await outage_at(server, broker, closed="nobody" if staying else "everybody")
    # 1013: the broker was killed before it had answered a message of this client.
    assert {stay.code for stays in trial.stays for stay in stays} <= ({0, 1013} if staying else {0, 1013, 4000})
    assert sum(len(stays) == 1 for stays in trial.stays) >= (SIZE // 2 if staying else 0)
    first, last = min(trial.received_at), max(trial.received_at)
    owed = {number for number in trial.beat.accepted if first < number < last} - trial.beat.under_way
    assert owed - trial.received_at.keys() == set()
    trial.assert_nothing_lost(trial.received_at)
    trial.assert_quiet()


@pytest.mark.parametrize("server_name", ["uvicorn", "gunicorn"])
async def test_new_clients(server_name: str, private_redis: StartRedis, tmp_path: Path) -> None:
    """Clients that come while the broker is away are answered 503 with when to come back, in few lines of log."""
    broker = private_redis()
    with serving(server_name, broker.url, tmp_path, workers=1, environment=ENVIRONMENT) as server:
        before = len(server.log.read_text())
        broker.kill9()
        answers = await asyncio.gather(*(refusal(f"{server.ws_url}/rooms/{ROOM}") for _ in range(SIZE)))
        log = server.log.read_text()[before:]
        broker.start()
    assert {status for status, _ in answers} == {503}
    # Not all at the same time.
    assert {int(seconds) > 0 for _, seconds in answers} == {True}
    assert len({seconds for _, seconds in answers}) > 1
    refused = [line for line in log.splitlines() if "refused a WebSocket" in line]
    assert (len(refused), "Traceback" in log) == (1, False), log


async def refusal(url: str) -> tuple[int, str]:
    """Return with which status a new client is refused, and after how many seconds it may come back."""
    with pytest.raises(InvalidStatus) as refused:
        async with connect(url, open_timeout=30):
            pytest.fail("a client was let in")
    response = refused.value.response
    return response.status_code, response.headers["retry-after"]
