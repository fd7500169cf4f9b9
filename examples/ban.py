"""A ban: the user is refused from now on, and closed at once on every worker that can be reached.

Run it in this folder:

    ADMIN_TOKEN=$(openssl rand -hex 32) BANS=bans.sqlite BACKPLANE_URL=ipc://ban uvicorn ban:app --workers 2

Connect to ws://127.0.0.1:8000/rooms/lobby?user=ada, then ban the user, and lift the ban:

    curl -X PUT http://127.0.0.1:8000/bans/ada -H "Authorization: Bearer $ADMIN_TOKEN"
    curl -X DELETE http://127.0.0.1:8000/bans/ada -H "Authorization: Bearer $ADMIN_TOKEN"

Three things make it hold, in this order. The list of bans, which every worker reads before it accepts a client and
before each join: it alone would do for those that come. The command to all workers, which ends what is open. And the
end of each connection after five minutes, which bounds what a command cannot reach: a worker that is cut off from the
broker at that moment does not receive it, also not later. The answer names such workers.
"""

import os
import sqlite3
import time
from contextlib import closing
from hmac import compare_digest
from typing import Annotated

from fastapi import Depends, FastAPI, Header, HTTPException, Path, Query, Response, WebSocket, WebSocketException
from pydantic import BaseModel

from backplane import Backplane, BrokerError, Connection
from backplane.health_routes import health_routes

ADMIN_TOKEN = os.environ["ADMIN_TOKEN"]
BANS = os.environ["BANS"]  # stands for your database, which all workers of all hosts share
SESSION_SECONDS = float(os.environ.get("SESSION_SECONDS", "300"))
CONFIRM_SECONDS = 2.0

# Any client may be any user here: login.py shows how to check who it is.
User = Annotated[str, Path(pattern=r"^[\w-]{1,30}$")]
UserOfQuery = Annotated[str, Query(alias="user", pattern=r"^[\w-]{1,30}$")]
Room = Annotated[str, Path(pattern=r"^[\w-]{1,40}$")]


class Banned(BaseModel):
    """The answer to a ban, which holds from now on in any case.

    Attributes:
        closed: How many connections were closed.
        unconfirmed: The workers that did not confirm, or have only just started; connections there end after
            `SESSION_SECONDS` at the latest.
            Null where the broker does not have the command: connections anywhere may last as long.
    """

    closed: int
    unconfirmed: list[str] | None


backplane = Backplane(cluster=True)
app = FastAPI(lifespan=backplane.lifespan)
app.mount("/health", health_routes(backplane))


def execute(statement: str, user: str) -> bool:
    """Run a statement on the list of bans; return whether it found a row."""
    with closing(sqlite3.connect(BANS)) as database, database:
        database.execute("CREATE TABLE IF NOT EXISTS bans (user TEXT PRIMARY KEY)")
        return database.execute(statement, [user]).fetchone() is not None


def is_banned(user: str) -> bool:
    """Return whether a user is banned now."""
    return execute("SELECT 1 FROM bans WHERE user = ?", user)


def check_admin(authorization: Annotated[str, Header()] = "") -> None:
    """Let only the administrator in."""
    if not compare_digest(authorization.encode(), f"Bearer {ADMIN_TOKEN}".encode()):
        raise HTTPException(401, "not the administrator's token")


@backplane.authorize
def may_join(connection: Connection, _: str) -> bool:
    """Let a client join unless its user was banned meanwhile."""
    return not is_banned(connection.context)


@app.websocket("/rooms/{room}")
async def talk(websocket: WebSocket, room: Room, user: UserOfQuery) -> None:
    """Publish to a room what the client sends, for as long as a session lasts."""
    if is_banned(user):
        raise WebSocketException(1008, "banned")  # before the handshake: an HTTP 403
    until = time.time() + SESSION_SECONDS
    async with backplane.connect(
        websocket, f"rooms:{room}", context=user, client_key=user, expires_at=until
    ) as connection:
        async for text in connection:
            if isinstance(text, str):
                await backplane.publish(f"rooms:{room}", f"{user}: {text}")


@app.put("/bans/{user}", dependencies=[Depends(check_admin)])
async def ban(user: User) -> Banned:
    """Ban a user: first in the list, so that a client that comes back meanwhile is refused, then at every worker."""
    execute("INSERT OR IGNORE INTO bans VALUES (?)", user)
    try:
        answers = await backplane.disconnect(user=user, reason="banned", confirm_seconds=CONFIRM_SECONDS)
    except BrokerError:
        return Banned(closed=0, unconfirmed=None)
    unconfirmed = [f"{worker.host} {worker.pid}" for worker in (*answers.missing, *answers.errors)]
    return Banned(closed=sum(answers.by_worker.values()), unconfirmed=unconfirmed)


@app.delete("/bans/{user}", status_code=204, response_class=Response, dependencies=[Depends(check_admin)])
async def lift(user: User) -> None:
    """Lift a ban."""
    execute("DELETE FROM bans WHERE user = ?", user)
