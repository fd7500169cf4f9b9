"""What a user of backplane writes: `/ws/{channel}` receives, `/publish` sends; the text names the channel.

With `BENCH_HANDS_OVER` a client is handed over, and its handler returns; without it the handler stays with the client.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from fastapi import FastAPI, WebSocket

from backplane import Backlog, Backplane, BrokerError, Connection, Gap, Limits, Settings
from backplane.centrifugal import Accepted, Centrifugal, ConnectRequest
from benchmarks.servers import crowd
from benchmarks.servers.stall import watch

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

_HANDS_OVER: Final = bool(os.environ.get("BENCH_HANDS_OVER"))

backplane = Backplane(
    limits=Limits(heartbeat_seconds=float(os.environ.get("BENCH_HEARTBEAT_SECONDS", "30"))),
    settings=Settings(drain_seconds=float(os.environ.get("BENCH_DRAIN_SECONDS", "5"))),
)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    """Start backplane, and watch the loop."""
    async with backplane.lifespan(app):
        watch()
        yield
    crowd.write_result()


app = FastAPI(lifespan=lifespan)


@app.websocket("/ws/{channel}")
async def listen(websocket: WebSocket, channel: str) -> None:
    """Join the channel for as long as the client is connected."""
    if _HANDS_OVER:
        await backplane.hand_over(websocket, channel)
        return
    async with backplane.connect(websocket, channel) as connection:
        async for _ in connection:
            pass


centrifugal = Centrifugal(backplane)


@centrifugal.on_connect
def subscribe(connection: Connection, _: ConnectRequest) -> Accepted:
    """Subscribe a client to the channel of its URL."""
    return Accepted(channels=(connection.context,))


@app.websocket("/sdk/{channel}")
async def listen_by_sdk(websocket: WebSocket, channel: str) -> None:
    """Serve a client of the Centrifugal client protocol."""
    await centrifugal.serve(websocket, context=channel)


@app.get("/tasks")
async def count_tasks() -> int:
    """Return how many tasks the loop has."""
    return len(asyncio.all_tasks())


@app.get("/crowd/{channel}")
async def open_crowd(channel: str, count: int) -> crowd.Crowd:
    """Connect `count` more clients without sockets; return what they have counted by now."""
    return await crowd.opened(f"/ws/{channel}", count)


@app.websocket("/publish")
async def publish(websocket: WebSocket) -> None:
    """Publish what the client sends; send back what the broker did not accept."""
    await websocket.accept()
    async for text in websocket.iter_text():
        try:
            await backplane.publish(text[8:12], text)
        except BrokerError:
            await websocket.send_text(f"!{text}")


@app.websocket("/gaps/{channel}")
async def report_gaps(websocket: WebSocket, channel: str) -> None:
    """Send each gap of the channel, and nothing else."""
    await websocket.accept()
    async with backplane.subscribe(channel, backlog=Backlog(when_full="drop_oldest")) as messages:
        async for message in messages:
            if isinstance(message, Gap):
                await websocket.send_text(f"gap {message.reason}")
