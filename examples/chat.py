"""A chat with rooms and a page: every client of a room receives all of its messages, whichever worker serves it.

A page that was away gets what it missed, in order and once; one that is opened gets the last 50 lines.

Run it in this folder, then open http://127.0.0.1:8000/ in two windows, and kill a worker (`kill -9`):

    BACKPLANE_URL=ipc://chat backplane run chat:app --workers 4
"""

from contextlib import suppress
from pathlib import Path as FilePath
from typing import Annotated

from fastapi import FastAPI, Path, Query, WebSocket
from fastapi.responses import FileResponse
from pydantic import BaseModel, StringConstraints

from backplane import Backplane, BackplaneError, Gap, History, Limits, Settings, metrics_routes
from backplane.client_routes import client_routes
from backplane.health_routes import health_routes

Room = Annotated[str, Path(pattern=r"^[\w-]{1,40}$")]
Name = Annotated[str, Query(pattern=r"^[\w -]{1,40}$")]


class Post(BaseModel):
    """What a client sends."""

    text: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1000)]


class Line(BaseModel):
    """What the clients of a room receive; without an author it is a note."""

    author: str = ""
    text: str


class Live(BaseModel):
    """Sent to a client after what it missed: what follows is new."""

    live: bool = True


def stay(_: Gap) -> None:
    """Keep a client connected where messages may be missing: the envelope's event notifies its page."""


backplane = Backplane(
    settings=Settings(max_connections=5_000),  # what the memory of its pod holds: examples/kubernetes
    limits=Limits(max_messages_per_second=10, max_message_bytes=8192),
    history={"rooms:*": History(max_messages=200, max_age_seconds=24 * 3600)},
    on_gap=stay,
)
rooms = backplane.channel("rooms:{room}", Line)
app = FastAPI(lifespan=backplane.lifespan)
app.mount("/health", health_routes(backplane))
app.add_route("/metrics", metrics_routes(backplane))
app.mount("/backplane", client_routes())  # the script of the page


@app.get("/", include_in_schema=False)
async def page() -> FileResponse:
    """Serve the page."""
    return FileResponse(FilePath(__file__).with_name("chat.html"))


@app.websocket("/rooms/{room}")
async def talk(websocket: WebSocket, room: Room, name: Name, since: str = "") -> None:
    """Join a room, from the position `since` on, and talk. What is no `Post` is answered with what is wrong with it."""
    channel = rooms.name(room=room)
    async with backplane.connect(websocket, channel, since=since, rewind=50, envelope="json") as connection:
        await connection.send(Live())
        await announce(room, Line(text=f"{name} came"))
        async for post in connection.iter(Post):
            await rooms.publish(Line(author=name, text=post.text), room=room)
    await announce(room, Line(text=f"{name} left"))


async def announce(room: str, line: Line) -> None:
    """Publish a note, where that is possible: the broker may be away, and this worker may be about to end."""
    with suppress(BackplaneError):
        await rooms.publish(line, room=room)
