"""`backplane.admin.routes`: the stream of figures, how many pages a worker serves, and paths that are none."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from backplane import Backplane
from backplane.admin import admin_routes
from tests.unit.admin.kit import browsing, staff

if TYPE_CHECKING:
    from starlette.types import ASGIApp

pytestmark = pytest.mark.anyio


class Page:
    """A page that reads the stream of figures, until it leaves."""

    def __init__(self, app: ASGIApp) -> None:
        self._sent: asyncio.Queue[Any] = asyncio.Queue()
        self._is_gone = asyncio.Event()
        scope = {"type": "http", "method": "GET", "path": "/api/stream", "root_path": "", "query_string": b""}
        self._answering = asyncio.create_task(self._run(app({**scope, "headers": []}, self._receive, self._send)))

    async def _run(self, answer: Any) -> None:
        await answer

    async def _send(self, event: Any) -> None:
        self._sent.put_nowait(event)

    async def _receive(self) -> Any:
        await self._is_gone.wait()
        return {"type": "http.disconnect"}

    async def status(self) -> int:
        """Return the status of the answer."""
        status: int = (await self._sent.get())["status"]
        return status

    async def overview(self) -> Any:
        """Return the next figures."""
        while not (body := (await self._sent.get())["body"]).startswith(b"event: overview"):
            pass
        return json.loads(body.partition(b"data: ")[2])

    async def leave(self) -> None:
        """Leave, and wait for the end of the answer."""
        self._is_gone.set()
        await self._answering


async def test_stream() -> None:
    """The page gets the figures again and again, with its visitor's rights, and nothing is left when it leaves."""
    async with Backplane("memory://", cluster=True) as backplane:
        page = Page(admin_routes(backplane, authorize=staff))
        assert await page.status() == 200
        for _ in range(2):
            seen = await page.overview()
            assert (len(seen["workers"]), seen["you"]) == (1, {"name": "Ada", "allow": []})
        await page.leave()


async def test_pages_are_bounded() -> None:
    """A worker serves so many pages at a time; the next is 503, until one leaves."""
    async with Backplane("memory://", cluster=True) as backplane:
        app = admin_routes(backplane, authorize=staff)
        pages = [Page(app) for _ in range(64)]
        assert [await page.status() for page in pages] == [200] * 64
        one_more = Page(app)
        assert await one_more.status() == 503
        await pages.pop().leave()
        another = Page(app)
        assert await another.status() == 200
        for page in (*pages, one_more, another):
            await page.leave()


@pytest.mark.parametrize("path", ["none", "api", "api/none", "page"])
async def test_path_that_is_none(path: str) -> None:
    """An unknown path is 404."""
    async with browsing(Backplane("memory://")) as client:
        response = await client.get(path)
        assert (response.status_code, response.json()) == (404, {"detail": "there is nothing here"})
