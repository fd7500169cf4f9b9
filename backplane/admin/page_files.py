"""The files of the live page, as they are in the package."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING, Final

from starlette.responses import Response
from starlette.routing import Route

if TYPE_CHECKING:
    from starlette.requests import Request

__all__ = ["page_routes"]

_TYPES: Final = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
"""By ending; files of other kinds, such as the licences, are not served."""


def page_routes() -> list[Route]:
    """Return a route for each file, and `/` for the page itself."""
    folder = files("backplane.admin").joinpath("page")
    pages = [file for file in folder.iterdir() if file.name[file.name.rindex(".") :] in _TYPES]
    return [_route(file.name, file.read_bytes()) for file in pages]


def _route(name: str, body: bytes) -> Route:
    media_type = _TYPES[name[name.rindex(".") :]]

    async def get(_: Request) -> Response:
        return Response(body, media_type=media_type)

    return Route("/" if name == "index.html" else f"/{name}", get)
