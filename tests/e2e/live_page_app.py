"""An application with the live page, and clients in channels with hostile names."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, WebSocket

from backplane import Backplane, Limits, Settings
from backplane.admin import admin_routes

if TYPE_CHECKING:
    from backplane.worker.runtime import Runtime

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


DOWN_SECONDS = float(os.environ.get("LIVE_PAGE_DOWN_SECONDS", "5"))
"""After how long without heartbeats a worker counts as ended, and a silent link is looked at."""

settings = Settings(
    worker_heartbeat_seconds=0.5, worker_down_seconds=DOWN_SECONDS, probe_interval_seconds=DOWN_SECONDS, start="lazy"
)
backplane = Backplane(settings=settings, cluster=True, limits=Limits(max_channels=77))
app = FastAPI(lifespan=backplane.lifespan)


@backplane.authorize
async def may_join(_: object, channel: str) -> bool:
    """Refuse one channel."""
    return channel != "forbidden"


def staff(request: Request) -> str | bool:
    """Let in who has the cookie."""
    return request.cookies.get("session") == "staff" and "<b>Ada</b>"


app.mount("/admin", admin_routes(backplane, authorize=staff, allow={"publish", "disconnect", "tail"}))
app.mount("/read-only", admin_routes(backplane, authorize=staff))


@app.get("/pid")
async def pid() -> int:
    """Return which worker answers."""
    return os.getpid()


@app.post("/faults/hub/{channel}")
async def swallow(channel: str) -> None:
    """Let the hub drop what it receives on a channel."""
    hub = _runtime().hub
    deliver = hub.deliver

    def deliver_others(name: str, *arguments: Any) -> None:
        if name != channel:
            deliver(name, *arguments)

    hub.deliver = deliver_others  # type: ignore[method-assign,assignment]


@app.post("/faults/subscription/{channel}")
async def unsubscribe(channel: str) -> None:
    """Unsubscribe a channel at the broker, which the worker does not know."""
    await _runtime().broadcaster.unsubscribe([channel])


def _runtime() -> Runtime:
    runtime = backplane._runtime  # pyright: ignore[reportPrivateUsage]
    assert runtime is not None
    return runtime


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


@app.websocket("/named")
async def named(websocket: WebSocket) -> None:
    """Join channels of any name."""
    await backplane.hand_over(websocket, *websocket.query_params.getlist("channel"), client_key="ada")
