"""An application whose workers know each other, for the tests of the commands that ask them."""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, WebSocket

from backplane import Backplane, Presence, Settings, Who
from tests.server_in_loop import serving_in_loop

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

__all__ = ["HEARTBEAT_SECONDS", "WAIT", "application", "serving_in_thread"]

HEARTBEAT_SECONDS = 0.3

WAIT = ("--seconds", str(HEARTBEAT_SECONDS * 1.5))
"""The option of the commands for workers that send heartbeats this often."""


def application(url: str | None = None, secret: str | None = None) -> FastAPI:
    """Return it: rooms with presence, which are counted alone from the third client on in those named `counted:…`."""
    backplane = Backplane(
        url,
        presence={
            "room:*": Presence(grace_seconds=0),
            "counted:*": Presence(grace_seconds=0, max_entries=2),
        },
        control_secret=secret or os.environ.get("TEST_CONTROL_SECRET"),
        settings=Settings(worker_heartbeat_seconds=HEARTBEAT_SECONDS, worker_down_seconds=3),
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        async with backplane.lifespan(app):
            yield

    app = FastAPI(lifespan=lifespan)

    @backplane.on_survey("load")
    def load(question: Any) -> Any:
        return {"pid": os.getpid(), "question": question}

    @backplane.on_survey("fails")
    def fails(_: Any) -> Any:
        raise ValueError

    @backplane.on_survey("never")
    async def never(_: Any) -> Any:
        await asyncio.Event().wait()

    @app.get("/workers")
    async def workers() -> list[str]:
        """Return the ids of the workers that this one knows, also of those that have ended."""
        return [worker.id for worker in await backplane.workers()]

    @app.get("/missing")
    async def missing() -> int:
        """Ask all workers; return how many do not answer."""
        return len((await backplane.survey("load", timeout_seconds=20)).missing)

    @app.websocket("/{room}")
    async def talk(websocket: WebSocket, room: str, user: str, info: str = "") -> None:
        """Stay in a room as a user; the first message states that the connection has joined."""
        async with backplane.connect(websocket, room, presence=Who(user=user, info=info or None)) as connection:
            await connection.send(connection.id)
            async for _ in connection:
                pass

    _ = load, fails, never, workers, missing, talk
    return app


@contextmanager
def serving_in_thread(url: str, secret: str | None = None) -> Generator[str]:
    """Run one worker in a thread of this process; entered when it serves, with the URL of its WebSockets."""
    started, ended, served = threading.Event(), threading.Event(), ""

    async def serve() -> None:
        nonlocal served
        async with serving_in_loop(application(url, secret)) as server:
            served = server.ws_url
            started.set()
            await asyncio.to_thread(ended.wait)

    thread = threading.Thread(target=asyncio.run, args=[serve()])
    thread.start()
    try:
        assert started.wait(20), "the worker did not start"
        yield served
    finally:
        ended.set()
        thread.join()
