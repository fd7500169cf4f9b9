"""The application of the end-to-end tests: a chat room, as the README shows it, that says which worker it is."""

from __future__ import annotations

import logging
import os

from fastapi import FastAPI, Request, WebSocket

from backplane import Backplane, BrokerError, Gap, Settings
from backplane.routes import broker_error_response, health_routes

logging.basicConfig(level=os.environ.get("TEST_LOG_LEVEL", "WARNING"))


def tell_gap(_: Gap) -> str | None:
    """Say it in the way of all messages here: a name and a number."""
    return "gap 0"


backplane = Backplane(
    settings=Settings(
        drain_seconds=float(os.environ.get("TEST_DRAIN_SECONDS", "5")),
        outage="buffer" if os.environ.get("TEST_BUFFER") else "raise",
    ),
    on_gap=tell_gap if os.environ.get("TEST_ON_GAP") else "close",
)
app = FastAPI(lifespan=backplane.lifespan, exception_handlers={BrokerError: broker_error_response})
app.mount("/health", health_routes(backplane))


@app.get("/pid")
async def pid() -> int:
    """Return which worker answers."""
    return os.getpid()


@app.websocket("/rooms/{room}")
async def room_socket(websocket: WebSocket, room: str) -> None:
    """Greet with the worker's pid, then publish what the client says."""
    async with backplane.connect(websocket, room) as connection:
        await connection.send(f"pid {os.getpid()}")
        async for message in connection:
            await backplane.publish(room, message)


@app.post("/rooms/{room}")
async def announce(room: str, request: Request) -> int:
    """Publish the body; return which worker did."""
    await backplane.publish(room, (await request.body()).decode())
    return os.getpid()
