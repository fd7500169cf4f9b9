"""A chat with rooms and a page: who is in a room hears all of it, whichever worker serves them.

Run it in this folder, then open http://127.0.0.1:8000/ in two windows:

    BACKPLANE_URL=ipc://chat backplane run chat:app --workers 4
"""

from contextlib import suppress
from pathlib import Path as FilePath
from typing import Annotated

from fastapi import FastAPI, Path, Query, WebSocket
from fastapi.responses import FileResponse
from pydantic import BaseModel, StringConstraints

from backplane import Backplane, BackplaneError, Limits
from backplane.health_routes import health_routes

Room = Annotated[str, Path(pattern=r"^[\w-]{1,40}$")]
Name = Annotated[str, Query(pattern=r"^[\w -]{1,40}$")]


class Said(BaseModel):
    """What a client sends."""

    text: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1000)]


class Line(BaseModel):
    """What the room hears; without an author it is a note."""

    author: str = ""
    text: str


backplane = Backplane(limits=Limits(max_messages_per_second=10, max_message_bytes=8192))
rooms = backplane.channel("rooms:{room}", Line)
app = FastAPI(lifespan=backplane.lifespan)
app.mount("/health", health_routes(backplane))


@app.get("/", include_in_schema=False)
async def page() -> FileResponse:
    """Serve the page."""
    return FileResponse(FilePath(__file__).with_name("chat.html"))


@app.websocket("/rooms/{room}")
async def talk(websocket: WebSocket, room: Room, name: Name) -> None:
    """Join a room and talk. What is no `Said` is answered with what is wrong with it."""
    async with backplane.connect(websocket, rooms.name(room=room)) as connection:
        await tell(room, Line(text=f"{name} came"))
        async for said in connection.iter(Said):
            await rooms.publish(Line(author=name, text=said.text), room=room)
    await tell(room, Line(text=f"{name} left"))


async def tell(room: str, line: Line) -> None:
    """Publish a note; that the broker is away, or this worker ends, is no reason to fail for it."""
    with suppress(BackplaneError):
        await rooms.publish(line, room=room)
