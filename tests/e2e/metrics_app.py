"""The application of the tests of metrics: a room, as in the guide on metrics."""

from __future__ import annotations

import os

from fastapi import FastAPI, Request, WebSocket

from backplane import Backplane, Settings, metrics_routes

tracing = None
if "TRACED" in os.environ:
    from opentelemetry.sdk.trace import TracerProvider

    from backplane.tracing import Tracing

    tracing = Tracing(TracerProvider())

backplane = Backplane(settings=Settings(max_backoff_seconds=0.2, drain_seconds=0.1), tracing=tracing)
app = FastAPI(lifespan=backplane.lifespan)
app.add_route("/metrics", metrics_routes(backplane))


@app.get("/pid")
async def pid() -> int:
    """Return the pid of the worker that answers."""
    return os.getpid()


@app.post("/rooms/{room}")
async def announce(room: str, request: Request) -> int:
    """Publish the body; return the worker's pid."""
    await backplane.publish(room, (await request.body()).decode())
    return os.getpid()


@app.websocket("/rooms/{room}")
async def room_socket(websocket: WebSocket, room: str) -> None:
    """Send what is published to the room."""
    async with backplane.connect(websocket, room) as connection:
        async for _ in connection:
            pass
