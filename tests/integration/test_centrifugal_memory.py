"""What an SDK client keeps in memory: nothing of its request while it is connected, and nothing after its end."""

from __future__ import annotations

import asyncio
import gc
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from weakref import finalize, ref

import pytest
from fastapi import FastAPI
from starlette.websockets import WebSocket  # noqa: TC002  # FastAPI reads it
from websockets.asyncio.client import connect

from backplane import Backplane
from backplane.centrifugal import Accepted, Centrifugal
from backplane.server.uvicorn import DirectLaneProtocol
from tests.server_in_loop import serving_in_loop

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from backplane import Connection
    from backplane.centrifugal import ConnectRequest

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 60.0
SUBSCRIBE = '{"id":2,"subscribe":{"channel":"a"}}'
COMMANDS = {
    "only the connect": [],
    "a subscribe": [SUBSCRIBE],
    "a subscribe and an unsubscribe": [SUBSCRIBE, '{"id":3,"unsubscribe":{"channel":"a"}}'],
    "a command that is refused": ['{"id":2,"publish":{"channel":"a","data":{}}}'],
}


class Owned:
    """What belongs to a client."""


class Site:
    """A served application.

    Attributes:
        url: Of its endpoint.
        websockets: The request of each client.
        freed: Set once what belongs to the last client is freed.
    """

    url = ""

    def __init__(self) -> None:
        self.websockets: list[ref[WebSocket]] = []
        self.freed = asyncio.Event()

    def owned(self) -> Owned:
        """Return what belongs to one client."""
        made = Owned()
        finalize(made, self.freed.set)
        return made


@asynccontextmanager
async def serving() -> AsyncGenerator[Site]:
    """Serve an endpoint on the direct lane; clients are in `side` from their connect on."""
    site = Site()
    backplane = Backplane("memory://")
    centrifugal = Centrifugal(backplane)

    @centrifugal.on_connect
    def on_connect(_: Connection, _request: ConnectRequest) -> Accepted:
        return Accepted(user="ann", channels=("side",))

    app = FastAPI(lifespan=backplane.lifespan)

    @app.websocket("/ws")
    async def endpoint(websocket: WebSocket) -> None:
        site.websockets.append(ref(websocket))
        await centrifugal.serve(websocket, context=site.owned())

    async with serving_in_loop(app, ws=DirectLaneProtocol) as server:
        site.url = f"{server.ws_url}/ws"
        yield site


async def replied(client: Any, commands: list[str]) -> None:
    """Send a connect and these commands, each after the reply to the one before."""
    for number, command in enumerate(['{"id":1,"connect":{}}', *commands], 1):
        await client.send(command)
        while f'"id":{number}' not in str(await client.recv()):  # a push
            pass


async def test_a_handed_over_client_keeps_nothing_of_its_request() -> None:
    """The request, with its headers and the server's protocol, is freed while the client is connected."""
    async with serving() as site, connect(site.url) as client:
        await replied(client, [SUBSCRIBE])
        gc.collect()
        assert [websocket() for websocket in site.websockets] == [None]


@pytest.mark.parametrize("commands", COMMANDS.values(), ids=COMMANDS)
async def test_an_ended_client_is_freed(commands: list[str]) -> None:
    """What belongs to a client is freed at its end, without a garbage collection, whatever its commands were."""
    async with serving() as site:
        gc.disable()
        try:
            async with connect(site.url) as client, asyncio.timeout(WAIT_SECONDS):
                await replied(client, commands)
            async with asyncio.timeout(WAIT_SECONDS):
                await site.freed.wait()
        finally:
            gc.enable()
