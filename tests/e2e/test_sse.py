"""Server-sent events as a browser's `EventSource` takes them."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import time
from typing import TYPE_CHECKING

import pytest
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse
from playwright.async_api import async_playwright

from backplane import Backplane

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from playwright.async_api import Page

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

PAGE = """<!doctype html><link rel="icon" href="data:,"><script>
  const heard = [];
  const source = new EventSource("/events");
  source.onopen = () => heard.push("open");
  source.onmessage = (event) => heard.push(event.data);
  source.addEventListener("binary", (event) => heard.push("binary " + atob(event.data)));
  source.addEventListener("gap", (event) => heard.push("gap on " + JSON.parse(event.data).channel));
</script>"""


class Site:
    """An application with a page that listens to the channel `a`."""

    def __init__(self) -> None:
        self.backplane = Backplane("memory://")
        self.app = FastAPI(lifespan=self.backplane.lifespan)
        self.asked: asyncio.Queue[None] = asyncio.Queue()
        self.sessions = 0

        async def events(request: Request) -> Response:
            self.asked.put_nowait(None)
            return self.backplane.sse(request, "a", retry_seconds=0.05)

        async def session(request: Request) -> Response:
            """Stream for as long as a session lasts, which is over when the client comes back."""
            self.sessions += 1
            if self.sessions > 1:
                return Response("log in", 401)
            return self.backplane.sse(request, "a", expires_at=time.time() + 0.2, retry_seconds=0.05)

        async def page() -> HTMLResponse:
            return HTMLResponse(PAGE)

        self.app.add_api_route("/events", events)
        self.app.add_api_route("/session", session)
        self.app.add_api_route("/", page)

    async def until_asked(self) -> None:
        """Wait until a stream has been asked for once more."""
        await asyncio.wait_for(self.asked.get(), 30)


@pytest.fixture
async def site() -> AsyncGenerator[tuple[Site, str]]:
    """A site behind a real server, and its address."""
    site = Site()
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(site.app, lifespan="on", log_config=None))
    serve = asyncio.create_task(server.serve(sockets=[listener]))
    yield site, f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    await serve


@pytest.fixture
async def page() -> AsyncGenerator[Page]:
    """A page of a headless Chromium."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        missing = "no browser found: install chromium"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield await browser.new_page()
        await browser.close()


async def hears(page: Page, *expected: str) -> None:
    """Wait until the page has heard exactly this, and let it forget."""
    await page.wait_for_function("count => heard.length >= count", arg=len(expected))
    assert await page.evaluate("heard.splice(0)") == list(expected)


async def test_event_source(site: tuple[Site, str], page: Page) -> None:
    """An `EventSource` hears every kind of event, and outlives a drain, however often it arrives in the midst of it.

    One whose permission runs out learns that, comes back with a new request, and stays away once that is refused.
    """
    backplane = site[0].backplane
    await page.goto(site[1])
    await hears(page, "open")
    await backplane.publish("a", "two\nlines")
    await backplane.publish("a", b"\x00\x01")
    await hears(page, "two\nlines", "binary \x00\x01")
    running = backplane._runtime  # pyright: ignore[reportPrivateUsage]
    assert running is not None
    running.hub.gap(["a"], "overrun")
    await hears(page, "gap on a")

    await page.evaluate("""() => {
        const session = new EventSource("/session");
        session.addEventListener("expired", () => heard.push("expired"));
        session.onerror = () => { if (session.readyState === EventSource.CLOSED) heard.push("refused"); };
    }""")
    await hears(page, "expired", "refused")

    await backplane.drain()
    for _ in range(4):  # the first stream, and three attempts to come back
        await site[0].until_asked()
    assert await page.evaluate("source.readyState !== EventSource.CLOSED")

    running.draining = False  # as if it had reached another worker
    async with asyncio.timeout(30):
        while not await page.evaluate("heard.includes('back')"):
            await backplane.publish("a", "back")
    await backplane.drain()  # the server waits for open streams before it stops
    await page.goto("about:blank")
