"""What the errors of Starlette and FastAPI mean to a client that is accepted already.

Before the handshake is answered the framework answers them itself, an `HTTPException` with its status. Afterwards its
own handlers would close without a word, or not at all.
"""

from __future__ import annotations

import sys
from http import HTTPStatus
from typing import Any, Final

from starlette.exceptions import HTTPException, WebSocketException
from starlette.websockets import WebSocketDisconnect

from backplane.close_codes import CloseCode, check_close, close_reason
from backplane.connection.ending import Ending
from backplane.errors import ConfigurationError

__all__ = ["framework_ending", "is_use_after_end"]

# How Starlette's `RuntimeError` begins where a socket is used after its end, in every version.
_USED_AFTER_END: Final = ('Cannot call "send" once', 'Cannot call "receive" once', "WebSocket is not connected.")

# What Uvicorn, Hypercorn and Daphne call a send after the end, where it had passed Starlette before, or never did.
_OF_SERVERS: Final = ("after sending 'websocket.close'", "ASGIWebsocketState.CLOSED", "on a closed protocol")

# The client may come back after these, and after whatever names a failure of the server (500 and above).
_PASSING: Final = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})


def framework_ending(error: BaseException) -> Ending | None:
    """Return how a client is closed by an error of the framework; `None` for any other error.

    - `WebSocketException`: with its code and reason; a code that cannot be sent is a fault of the handler, and `None`.
    - `HTTPException`: 4503 with its detail; 1013 for 408, 425, 429, 500 and above, from which clients come back.
    - `WebSocketDisconnect`, and what Starlette or the server raise for a socket that was closed already: 1000, as if
      the handler had returned.
    - FastAPI's `RequestValidationError` and `WebSocketRequestValidationError`: 1007, without what was sent.
    """
    match error:
        case WebSocketDisconnect():
            return Ending(CloseCode.NORMAL)
        case WebSocketException():
            return _chosen(error)
        case HTTPException():
            later = error.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR or error.status_code in _PASSING
            return Ending(CloseCode.TRY_AGAIN_LATER if later else CloseCode.FORBIDDEN, _words(error))
        case _ if is_use_after_end(error):
            return Ending(CloseCode.NORMAL)
        case _ if _is_invalid_request(error):
            return Ending(CloseCode.INVALID_DATA, "the request is not valid")
        case _:
            return None


def is_use_after_end(error: BaseException) -> bool:
    """Return whether Starlette or the server raised `error`, for a socket that is closed."""
    words = str(error)
    return (isinstance(error, RuntimeError) and words.startswith(_USED_AFTER_END)) or any(
        of_server in words for of_server in _OF_SERVERS
    )


def _chosen(error: WebSocketException) -> Ending | None:
    reason = str(error.reason or "")  # the framework checks neither
    try:
        check_close(error.code, reason)
    except ConfigurationError:
        return None
    return Ending(error.code, close_reason(error.code, reason))


def _words(error: HTTPException) -> str:
    detail: Any = error.detail  # FastAPI takes anything JSON
    if isinstance(detail, str) and detail:
        return detail
    return HTTPStatus(error.status_code).phrase if error.status_code in set(HTTPStatus) else ""


def _is_invalid_request(error: BaseException) -> bool:
    fastapi = sys.modules.get("fastapi.exceptions")  # not imported, it raised nothing; this package does not need it
    names = ("RequestValidationError", "WebSocketRequestValidationError")
    return isinstance(error, tuple(getattr(fastapi, name) for name in names if hasattr(fastapi, name)))
