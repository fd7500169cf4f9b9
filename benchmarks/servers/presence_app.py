"""The application of the scenario `presence`: clients that have no sockets, but join and leave as all clients do.

Each client is a `WebSocket` whose ASGI side is in this process: `connect`, the join and the end of the connection take
the same path as with a socket. The harness drives it over HTTP, one call at a time.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from fastapi import FastAPI
from starlette.websockets import WebSocket

from backplane import Backplane, Limits, Presence, PresenceChange, Settings, Who

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

_PRESENCE: Final = bool(os.environ.get("BENCH_PRESENCE"))
_WORKER: Final = os.environ.get("BENCH_WORKER", "0")
"""Which of the workers this is: a part of the name of each user."""
_LOOK_SECONDS: Final = 0.005
_ROOM: Final = "room-"
_AT_ONCE: Final = 200
_SCOPE: Final[dict[str, Any]] = {
    "type": "websocket",
    "path": "/",
    "headers": [],
    "query_string": b"",
    "client": ("127.0.0.1", 1),
    "subprotocols": [],
    "extensions": {},
}

backplane = Backplane(
    presence={f"{_ROOM}*": Presence()} if _PRESENCE else None,
    limits=Limits(max_connections_per_client=None),
    settings=Settings(subscribe_timeout_seconds=30),
)


class _Client:
    """A client without a socket, by the messages of ASGI."""

    def __init__(self, room: str, user: str) -> None:
        self.room = room
        self._user = user
        self._events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.joined: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._events.put_nowait({"type": "websocket.connect"})
        self.ended = asyncio.create_task(self._serve())

    def leave(self) -> None:
        """Close, as a browser does whose page is closed."""
        self._events.put_nowait({"type": "websocket.disconnect", "code": 1001})

    async def _serve(self) -> None:
        """What a user of backplane writes."""
        websocket = WebSocket(_SCOPE | {"extensions": {}}, self._events.get, self._send)
        who = Who(user=self._user, info={"name": self._user}) if _PRESENCE else None
        async with backplane.connect(websocket, self.room, presence=who) as connection:
            self.joined.set_result(None)
            async for _ in connection:
                pass

    async def _send(self, _: Any) -> None:
        """Take what is sent."""


class _Noted:
    """What this process has: its clients, the oldest first; how many users of each worker have left, and when last."""

    def __init__(self) -> None:
        self.clients: deque[_Client] = deque()
        self.users = 0
        self.churned = 0
        self.churning: asyncio.Task[None] | None = None
        self.watching: list[asyncio.Task[None]] = []
        self.left: dict[str, int] = {}
        self.left_at: dict[str, float] = {}

    def join(self, room: str) -> _Client:
        """Let a client join a room as a user of its own."""
        self.users += 1
        client = _Client(room, f"w{_WORKER}-{self.users}")
        self.clients.append(client)
        return client


noted = _Noted()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    """Start backplane."""
    async with backplane.lifespan(app):
        yield
        await churn(0)
        for watching in noted.watching:
            watching.cancel()


app = FastAPI(lifespan=lifespan)


@app.get("/fill")
async def fill(connections: int, rooms: int, name: str = "") -> None:
    """Let clients join the rooms in turn, and return once all have."""
    for start in range(0, connections, _AT_ONCE):
        some = range(start, min(start + _AT_ONCE, connections))
        joining = [noted.join(f"{_ROOM}{name}{number % rooms}") for number in some]
        await asyncio.gather(*(client.joined for client in joining))


@app.get("/churn")
async def churn(per_second: float, rooms: int = 0) -> None:
    """Let the oldest client leave and another one join, so often per second from now on; 0 to stop.

    It joins the room that is half of all rooms further: a leave and a join in one room at once would be one message.
    """
    if noted.churning is not None:
        noted.churning.cancel()
        noted.churning = None
    if per_second:
        noted.churning = asyncio.create_task(_churn(1 / per_second, rooms))


async def _churn(pause: float, rooms: int) -> None:
    due = time.monotonic()
    while True:
        due += pause
        await asyncio.sleep(due - time.monotonic())
        oldest = noted.clients.popleft()
        oldest.leave()
        number = int(oldest.room.removeprefix(_ROOM))
        noted.join(f"{_ROOM}{(number + rooms // 2) % rooms}")
        noted.churned += 1


@app.get("/watch")
async def watch(rooms: int) -> None:
    """Watch all rooms from now on, and note the users that leave."""
    noted.watching += [asyncio.create_task(_watch(f"{_ROOM}{number}")) for number in range(rooms)]


async def _watch(room: str) -> None:
    async with backplane.watch(room) as presence:
        async for item in presence:
            if isinstance(item, PresenceChange):
                for user in item.left:
                    worker = user.partition("-")[0]
                    noted.left[worker] = noted.left.get(worker, 0) + 1
                    noted.left_at[worker] = time.monotonic()


@app.get("/complete")
async def complete(rooms: int, users: int) -> None:
    """Wait until each room has so many users here."""
    async with AsyncExitStack() as stack:
        views = [await stack.enter_async_context(backplane.watch(f"{_ROOM}{number}")) for number in range(rooms)]
        while any((view := each.view).stale or len(view.users) != users for each in views):  # noqa: ASYNC110  # no event
            await asyncio.sleep(_LOOK_SECONDS * 10)


@app.get("/present/{name}")
async def present(name: str, rooms: int, users: int) -> list[float]:
    """Ask at once which users are in some rooms that this worker does not watch; return what each took, in seconds."""
    return await asyncio.gather(*(_present(f"{_ROOM}{name}{number}", users) for number in range(rooms)))


async def _present(room: str, users: int) -> float:
    began = time.monotonic()
    # Once, unless the first answer is incomplete.
    while len((await backplane.present(room)).users) != users:  # noqa: ASYNC110
        await asyncio.sleep(_LOOK_SECONDS)
    return time.monotonic() - began


@app.get("/noted")
async def read_noted() -> dict[str, Any]:
    """Return what was noted: connections, joins and leaves so far, the messages of presence by direction and kind."""
    cluster = backplane._lifecycle.running().cluster  # pyright: ignore[reportPrivateUsage]
    agent = None if cluster is None else cluster._agent  # pyright: ignore[reportPrivateUsage]
    return {
        "connections": len(noted.clients),
        "churned": noted.churned,
        "messages": {} if agent is None else dict(agent.counters),
        "left": noted.left,
        "left_at": noted.left_at,
    }
