"""Rooms for clients of official Centrifugal SDKs: a page in React, a Python and a Go program, see README.md.

Run it in this folder, with a secret for the tokens:

    TOKEN_SECRET=$(openssl rand -hex 32) BACKPLANE_URL=ipc://rooms backplane run rooms:app --workers 4
"""

import os
import time
from pathlib import Path
from typing import Annotated
from uuid import uuid4

import jwt
from fastapi import FastAPI, Query, WebSocket
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, Field, StringConstraints

from backplane import Backplane, BrokerError, Client, Connection, History
from backplane.centrifugal import Centrifugal, CommandError, ConnectRequest, JwtTokens
from backplane.health_routes import health_routes

SECRET = os.environ["TOKEN_SECRET"]  # the same in all workers
Room = Annotated[str, StringConstraints(pattern=r"^[\w-]{1,40}$")]
User = Annotated[str, Query(pattern=r"^[\w-]{1,40}$")]

backplane = Backplane(history={"room:*": History(max_messages=200, max_age_seconds=3600)})
centrifugal = Centrifugal(backplane, tokens=JwtTokens(SECRET))
app = FastAPI(lifespan=backplane.lifespan)
app.mount("/health", health_routes(backplane))


class Draft(BaseModel):
    """What a client posts."""

    room: Room
    text: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1000)]


class Post(BaseModel):
    """What is published to a room."""

    id: str = Field(default_factory=lambda: uuid4().hex)
    author: str
    text: str


@app.websocket("/connection/websocket")
async def connection(websocket: WebSocket) -> None:
    """Serve one client of an SDK; its token states its user."""
    await centrifugal.serve(websocket)


@centrifugal.on_connect
def need_token(_: Connection, request: ConnectRequest) -> None:
    """Refuse who has none; one that is there has been checked."""
    if not request.token:
        raise CommandError(401, "a token is needed")


@app.post("/tokens")
async def token(user: User) -> dict[str, str]:
    """Return a token for five minutes. In an application the user is that of its session, and not a parameter."""
    return {"token": jwt.encode({"sub": user, "exp": time.time() + 300}, SECRET, algorithm="HS256")}


@app.get("/rooms/{room}")
async def state(room: Room) -> list[Post]:
    """Return what a client shows at first, and loads again after a gap. In an application it is in a database."""
    page = await backplane.history(f"room:{room}")
    return [Post.model_validate(message.data) for message in page.messages]


@backplane.authorize
def may_join(_: Client, channel: str) -> bool:
    """Let every user into the rooms, and into nothing else."""
    return channel.startswith("room:")


@centrifugal.rpc("post")
async def post(connection: Connection, draft: Draft) -> str:
    """Publish what a client posts, under its own name; return the id."""
    channel = f"room:{draft.room}"
    if connection.user is None or channel not in connection.channels:
        raise CommandError(403, "subscribe to the room first")
    post = Post(author=connection.user, text=draft.text)
    try:
        await backplane.publish(channel, post)
    except BrokerError:
        raise CommandError(503, "the broker is away: this may not have been delivered") from None
    return post.id


PAGE = Path(__file__).parent / "react" / "dist"  # npm run build
if PAGE.is_dir():
    app.mount("/", StaticFiles(directory=PAGE, html=True))
