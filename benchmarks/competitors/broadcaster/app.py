"""encode/broadcaster on Redis, as its README shows it."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
from broadcaster import Broadcast
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.websockets import WebSocket

broadcast: Any = Broadcast(os.environ["BENCH_REDIS_URL"])


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    """Connect for as long as the application runs."""
    await broadcast.connect()
    yield
    await broadcast.disconnect()


async def listen(websocket: WebSocket) -> None:
    """Send the channel until the client leaves."""
    await websocket.accept()
    async with anyio.create_task_group() as tasks:

        async def receive() -> None:
            async for _ in websocket.iter_text():
                pass
            tasks.cancel_scope.cancel()

        tasks.start_soon(receive)
        async with broadcast.subscribe(channel=websocket.path_params["channel"]) as subscriber:
            async for event in subscriber:
                await websocket.send_text(event.message)


async def publish(websocket: WebSocket) -> None:
    """Publish what the client sends."""
    await websocket.accept()
    async for text in websocket.iter_text():
        await broadcast.publish(channel=text[8:12], message=text)


app = Starlette(
    routes=[WebSocketRoute("/ws/{channel}", listen), WebSocketRoute("/publish", publish)],
    lifespan=lifespan,
)
