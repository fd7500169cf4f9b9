"""A publish to clients on plain ASGI beside a bare loop of `await websocket.send_text`, over the same connections.

Starlette and Uvicorn as they are, in this process; every client is the other end of a Unix socket pair, emptied between
the measurements. One message at a time, which is where a send costs most: messages that arrive together share a task.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any

import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from uvicorn.server import ServerState

from backplane import Backplane
from benchmarks.harness.websocket import request
from benchmarks.micro.fanout import interleaved_over_sockets

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from starlette.websockets import WebSocket

    from benchmarks.micro.figure import Figure

__all__ = ["open_client", "run"]

_DATA = "x" * 128
_FRAME = b"\x81\x7e\x00\x80" + _DATA.encode()


def run(count: int, rounds: int) -> list[Figure]:
    """Return the figures per delivery; the floor is the bare loop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_measure(count, rounds))


async def _measure(count: int, rounds: int) -> list[Figure]:
    backplane = Backplane("memory://")
    websockets: list[WebSocket] = []

    async def handle(websocket: WebSocket) -> None:
        async with backplane.connect(websocket, "room") as connection:
            websockets.append(websocket)
            async for _ in connection:
                pass

    async def bare() -> None:
        for websocket in websockets:
            await websocket.send_text(_DATA)

    async def publish() -> None:
        await backplane.publish("room", _DATA)
        for _ in range(passes):
            await asyncio.sleep(0)

    passes = 4 + count // 50  # the fan-out is cut in slices
    config = uvicorn.Config(
        Starlette(routes=[WebSocketRoute("/", handle)]),
        ws="websockets-sansio",
        ws_per_message_deflate=False,
        ws_ping_interval=None,
        log_config=None,
        lifespan="off",
    )
    config.load()
    async with backplane:
        clients = [await open_client(config) for _ in range(count)]
        while len(websockets) < count:  # noqa: ASYNC110  # nothing else runs here
            await asyncio.sleep(0)
        for client in clients:
            assert client.recv(4096).startswith(b"HTTP/1.1 101")
        candidates: dict[str, Callable[[], Coroutine[None, None, None]]] = {
            "floor: await send_text() in a loop": bare,
            "backplane.publish on memory://": publish,
        }
        try:
            return await interleaved_over_sockets(candidates, rounds, count, lambda: _empty(clients))
        finally:
            for client in clients:
                client.close()


async def open_client(config: uvicorn.Config, path: str = "/") -> socket.socket:
    """Return the other end of a connection of the server, which has sent its handshake."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    ours.setblocking(False)
    theirs.setblocking(False)
    state = ServerState()
    loop = asyncio.get_running_loop()
    protocol: Any = config.ws_protocol_class
    await loop.connect_accepted_socket(lambda: protocol(config=config, server_state=state, app_state={}), sock=ours)
    theirs.send(request(path, 80))
    return theirs


def _empty(clients: list[socket.socket]) -> None:
    for client in clients:
        if client.recv(65536) != _FRAME:
            raise AssertionError("a client did not get the message once")
