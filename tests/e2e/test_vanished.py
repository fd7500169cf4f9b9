"""A client that vanishes without a word is found out and let go; the others stay."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import uvicorn
from fastapi import FastAPI, WebSocket
from websockets.asyncio.client import connect

from backplane import Backplane
from backplane.connection.limits import Limits
from backplane.server.uvicorn import DirectLaneProtocol
from backplane.testing.proxy import FaultProxy

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from websockets.asyncio.client import ClientConnection

pytestmark = pytest.mark.anyio

HEARTBEAT_SECONDS = 0.3
# Far less than what TCP needs to notice by itself, and generous for a busy machine.
WAIT_SECONDS = 15


class Site:
    """A served application.

    Attributes:
        backplane: Its backplane.
        ended: The name of each client whose handler has ended.
        port: Where it is.
    """

    def __init__(self, backplane: Backplane) -> None:
        self.backplane = backplane
        self.ended: list[str] = []
        self.port = 0

    async def connections(self, count: int) -> None:
        """Wait until there are so many."""
        async with asyncio.timeout(WAIT_SECONDS):
            while (await self.backplane.health()).connections != count:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def serving() -> AsyncGenerator[Site]:
    """Serve a room on the direct lane, without pings of the server's own."""
    site = Site(Backplane("memory://", limits=Limits(heartbeat_seconds=HEARTBEAT_SECONDS)))
    app = FastAPI(lifespan=site.backplane.lifespan)

    @app.websocket("/{name}")
    async def handler(websocket: WebSocket, name: str) -> None:
        async with site.backplane.connect(websocket, "room") as connection:
            await connection.send("hello")
            async for message in connection:
                await site.backplane.publish("room", message)
        site.ended.append(name)

    config = uvicorn.Config(
        app, port=0, log_level="critical", lifespan="on", ws=DirectLaneProtocol, ws_ping_interval=None
    )
    server = uvicorn.Server(config)
    # `serve` would take over the signals of pytest
    running = asyncio.create_task(server._serve())  # pyright: ignore[reportPrivateUsage]
    while not server.started:
        await asyncio.sleep(0.01)
    site.port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield site
    finally:
        server.should_exit = True
        await running


async def client(stack: AsyncExitStack, address: str) -> ClientConnection:
    """Return a client that answers pings, sends none of its own, and is in the room."""
    connection = await stack.enter_async_context(connect(address, ping_interval=None, close_timeout=0.1))
    assert await connection.recv() == "hello"
    return connection


async def test_vanished_client_is_let_go() -> None:
    """A client behind a line that has gone silent is gone after two heartbeats; one on a good line stays."""
    async with (
        serving() as site,
        FaultProxy(f"ws://127.0.0.1:{site.port}") as proxy,
        AsyncExitStack() as stack,
    ):
        there = await client(stack, f"ws://127.0.0.1:{site.port}/there")
        for number in range(3):
            await client(stack, f"{proxy.url}/vanished-{number}")
        await site.connections(4)
        proxy.silence()
        await site.connections(1)
        assert sorted(site.ended) == ["vanished-0", "vanished-1", "vanished-2"]
        assert site.backplane.statistics()["closed_silent"] == 3
        await there.send("still here")
        assert await there.recv() == "still here"


async def test_one_way_is_enough() -> None:
    """A client whose answers alone are lost is gone as well, whatever still reaches it."""
    async with (
        serving() as site,
        FaultProxy(f"ws://127.0.0.1:{site.port}") as proxy,
        AsyncExitStack() as stack,
    ):
        await client(stack, f"{proxy.url}/vanished")
        proxy.silence("to_broker")
        await site.connections(0)
        assert site.ended == ["vanished"]
        assert site.backplane.statistics()["closed_silent"] == 1
