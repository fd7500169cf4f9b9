"""HTTP for the operation of an application: health for Kubernetes and load balancers, and what an outage answers.

app = FastAPI(lifespan=backplane.lifespan, exception_handlers={BackplaneError: broker_error_response})
app.mount("/health", health_routes(backplane))
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, overload

from starlette.responses import JSONResponse
from starlette.routing import Route, Router
from starlette.websockets import WebSocket, WebSocketState

from backplane.close_codes import close_reason
from backplane.connection.ending import ending
from backplane.errors import (
    BrokerError,
    BrokerUnavailableError,
    InvalidChannelError,
    PayloadTooLargeError,
    PublishOutcomeUnknownError,
)
from backplane.web.refusal import deny, retry_later

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from backplane.core import Backplane

__all__ = ["broker_error_response", "health_routes"]


def health_routes(backplane: Backplane) -> Router:
    """Return an ASGI application with `/live` and `/ready`, for `mount` of FastAPI and Starlette.

    Both answer with the fields of `Health` as JSON: 200 where the answer is yes, 503 where it is no. `live` is for a
    liveness probe: a no means that only a restart helps. `ready` is for a readiness probe: a no means that new clients
    should go elsewhere, because the broker is away or the worker drains.

    Reached without authentication: nothing in the answer names the broker or a channel.
    """

    async def live(_: Request) -> JSONResponse:
        health = await backplane.health()
        return _answer(health_ok=health.live, body=asdict(health))

    async def ready(_: Request) -> JSONResponse:
        health = await backplane.health()
        return _answer(health_ok=health.ready, body=asdict(health))

    return Router([Route("/live", live), Route("/ready", ready)])


def _answer(*, health_ok: bool, body: dict[str, object]) -> JSONResponse:
    body.pop("last_gap_reason")  # may hold a broker's own words
    return JSONResponse(body, 200 if health_ok else 503, headers={"Cache-Control": "no-store"})


@overload
async def broker_error_response(connection: Request, error: Exception) -> Response: ...
@overload
async def broker_error_response(connection: WebSocket, error: Exception) -> None: ...
async def broker_error_response(connection: Request | WebSocket, error: Exception) -> Response | None:
    """Answer a request in which the broker failed; an exception handler of FastAPI and Starlette for `BrokerError`.

    503 with `Retry-After` where the broker is away, and where it is unknown whether a message was published, which the
    answer states: sending such a request again can publish twice. 502 where the broker refused: the same request would
    be refused again. The body is `{"detail": ...}`; the broker's own words are not in it.

    As a handler for `BackplaneError` it answers too what a request asked for and cannot have: 400 for a channel name
    that is not legal (`InvalidChannelError`), 413 for a message larger than the broker takes (`PayloadTooLargeError`).
    Any other error goes on, to the framework's 500.

    In a WebSocket route it is for what is raised outside of `Backplane.connect`, which needs no handler: the handshake
    gets the same answer, and an accepted client is closed with the code that `connect` would use.
    """
    answer = _answer_to(error)
    if not isinstance(connection, WebSocket):
        return answer
    if connection.application_state is WebSocketState.CONNECTING:
        await deny(connection, answer)
    elif WebSocketState.DISCONNECTED not in (connection.application_state, connection.client_state):
        end = ending(error, is_over=False)
        if end is not None:
            await connection.close(end.code, close_reason(end.code, end.reason))
    return None


def _answer_to(error: Exception) -> Response:
    if isinstance(error, InvalidChannelError):
        return JSONResponse({"detail": str(error)}, 400)
    if isinstance(error, PayloadTooLargeError):
        return JSONResponse({"detail": f"a message may take {error.limit_bytes:,} bytes on the broker"}, 413)
    if not isinstance(error, BrokerError):
        raise error
    if isinstance(error, PublishOutcomeUnknownError):
        words = "it is unknown whether this was published: sending it again can publish it twice"
    elif isinstance(error, BrokerUnavailableError) or error.retriable:
        words = "not available, try again later"
    else:
        return JSONResponse({"detail": "refused by the message broker"}, 502)
    return JSONResponse({"detail": words}, 503, headers=retry_later())
