"""`BackplaneSocket`, the script for pages, in a real browser: when it comes back, when it stays away, what it resumes.

test_resume.py has the same client under several workers and brokers that are killed.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import pytest
from fastapi import FastAPI, WebSocket
from fastapi.responses import HTMLResponse

from backplane import Backplane, Gap, History
from backplane.client_routes import client_routes
from tests.server_in_loop import serving_in_loop

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from playwright.async_api import Page

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

SECONDS: Final = 60.0
PAGE: Final = """<!doctype html><link rel="icon" href="data:,">
<meta http-equiv="Content-Security-Policy" content="script-src 'self' 'nonce-page'">
<script type="module" nonce="page">
import { BackplaneSocket } from "/client/client.mjs";
window.follow = (url, options) => {
  window.socket = new BackplaneSocket(url, options);
  for (const name of ["open", "message", "joined", "gap", "close"]) {
    socket.addEventListener(name, () => { throw new Error("of a listener"); });
    socket.addEventListener(name, ({ detail }) => record(name, detail));
  }
};
</script>"""


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """One event loop is enough: what is tested runs in the browser."""
    return "asyncio", {"use_uvloop": True}


def keep_open(_: Gap) -> None:
    """Keep a client connected at a gap."""


class Site:
    """An application with the script, a page, and channels with a history.

    Attributes:
        visits: The `since` of each connection to the channels.
        hellos: The first message of each connection that sends one.
        refused: How many clients were accepted and closed at once.
    """

    def __init__(self) -> None:
        self.backplane = Backplane("memory://", history={"kept:*": History(max_messages=100)}, on_gap=keep_open)
        self.visits: list[str] = []
        self.hellos: list[Any] = []
        self.refused = 0
        self.app = FastAPI(lifespan=self.backplane.lifespan)
        self.app.mount("/client", client_routes())
        self.app.add_api_route("/", self._page)
        self.app.add_api_websocket_route("/channels", self._channels)
        self.app.add_api_websocket_route("/hello", self._hello)
        self.app.add_api_websocket_route("/full", self._full)

    async def publish(self, *numbers: int) -> None:
        """Publish each number on one of the two channels."""
        for number in numbers:
            await self.backplane.publish(f"kept:{'ab'[number % 2]}", str(number))

    async def _page(self) -> HTMLResponse:
        return HTMLResponse(PAGE)

    async def _channels(self, websocket: WebSocket, since: str = "") -> None:
        self.visits.append(since)
        channels = ("plain", "kept:b", "kept:a")
        async with self.backplane.connect(websocket, *channels, since=since, envelope="json") as connection:
            async for code in connection:
                await connection.close(int(code), "on request")

    async def _hello(self, websocket: WebSocket) -> None:
        async with self.backplane.connect(websocket, envelope="json") as connection:
            self.hellos.append((websocket.url.query, json.loads(await connection.receive() or "null")))
            await connection.join("kept:a")
            async for text in connection:
                await (connection.close(int(text), "on request") if text.isdigit() else connection.send(text))

    async def _full(self, websocket: WebSocket) -> None:
        self.refused += 1
        await websocket.accept("backplane.json.1")
        await websocket.close(1013, "full")


class Visitor:
    """The page, and the events of its socket in their order.

    Attributes:
        numbers: The published numbers that it has received.
    """

    def __init__(self, page: Page) -> None:
        self.page = page
        self.numbers = Counter[int]()
        self._events = asyncio.Queue[tuple[str, Any]]()

    async def follow(self, url: str, options: str = "undefined") -> None:
        """Let the page make a socket; both arguments are JavaScript."""
        await self.page.evaluate(f"() => follow({url}, {options})")

    async def until(self, name: str, **expected: Any) -> Any:
        """Wait for an event that has these details; return all of them."""
        async with asyncio.timeout(SECONDS):
            while True:
                found, detail = await self._events.get()
                if found == name and expected.items() <= (detail or {}).items():
                    return detail

    async def lost(self, **expected: Any) -> Any:
        """Wait until the connection is lost; return the details."""
        return await self.until("close", **expected)

    async def until_received(self, *numbers: int) -> None:
        """Wait until it has these numbers, in any order: they are of different channels."""
        while not self.numbers.keys() >= set(numbers):
            await self.until("message")

    def record(self, name: str, detail: Any) -> None:
        """Take note of an event."""
        if name == "message" and detail["channel"].startswith("kept:"):
            self.numbers[int(detail["text"])] += 1
        self._events.put_nowait((name, detail))

    def unseen(self) -> list[str]:
        """Return the names of the events that were not waited for."""
        return [self._events.get_nowait()[0] for _ in range(self._events.qsize())]


@asynccontextmanager
async def visited(page: Page, *, stopped_clock: bool = False) -> AsyncGenerator[tuple[Site, Visitor]]:
    """Serve the site, and open its page; with a clock that stands still, which the test moves."""
    site, visitor = Site(), Visitor(page)
    async with serving_in_loop(site.app) as server:
        await page.expose_function("record", visitor.record)  # pyright: ignore[reportUnknownMemberType]
        if stopped_clock:
            await page.clock.install(time=0)
        await page.goto(server.http_url)
        if stopped_clock:
            await page.clock.pause_at(60_000)
        yield site, visitor
        await page.goto("about:blank")


async def test_offline_and_closed(page: Page) -> None:
    """Neither a network that is away nor a close loses or repeats a message; a final code ends it, listeners do not."""
    async with visited(page) as (site, visitor):
        await visitor.follow("'/channels'")
        await visitor.until("open")
        await site.publish(0, 1)
        await visitor.until_received(1)
        await page.context.set_offline(True)
        assert (await visitor.lost())["reason"] == "offline"
        await site.publish(2, 3)
        await page.context.set_offline(False)
        await visitor.until_received(2, 3)
        await page.evaluate("socket.send('4000')")
        await visitor.lost(code=4000)
        await site.publish(4, 5)
        await visitor.until_received(4, 5)
        assert visitor.numbers == Counter(range(6))
        first, second, *_ = site.visits
        assert (first, len(second)) == ("", 57)  # of the two channels that are kept

        # What the page passes is not found: a gap of each, and it goes on.
        await page.evaluate("() => { socket.positions['kept:a'] = 'lost'; socket.send('4000'); }")
        await visitor.until("close", code=4000)
        assert (await visitor.until("gap"))["channel"] == "kept:a"

        await page.evaluate("socket.send('4503')")
        assert await visitor.lost(code=4503) == {"code": 4503, "reason": "on request", "pause": None}
        visits = len(site.visits)
        await page.evaluate("() => dispatchEvent(new Event('online'))")
        assert await page.evaluate("socket.send('too late')") is False
        await visitor.follow("'/channels'")
        await visitor.until("open")
        assert len(site.visits) == visits + 1
        await page.evaluate("socket.close()")
        assert (await visitor.lost())["pause"] is None
        async with asyncio.timeout(SECONDS):
            while (await site.backplane.health()).connections:
                await asyncio.sleep(0.01)


async def test_hello_and_what_a_handler_sends(page: Page) -> None:
    """The page sends nothing before the first message; what a handler itself sends is no event of the connection."""
    async with visited(page) as (site, visitor):
        hello = (
            "{ hello: () => { record('asked', {}); return new Promise((resolve) => { window.greet = resolve; }); } }"
        )
        await visitor.follow("'/hello'", hello)
        await visitor.until("asked")
        assert await page.evaluate("socket.send('too early')") is False
        await page.evaluate("greet({ token: 1 })")
        await visitor.until("joined")
        assert site.hellos == [("", {"token": 1})]
        for event in ("open", "close", "message"):
            sent = {"channel": "__proto__", "position": event, "event": event}
            await page.evaluate("(sent) => socket.send(sent)", sent)
            assert await visitor.until("message", position=event) == sent
        assert await page.evaluate("[Object.keys(socket.positions), ({}).position]") == [["kept:a", "__proto__"], None]


async def test_times(page: Page) -> None:
    """The pauses grow and are random, until a connection was stable; dead links, sleep and the back-forward cache end.

    The page's clock is the test's.
    """
    async with visited(page, stopped_clock=True) as (site, visitor):
        # A client that is refused after it was accepted.
        await page.evaluate("Math.random = () => 0.5")
        await visitor.follow("'/full'")
        pauses: list[int] = []
        for _ in range(8):
            pauses.append(int((await visitor.lost(code=1013))["pause"]))
            await page.clock.run_for(pauses[-1])
        assert pauses == [250, 500, 1000, 2000, 4000, 5000, 5000, 5000]
        await visitor.lost(code=1013)
        await page.evaluate("socket.close()")
        await visitor.lost(pause=None)
        await page.clock.run_for(60_000)
        assert site.refused == 9

        # A token of its own for each try, and the positions in the first message.
        hello = "{ hello: async (positions) => ({ token: ++tokens, positions }) }"
        await page.evaluate("() => { window.tokens = 0; }")
        await visitor.follow("async () => '/hello'", hello)
        await visitor.until("joined")
        await site.publish(0)
        await visitor.until("message", text="0")
        position = await page.evaluate("socket.positions['kept:a']")
        await page.evaluate("socket.send('1012')")
        assert (await visitor.lost(code=1012))["pause"] == 250
        await page.clock.run_for(250)
        assert (await visitor.until("joined"))["channel"] == "kept:a"
        assert site.hellos == [
            ("", {"token": 1, "positions": {}}),
            ("", {"token": 2, "positions": {"kept:a": position}}),
        ]

        # A function of the page that raises is one try of many.
        await page.evaluate("socket.close()")
        await visitor.lost(pause=None)
        await visitor.follow("() => { throw new Error('no token') }", "{}")
        assert "no token" in (await visitor.lost())["reason"]
        await page.clock.run_for(250)
        assert (await visitor.lost())["pause"] == 500
        await page.evaluate("socket.close()")

        # A stable connection that is lost; one of a page that has slept; one in the back-forward cache; a silent one.
        await visitor.follow("'/channels'", "{ silence: 20 }")
        await visitor.until("open")
        await page.clock.run_for(6000)
        await page.evaluate("socket.send('4010')")
        assert (await visitor.lost(code=4010))["pause"] == 250
        await page.clock.run_for(250)
        await visitor.until("open")
        await page.clock.fast_forward(120_000)
        assert (await visitor.lost())["reason"] == "asleep"
        await page.clock.run_for(250)
        await visitor.until("open")
        visits = len(site.visits)
        await page.evaluate("dispatchEvent(new PageTransitionEvent('pagehide', { persisted: true }))")
        await visitor.lost(code=1001)
        await page.clock.run_for(60_000)
        assert len(site.visits) == visits
        await page.evaluate("dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true }))")
        await page.clock.run_for(250)
        await visitor.until("open")
        await page.clock.run_for(15_000)
        await site.backplane.publish("plain", "alive")
        await visitor.until("message", text="alive")
        await page.clock.run_for(15_000)
        assert "close" not in visitor.unseen()
        await page.clock.run_for(16_000)
        assert (await visitor.lost())["reason"] == "silent"
        await visitor.until("open")
        for event, pause in (("offline", 500), ("online", 250)):  # the second begins anew
            await page.evaluate(f"dispatchEvent(new Event('{event}'))")
            assert (await visitor.lost(reason=event))["pause"] == pause
        await page.evaluate("socket.close()")

        # A handshake that is not answered.
        connected = asyncio.Queue[asyncio.StreamWriter]()
        async with await asyncio.start_server(lambda _, writer: connected.put_nowait(writer), "127.0.0.1", 0) as silent:
            await page.evaluate("() => { window.tries = 0; }")
            address = f"ws://127.0.0.1:{silent.sockets[0].getsockname()[1]}"
            await visitor.follow(f"() => {{ tries++; return '{address}'; }}")
            first = await asyncio.wait_for(connected.get(), SECONDS)
            await page.clock.run_for(10_000)
            assert (await visitor.lost(reason="no answer"))["pause"] == 250
            await page.clock.run_for(250)
            second = await asyncio.wait_for(connected.get(), SECONDS)
            await page.evaluate("socket.close()")  # while it connects, and for good
            await visitor.lost(pause=None)
            await page.evaluate("""() => {
                for (const name of ["online", "visibilitychange"]) dispatchEvent(new Event(name));
                dispatchEvent(new PageTransitionEvent("pageshow", { persisted: true }));
            }""")
            await page.clock.run_for(60_000)
            assert await page.evaluate("[tries, socket.send('too late')]") == [2, False]
            first.close()
            second.close()
