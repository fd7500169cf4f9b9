"""What is counted of real clients, in each way that there is, and of subscriptions."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from fastapi import FastAPI
from starlette.requests import Request  # noqa: TC002  # FastAPI reads it
from starlette.responses import Response  # noqa: TC002  # FastAPI reads it
from starlette.websockets import WebSocket  # noqa: TC002  # FastAPI reads it
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.asyncio.client import connect

from backplane import Backlog, Backplane, Connection, Message
from backplane.centrifugal import Accepted, Centrifugal, ConnectRequest
from backplane.metrics.snapshot import snapshot
from backplane.server.uvicorn import DirectLaneProtocol
from tests.server_in_loop import serving_in_loop

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 60.0
TEXTS = ["one", "two", "three"]


def app_of(backplane: Backplane) -> FastAPI:
    """Return an application with one room, which clients can join in each way."""
    app = FastAPI(lifespan=backplane.lifespan)
    centrifugal = Centrifugal(backplane)
    centrifugal.on_connect(join_the_room)

    @app.websocket("/handler")
    async def handler(websocket: WebSocket) -> None:
        async with backplane.connect(websocket, "room") as connection:
            async for _ in connection:
                pass

    @app.websocket("/handed-over")
    async def handed_over(websocket: WebSocket) -> None:
        await backplane.hand_over(websocket, "room")

    @app.websocket("/sdk")
    async def sdk(websocket: WebSocket) -> None:
        await centrifugal.serve(websocket)

    @app.get("/stream")
    async def stream(request: Request) -> Response:
        return backplane.sse(request, "room")

    return app


def join_the_room(_: Connection, __: ConnectRequest) -> Accepted:
    """Let an SDK client receive the room."""
    return Accepted(channels=("room",))


def samples(backplane: Backplane, name: str) -> dict[tuple[str, ...], Any]:
    """Return the samples of a metric that are not 0, by the values of its labels."""
    found = snapshot(backplane)["metrics"][f"backplane_{name}"]
    return {tuple(labels): value for labels, value in found if value}


async def until(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not condition():
            await asyncio.sleep(0.005)


async def received_from(stream: httpx2.Response, count: int) -> list[str]:
    """Return the data of so many events of a stream."""
    found: list[str] = []
    async with asyncio.timeout(WAIT_SECONDS):
        async for line in stream.aiter_lines():
            if line.startswith("data: "):
                found.append(line.removeprefix("data: "))
            if len(found) == count:
                return found
    raise AssertionError("the stream has ended")


@pytest.mark.parametrize("protocol", [DirectLaneProtocol, WebSocketsSansIOProtocol], ids=["lane", "asgi"])
async def test_every_way_counts(protocol: Any) -> None:
    """Three messages to five kinds of subscribers are fifteen deliveries, none lost, with the lag of this worker."""
    transport = "lane" if protocol is DirectLaneProtocol else "asgi"
    backplane = Backplane("memory://")
    async with serving_in_loop(app_of(backplane), ws=protocol) as server, AsyncExitStack() as stack:
        handler = await stack.enter_async_context(connect(f"{server.ws_url}/handler"))
        handed_over = await stack.enter_async_context(connect(f"{server.ws_url}/handed-over"))
        sdk = await stack.enter_async_context(connect(f"{server.ws_url}/sdk"))
        await sdk.send(json.dumps({"id": 1, "connect": {}}))
        assert "room" in json.loads(await sdk.recv())["connect"]["subs"]
        http = await stack.enter_async_context(httpx2.AsyncClient())
        stream = await stack.enter_async_context(http.stream("GET", f"{server.http_url}/stream"))
        messages = await stack.enter_async_context(backplane.subscribe("room"))
        for text in TEXTS:
            await backplane.publish("room", text)
        for client in (handler, handed_over):
            assert [await client.recv() for _ in TEXTS] == TEXTS
        assert [json.loads(await sdk.recv())["push"]["pub"]["data"] for _ in TEXTS] == TEXTS
        items = [await anext(aiter(messages)) for _ in TEXTS]
        assert [item.data for item in items if isinstance(item, Message)] == TEXTS
        assert await received_from(stream, len(TEXTS)) == TEXTS
        await handler.send("hello")
        await until(lambda: backplane.statistics().client_messages == 2)
        statistics = backplane.statistics()
        assert (statistics.published, statistics.delivered, statistics.offered) == (3, 3, 15)
        assert (statistics.received_bytes, statistics.offered_bytes) == (11, 55)
        assert statistics.sent == 1  # the reply to the connect of the SDK client
        assert samples(backplane, "connections_opened_total") == {(transport,): 3, ("sse",): 1}
        assert samples(backplane, "sdk_connections_opened_total") == {(): 1}
        assert samples(backplane, "connections_handed_over") == ({(): 2} if transport == "lane" else {})
        assert samples(backplane, "messages_dropped_total") == {}
        lags = {labels: sum(value["counts"]) for labels, value in samples(backplane, "lag_seconds").items()}
        assert lags["received", "self"] == lags["written", "self"] > 0
        assert lags["received", "other"] == lags["written", "other"] == 0
        await handler.close()
        ended = {(transport, "client"): 1, ("sse", "none"): 1}
        await until(lambda: samples(backplane, "connections_closed_total") == ended)


@pytest.mark.parametrize(
    ("when_full", "reason", "dropped"),
    [("drop_oldest", "oldest", 3), ("drop_newest", "newest", 3), ("latest", "replaced", 4), ("close", "overrun", 1)],
)
async def test_what_a_subscription_loses(when_full: Any, reason: str, dropped: int) -> None:
    """Five messages, of which two may wait: what is not returned is in the counter of its reason."""
    async with Backplane("memory://") as backplane:
        backlog = Backlog(when_full=when_full, max_messages=2)
        async with backplane.subscribe("room", backlog=backlog) as messages:
            for number in range(5):
                await backplane.publish("room", f"{number}")
            await until(lambda: sum(samples(backplane, "messages_dropped_total").values()) >= dropped)
            assert samples(backplane, "messages_dropped_total") == {(reason, "subscription"): dropped}
            await anext(aiter(messages))
        left = 1 if when_full != "latest" else 0  # two waited, or one, and one was taken
        expected = {(reason, "subscription"): dropped} | ({("discarded", "subscription"): left} if left else {})
        assert samples(backplane, "messages_dropped_total") == expected
        if when_full == "close":
            assert samples(backplane, "slow_consumers_total") == {("subscription",): 1}
