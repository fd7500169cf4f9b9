"""Our server of the conformance tests, with the rules and the API of reference/main.go."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI, WebSocket
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel

from backplane import Backplane, Connection, History, InvalidTokenError, Presence, TokenExpiredError
from backplane.centrifugal import Accepted, Centrifugal, CommandError, ConnectClaims, ConnectRequest, SubscribeClaims
from backplane.client_routes import client_routes

if TYPE_CHECKING:
    from backplane import Client


class Call(BaseModel):
    """The body of a call of the server's API; each call uses some of its fields."""

    user: str = ""
    channel: str = ""
    data: Any = None
    code: int = 0
    reason: str = ""


class Tokens:
    """A token is `user` or `user|unix time of its expiry`."""

    def connect(self, token: str, /) -> ConnectClaims:
        """Read the token of a client; a user `side...` is subscribed to a feed."""
        user, expires_at = _parse(token)
        channels = [f"rec:feed-{user}"] if user.startswith("side") else []
        return ConnectClaims(
            user=user, info={"name": user}, data={"hello": user}, expires_at=expires_at, channels=channels
        )

    def subscribe(self, token: str, /, *, user: str, channel: str, client: str) -> SubscribeClaims:
        """Read the token of a subscription."""
        return SubscribeClaims(expires_at=_parse(token)[1])


def _parse(token: str) -> tuple[str, float | None]:
    user, _, expiry = token.partition("|")
    if not user:
        raise InvalidTokenError("the token has no user")
    if expiry and float(expiry) <= time.time():
        raise TokenExpiredError("the token has expired")
    return user, float(expiry) if expiry else None


backplane = Backplane(
    os.environ.get("BACKPLANE_URL", "memory://"),
    history={
        os.environ.get("HISTORY_CHANNELS", "*"): History(max_messages=int(os.environ.get("HISTORY_MESSAGES", "5")))
    },
    presence={"*": Presence(grace_seconds=0)},
)
app = FastAPI(lifespan=backplane.lifespan)
ordinary = Centrifugal(backplane, tokens=Tokens())
fast = Centrifugal(backplane, tokens=Tokens(), ping_seconds=1, pong_seconds=0.5)


@backplane.authorize
def may_join(_: Client, channel: str) -> bool:
    """Refuse private channels."""
    return not channel.startswith("private:")


for endpoint in (ordinary, fast):

    @endpoint.on_connect
    def accept(_: Connection, request: ConnectRequest) -> Accepted | None:
        """Refuse the token `refused`."""
        if request.token == "refused":
            raise CommandError(1000, "refused")
        return None

    @endpoint.permit
    def permit(_: Connection, action: str, channel: str) -> bool:
        """Permit everything."""
        return True

    @endpoint.on_message
    async def send_back(connection: Connection, data: bytes) -> None:
        """Return what a client sends."""
        await connection.send(data.decode())

    @endpoint.rpc("echo")
    def echo(_: Connection, data: Any) -> Any:
        """Return what a client sends."""
        return data


@app.websocket("/ws")
async def accept_client(websocket: WebSocket) -> None:
    """Serve a client."""
    await ordinary.serve(websocket)


@app.websocket("/fast")
async def accept_fast_client(websocket: WebSocket) -> None:
    """Serve a client that is sent a ping each second."""
    await fast.serve(websocket)


@app.websocket("/enveloped/{channel}")
async def accept_page(websocket: WebSocket, channel: str, since: str = "") -> None:
    """Serve a page with the script of the package."""
    await backplane.hand_over(websocket, channel, since=since, envelope="json")


@app.get("/page")
async def page() -> FileResponse:
    """Serve the page of the browser tests."""
    return FileResponse(Path(__file__).with_name("page.html"))


app.mount("/client", client_routes())
if "BROWSER_BUILDS" in os.environ:
    app.mount("/builds", StaticFiles(directory=os.environ["BROWSER_BUILDS"]))


@app.post("/control/publish")
async def publish(call: Call) -> None:
    """Publish a JSON value."""
    await backplane.publish(call.channel, call.data)


@app.post("/control/subscribe")
async def subscribe(call: Call) -> None:
    """Let the connections of a user join a channel."""
    await backplane.join(channel=call.channel, user=call.user)


@app.post("/control/unsubscribe")
async def unsubscribe(call: Call) -> None:
    """Let the connections of a user leave a channel; the code is always 2000."""
    assert call.code == 2000
    await backplane.leave(channel=call.channel, user=call.user)


@app.post("/control/disconnect")
async def disconnect(call: Call) -> None:
    """Close the connections of a user."""
    await backplane.disconnect(user=call.user, code=call.code, reason=call.reason)


@app.get("/ready")
async def ready() -> None:
    """Answer that it runs."""


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PORT"]), log_level="warning")
