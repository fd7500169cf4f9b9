"""The application of the end-to-end tests: a chat room, as in the README, whose messages name the worker."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path

from asgiref.sync import async_to_sync
from fastapi import FastAPI, Request, Response, WebSocket
from fastapi.responses import FileResponse
from starlette.requests import ClientDisconnect

from backplane import Backplane, BrokerError, Connection, Gap, History, Settings, WrongLoopError
from backplane.client_routes import client_routes
from backplane.health_routes import broker_error_response, health_routes

logging.basicConfig(level=os.environ.get("TEST_LOG_LEVEL", "WARNING"))


def gap_message(_: Gap) -> str | None:
    """Return a gap in the form of all messages here: a name and a number."""
    return "gap 0"


HISTORY = {"kept-*": History(max_messages=1000)}
backplane = Backplane(
    history=HISTORY if os.environ.get("TEST_HISTORY") else None,
    settings=Settings(
        drain_seconds=float(os.environ.get("TEST_DRAIN_SECONDS", "5")),
        outage="buffer" if os.environ.get("TEST_BUFFER") else "raise",
    ),
    on_gap=gap_message if os.environ.get("TEST_ON_GAP") else "close",
)
app = FastAPI(lifespan=backplane.lifespan, exception_handlers={BrokerError: broker_error_response})
app.mount("/health", health_routes(backplane))
app.mount("/client", client_routes())
clients = count()


@app.get("/pid")
async def pid() -> int:
    """Return the pid of the worker that answers."""
    return os.getpid()


@app.websocket("/rooms/{room}")
async def room_socket(websocket: WebSocket, room: str) -> None:
    """Send the worker's pid, then publish what the client sends; every other client is handed over."""
    if next(clients) % 2:
        return await backplane.hand_over(websocket, room, on_open=send_pid, on_message=partial(publish, room))
    async with backplane.connect(websocket, room) as connection:
        await send_pid(connection)
        async for message in connection:
            await publish(room, connection, message)
    return None


async def send_pid(connection: Connection) -> None:
    """Send the worker's pid."""
    await connection.send(f"pid {os.getpid()}")


async def publish(room: str, _: Connection, message: str | bytes) -> None:
    """Publish what a client sends."""
    await backplane.publish(room, message)


@app.get("/page")
async def page() -> FileResponse:
    """Serve a page that receives in three ways."""
    return FileResponse(Path(__file__).with_name("page.html"))


@app.websocket("/resumed/{room}")
async def resumed_room(websocket: WebSocket, room: str, since: str = "") -> None:
    """Send what was published to the room after a position, then the worker's pid, then what is published."""

    async def welcome(connection: Connection) -> None:
        await connection.send({"pid": os.getpid()})

    if next(clients) % 2:
        return await backplane.hand_over(websocket, room, since=since, envelope="json", on_open=welcome)
    async with backplane.connect(websocket, room, since=since, envelope="json") as connection:
        await welcome(connection)
        async for _ in connection:
            pass
    return None


@app.get("/events/{room}")
async def room_events(request: Request, room: str, since: str = "") -> Response:
    """Stream the room from a position on."""
    return backplane.sse(request, room, since=since, retry_seconds=0.2)


@app.post("/rooms/{room}")
async def announce(room: str, request: Request) -> int:
    """Publish the body, unless its sender leaves, as on a busy machine; return the worker's pid."""
    with suppress(ClientDisconnect):
        await backplane.publish(room, (await request.body()).decode())
    return os.getpid()


@app.post("/sync/{room}")
def announce_from_a_thread(room: str, text: str) -> int:
    """Publish from a `def` endpoint, which runs in a thread."""
    backplane.sync.publish(room, text)
    return os.getpid()


@app.post("/misuse/{kind}/{room}")
def misuse(kind: str, room: str) -> str:
    """Publish in a way that cannot work; return the error's text."""
    try:
        match kind:
            case "asyncio.run":
                _run(room)
            case "async_to_sync":
                async_to_sync(backplane.publish)(room, "misuse 0")
            case "thread":
                with ThreadPoolExecutor(1) as threads:
                    threads.submit(_run, room).result()
            case "process":
                with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as processes:
                    processes.submit(_run, room).result()
            case _:
                return "no such misuse"
    except WrongLoopError as error:
        return str(error)
    return "not refused"


def _run(room: str) -> None:
    asyncio.run(backplane.publish(room, "misuse 0"))
