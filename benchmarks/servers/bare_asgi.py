"""Floor: an ASGI application that does nothing but `await send()` to each socket. One worker, no broker."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from benchmarks.servers.stall import watch

_rooms: defaultdict[str, dict[Any, None]] = defaultdict(dict)


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Serve one socket."""
    if scope["type"] != "websocket":
        return await _lifespan(scope, receive, send)
    await receive()
    await send({"type": "websocket.accept"})
    room = _rooms[scope["path"].rpartition("/")[2]]
    joins = scope["path"] != "/publish"
    if joins:
        room[send] = None
    try:
        while (event := await receive())["type"] == "websocket.receive":
            message = {"type": "websocket.send", "text": event["text"]}
            for each in list(_rooms[event["text"][8:12]]):
                await each(message)
    finally:
        room.pop(send, None)


async def _lifespan(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await receive()
        watch()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
