"""A path test on real brokers: the workers notice it, and no consumer of any kind receives it."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from starlette.websockets import WebSocket  # noqa: TC002  # FastAPI reads it
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.asyncio.client import connect

from backplane import Backplane, Connection, History
from backplane.broker.registry import broadcaster_from_url
from backplane.centrifugal.endpoint import Centrifugal, ConnectRequest
from backplane.fanout.codec import encode_path_test
from backplane.server.uvicorn import DirectLaneProtocol
from backplane.testing import RecordingSink
from tests.server_in_loop import serving_in_loop
from tests.tail_process import tailing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from websockets.asyncio.client import ClientConnection

    from tests.server_in_loop import ServerInLoop

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 60.0


@pytest.fixture(params=["ipc", "redis", "nats", "kafka"])
def broker_url(request: pytest.FixtureRequest) -> str:
    """The URL of each broker that connects processes, in turn."""
    if request.param == "ipc":
        return str(request.getfixturevalue("ipc_url"))
    return str(request.getfixturevalue(f"{request.param}_broker").own_url)


def application(backplane: Backplane) -> FastAPI:
    """Return an application that serves a channel in every way there is."""
    centrifugal = Centrifugal(backplane)

    @centrifugal.on_connect
    def accepted(_connection: Connection, _request: ConnectRequest) -> None:  # without a token
        pass

    app = FastAPI(lifespan=backplane.lifespan)

    @app.websocket("/ws/{channel}")
    async def websocket_route(websocket: WebSocket, channel: str) -> None:
        async with backplane.connect(websocket, channel, envelope="json") as connection:
            async for _ in connection:
                pass

    @app.websocket("/handed-over/{channel}")
    async def handed_over(websocket: WebSocket, channel: str) -> None:
        await backplane.hand_over(websocket, channel)

    @app.websocket("/sdk")
    async def sdk(websocket: WebSocket) -> None:
        await centrifugal.serve(websocket)

    @app.get("/events/{channel}")
    async def events(request: Request, channel: str) -> Response:
        return backplane.sse(request, channel)

    return app


async def text_of(client: ClientConnection) -> str:
    """Return what a client receives next, as text."""
    async with asyncio.timeout(WAIT_SECONDS):
        return str(await client.recv())


async def event_of(lines: AsyncIterator[str]) -> str:
    """Return the data of the next message of an event stream."""
    async with asyncio.timeout(WAIT_SECONDS):
        async for line in lines:
            if line.startswith("data: after"):
                return line
            assert "TEST" not in line
    raise AssertionError("the stream has ended")


async def send_test(url: str, channel: str) -> None:
    """Publish a path test, as another process does."""
    adapter = broadcaster_from_url(url)
    await adapter.start(RecordingSink())
    await adapter.publish(channel, encode_path_test(b"TEST_ID8", origin=bytes(8), published_at=1.0))
    await adapter.stop()


@pytest.mark.parametrize(
    ("channel", "protocol"),
    [("room", WebSocketsSansIOProtocol), ("kept", DirectLaneProtocol)],
    ids=["plain", "history on the lane"],
)
async def test_no_consumer_receives_it(broker_url: str, channel: str, protocol: Any) -> None:
    """WebSockets, with an envelope and without, streams, SDK clients, subscriptions and `tail` get what follows."""
    backplane = Backplane(broker_url, history={"kept": History()})
    async with AsyncExitStack() as stack:
        server: ServerInLoop = await stack.enter_async_context(serving_in_loop(application(backplane), ws=protocol))
        socket = await stack.enter_async_context(connect(f"{server.ws_url}/ws/{channel}"))
        handed_over = await stack.enter_async_context(connect(f"{server.ws_url}/handed-over/{channel}"))
        sdk = await stack.enter_async_context(connect(f"{server.ws_url}/sdk"))
        await sdk.send('{"id":1,"connect":{}}\n' + json.dumps({"id": 2, "subscribe": {"channel": channel}}))
        replies = ""
        while '"id":2' not in replies:
            replies += await text_of(sdk)
        assert '"error"' not in replies
        http = await stack.enter_async_context(httpx.AsyncClient(timeout=WAIT_SECONDS))
        stream = await stack.enter_async_context(http.stream("GET", f"{server.http_url}/events/{channel}"))
        messages = await stack.enter_async_context(backplane.subscribe(channel))
        tail = await asyncio.to_thread(stack.enter_context, tailing(broker_url, channel, "--json"))
        assert json.loads(await text_of(socket))["event"] == "joined"

        await send_test(broker_url, channel)
        async with asyncio.timeout(WAIT_SECONDS):
            while not backplane.statistics().path_tests:  # what others publish has no order with it
                await asyncio.sleep(0.001)
        await backplane.publish(channel, "after")

        assert json.loads(await text_of(socket))["text"] == "after"
        assert await text_of(handed_over) == "after"
        assert "after" in await text_of(sdk)
        assert await event_of(stream.aiter_lines()) == "data: after"
        async with asyncio.timeout(WAIT_SECONDS):
            assert getattr(await anext(messages), "data", None) == "after"
        assert tail.stdout is not None
        assert "after" in await asyncio.to_thread(tail.stdout.readline)
        statistics = backplane.statistics()
        assert (statistics.path_tests, statistics.malformed, statistics.unkept) == (1, 0, 0)
        if channel == "kept":
            page = await backplane.history("kept")
            assert [message.data for message in page.messages] == ["after"]
            async with backplane.subscribe("kept", rewind=5) as replayed, asyncio.timeout(WAIT_SECONDS):
                assert getattr(await anext(replayed), "data", None) == "after"
