"""The live page of a backplane in the event loop of the test, and a browser's requests to it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
from starlette.applications import Starlette
from starlette.routing import Mount

from backplane.admin import admin_routes

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from backplane import Backplane

__all__ = ["CHANGE", "browsing", "staff"]

CHANGE = {"X-Backplane": "admin", "Origin": "http://test", "Sec-Fetch-Site": "same-origin"}
"""The headers with which the page changes something."""


def staff(_: object) -> str:
    """Let each visitor in, as Ada."""
    return "Ada"


@asynccontextmanager
async def browsing(backplane: Backplane, authorize: Any = staff, **options: Any) -> AsyncGenerator[httpx.AsyncClient]:
    """Mount the page at `/admin`; requests are made relative to it."""
    app = Starlette(routes=[Mount("/admin", admin_routes(backplane, authorize=authorize, **options))])
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test/admin/") as client:
        yield client
