"""A chat whose rooms span every worker: run `backplane demo`, or any ASGI server with `BACKPLANE_URL` set."""

import os
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path as FilePath
from typing import Annotated, Literal

from fastapi import FastAPI, HTTPException, Path, Query, WebSocket
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field, StringConstraints, ValidationError

from backplane import Backplane, BrokerError, Gap
from backplane.demo.history import HISTORY

__all__ = ["app", "backplane"]

Room = Annotated[str, Path(pattern=r"^[\w-]+$", max_length=40)]
Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=40)]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1000)]


class Draft(BaseModel):
    """What a client sends: a text, and an id by which it recognizes its own message."""

    id: Annotated[str, Field(min_length=1, max_length=40)]
    text: Text


class Post(BaseModel):
    """The body of `POST /rooms/{room}`."""

    name: Name
    text: Text


class Published(BaseModel):
    """What is published to a room, with the worker that published it."""

    worker: int = Field(default_factory=os.getpid)
    sent_at: datetime = Field(default_factory=lambda: datetime.now(UTC))


class ChatMessage(Published):
    """A message of a person."""

    type: Literal["message"] = "message"
    id: str | None = None
    author: str
    text: str


class Notice(Published):
    """A person joined or left."""

    type: Literal["notice"] = "notice"
    text: str


class Welcome(BaseModel):
    """Sent to a client after what it missed, and to it alone: which worker serves it. What follows is new."""

    type: Literal["welcome"] = "welcome"
    worker: int = Field(default_factory=os.getpid)


class Refusal(BaseModel):
    """The answer to a message that was not published."""

    type: Literal["error"] = "error"
    id: str | None = None
    reason: str


def stay(_: Gap) -> None:
    """Keep a client connected where messages may be missing: the envelope's event notifies its page."""


backplane: Backplane = Backplane(history=HISTORY, on_gap=stay)  # the broker of BACKPLANE_URL
app: FastAPI = FastAPI(title="backplane demo", lifespan=backplane.lifespan)


@app.get("/", include_in_schema=False)
async def page() -> FileResponse:
    """Serve the page."""
    return FileResponse(FilePath(__file__).with_name("page.html"))


@app.websocket("/rooms/{room}")
async def room_socket(websocket: WebSocket, room: Room, name: Annotated[Name, Query()], since: str = "") -> None:
    """Join a room: receive what was published after the position `since`, and from now on; publish what is sent."""
    async with backplane.connect(websocket, room, since=since, envelope="json") as connection:
        await connection.send(Welcome())
        with suppress(BrokerError):  # the client may join without an announcement
            await backplane.publish(room, Notice(text=f"{name} joined"))
        async for data in connection:
            if refusal := await publish_draft(room, name, data):
                await connection.send(refusal)
    with suppress(BrokerError):
        await backplane.publish(room, Notice(text=f"{name} left"))


async def publish_draft(room: str, name: str, data: str | bytes) -> Refusal | None:
    """Publish what a client sent, or return why not: neither bad input nor a lost broker ends the connection."""
    try:
        draft = Draft.model_validate_json(data)
    except ValidationError as error:
        reasons = (f"{'.'.join(map(str, wrong['loc']))} {wrong['msg']}".strip() for wrong in error.errors())
        return Refusal(reason="; ".join(reasons))
    try:
        await backplane.publish(room, ChatMessage(id=draft.id, author=name, text=draft.text))
    except BrokerError:
        return Refusal(id=draft.id, reason="the broker is unavailable: this may not have been delivered")
    return None


@app.post("/rooms/{room}", status_code=202)
async def post(room: Room, post: Post) -> ChatMessage:
    """Publish from HTTP: every client of the room receives it, whichever worker takes the request."""
    message = ChatMessage(author=post.name, text=post.text)
    try:
        await backplane.publish(room, message)
    except BrokerError as error:
        raise HTTPException(503, "the broker is unavailable: this may not have been delivered") from error
    return message
