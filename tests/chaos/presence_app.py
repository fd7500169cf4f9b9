"""The application of the presence cases: a worker that watches all rooms, and answers a test on a socket of its own.

`/ws/{room}?user=...` is served with presence, and sends the worker's pid first. `TEST_FOLDER/<pid>` is a Unix socket: a
line of JSON `[verb, argument]` is answered by a line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, WebSocket

from backplane import Backplane, Connection, Presence, PresenceChange, Settings, Who

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

FOLDER = Path(os.environ["TEST_FOLDER"])
ROOMS = [f"room-{number}" for number in range(int(os.environ["TEST_ROOMS"]))]

backplane = Backplane(
    presence={"room-*": Presence(grace_seconds=float(os.environ["TEST_GRACE"]))},
    settings=Settings(
        worker_heartbeat_seconds=float(os.environ["TEST_HEARTBEAT"]),
        worker_down_seconds=float(os.environ["TEST_DOWN"]),
        drain_seconds=1,
    ),
)
# What was reported as left: room, user, and when by the monotonic clock of the machine.
left: list[tuple[str, str, float]] = []
snapshots = 0


async def watch(room: str) -> None:
    """Watch a room, and note who has left it; a number that is missing ends the worker."""
    global snapshots
    version = 0
    async with backplane.watch(room) as presence:
        async for item in presence:
            if isinstance(item, PresenceChange):
                assert item.version == version + 1
                now = time.monotonic()
                left.extend((room, user, now) for user in item.left)
            else:
                snapshots += 1
            version = item.version


@backplane.on_survey("pid")
def own_pid(_: object) -> int:
    """Answer a survey."""
    return os.getpid()


async def answer(verb: str, argument: Any) -> Any:
    """Answer the test."""
    if verb == "lists":
        return await lists()
    if verb == "left":
        return left
    if verb == "survey":
        answers = await backplane.survey("pid", timeout_seconds=argument)
        return [sorted(answers.by_worker.values()), [worker.pid for worker in answers.missing]]
    if verb == "disconnect":
        answers = await backplane.disconnect(user=argument, confirm_seconds=2)
        return [sum(answers.by_worker.values()), [worker.pid for worker in answers.missing]]
    assert verb == "alive"
    return sorted(worker.pid for worker in await backplane.workers() if worker.is_alive)


async def lists() -> dict[str, Any]:
    """Return the users of each room, and how many connections each has; `null` for a list that is stale."""
    views = {room: await backplane.present(room) for room in ROOMS}
    return {
        room: None if view.stale else {user: shown.connections for user, shown in view.users.items()}
        for room, view in views.items()
    }


async def serve_test(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer each line of a connection."""
    while line := await reader.readline():
        writer.write(json.dumps(await answer(*json.loads(line))).encode() + b"\n")
        await writer.drain()
    writer.close()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    """Run the backplane, the watches, and the socket of the test."""
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(backplane.lifespan(app))
        watches = [asyncio.create_task(watch(room)) for room in ROOMS]
        # Named once it answers, so that its file is complete when the test finds it.
        path = FOLDER / f"{os.getpid()}.new"
        server = await asyncio.start_unix_server(serve_test, path, limit=1 << 24)
        path.rename(FOLDER / str(os.getpid()))
        yield
        server.close()
        for task in watches:
            task.cancel()


app = FastAPI(lifespan=lifespan)
clients = count()


@app.websocket("/ws/{room}")
async def room_socket(websocket: WebSocket, room: str, user: str) -> None:
    """Serve a client that only receives; every other one is handed over."""
    if next(clients) % 2:
        return await backplane.hand_over(websocket, room, presence=Who(user=user), on_open=send_pid)
    async with backplane.connect(websocket, room, presence=Who(user=user)) as connection:
        await send_pid(connection)
        async for _ in connection:
            pass
    return None


async def send_pid(connection: Connection) -> None:
    """Send the worker's pid."""
    await connection.send(str(os.getpid()))
