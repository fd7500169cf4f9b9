"""An application whose handlers do not notice the end of their client, for the tests of how servers end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING

import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute

from backplane import Backplane, Settings
from backplane.health_routes import health_routes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request
    from starlette.websockets import WebSocket

    from backplane import Connection

backplane = Backplane(settings=Settings(handler_grace_seconds=0.5))


async def iterate(websocket: WebSocket) -> None:
    """Receive from the client."""
    async with backplane.connect(websocket) as connection:
        await connection.send("here")
        async for _ in connection:
            pass


async def wait(websocket: WebSocket) -> None:
    """Wait for something other than the client."""
    async with backplane.connect(websocket, "lobby") as connection:
        await connection.send("here")
        await asyncio.Event().wait()


async def listen(websocket: WebSocket) -> None:
    """Hand the client over."""
    await backplane.hand_over(websocket, "lobby", on_open=welcome)


async def stay(websocket: WebSocket) -> None:
    """Hand the client over, and wait for something other than it."""

    async def wait_for_ever(connection: Connection) -> None:
        await welcome(connection)
        await asyncio.Event().wait()

    await backplane.hand_over(websocket, "lobby", on_open=wait_for_ever)


async def welcome(connection: Connection) -> None:
    """Send the first message."""
    await connection.send("here")


async def send(websocket: WebSocket) -> None:
    """Only send, as fast as the client reads."""
    async with backplane.connect(websocket) as connection:
        while True:
            await connection.send("x" * 1000)


async def forward(websocket: WebSocket) -> None:
    """Send what is published."""
    async with backplane.connect(websocket) as connection, backplane.subscribe("lobby") as messages:
        await connection.send("here")
        async for message in messages:
            await connection.send(str(message))


async def events(request: Request) -> Response:
    """Stream what is published."""
    return backplane.sse(request, "lobby")


async def own_stream(_: Request) -> Response:
    """Stream what is published by the application's own response."""

    async def stream() -> AsyncIterator[str]:
        async with backplane.subscribe("lobby") as messages:
            yield "here"
            async for message in messages:
                yield str(message)

    return StreamingResponse(stream())


async def pid(_: Request) -> Response:
    """Return the pid of the worker that answers."""
    return PlainTextResponse(str(os.getpid()))


app = Starlette(
    lifespan=backplane.lifespan,
    routes=[
        WebSocketRoute("/iterate", iterate),
        WebSocketRoute("/wait", wait),
        WebSocketRoute("/send", send),
        WebSocketRoute("/listen", listen),
        WebSocketRoute("/stay", stay),
        WebSocketRoute("/forward", forward),
        Route("/events", events),
        Route("/own-stream", own_stream),
        Route("/pid", pid),
        Mount("/health", health_routes(backplane)),
    ],
)


def serve_in_a_thread(port: int) -> None:
    """Run the server in a thread until SIGUSR1 arrives; then set `should_exit` from another thread."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    signal.sigwait({signal.SIGUSR1})
    server.should_exit = True
    thread.join()


if __name__ == "__main__":
    serve_in_a_thread(int(sys.argv[1]))
