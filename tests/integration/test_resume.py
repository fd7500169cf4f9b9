"""Clients that come and go on real Uvicorn servers: by the lane, compressed or not, and by ASGI; and event streams."""

from __future__ import annotations

import asyncio
import json
import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from fastapi import FastAPI, Request, Response, WebSocket
from websockets.asyncio.client import connect

from backplane import Backplane, Connection, History
from backplane.server.uvicorn import DirectLaneProtocol, SharedCompressionProtocol
from tests.server_in_loop import serving_in_loop

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from backplane.connect_options import ConnectOptions
    from tests.server_in_loop import ServerInLoop

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 60.0
MESSAGES = 400
WAYS: dict[str, tuple[Any, str | None, bool]] = {
    "lane": (DirectLaneProtocol, None, False),
    "lane, compressed": (SharedCompressionProtocol, "deflate", False),
    "handed over": (DirectLaneProtocol, None, True),
    "handed over, compressed": (SharedCompressionProtocol, "deflate", True),
    "ASGI": ("websockets-sansio", None, False),
    "ASGI, compressed": ("websockets-sansio", "deflate", False),
}
ASYNCIO, UVLOOP = (("asyncio", {"use_uvloop": uvloop}) for uvloop in (False, True))
# What a client gets can depend on the adapter, the event loop and the way: any two of these meet once.
PAIRS = [
    pytest.param(ASYNCIO, "memory", "lane", id="asyncio-memory-lane"),
    pytest.param(UVLOOP, "kafka", "lane", id="uvloop-kafka-lane"),
    pytest.param(UVLOOP, "memory", "lane, compressed", id="uvloop-memory-lane, compressed"),
    pytest.param(ASYNCIO, "kafka", "lane, compressed", id="asyncio-kafka-lane, compressed"),
    pytest.param(ASYNCIO, "memory", "handed over", id="asyncio-memory-handed over"),
    pytest.param(UVLOOP, "kafka", "handed over, compressed", id="uvloop-kafka-handed over, compressed"),
    pytest.param(ASYNCIO, "memory", "ASGI", id="asyncio-memory-ASGI"),
    pytest.param(UVLOOP, "kafka", "ASGI", id="uvloop-kafka-ASGI"),
    pytest.param(UVLOOP, "memory", "ASGI, compressed", id="uvloop-memory-ASGI, compressed"),
    pytest.param(ASYNCIO, "kafka", "ASGI, compressed", id="asyncio-kafka-ASGI, compressed"),
]


@asynccontextmanager
async def serving(
    ws: Any, url: str = "memory://", *, hands_over: bool = False
) -> AsyncGenerator[tuple[ServerInLoop, Backplane]]:
    """Serve an application with a room that has a history, plain and in envelopes, and as an event stream."""
    backplane = Backplane(url, history={"room": History(max_messages=5_000)})
    app = FastAPI(lifespan=backplane.lifespan)

    async def plain(websocket: WebSocket, since: str = "", rewind: int = 0) -> None:
        async def send_position(connection: Connection, _: object = None) -> None:
            await connection.send(f"at {connection.position('room')}")

        if hands_over:
            return await backplane.hand_over(
                websocket, "room", since=since, rewind=rewind, on_open=send_position, on_message=send_position
            )
        async with backplane.connect(websocket, "room", since=since, rewind=rewind) as connection:
            await send_position(connection)
            async for _ in connection:
                await send_position(connection)
        return None

    async def enveloped(websocket: WebSocket, since: str = "", rewind: int = 0) -> None:
        options: ConnectOptions = {"since": since, "rewind": rewind, "subprotocol": "backplane.json.1"}
        if hands_over:
            return await backplane.hand_over(websocket, "room", **options)
        async with backplane.connect(websocket, "room", **options) as connection:
            async for _ in connection:
                pass
        return None

    async def events(request: Request, rewind: int = 0) -> Response:
        return backplane.sse(request, "room", rewind=rewind, since=request.query_params.get("lastEventId"))

    app.add_api_websocket_route("/plain", plain)
    app.add_api_websocket_route("/enveloped", enveloped)
    app.add_api_route("/events", events)
    async with serving_in_loop(app, ws=ws) as server:
        yield server, backplane


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    """An adapter whose hub proves that nothing is missing, and one that resumes by itself."""
    return "memory://" if request.param == "memory" else str(request.getfixturevalue("kafka_broker").own_url)


async def publish(backplane: Backplane) -> None:
    """Publish the numbers, a few in each pass of the event loop."""
    for number in range(MESSAGES):
        await backplane.publish("room", {"n": number, "fill": "x" * (number % 300)})
        if number % 7 == 0:
            await asyncio.sleep(0.001)


@pytest.mark.parametrize(("anyio_backend", "url", "way"), PAIRS, indirect=["anyio_backend", "url"])
async def test_enveloped_clients_that_come_and_go(way: str, url: str) -> None:
    """Each gets every message from its first visit on, once, in order, and is never notified of a gap."""
    ws, compression, hands_over = WAYS[way]
    async with serving(ws, url, hands_over=hands_over) as (server, backplane):
        publishing = asyncio.create_task(publish(backplane))

        async def client(seed: int) -> list[int]:
            draw, received, position = random.Random(seed), list[int](), ""
            while not received or received[-1] < MESSAGES - 1:
                url = f"{server.ws_url}/enveloped?since={position}"
                async with connect(url, compression=compression, subprotocols=["backplane.json.1"]) as session:  # type: ignore[list-item]
                    for _ in range(draw.randint(1, 30)):
                        item = json.loads(await session.recv())
                        assert item["channel"] == "room"
                        if item.get("event") == "joined":
                            assert item["resumed"] is bool(position)
                        else:
                            received.append(item["data"]["n"])
                        position = item["position"]
                        if received and received[-1] == MESSAGES - 1:
                            break
                    session.transport.abort()
            return received

        async with asyncio.timeout(WAIT_SECONDS):
            for received in await asyncio.gather(*(client(seed) for seed in range(8))):
                assert received == list(range(received[0], MESSAGES))
            await publishing


@pytest.mark.parametrize("way", WAYS)
async def test_positions_of_plain_clients(way: str) -> None:
    """A frame with a position follows every message up to it: what a client has before it, and gets since, is all."""
    ws, compression, hands_over = WAYS[way]
    async with serving(ws, hands_over=hands_over) as (server, backplane):
        publishing = asyncio.create_task(publish(backplane))

        async def client(seed: int) -> list[int]:
            draw, kept, position = random.Random(seed), list[int](), ""
            while not kept or kept[-1] < MESSAGES - 1:
                pending, left = list[int](), -1
                async with connect(f"{server.ws_url}/plain?since={position}", compression=compression) as session:
                    while left:  # the first position follows everything that was missed
                        if draw.random() < 0.2 or pending[-1:] == [MESSAGES - 1]:
                            await session.send("where?")
                        frame = await session.recv()
                        left -= 1
                        assert isinstance(frame, str)
                        if frame.startswith("at "):
                            kept, pending, position = [*kept, *pending], [], frame.removeprefix("at ")
                            left = draw.randint(1, 20) if left < 0 else left
                            if kept and kept[-1] == MESSAGES - 1:
                                break
                        else:
                            pending.append(json.loads(frame)["n"])
                    session.transport.abort()
            return kept

        async with asyncio.timeout(WAIT_SECONDS):
            for received in await asyncio.gather(*(client(seed) for seed in range(4))):
                assert received == list(range(received[0], MESSAGES))
            await publishing


@pytest.mark.parametrize("way", WAYS)
async def test_much_is_given_back(way: str) -> None:
    """A thousand messages, more bytes than may wait for a client: a client that reads slowly gets all of them."""
    ws, compression, hands_over = WAYS[way]
    async with serving(ws, hands_over=hands_over) as (server, backplane):
        for number in range(1_000):
            await backplane.publish("room", f"{number:04}" + "x" * 4_000)
        async with asyncio.timeout(WAIT_SECONDS):
            async with connect(f"{server.ws_url}/plain?rewind=1000", compression=compression, max_queue=1) as session:
                for number in range(50):
                    await backplane.publish("room", f"{1_000 + number:04}")
                    await asyncio.sleep(0)
                received = [await session.recv() for _ in range(1_051)]
        numbers = [int(text[:4]) for text in received if isinstance(text, str) and not text.startswith("at ")]
        assert numbers == list(range(1_050))
        assert backplane.statistics().closed_slow == 0


@pytest.mark.parametrize(
    ("anyio_backend", "url", "shows"),
    [
        pytest.param(ASYNCIO, "memory", "header", id="asyncio-memory-header"),
        pytest.param(UVLOOP, "memory", "address", id="uvloop-memory-address"),
        pytest.param(UVLOOP, "kafka", "header", id="uvloop-kafka-header"),
        pytest.param(ASYNCIO, "kafka", "address", id="asyncio-kafka-address"),
    ],
    indirect=["anyio_backend", "url"],
)
async def test_event_streams_that_come_and_go(url: str, shows: str) -> None:
    """An `EventSource`, or a polyfill, shows its last id by itself, and gets every message once, in order."""
    async with serving(DirectLaneProtocol, url) as (server, backplane):
        publishing = asyncio.create_task(publish(backplane))

        async def client(seed: int) -> list[int]:
            draw, received, last_id, shown = random.Random(seed), list[int](), "", ""
            async with httpx2.AsyncClient(base_url=server.http_url, trust_env=False, timeout=WAIT_SECONDS) as session:
                while not received or received[-1] < MESSAGES - 1:
                    headers = {"Last-Event-ID": last_id} if last_id and shows == "header" else {}
                    params = {"lastEventId": last_id} if last_id and shows == "address" else {}
                    left = draw.randint(1, 40)
                    async with session.stream("GET", "/events", headers=headers, params=params) as response:
                        async for line in response.aiter_lines():
                            assert not line.startswith("event:") or line == "event: position"
                            if line.startswith("id: "):
                                shown = line.removeprefix("id: ")
                            elif line.startswith("data: "):
                                received.append(json.loads(line.removeprefix("data: "))["n"])
                            elif not line:
                                last_id, left = shown, left - 1
                            if left <= 0 or (received and received[-1] == MESSAGES - 1):
                                break
            return received

        async with asyncio.timeout(WAIT_SECONDS):
            for received in await asyncio.gather(*(client(seed) for seed in range(4))):
                assert received == list(range(received[0], MESSAGES))
            await publishing
