"""How the errors of Starlette and FastAPI close a client that is accepted already.

Before the handshake is answered the framework answers them itself, an `HTTPException` with its status. Afterwards its
own handlers would close without a reason, or not at all.
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

# How the text of Starlette's `RuntimeError` begins where a socket is used after its end, in every version.
_USED_AFTER_END: Final = ('Cannot call "send" once', 'Cannot call "receive" once', "WebSocket is not connected.")

# Parts of the errors that Uvicorn, Hypercorn and Daphne raise for a send after the end that Starlette did not stop.
_OF_SERVERS: Final = ("after sending 'websocket.close'", "ASGIWebsocketState.CLOSED", "on a closed protocol")

# The client may reconnect after these, and after every status of a failure of the server (500 and above).
_PASSING: Final = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})


def framework_ending(error: BaseException) -> Ending | None:
    """Return how a client is closed by an error of the framework; `None` for any other error.

    - `WebSocketException`: with its code and reason; a code that cannot be sent is a fault of the handler, and `None`.
    - `HTTPException`: 4503 with its detail; 1013 for 408, 425, 429, 500 and above, after which clients reconnect.
    - `WebSocketDisconnect`, and what Starlette or the server raise for a socket that was closed already: 1000, as if
      the handler had returned.
    - FastAPI's `RequestValidationError` and `WebSocketRequestValidationError`: 1007, without what was sent.
    """
    match error:
        case WebSocketDisconnect():
            return Ending(CloseCode.NORMAL_CLOSURE)
        case WebSocketException():
            return _of_application(error)
        case HTTPException():
            later = error.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR or error.status_code in _PASSING
            return Ending(CloseCode.TRY_AGAIN_LATER if later else CloseCode.FORBIDDEN, _detail(error))
        case _ if is_use_after_end(error):
            return Ending(CloseCode.NORMAL_CLOSURE)
        case _ if _is_invalid_request(error):
            return Ending(CloseCode.INVALID_DATA, "the request is not valid")
        case _:
            return None


def is_use_after_end(error: BaseException) -> bool:
    """Return whether Starlette or the server raised `error`, for a socket that is closed."""
    text = str(error)
    return (isinstance(error, RuntimeError) and text.startswith(_USED_AFTER_END)) or any(
        of_server in text for of_server in _OF_SERVERS
    )


def _of_application(error: WebSocketException) -> Ending | None:
    reason = str(error.reason or "")  # the framework checks neither
    try:
        check_close(error.code, reason)
    except ConfigurationError:
        return None
    return Ending(error.code, close_reason(error.code, reason))


def _detail(error: HTTPException) -> str:
    detail: Any = error.detail  # with FastAPI anything JSON
    if isinstance(detail, str) and detail:
        return detail
    return HTTPStatus(error.status_code).phrase if error.status_code in set(HTTPStatus) else ""


def _is_invalid_request(error: BaseException) -> bool:
    fastapi = sys.modules.get("fastapi.exceptions")  # this package does not import it; if nothing does, it raised none
    names = ("RequestValidationError", "WebSocketRequestValidationError")
    return isinstance(error, tuple(getattr(fastapi, name) for name in names if hasattr(fastapi, name)))
