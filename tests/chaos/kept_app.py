"""The application of the cases with WebSocket clients: one Uvicorn worker per process.

`/ws/{room}?since=...` is served in the JSON envelope, and its clients are closed at a gap; rooms that begin with
`kept-` have a history. `POST /rooms/{room}` publishes the body.
"""

from __future__ import annotations

import os

from fastapi import FastAPI, Request, WebSocket

from backplane import Backplane, BrokerError, History, Settings
from backplane.health_routes import broker_error_response

backplane = Backplane(
    history={"kept-*": History(max_messages=2000)},
    settings=Settings(drain_seconds=1, probe_interval_seconds=1.5, max_backoff_seconds=1),
    on_gap="close",
)
app = FastAPI(lifespan=backplane.lifespan, exception_handlers={BrokerError: broker_error_response})


@app.get("/pid")
async def pid() -> int:
    """Return the pid of the worker."""
    return os.getpid()


@app.websocket("/ws/{room}")
async def room_socket(websocket: WebSocket, room: str) -> None:
    """Serve a client that only receives."""
    since = websocket.query_params.get("since")
    async with backplane.connect(websocket, room, since=since, envelope="json") as connection:
        async for _ in connection:
            pass


@app.post("/rooms/{room}")
async def publish(room: str, request: Request) -> None:
    """Publish the body."""
    await backplane.publish(room, (await request.body()).decode())
