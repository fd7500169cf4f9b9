"""One room over two transports: WebSockets, and server-sent events where a client only listens.

Run it in this folder, then open http://127.0.0.1:8000/, or listen with `curl -N http://127.0.0.1:8000/rooms/lobby`:

    BACKPLANE_URL=ipc://room uvicorn room_sse:app --workers 2
"""

from pathlib import Path as FilePath
from typing import Annotated

from fastapi import FastAPI, Path, Request, Response, WebSocket
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field

from backplane import Backplane
from backplane.health_routes import health_routes

Room = Annotated[str, Path(pattern=r"^[\w-]{1,40}$")]


class Said(BaseModel):
    """What is said in a room."""

    text: Annotated[str, Field(min_length=1, max_length=1000)]


backplane = Backplane()
rooms = backplane.channel("rooms:{room}", Said)
app = FastAPI(lifespan=backplane.lifespan)
app.mount("/health", health_routes(backplane))


@app.get("/", include_in_schema=False)
async def page() -> FileResponse:
    """Serve the page."""
    return FileResponse(FilePath(__file__).with_name("room_sse.html"))


@app.get("/rooms/{room}")
async def listen(request: Request, room: Room) -> Response:
    """Hear the room as a stream of events."""
    return backplane.sse(request, rooms.name(room=room))


@app.post("/rooms/{room}", status_code=202)
async def say(room: Room, said: Said) -> None:
    """Say something without a socket."""
    await rooms.publish(said, room=room)


@app.websocket("/rooms/{room}")
async def talk(websocket: WebSocket, room: Room) -> None:
    """Hear the same room, and talk, over a WebSocket."""
    async with backplane.connect(websocket, rooms.name(room=room)) as connection:
        async for said in connection.iter(Said):
            await rooms.publish(said, room=room)
