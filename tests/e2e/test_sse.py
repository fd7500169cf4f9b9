"""Server-sent events as a browser's `EventSource` receives them."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse

from backplane import Backplane, History, Limits
from tests.server_in_loop import serving_in_loop

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from playwright.async_api import Page

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

PAGE = """<!doctype html><link rel="icon" href="data:,"><script>
  const received = [];
  const source = new EventSource("/events");
  source.onopen = () => received.push("open");
  source.onmessage = (event) => received.push(event.data);
  source.addEventListener("binary", (event) => received.push("binary " + atob(event.data)));
  source.addEventListener("gap", (event) => received.push("gap on " + JSON.parse(event.data).channel));
</script>"""


class EventsApp:
    """An application with event streams of the channel `a`, and a page that reads them."""

    def __init__(self) -> None:
        self.backplane = Backplane("memory://")
        self.app = FastAPI(lifespan=self.backplane.lifespan)
        self.requested: asyncio.Queue[None] = asyncio.Queue()
        self.sessions = 0

        async def events(request: Request) -> Response:
            self.requested.put_nowait(None)
            return self.backplane.sse(request, "a", retry_seconds=0.05)

        async def session(request: Request) -> Response:
            """Stream until the session expires; refuse the client that reconnects."""
            self.sessions += 1
            if self.sessions > 1:
                return Response("log in", 401)
            return self.backplane.sse(request, "a", expires_at=time.time() + 0.2, retry_seconds=0.05)

        async def page() -> HTMLResponse:
            return HTMLResponse(PAGE)

        self.app.add_api_route("/events", events)
        self.app.add_api_route("/session", session)
        self.app.add_api_route("/", page)

    async def until_requested(self) -> None:
        """Wait until a stream has been requested once more."""
        await asyncio.wait_for(self.requested.get(), 30)


@pytest.fixture
async def served() -> AsyncGenerator[tuple[EventsApp, str]]:
    """An application under Uvicorn, and its address."""
    app = EventsApp()
    async with serving_in_loop(app.app) as server:
        yield app, server.http_url


async def expect_received(page: Page, *expected: str) -> None:
    """Wait until the page has received exactly this, and clear its record."""
    await page.wait_for_function("count => received.length >= count", arg=len(expected))
    assert await page.evaluate("received.splice(0)") == list(expected)


async def test_event_source(served: tuple[EventsApp, str], page: Page) -> None:
    """An `EventSource` receives every kind of event, and survives a drain, however often it reconnects during it.

    One whose session expires is notified, reconnects with a new request, and stops once that is refused.
    """
    app, address = served
    backplane = app.backplane
    await page.goto(address)
    await expect_received(page, "open")
    await backplane.publish("a", "two\nlines")
    await backplane.publish("a", b"\x00\x01")
    await expect_received(page, "two\nlines", "binary \x00\x01")
    runtime = backplane._runtime  # pyright: ignore[reportPrivateUsage]
    assert runtime is not None
    runtime.hub.gap(["a"], "overrun")
    await expect_received(page, "gap on a")

    await page.evaluate("""() => {
        const session = new EventSource("/session");
        session.addEventListener("expired", () => received.push("expired"));
        session.onerror = () => { if (session.readyState === EventSource.CLOSED) received.push("refused"); };
    }""")
    await expect_received(page, "expired", "refused")

    await backplane.drain()
    for _ in range(4):  # the first stream, and three attempts to reconnect
        await app.until_requested()
    assert await page.evaluate("source.readyState !== EventSource.CLOSED")

    runtime.clients.is_draining = False  # as if it had reached another worker
    async with asyncio.timeout(30):
        while not await page.evaluate("received.includes('back')"):
            await backplane.publish("a", "back")
    await backplane.drain()  # the server waits for open streams before it stops
    await page.goto("about:blank")


async def test_event_source_resumes(page: Page) -> None:
    """A browser shows the last id by itself, before its first message too: when its stream ends, nothing is lost."""
    backplane = Backplane("memory://", history={"kept*": History(max_messages=10_000)})
    app = FastAPI(lifespan=backplane.lifespan)
    streams = asyncio.Queue[str | None]()

    async def events(request: Request) -> Response:
        streams.put_nowait(request.headers.get("last-event-id"))
        limits = Limits(max_age_seconds=0.1)  # the stream ends again and again
        return backplane.sse(request, "kept:a", "kept:b", limits=limits, retry_seconds=0.05)

    async def index() -> HTMLResponse:
        return HTMLResponse(PAGE.replace('received.push("open")', "0"))

    app.add_api_route("/events", events)
    app.add_api_route("/", index)
    async with serving_in_loop(app) as server:
        await page.goto(server.http_url)
        shown = [await asyncio.wait_for(streams.get(), 30)]
        shown.append(await asyncio.wait_for(streams.get(), 30))  # it has come back, and has received no message yet
        for number in range(500):
            await backplane.publish(f"kept:{'ab'[number % 2]}", str(number))
            await asyncio.sleep(0.003)
        await page.wait_for_function("received.length >= 500")
        received = await page.evaluate("received")
        for parity in range(2):
            assert [int(each) for each in received if int(each) % 2 == parity] == list(range(parity, 500, 2))
        assert (shown[0], len(str(shown[1])), streams.qsize() > 3) == (None, 57, True)
        await page.goto("about:blank")
