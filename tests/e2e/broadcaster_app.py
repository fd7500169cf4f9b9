"""The chat of encode/broadcaster's README, with the import changed."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.routing import WebSocketRoute

from backplane.integrations.broadcaster import Broadcast

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.websockets import WebSocket

    from backplane import Gap
    from backplane.integrations.broadcaster import Subscriber


async def notify(gap: Gap) -> None:
    """Publish that something may be missing: on each server for all, which is enough for a test."""
    await broadcast.publish(gap.channel, "gap")


broadcast = Broadcast(os.environ["BACKPLANE_URL"], on_gap=notify)


async def talk(websocket: WebSocket) -> None:
    """Publish what the client sends to its room, and send it what is published there."""
    await websocket.accept()
    room = websocket.path_params["room"]
    async with broadcast.subscribe(channel=room) as subscriber:
        await websocket.send_text("subscribed")
        sending = asyncio.create_task(send(websocket, subscriber))
        async for message in websocket.iter_text():
            await broadcast.publish(channel=room, message=message)
        sending.cancel()


async def send(websocket: WebSocket, subscriber: Subscriber) -> None:
    """Send what is published."""
    async for event in subscriber:
        await websocket.send_text(event.message)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncGenerator[None]:
    """Connect for as long as the application runs."""
    async with broadcast:
        yield


app = Starlette(routes=[WebSocketRoute("/{room}", talk)], lifespan=lifespan)
