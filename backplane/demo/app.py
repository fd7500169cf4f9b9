"""A chat whose rooms span every worker: run `backplane demo`, or any ASGI server with `BACKPLANE_URL` set.

The page is a client of the Centrifugal client protocol, by the browser build of centrifuge-js 5.8.0 (centrifuge.js, its
licence in centrifuge.LICENSE). A plain WebSocket at `/rooms/{room}` is in the same rooms.
"""

import asyncio
import os
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path as FilePath
from typing import Annotated, Literal

from fastapi import FastAPI, HTTPException, Path, Query, WebSocket
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field, StringConstraints, ValidationError

from backplane import (
    Backplane,
    BackplaneError,
    BrokerError,
    ClosedError,
    Connection,
    Gap,
    Presence,
    PresenceChange,
    PresenceSnapshot,
    PresentUser,
    Settings,
    Who,
)
from backplane.centrifugal import Accepted, Centrifugal, CommandError, ConnectRequest
from backplane.demo.history import history_on

__all__ = ["app", "backplane"]

Room = Annotated[str, Path(pattern=r"^[\w-]+$", max_length=40)]
# As the name of a user it may take 128 bytes, and four for each character.
Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=32, pattern=r"^\P{Cc}+$")]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1000)]


class Draft(BaseModel):
    """What a client sends: a text, and an id by which it recognizes its own message."""

    id: Annotated[str, Field(min_length=1, max_length=40)]
    text: Text


class Typing(BaseModel):
    """What a client sends while its user types, every other second."""

    typing: Literal[True]


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


class Person(BaseModel):
    """What is shown with a user: the worker of the connection that joined or was updated last."""

    worker: int = Field(default_factory=os.getpid)
    typing: bool = False


class Introduction(BaseModel):
    """What the page sends when it connects."""

    name: Name


class Entrance(BaseModel):
    """What the page sends once it has subscribed to a room."""

    room: Annotated[str, Field(pattern=r"^[\w-]+$", max_length=40)]


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


TYPING_SECONDS = 4.0
"""A user whose page has stated nothing for so long does not type any more."""

# The broker of BACKPLANE_URL. The users of a killed worker are gone after `worker_down_seconds`, and the grace; those
# that come back by then, to any worker, never leave.
backplane: Backplane = Backplane(
    history=history_on(os.environ.get("BACKPLANE_URL") or "memory://"),
    presence={"*": Presence(grace_seconds=4)},
    settings=Settings(worker_heartbeat_seconds=1, worker_down_seconds=4),
    on_gap=stay,
)
app: FastAPI = FastAPI(title="backplane demo", lifespan=backplane.lifespan)


@app.get("/", include_in_schema=False)
async def page() -> FileResponse:
    """Serve the page."""
    return FileResponse(FilePath(__file__).with_name("page.html"))


@app.get("/centrifuge.js", include_in_schema=False)
async def sdk() -> FileResponse:
    """Serve the SDK of the page."""
    return FileResponse(FilePath(__file__).with_name("centrifuge.js"), media_type="text/javascript")


centrifugal: Centrifugal = Centrifugal(backplane)
visits: dict[str, "Visit"] = {}  # of the pages that this worker serves, by the id of the connection


@app.websocket("/connection/websocket")
async def page_socket(websocket: WebSocket) -> None:
    """Serve a page: it subscribes to a room, enters it, and posts by RPC."""
    await centrifugal.serve(websocket)


@centrifugal.on_connect
def introduce(connection: Connection, request: ConnectRequest) -> Accepted:
    """Take the name of the person; the page shows which worker serves it."""
    try:
        name = Introduction.model_validate_json(request.data).name
    except ValidationError:
        raise CommandError(400, "a name has 1 to 32 characters, and no control characters") from None
    connection.context = name
    info = Person().model_dump()
    return Accepted(user=name, info=info, data=info)


@centrifugal.rpc("enter")
async def enter(connection: Connection, entrance: Entrance) -> None:
    """Announce the person to the room that the page has subscribed to, and send the page who is there."""
    if entrance.room not in connection.channels:
        raise CommandError(400, "subscribe to a room before you enter it")
    if connection.id not in visits:  # a page that subscribes again has not left
        visits[connection.id] = Visit(entrance.room, connection.context)
        connection.spawn(stay_in_room(connection, visits[connection.id]))


@centrifugal.rpc("post")
async def post_draft(connection: Connection, draft: Draft) -> None:
    """Publish a message of a page."""
    if refusal := await visit_of(connection).publish(draft):
        raise CommandError(503, refusal.reason)


@centrifugal.rpc("typing")
async def type_on(connection: Connection) -> None:
    """Show that the user of a page types."""
    await visit_of(connection).typing(connection)


def visit_of(connection: Connection) -> "Visit":
    """Return the visit of a page to its room."""
    if connection.id not in visits:
        raise CommandError(400, "enter a room first")
    return visits[connection.id]


async def stay_in_room(connection: Connection, visit: "Visit") -> None:
    """Send a page who is in its room, and every change, until its connection ends."""
    await visit.announce("joined")
    try:
        async with backplane.watch(visit.room) as present:
            async for item in present:
                await connection.send({"presence": presence_frame(item)})
    finally:
        del visits[connection.id]
        await visit.end(connection)


def presence_frame(item: PresenceSnapshot | PresenceChange) -> dict[str, object]:
    """Return an item of a watch as the page takes it."""
    if isinstance(item, PresenceSnapshot):
        users = None if item.counts_only else people(item.users)
        return {"users": users, "connections": item.connections}
    changes = {"joined": people(item.joined), "left": item.left, "updated": people(item.updated)}
    return {"connections": item.connections, **changes}


def people(users: Mapping[str, PresentUser]) -> dict[str, object]:
    """Return what is shown with users, by name."""
    return {name: {"info": user.info} for name, user in users.items()}


@app.websocket("/rooms/{room}")
async def room_socket(websocket: WebSocket, room: Room, name: Annotated[Name, Query()], since: str = "") -> None:
    """Join a room: receive what was published after the position `since`, and from now on; publish what is sent.

    The client is also sent who is in the room. Most clients only listen, so none keeps a task.
    """
    who = Who(user=name, info=Person().model_dump())
    visit = Visit(room, name)
    await backplane.hand_over(
        websocket,
        room,
        on_open=visit.begin,
        on_message=visit.receive,
        on_close=visit.end,
        since=since,
        envelope="json",
        presence=who,
    )


class Visit:
    """A connection of a person to a room, from its handshake to its end."""

    def __init__(self, room: str, name: str) -> None:
        self.room: str = room
        self._name = name
        self._typing: TypingState | None = None

    async def begin(self, connection: Connection) -> None:
        """Welcome the client, and announce the person to the room."""
        await connection.send(Welcome())
        await connection.join(self.room, presence=True)  # sends who is in the room, and every change
        await self.announce("joined")

    async def receive(self, connection: Connection, data: str | bytes) -> None:
        """Publish what the client sends, or answer why not."""
        if is_typing(data):
            await self.typing(connection)
            return
        draft = draft_of(data)
        refusal = draft if isinstance(draft, Refusal) else await self.publish(draft)
        if refusal:
            await connection.send(refusal)

    async def typing(self, connection: Connection) -> None:
        """Show that the person types."""
        self._typing = self._typing or TypingState(connection, self.room)
        await self._typing.typing()

    async def publish(self, draft: Draft) -> Refusal | None:
        """Publish a message, or return why that failed: a lost broker does not end the connection."""
        try:
            await backplane.publish(self.room, ChatMessage(id=draft.id, author=self._name, text=draft.text))
        except BrokerError:
            return Refusal(id=draft.id, reason="the broker is unavailable: this may not have been delivered")
        if self._typing is not None:
            await self._typing.stopped()
        return None

    async def end(self, _: Connection) -> None:
        """Announce that the person left."""
        if self._typing is not None:
            self._typing.forget_timeout()
        await self.announce("left")

    async def announce(self, what: str) -> None:
        """Publish a notice, where that is possible: a client may join without it, and this worker may be ending."""
        with suppress(BackplaneError):
            await backplane.publish(self.room, Notice(text=f"{self._name} {what}"))


class TypingState:
    """Shows to the room whether the user of a connection types."""

    def __init__(self, connection: Connection, room: str) -> None:
        self._connection = connection
        self._room = room
        self._timeout: asyncio.Task[None] | None = None

    async def typing(self) -> None:
        """Show it, for `TYPING_SECONDS` or until the next call."""
        if self._timeout is None:
            await self._show(typing=True)
        self.forget_timeout()
        self._timeout = asyncio.create_task(self._stop_later())

    async def stopped(self) -> None:
        """Show that the user does not type, if that was shown."""
        if self._timeout is not None:
            self.forget_timeout()
            await self._show(typing=False)

    async def _stop_later(self) -> None:
        await asyncio.sleep(TYPING_SECONDS)
        self._timeout = None
        with suppress(ClosedError):  # its connection has just ended
            await self._show(typing=False)

    async def _show(self, *, typing: bool) -> None:
        await self._connection.update_presence(self._room, info=Person(typing=typing).model_dump())

    def forget_timeout(self) -> None:
        """Let the task end that would state that the user stopped."""
        if self._timeout is not None:
            self._timeout.cancel()
            self._timeout = None


def is_typing(data: str | bytes) -> bool:
    """Return whether a client states that its user types."""
    try:
        return Typing.model_validate_json(data).typing
    except ValidationError:
        return False


def draft_of(data: str | bytes) -> Draft | Refusal:
    """Return what a client sent, or why it is no message: bad input does not end the connection."""
    try:
        return Draft.model_validate_json(data)
    except ValidationError as error:
        reasons = (f"{'.'.join(map(str, wrong['loc']))} {wrong['msg']}".strip() for wrong in error.errors())
        return Refusal(reason="; ".join(reasons))


@app.post("/rooms/{room}", status_code=202)
async def post(room: Room, post: Post) -> ChatMessage:
    """Publish from HTTP: every client of the room receives it, whichever worker takes the request."""
    message = ChatMessage(author=post.name, text=post.text)
    try:
        await backplane.publish(room, message)
    except BrokerError as error:
        raise HTTPException(503, "the broker is unavailable: this may not have been delivered") from error
    return message
