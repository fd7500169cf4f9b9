"""python-socketio with its Redis manager."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import parse_qs

import socketio

server: Any = socketio.AsyncServer(
    async_mode="asgi", client_manager=socketio.AsyncRedisManager(os.environ["BENCH_REDIS_URL"])
)
app = socketio.ASGIApp(server)


@server.event
async def connect(sid: str, environ: dict[str, Any]) -> None:
    """Join the channel that stands in the URL."""
    for channel in parse_qs(environ.get("QUERY_STRING", "")).get("channel", []):
        await server.enter_room(sid, channel)


@server.event
async def publish(sid: str, text: str) -> None:
    """Publish what the client sends."""
    await server.emit("message", text, room=text[8:12])
