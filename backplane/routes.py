"""What Kubernetes and load balancers ask over HTTP: `app.mount("/health", health_routes(backplane))`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse
from starlette.routing import Route, Router

if TYPE_CHECKING:
    from starlette.requests import Request

    from backplane.core import Backplane

__all__ = ["health_routes"]


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
