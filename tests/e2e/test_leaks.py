"""However a handler ends, it leaks nothing: no task, no subscription, no object.

The server runs in the event loop of the test, so that what is left can be counted.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from contextlib import asynccontextmanager
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI, WebSocket
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from backplane import Backplane, Connection, Settings
from tests.server_in_loop import serving_in_loop

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

ASYNCIO, UVLOOP = (("asyncio", {"use_uvloop": uvloop}) for uvloop in (False, True))
PLAIN, LANE = "websockets-sansio", "backplane.server.uvicorn:DirectLaneProtocol"
full = pytest.mark.full
# What a client leaves can depend on its adapter, its protocol and the event loop: any two of these meet once, most of
# them in the full suite alone.
PAIRS = [
    pytest.param(ASYNCIO, "memory", PLAIN, id="asyncio-memory-plain"),
    pytest.param(UVLOOP, "memory", LANE, id="uvloop-memory-lane", marks=full),
    pytest.param(UVLOOP, "ipc", PLAIN, id="uvloop-ipc-plain", marks=full),
    pytest.param(ASYNCIO, "ipc", LANE, id="asyncio-ipc-lane", marks=full),
    pytest.param(ASYNCIO, "redis", PLAIN, id="asyncio-redis-plain", marks=full),
    pytest.param(UVLOOP, "redis", LANE, id="uvloop-redis-lane"),
]

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize(("anyio_backend", "url", "ws"), PAIRS, indirect=True)]


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    """The URL of each broker in turn."""
    if request.param == "redis":
        return str(request.getfixturevalue("redis_broker").url)
    return "memory://" if request.param == "memory" else str(request.getfixturevalue("ipc_url"))


class ServedApp:
    """A served application, and what it still holds."""

    def __init__(self, backplane: Backplane, url: str) -> None:
        self._backplane = backplane
        self._tasks: set[asyncio.Task[Any]] = set()
        self._before = _connections()  # which errors that earlier tests keep may hold
        self.url = url

    @asynccontextmanager
    async def client(self, path: str) -> AsyncGenerator[ClientConnection]:
        """Connect, and wait for the handler's first message."""
        self._tasks = self._tasks or asyncio.all_tasks()  # those of the server and of the test
        async with connect(self.url + path, open_timeout=60) as client:
            await client.recv()
            yield client

    async def wait_until_nothing_is_held(self) -> None:
        """Wait, within a bound, until the server holds nothing of any client."""
        held: list[object] = []
        try:
            async with asyncio.timeout(30):
                while held := self._held():
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(f"still held: {held}") from None

    def _held(self) -> list[object]:
        runtime = self._backplane._runtime  # pyright: ignore[reportPrivateUsage]
        assert runtime is not None
        objects = [found for found in _connections() if not any(found is known for known in self._before)]
        tasks = asyncio.all_tasks() - self._tasks
        return [
            *runtime.clients.connected,
            *runtime.hub.channels,
            *runtime.broker_subscriptions.wanted,
            *objects,
            *tasks,
        ]


def _connections() -> list[Connection]:
    gc.collect()
    return [found for found in gc.get_objects() if type(found) is Connection]


@pytest.fixture
def ws(request: pytest.FixtureRequest) -> str:
    """Uvicorn's WebSocket protocol, without the direct lane and with it."""
    protocol: str = request.param
    return protocol


@pytest.fixture
async def server(url: str, ws: str, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[ServedApp]:
    """An application whose clients end as its path names; every other one is handed over."""
    # pytest would keep the records of the log, with what was raised, and the connections in its frames.
    monkeypatch.setattr(logging.getLogger("backplane.connection.callback_handler"), "disabled", True)
    backplane = Backplane(url, settings=Settings(linger_seconds=0.02))
    app = FastAPI(lifespan=backplane.lifespan)
    clients = count()

    @app.websocket("/{room}/{ending}")
    async def handler(websocket: WebSocket, room: str, ending: str) -> None:
        async def handle(_: Connection, message: str | bytes) -> None:
            if ending == "crash":
                raise RuntimeError("the handler crashed")
            if ending == "cancel":
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            await backplane.publish(room, message)

        if next(clients) % 2:
            return await backplane.hand_over(
                websocket,
                *(room, f"{room}-2"),
                on_open=lambda connection: connection.send("hello"),
                on_message=handle,
            )
        async with backplane.connect(websocket, room, f"{room}-2") as connection:
            await connection.send("hello")
            async for message in connection:
                await handle(connection, message)
        return None

    async with serving_in_loop(app, log_level="critical", ws=ws) as uvicorn:
        yield ServedApp(backplane, uvicorn.ws_url)


async def test_a_thousand_connects_and_disconnects(server: ServedApp) -> None:
    """1,000 clients connect, send, receive their own message and disconnect: nothing of them is left."""

    async def visit(number: int) -> None:
        async with server.client(f"/room-{number}/normal") as client:
            await client.send("hi")
            assert await client.recv() == "hi"

    for start in range(0, 1000, 50):
        await asyncio.gather(*(visit(number) for number in range(start, start + 50)))
    await server.wait_until_nothing_is_held()


async def test_a_handler_that_crashes(server: ServedApp) -> None:
    """The client of a crashed handler is closed with 1011, and nothing is left."""
    for _ in range(2):
        async with server.client("/room/crash") as client:
            await client.send("now")
            with pytest.raises(ConnectionClosed) as closed:
                await client.recv()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1011
    await server.wait_until_nothing_is_held()


async def test_a_handler_that_is_cancelled(server: ServedApp) -> None:
    """A cancelled handler leaves nothing."""
    for _ in range(2):
        async with server.client("/room/cancel") as client:
            await client.send("now")
            await client.wait_closed()
    await server.wait_until_nothing_is_held()


async def test_clients_that_vanish(server: ServedApp) -> None:
    """Clients whose connection is reset without a close frame, with a message in transit to them, leave nothing."""
    async with server.client("/room/normal") as publisher:
        for _ in range(20):
            async with server.client("/room/normal") as client:
                await publisher.send("hi")
                client.transport.abort()
                assert await publisher.recv() == "hi"
    await server.wait_until_nothing_is_held()
