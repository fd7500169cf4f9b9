"""The application of the tests of commands: users with connections on any worker, and what they are banned with."""

from __future__ import annotations

import os
import time
from itertools import count
from typing import TYPE_CHECKING, Any, Unpack

from fastapi import FastAPI, Request, Response, WebSocket

from backplane import Backplane, Limits, Settings, Who

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from backplane import Answers, Connection
    from backplane.connect_options import ConnectOptions

backplane = Backplane(
    cluster=True,
    control_secret=os.environ.get("TEST_CONTROL_SECRET"),
    settings=Settings(worker_heartbeat_seconds=0.5, worker_down_seconds=30, drain_seconds=1),
)
app = FastAPI(lifespan=backplane.lifespan)
clients = count()


@backplane.on_survey("state")
def state(question: Any) -> dict[str, Any]:
    """Return what a test asks all workers."""
    statistics = backplane.statistics()
    return {"pid": os.getpid(), "question": question, "rejected": statistics.cluster_rejected}


@app.get("/pid")
async def pid() -> int:
    """Return the pid of the worker that answers."""
    return os.getpid()


def answered(answers: Answers, began: float) -> dict[str, Any]:
    """Return what was answered, with pids."""
    return {
        "answers": {worker.pid: answer for worker, answer in answers.by_worker.items()},
        "errors": list(answers.errors.values()),
        "missing": [worker.pid for worker in answers.missing],
        "seconds": time.monotonic() - began,
    }


@app.get("/survey")
async def survey(seconds: float) -> dict[str, Any]:
    """Ask all workers."""
    began = time.monotonic()
    return answered(await backplane.survey("state", "q", timeout_seconds=seconds), began)


@app.get("/ban/{user}")
async def ban(user: str, seconds: float) -> dict[str, Any]:
    """Close all connections of a user, and wait for the workers."""
    began = time.monotonic()
    return answered(await backplane.disconnect(user=user, code=4003, reason="banned", confirm_seconds=seconds), began)


@app.get("/ban-in-a-thread/{user}")
def ban_in_a_thread(user: str) -> str:
    """Close all connections of a user from synchronous code."""
    backplane.sync.disconnect(user=user, code=4003, reason="banned")
    return "sent"


async def send_pid(connection: Connection) -> None:
    """Send the worker's pid."""
    await connection.send(str(os.getpid()))


async def stay(
    websocket: WebSocket, on_open: Callable[[Connection], Awaitable[None]] = send_pid, **options: Unpack[ConnectOptions]
) -> None:
    """Stay in the room; every other client is handed over."""
    if next(clients) % 2:
        return await backplane.hand_over(websocket, "room", on_open=on_open, **options)
    async with backplane.connect(websocket, "room", **options) as connection:
        await on_open(connection)
        async for _ in connection:
            pass
    return None


@app.websocket("/users/{user}")
async def connected(websocket: WebSocket, user: str) -> None:
    """Stay."""
    await stay(websocket, presence=Who(user=user))


@app.websocket("/single/{user}")
async def single(websocket: WebSocket, user: str) -> None:
    """End the sessions that the user had before."""

    async def end_others(connection: Connection) -> None:
        await backplane.disconnect(user=user, older_than=connection, reason="signed in elsewhere")
        await send_pid(connection)

    await stay(websocket, end_others, client_key=user)


@app.websocket("/capped/{user}")
async def capped(websocket: WebSocket, user: str) -> None:
    """Allow a user two connections."""
    await stay(websocket, client_key=user, limits=Limits(max_connections_per_user=2))


@app.get("/events/{user}")
async def events(request: Request, user: str) -> Response:
    """Stream the room."""
    return backplane.sse(request, "room", client_key=user)
