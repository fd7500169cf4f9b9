"""Login with a JSON Web Token: who a client is, what it may hear, and the end of it when its token expires.

Run it in this folder:

    JWT_SECRET=$(openssl rand -hex 32) BACKPLANE_URL=ipc://login uvicorn login:app --workers 2

`POST /login` with `{"user": "ada", "passphrase": "analytical"}` answers with a token and sets it as a cookie, which a
browser sends along when it opens the socket: pages of other sites are refused by their origin. Before the token runs
out, a client sends `{"token": "<a new one>"}` over its socket.
"""

import os
import time
from hmac import compare_digest
from typing import Annotated

import jwt
from fastapi import Cookie, FastAPI, HTTPException, Response, WebSocket, WebSocketException
from pydantic import BaseModel

from backplane import Backplane, CloseCode, Connection, Settings
from backplane.health_routes import health_routes

JWT_SECRET = os.environ["JWT_SECRET"]  # of all workers the same
TOKEN_SECONDS = float(os.environ.get("TOKEN_SECONDS", "900"))
USERS = {"ada": "analytical", "grace": "compiler"}  # stands for your database, which holds no plain text


class Login(BaseModel):
    """Who wants to come in."""

    user: str
    passphrase: str


class Renewal(BaseModel):
    """What a client sends to stay."""

    token: str


backplane = Backplane(settings=Settings(max_connections_per_client=5))
app = FastAPI(lifespan=backplane.lifespan)
app.mount("/health", health_routes(backplane))


@app.post("/login")
async def login(credentials: Login, response: Response) -> Renewal:
    """Return a token that lasts for a while."""
    known = USERS.get(credentials.user, "")
    if not known or not compare_digest(known.encode(), credentials.passphrase.encode()):
        raise HTTPException(401, "wrong user or passphrase")
    claims = {"sub": credentials.user, "exp": time.time() + TOKEN_SECONDS}
    token = jwt.encode(claims, JWT_SECRET, algorithm="HS256")
    response.set_cookie("token", token, httponly=True, samesite="strict")  # and secure=True behind TLS
    return Renewal(token=token)


def read_token(token: str) -> tuple[str, float] | None:
    """Return whose token it is and when it expires; `None` if it is not one of ours or not valid any more."""
    try:
        claims = jwt.decode(token, JWT_SECRET, algorithms=["HS256"], options={"require": ["sub", "exp"]})
    except jwt.InvalidTokenError:
        return None
    return claims["sub"], claims["exp"]


@backplane.authorize
def may_hear(connection: Connection, channel: str) -> bool:
    """Let everybody into the hall, and nobody into the inbox of another user."""
    return channel in {"hall", f"inbox:{connection.context}"}


@app.websocket("/inbox/{owner}")
async def inbox(websocket: WebSocket, owner: str, token: Annotated[str, Cookie()] = "") -> None:
    """Hear the hall and an inbox, for as long as the token lasts."""
    found = read_token(token)
    if found is None:
        raise WebSocketException(1008, "log in first")  # before the handshake: an HTTP 403
    user, expires_at = found
    async with backplane.connect(
        websocket, "hall", f"inbox:{owner}", context=user, client_key=user, expires_at=expires_at
    ) as connection:
        async for renewal in connection.iter(Renewal):
            found = read_token(renewal.token)
            if found is None or found[0] != user:
                await connection.close(CloseCode.FORBIDDEN, "not a token of yours")
            else:
                connection.expire_at(found[1])
                await connection.send({"expires_at": found[1]})


@app.post("/inbox/{owner}", status_code=202)
async def post(owner: str, text: str) -> None:
    """Put something into an inbox; an application would ask for the sender's token here."""
    await backplane.publish(f"inbox:{owner}", {"text": text})
