"""A client that vanishes without a close is detected and closed; the others stay."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from fastapi import FastAPI, WebSocket
from websockets.asyncio.client import connect

from backplane import Backplane
from backplane.connection.limits import Limits
from backplane.server.uvicorn import DirectLaneProtocol
from backplane.testing.proxy import FaultProxy
from tests.server_in_loop import serving_in_loop

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from websockets.asyncio.client import ClientConnection

pytestmark = pytest.mark.anyio

BOTH_WAYS = pytest.mark.parametrize("hands_over", [False, True], ids=["handler", "handed over"])
HEARTBEAT_SECONDS = 0.8
# Far less than TCP's own timeouts, and generous for a busy machine.
WAIT_SECONDS = 60


class Room:
    """A served application with one room.

    Attributes:
        backplane: Its backplane.
        ended: The name of each client whose handler has ended.
        port: Its port.
    """

    def __init__(self, backplane: Backplane) -> None:
        self.backplane = backplane
        self.ended: asyncio.Queue[str] = asyncio.Queue()
        self.port = 0

    async def next_ended(self, count: int) -> list[str]:
        """Wait until so many handlers have ended; return the names of their clients, sorted."""
        async with asyncio.timeout(WAIT_SECONDS):
            return sorted([await self.ended.get() for _ in range(count)])

    async def connections(self) -> int:
        """Return how many connections there are."""
        return (await self.backplane.health()).connections


@asynccontextmanager
async def serving(hands_over: bool) -> AsyncGenerator[Room]:
    """Serve a room on the direct lane, without Uvicorn's own pings."""
    room = Room(Backplane("memory://", limits=Limits(heartbeat_seconds=HEARTBEAT_SECONDS)))
    app = FastAPI(lifespan=room.backplane.lifespan)

    @app.websocket("/{name}")
    async def handler(websocket: WebSocket, name: str) -> None:
        if hands_over:
            return await room.backplane.hand_over(
                websocket,
                "room",
                on_open=lambda connection: connection.send("hello"),
                on_message=lambda _, message: room.backplane.publish("room", message),
                on_close=lambda _: room.ended.put_nowait(name),
            )
        async with room.backplane.connect(websocket, "room") as connection:
            await connection.send("hello")
            async for message in connection:
                await room.backplane.publish("room", message)
        room.ended.put_nowait(name)
        return None

    async with serving_in_loop(app, ws=DirectLaneProtocol, ws_ping_interval=None) as server:
        room.port = server.port
        yield room


async def client(stack: AsyncExitStack, address: str) -> ClientConnection:
    """Return a client that answers pings, sends none of its own, and has joined the room."""
    connection = await stack.enter_async_context(connect(address, ping_interval=None, close_timeout=0.1))
    assert await connection.recv() == "hello"
    return connection


@BOTH_WAYS
async def test_vanished_client_is_closed(hands_over: bool) -> None:
    """A client whose network went silent is closed after two heartbeats; one with a working network stays."""
    async with (
        serving(hands_over) as room,
        FaultProxy(f"ws://127.0.0.1:{room.port}") as proxy,
        AsyncExitStack() as stack,
    ):
        there = await client(stack, f"ws://127.0.0.1:{room.port}/there")
        for number in range(3):
            await client(stack, f"{proxy.url}/vanished-{number}")
        assert await room.connections() == 4
        proxy.silence()
        assert await room.next_ended(3) == ["vanished-0", "vanished-1", "vanished-2"]
        assert await room.connections() == 1
        assert room.backplane.statistics().closed_silent == 3
        await there.send("still here")
        assert await there.recv() == "still here"


@BOTH_WAYS
async def test_one_silent_direction_is_enough(hands_over: bool) -> None:
    """A client whose replies alone are lost is closed as well, whatever still reaches it."""
    async with (
        serving(hands_over) as room,
        FaultProxy(f"ws://127.0.0.1:{room.port}") as proxy,
        AsyncExitStack() as stack,
    ):
        await client(stack, f"{proxy.url}/vanished")
        proxy.silence("to_broker")
        assert await room.next_ended(1) == ["vanished"]
        assert await room.connections() == 0
        assert room.backplane.statistics().closed_silent == 1
