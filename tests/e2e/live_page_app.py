"""An application with the live page, and clients in channels with hostile names."""

from __future__ import annotations

import os

from fastapi import FastAPI, Request, WebSocket

from backplane import Backplane, Settings
from backplane.admin import admin_routes

__all__ = ["HOSTILE", "app", "hostile"]

HOSTILE = (
    "<img src=x onerror=hacked=1>",
    "<script>hacked=1</script>",
    '"><svg onload=hacked=1>',
    "javascript:hacked=1",
    "&lt;b&gt; ' \" ` ${hacked=1} {{hacked=1}}",
    "__proto__",
    "constructor",
    "\u202egnp.exe\u202c",
    "a\x00b\x1b[31m\r\n",
    "x" * 200,
    '{"type":"img","props":{"onerror":"hacked=1"}}',
    "😀" * 40,
    "?a=b&c=d#e%00%2f",
)
"""The beginnings of names."""


def hostile(number: int) -> str:
    """Return a name of its own for each number; all begin with the same letter, so that a prefix finds them."""
    return f"h:{HOSTILE[number % len(HOSTILE)]}:{number}"


backplane = Backplane(settings=Settings(worker_heartbeat_seconds=0.5, worker_down_seconds=5), cluster=True)
app = FastAPI(lifespan=backplane.lifespan)


def staff(request: Request) -> str | bool:
    """Let in who has the cookie."""
    return request.cookies.get("session") == "staff" and "<b>Ada</b>"


app.mount("/admin", admin_routes(backplane, authorize=staff, allow={"publish", "disconnect", "tail"}))
app.mount("/read-only", admin_routes(backplane, authorize=staff))


@app.get("/pid")
async def pid() -> int:
    """Return which worker answers."""
    return os.getpid()


@app.websocket("/clients/{number}")
async def client(websocket: WebSocket, number: int, channels: int = 2) -> None:
    """Join so many channels, of a client whose key is hostile too."""
    names = [hostile(channels * number + each) for each in range(channels)]
    await backplane.hand_over(websocket, *names, client_key=hostile(number))


@app.websocket("/rooms/{room}")
async def room(websocket: WebSocket, room: str, key: str | None = None) -> None:
    """Join a channel, publish to it what the client sends."""
    async with backplane.connect(websocket, room, client_key=key) as connection:
        async for message in connection:
            await backplane.publish(room, message)
