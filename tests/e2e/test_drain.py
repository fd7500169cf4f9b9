"""A deploy: SIGTERM empties a server bit by bit before it ends, and a lost broker tells every client to reload."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import TYPE_CHECKING

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from backplane import Backplane
from tests.e2e.clients import open_audience
from tests.servers import serving

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import StartRedis
    from tests.e2e.clients import Audience, Client
    from tests.servers import Server

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

ROOM = "lobby"
SIZE = 160


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """One event loop is enough: what is tested runs in other processes."""
    return "asyncio", {"use_uvloop": True}


class Watching:
    """Keeps the order in which clients are cut, while a message every few milliseconds tells who still hears.

    Attributes:
        cut: The clients in the order of their ends.
        beat_at_half: The message that was published when half of them were cut.
    """

    def __init__(self, audience: Audience, broker_url: str) -> None:
        self.cut: list[Client] = []
        self.beat_at_half = 0
        self.some_cut = asyncio.Event()
        self._audience = audience
        self._broker_url = broker_url
        self._beat = 0

    async def run(self) -> None:
        """Watch until every client is cut."""
        async with Backplane(self._broker_url) as backplane:
            beating = asyncio.create_task(self._publish(backplane))
            async with asyncio.timeout(60), asyncio.TaskGroup() as watching:
                for client in self._audience.clients:
                    watching.create_task(self._watch(client))
            beating.cancel()
            await asyncio.wait([beating])

    async def _publish(self, backplane: Backplane) -> None:
        for self._beat in count():
            await backplane.publish(ROOM, f"beat {self._beat}")
            await asyncio.sleep(0.01)

    async def _watch(self, client: Client) -> None:
        await client.hear_until_cut()
        self.cut.append(client)
        self.some_cut.set()
        if len(self.cut) == SIZE // 2:
            self.beat_at_half = self._beat


async def refused_status(server: Server) -> int:
    """Return how the server answers a new client."""
    with pytest.raises(InvalidStatus) as refused:
        async with connect(f"{server.ws_url}/rooms/{ROOM}"):
            pytest.fail("a draining worker took a client")
    return refused.value.response.status_code


@pytest.mark.parametrize(("server_name", "workers"), [("uvicorn", 1), ("uvicorn", 2), ("gunicorn", 2)])
async def test_sigterm_empties_the_server_bit_by_bit(
    server_name: str, workers: int, ipc_url: str, tmp_path: Path
) -> None:
    """Not ready and no new clients at once; each client is told 1012, in its turn; then the server ends by itself."""
    environment = {"TEST_DRAIN_SECONDS": "3"}
    with serving(server_name, ipc_url, tmp_path, workers=workers, environment=environment) as server:
        assert (await asyncio.to_thread(server.ask_ready))[0] == 200
        async with open_audience(f"{server.ws_url}/rooms/{ROOM}", SIZE) as audience:
            watching = Watching(audience, ipc_url)
            watched = asyncio.create_task(watching.run())
            server.terminate()
            await asyncio.wait_for(watching.some_cut.wait(), 30)
            assert (await asyncio.to_thread(server.ask_ready))[0] == 503
            assert await refused_status(server) == 503
            assert len(watching.cut) < SIZE
            await watched
            assert {client.close_code for client in watching.cut} == {1012}
            # Who was cut late has heard what was published when half of all were gone already.
            late = [client for client in watching.cut if client.heard["beat"][-1:] > [watching.beat_at_half]]
            assert len(late) > SIZE // 4
        await asyncio.to_thread(server.wait_for_end)


@pytest.mark.parametrize("told", ["close", "message"])
async def test_lost_broker_reaches_every_client_of_every_worker(
    told: str, private_redis: StartRedis, tmp_path: Path
) -> None:
    """When Redis is killed and back each client hears of the gap exactly once, by close or message, and hears again."""
    broker = private_redis()
    environment = {"TEST_DRAIN_SECONDS": "1", **({"TEST_ON_GAP": "1"} if told == "message" else {})}
    with serving("gunicorn", broker.url, tmp_path, workers=2, environment=environment) as server:
        async with open_audience(f"{server.ws_url}/rooms/{ROOM}", 60) as audience:
            await audience.spread(workers=2)
            await asyncio.to_thread(broker.kill9)
            broker.start()
            if told == "close":
                await audience.hear_until_cut()
                assert {client.close_code for client in audience.clients} == {4000}
                async with asyncio.timeout(60), asyncio.TaskGroup() as reopening:
                    for client in audience.clients:
                        reopening.create_task(client.reopen())
            else:
                await audience.hear({"gap": 1})
            await audience.clients[0].publish("again", 20)
            await audience.hear({"again": 20})
            assert audience.misheard({"again": 20})[:5] == []
            expected: list[list[int]] = [[0]] if told == "message" else [[]]
            assert [client.heard["gap"] for client in audience.clients] == expected * 60
