"""One room over two transports: WebSockets, and server-sent events where a client only listens.

Run it in this folder, then open http://127.0.0.1:8000/, or listen with `curl -N http://127.0.0.1:8000/rooms/lobby`:

    BACKPLANE_URL=ipc://room uvicorn room_sse:app --workers 2
"""

from pathlib import Path as FilePath
from typing import Annotated

from fastapi import FastAPI, Path, Request, Response, WebSocket
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field

from backplane import Backplane, History
from backplane.health_routes import health_routes

Room = Annotated[str, Path(pattern=r"^[\w-]{1,40}$")]


class Post(BaseModel):
    """What a client posts in a room."""

    text: Annotated[str, Field(min_length=1, max_length=1000)]


# A stream that was cut comes back by itself, and gets what it missed meanwhile.
backplane = Backplane(history={"rooms:*": History(max_messages=200)})
rooms = backplane.channel("rooms:{room}", Post)
app = FastAPI(lifespan=backplane.lifespan)
app.mount("/health", health_routes(backplane))


@app.get("/", include_in_schema=False)
async def page() -> FileResponse:
    """Serve the page."""
    return FileResponse(FilePath(__file__).with_name("room_sse.html"))


@app.get("/rooms/{room}")
async def listen(request: Request, room: Room) -> Response:
    """Receive the messages of the room as a stream of events."""
    return backplane.sse(request, rooms.name(room=room))


@app.post("/rooms/{room}", status_code=202)
async def post(room: Room, message: Post) -> None:
    """Publish to the room without a socket."""
    await rooms.publish(message, room=room)


@app.websocket("/rooms/{room}")
async def talk(websocket: WebSocket, room: Room) -> None:
    """Receive from the same room, and publish to it, over a WebSocket."""
    async with backplane.connect(websocket, rooms.name(room=room)) as connection:
        async for message in connection.iter(Post):
            await rooms.publish(message, room=room)
