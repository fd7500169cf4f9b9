"""A deploy: SIGTERM drains a server gradually before it ends, and a lost broker closes or notifies every client."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import TYPE_CHECKING

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from backplane import Backplane
from tests.e2e.clients import open_clients
from tests.servers import serving

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import StartRedis
    from tests.e2e.clients import Client, ClientGroup
    from tests.servers import Server

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

ROOM = "lobby"
SIZE = 160


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """One event loop is enough: what is tested runs in other processes."""
    return "asyncio", {"use_uvloop": True}


class CloseRecorder:
    """Records the order in which clients are closed, while a message every few milliseconds is published.

    Attributes:
        closed: The clients in the order in which they were closed.
        beat_at_half: The message that was published when half of them were closed.
    """

    def __init__(self, group: ClientGroup, broker_url: str) -> None:
        self.closed: list[Client] = []
        self.beat_at_half = 0
        self.first_closed = asyncio.Event()
        self._audience = group
        self._broker_url = broker_url
        self._beat = 0

    async def run(self) -> None:
        """Record until every client is closed."""
        async with Backplane(self._broker_url) as backplane:
            publishing = asyncio.create_task(self._publish(backplane))
            async with asyncio.timeout(60), asyncio.TaskGroup() as receiving:
                for client in self._audience.clients:
                    receiving.create_task(self._record(client))
            publishing.cancel()
            await asyncio.wait([publishing])

    async def _publish(self, backplane: Backplane) -> None:
        for self._beat in count():
            await backplane.publish(ROOM, f"beat {self._beat}")
            await asyncio.sleep(0.01)

    async def _record(self, client: Client) -> None:
        await client.receive_until_closed()
        self.closed.append(client)
        self.first_closed.set()
        if len(self.closed) == SIZE // 2:
            self.beat_at_half = self._beat


async def refused_status(server: Server) -> int:
    """Return the status with which the server refuses a new client."""
    with pytest.raises(InvalidStatus) as refused:
        async with connect(f"{server.ws_url}/rooms/{ROOM}", open_timeout=30):
            pytest.fail("a draining worker accepted a client")
    return refused.value.response.status_code


@pytest.mark.parametrize(("server_name", "workers"), [("uvicorn", 1), ("uvicorn", 2), ("gunicorn", 2)])
async def test_sigterm_drains_the_server_gradually(
    server_name: str, workers: int, ipc_url: str, tmp_path: Path
) -> None:
    """Not ready and no new clients at once; each client is closed with 1012, in turn; then the server ends."""
    environment = {"TEST_DRAIN_SECONDS": "6"}  # of which a busy machine takes some to ask
    with serving(server_name, ipc_url, tmp_path, workers=workers, environment=environment) as server:
        assert (await asyncio.to_thread(server.get_ready))[0] == 200
        async with open_clients(f"{server.ws_url}/rooms/{ROOM}", SIZE) as group:
            recorder = CloseRecorder(group, ipc_url)
            recording = asyncio.create_task(recorder.run())
            server.terminate()
            await asyncio.wait_for(recorder.first_closed.wait(), 30)
            assert (await asyncio.to_thread(server.get_ready))[0] == 503
            assert await refused_status(server) == 503
            assert len(recorder.closed) < SIZE
            await recording
            assert {client.close_code for client in recorder.closed} == {1012}
            # Clients that were closed late have received what was published when half of all were closed already.
            late = [client for client in recorder.closed if client.received["beat"][-1:] > [recorder.beat_at_half]]
            assert len(late) > SIZE // 4
        await asyncio.to_thread(server.wait_for_end)


@pytest.mark.parametrize("notice", ["close", "message"])
async def test_lost_broker_reaches_every_client_of_every_worker(
    notice: str, private_redis: StartRedis, tmp_path: Path
) -> None:
    """After an outage of Redis each client is notified of the gap once, by close or message, and receives again."""
    broker = private_redis()
    environment = {"TEST_DRAIN_SECONDS": "1", **({"TEST_ON_GAP": "1"} if notice == "message" else {})}
    with serving("gunicorn", broker.url, tmp_path, workers=2, environment=environment) as server:
        async with open_clients(f"{server.ws_url}/rooms/{ROOM}", 60) as group:
            await group.spread(workers=2)
            await asyncio.to_thread(broker.kill9)
            broker.start()
            if notice == "close":
                await group.receive_until_closed()
                assert {client.close_code for client in group.clients} == {4000}
                async with asyncio.timeout(60), asyncio.TaskGroup() as reopening:
                    for client in group.clients:
                        reopening.create_task(client.reopen())
            else:
                await group.receive({"gap": 1})
            await group.clients[0].publish("again", 20)
            await group.receive({"again": 20})
            assert group.delivery_errors({"again": 20})[:5] == []
            expected: list[list[int]] = [[0]] if notice == "message" else [[]]
            assert [client.received["gap"] for client in group.clients] == expected * 60
