"""The JavaScript of a page that comes back by itself and resumes: `BackplaneSocket`, in one file without a build step.

app.mount("/backplane", client_routes())
"""

from __future__ import annotations

from hashlib import sha256
from importlib.resources import files
from typing import TYPE_CHECKING, Final

from starlette.responses import Response
from starlette.routing import Route, Router

if TYPE_CHECKING:
    from starlette.requests import Request

__all__ = ["client_routes"]

_EXPORT: Final = "export class"


def client_routes() -> Router:
    """Return an ASGI application with `/client.mjs` and `/client.js`, for `mount` of FastAPI and Starlette.

    Both are the same class `BackplaneSocket`: a module that exports it, and a plain script that declares this one name.
    They are the same in all workers of a version, are kept by browsers, which ask each time whether they have changed
    (`ETag`, `304 Not Modified`), may be loaded by pages of other sites, as nothing in them is a secret, and need
    no more of a Content-Security-Policy than `script-src 'self'` and the `connect-src` of the WebSocket.
    """
    module = files("backplane.web").joinpath("client.js").read_text(encoding="utf-8")
    script = module.replace(_EXPORT, _EXPORT.removeprefix("export "), 1)
    return Router([_route("/client.mjs", module), _route("/client.js", script)])


def _route(path: str, text: str) -> Route:
    body = text.encode()
    etag = f'"{sha256(body).hexdigest()[:32]}"'
    headers = {
        "Access-Control-Allow-Origin": "*",
        "Cache-Control": "public, no-cache",
        "ETag": etag,
        "X-Content-Type-Options": "nosniff",
    }

    async def get(request: Request) -> Response:
        known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
        if etag in known or "*" in known:
            return Response(status_code=304, headers=headers)
        return Response(body, media_type="text/javascript", headers=headers)

    return Route(path, get)
