"""Who is in a room and who is typing, on a page: users of all workers, and every change as it happens.

A user with several windows is one user. One whose last window closes has left after the grace of 5 seconds, and one who
is back by then has not left at all; the users of a killed worker are gone after 15 seconds.

Run it in this folder, then open http://127.0.0.1:8000/?name=ada and http://127.0.0.1:8000/?name=bob:

    BACKPLANE_URL=ipc://presence backplane run room_presence:app --workers 4

`backplane present rooms:lobby ipc://presence` lists the users in a terminal.
"""

import asyncio
from contextlib import suppress
from pathlib import Path as FilePath
from typing import Annotated

from fastapi import FastAPI, Path, Query, WebSocket
from fastapi.responses import FileResponse
from pydantic import BaseModel

from backplane import Backplane, ClosedError, Connection, Limits, Presence, Who
from backplane.health_routes import health_routes

Room = Annotated[str, Path(pattern=r"^[\w-]{1,40}$")]
# Any client may take any name here: login.py shows how to check who it is.
Name = Annotated[str, Query(pattern=r"^[A-Za-z0-9_-]{1,40}$")]

TYPING_SECONDS = 4.0


class Typing(BaseModel):
    """What a client sends when its user types: every two seconds, and `false` when the text is sent or deleted."""

    typing: bool


class Person(BaseModel):
    """What is shown with a user; 256 bytes of JSON at most, as every worker of the room holds it."""

    typing: bool = False


class Present(BaseModel):
    """Who is in a room; of one with more than 1,000 connections their number alone."""

    connections: int
    users: list[str] | None


backplane = Backplane(
    presence={"rooms:*": Presence(grace_seconds=5)},
    limits=Limits(max_messages_per_second=5, max_message_bytes=1024),
)
app = FastAPI(lifespan=backplane.lifespan)
app.mount("/health", health_routes(backplane))


@app.get("/", include_in_schema=False)
async def page() -> FileResponse:
    """Serve the page."""
    return FileResponse(FilePath(__file__).with_name("room_presence.html"))


@app.get("/rooms/{room}/users")
async def users(room: Room) -> Present:
    """Return who is in the room, for a page without a WebSocket."""
    view = await backplane.present(f"rooms:{room}")
    return Present(connections=view.connections, users=None if view.counts_only else sorted(view.users))


@app.websocket("/rooms/{room}")
async def be_there(websocket: WebSocket, room: Room, name: Name) -> None:
    """Be in the room, and receive who is: a snapshot, then each change."""
    channel = f"rooms:{room}"
    who = Who(user=name, info=Person().model_dump())
    async with backplane.connect(websocket, channel, presence=who) as connection:
        await connection.join(channel, presence=True)
        timeout = asyncio.create_task(stop_typing(connection, channel))
        try:
            async for message in connection.iter(Typing):
                timeout.cancel()
                await connection.update_presence(channel, info=Person(typing=message.typing).model_dump())
                timeout = asyncio.create_task(stop_typing(connection, channel))
        finally:
            timeout.cancel()


async def stop_typing(connection: Connection, channel: str) -> None:
    """Show after a while that the user does not type any more: a page that is suspended sends nothing of it."""
    await asyncio.sleep(TYPING_SECONDS)
    with suppress(ClosedError):
        await connection.update_presence(channel, info=Person().model_dump())
