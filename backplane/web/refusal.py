"""The HTTP answer to a client that is refused before its WebSocket is accepted or its stream begins."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

from starlette.exceptions import WebSocketException
from starlette.responses import PlainTextResponse
from starlette.websockets import WebSocketState

from backplane.close_codes import comes_back
from backplane.errors import (
    InvalidChannelError,
    InvalidPositionError,
    PermissionExpiredError,
    RefusedError,
    SubscribeError,
    TooManyConnectionsError,
)

if TYPE_CHECKING:
    from starlette.responses import Response
    from starlette.websockets import WebSocket

    from backplane.errors import BackplaneError

__all__ = ["denial", "deny", "retry_later"]

_NOT_ALLOWED: Final = "this channel is not allowed"

# Without a time of its own for each, all clients would reconnect in the same second after an outage.
_RETRY_SECONDS: Final = (2, 8)


def retry_later() -> dict[str, str]:
    """Return the header `Retry-After`, with some seconds, drawn for each client."""
    return {"Retry-After": str(random.randint(*_RETRY_SECONDS))}  # noqa: S311


def denial(error: BackplaneError | WebSocketException) -> PlainTextResponse:
    """Return the HTTP answer to an error of a join.

    400 for a channel name that is not legal, or a negative `rewind`; 401 for a permission that has run out; 403 for
    what the broker or the application refuses permanently; 429 for one client too many, 503 for anything else, such as
    a broker that is not available or in a temporary state, both with `Retry-After`. The broker's own text is not
    repeated. A `WebSocketException` of the application is 503 where a client reconnects after its close code, else 403
    with its reason.
    """
    if isinstance(error, WebSocketException) and not comes_back(error.code):
        return PlainTextResponse(str(error.reason or _NOT_ALLOWED), 403)
    if isinstance(error, InvalidChannelError | InvalidPositionError):
        return PlainTextResponse(str(error), 400)
    if isinstance(error, SubscribeError) and error.refused:
        return PlainTextResponse(_NOT_ALLOWED, 403)
    if isinstance(error, PermissionExpiredError):
        return PlainTextResponse(str(error), 401, headers={"WWW-Authenticate": "Bearer"})
    if isinstance(error, TooManyConnectionsError):
        return PlainTextResponse(str(error), 429, headers=retry_later())
    if isinstance(error, RefusedError):
        return PlainTextResponse(str(error), 403)
    return PlainTextResponse("not available, try again later", 503, headers=retry_later())


async def deny(websocket: WebSocket, answer: Response) -> None:
    """Answer the handshake of `websocket` with `answer`, or with 403 where the server cannot send any other.

    A client that has left is answered too: Uvicorn logs an error for a handshake without an answer.
    """
    if websocket.client_state is WebSocketState.CONNECTING:
        await websocket.receive()  # the connect event comes before any answer
    if "websocket.http.response" in websocket.scope.get("extensions", {}):
        await websocket.send_denial_response(answer)
    elif websocket.application_state is not WebSocketState.DISCONNECTED:
        await websocket.close(1008)
