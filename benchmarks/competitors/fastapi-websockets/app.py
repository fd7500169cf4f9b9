"""fastapi-websockets on Redis: one consumer per socket."""

from __future__ import annotations

import os
from typing import Any

from fastapi import FastAPI, WebSocket
from fastapi_websockets import AsyncWebSocketConsumer, get_channel_layer

layer: Any = get_channel_layer(
    {
        "default": {
            "BACKEND": "fastapi_websockets.backends.redis.RedisChannelLayer",
            # Each socket waits on a connection of its own; the client allows 100 by default.
            "CONFIG": {"url": os.environ["BENCH_REDIS_URL"] + "?max_connections=20000"},
        }
    }
)
app = FastAPI()


class Listen(AsyncWebSocketConsumer):
    """Receives a channel."""

    async def connect(self) -> None:
        """Join, then accept."""
        assert self.websocket is not None
        await self.group_add(self.websocket.path_params["channel"])
        await self.accept()


@app.websocket("/ws/{channel}")
async def listen(websocket: WebSocket, channel: str) -> None:
    """Send the channel until the client leaves."""
    await Listen(layer)(websocket)


@app.websocket("/publish")
async def publish(websocket: WebSocket) -> None:
    """Publish what the client sends."""
    await websocket.accept()
    async for text in websocket.iter_text():
        await layer.group_send(text[8:12], {"type": "websocket.send", "body": text})
