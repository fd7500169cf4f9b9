"""The live page as an operator meets it: real workers, real clients, a real browser under the policy of the page."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from playwright.sync_api import expect
from websockets.sync.client import connect

from tests.e2e.live_page import serving, visiting
from tests.e2e.live_page_app import hostile
from tests.sdk.install import MissingError, node_modules

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, Response

    from tests.e2e.live_page import Site, Visit

pytestmark = pytest.mark.timeout(240)

CONNECTIONS = 5_000
CHANNELS = 2 * CONNECTIONS
SCREENS = ("overview", "workers", "channels", "connections", "why", "log", "tail")
QUERIES = {"tail": "?channel=room", "why": "?client=ada&channel=room"}
MOST_ELEMENTS = 6_000
"""How many elements a screen may have, however many channels and connections there are."""


@pytest.fixture
def site(ipc_url: str, tmp_path: Path) -> Iterator[Site]:
    """Two workers."""
    with serving(ipc_url, tmp_path) as site:
        yield site


@pytest.fixture
def visit(browser: Browser, site: Site) -> Iterator[Visit]:
    """A visitor who is let in; the page must not have failed, and nothing that it was given has been executed."""
    with visiting(browser, site) as visit:
        yield visit
        visit.check()


@contextmanager
def _crowd(site: Site, count: int) -> Generator[None]:
    """So many clients, each in two channels with hostile names; entered when all have joined."""
    begun, ended = threading.Event(), threading.Event()

    async def client(number: int) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", site.port))
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        head = (
            f"GET /clients/{number} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        await loop.sock_sendall(sock, head.encode())
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += await loop.sock_recv(sock, 4096)
        assert answer.startswith(b"HTTP/1.1 101"), answer
        return sock

    async def run() -> None:
        limit = asyncio.Semaphore(50)

        async def one(number: int) -> socket.socket:
            async with limit:
                return await client(number)

        socks = await asyncio.gather(*map(one, range(count)))
        begun.set()
        await asyncio.to_thread(ended.wait)
        for sock in socks:
            sock.close()

    thread = threading.Thread(target=asyncio.run, args=[run()])
    thread.start()
    try:
        assert begun.wait(120), "not all clients have joined"
        yield
    finally:
        ended.set()
        thread.join()


def test_visitor_who_is_not_let_in_sees_nothing(browser: Browser, site: Site) -> None:
    """Without the cookie neither the page nor a file or an answer of it is shown, in a browser either."""
    for path in ("/admin/", "/admin/page.js", "/admin/api/overview", "/admin/api/stream", "/admin/none"):
        assert site.get(path, Cookie="session=other") == (403, b'{"detail":"not allowed"}')
    context = browser.new_context()
    page = context.new_page()
    answers: list[Response] = []
    page.on("response", lambda answer: answers.append(answer))  # playwright marks it
    page.goto(f"{site.address}/admin/")
    expect(page.locator("body")).to_have_text('{"detail":"not allowed"}')
    assert [answer.status for answer in answers if "/admin" in answer.url] == [403]
    context.close()


def test_overview_and_workers(visit: Visit, site: Site) -> None:
    """The page shows each worker with its state; one that is killed is named, and its successor appears."""
    page = visit.open()
    expect(page.get_by_role("heading", level=1)).to_contain_text("All 2 workers are live.")
    expect(page.get_by_text("<b>Ada</b>")).to_be_visible()
    page.get_by_role("link", name="Workers", exact=True).click()
    expect(page.get_by_role("table", name="Workers").get_by_role("row")).to_have_count(3)
    expect(page.get_by_text("serves this page")).to_have_count(1)

    serving = page.locator("tr", has_text="serves this page").get_by_role("rowheader").inner_text()
    others = [worker for worker in site.overview()["workers"] if worker["worker"] not in serving]
    psutil.Process(others[0]["pid"]).send_signal(signal.SIGKILL)
    page.get_by_role("link", name="Overview", exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("vanished", timeout=60_000)
    page.get_by_role("link", name="Workers", exact=True).click()
    expect(page.get_by_role("rowheader", name=others[0]["worker"])).to_have_count(0)
    expect(page.get_by_role("table", name="Workers").get_by_role("row")).to_have_count(3)


def test_tail_and_publish(visit: Visit, site: Site) -> None:
    """What is published is shown as text with its control characters visible; the form publishes to all."""
    page = visit.open("tail")
    page.get_by_label("Channel", exact=True).fill("room")
    page.get_by_role("button", name="Tail").click()
    expect(page.get_by_text("Every message from now on")).to_be_visible()
    with connect(f"ws://127.0.0.1:{site.port}/rooms/room") as client:
        client.send("<img src=x onerror=hacked=1>\u202e\x1b")
        expect(page.locator(".messages pre")).to_have_text("<img src=x onerror=hacked=1>\\u{202e}\\u{1b}")
        client.recv()
        page.get_by_label("Publish a message").fill("from the page")
        page.get_by_role("button", name="Publish").click()
        assert client.recv(timeout=60) == "from the page"
        expect(page.get_by_text("Published to room")).to_be_visible()
        expect(page.locator(".messages pre")).to_have_count(2)
        page.get_by_role("button", name="Pause").click()
        client.send("while paused")
        client.recv()
        client.send(b"\0\1")
        client.recv()
        expect(page.locator(".messages pre")).to_have_count(2)
        page.get_by_role("button", name="Go on").click()
        expect(page.locator(".messages pre")).to_have_text(
            ["00 01", "while paused", "from the page", re.compile("img")]
        )


def test_read_only_page(visit: Visit, site: Site) -> None:
    """Without rights the page states what would allow it, and each route refuses."""
    page = visit.open("tail?channel=room", at="/read-only/")
    expect(page.get_by_text("Messages are not shown here")).to_be_visible()
    expect(page.get_by_role("button", name="Publish")).to_have_count(0)
    change = {"X_Backplane": "admin", "Content_Type": "application/json"}
    for name, body in (("publish", {"channel": "a", "text": "b"}), ("disconnect", {"channel": "a"})):
        assert site.get(f"/read-only/api/{name}", "POST", body, **change)[0] == 403
        assert site.get(f"/admin/api/{name}", "POST", body, **change)[0] == 200
        for wrong in ({"X_Backplane": ""}, {"Origin": "http://evil.example"}, {"Sec_Fetch_Site": "cross-site"}):
            assert site.get(f"/admin/api/{name}", "POST", body, **{**change, **wrong})[0] == 403
    assert site.get("/read-only/api/tail?channel=room")[0] == 403


def test_disconnect(visit: Visit, site: Site) -> None:
    """A connection is found by its key, and closed with the code that was chosen, after the page has asked again."""
    with (
        connect(f"ws://127.0.0.1:{site.port}/rooms/room?key=ada") as ada,
        connect(f"ws://127.0.0.1:{site.port}/rooms/room?key=bob") as bob,
    ):
        page = visit.open("connections?client=ada")
        page.get_by_role("table", name="Connections").get_by_role("rowheader").get_by_role("link").click()
        page.get_by_role("button", name="Disconnect …").click()
        page.get_by_label("Close code").select_option("4001")
        page.get_by_label("Reason").fill("log in again")
        page.get_by_role("button", name="Disconnect ada now").click()
        expect(page.get_by_text("Closed")).to_be_visible()
        with pytest.raises(Exception, match="4001") as closed:
            ada.recv(timeout=60)
        assert "log in again" in str(closed.value)
        bob.send("still here")
        assert bob.recv(timeout=60) == "still here"


def test_why(visit: Visit, site: Site) -> None:
    """Clients are distinguished: not connected, in another channel, in one that is quiet, and one that receives."""
    with connect(f"ws://127.0.0.1:{site.port}/rooms/orders:42?key=ada") as ada:
        page = visit.open("why")
        for client, channel, verdict in (
            ("ada", "orders:42", "no message was received on 'orders:42' since its first subscriber came"),
            ("bob", "orders:42", "client 'bob' is connected to no worker of this deployment"),
            ("ada", "orders:4", "it has joined 'orders:42', whose name is similar"),
            ("ada", "orders:42", "has joined 'orders:42', nothing waits for it, and a test message arrived"),
        ):
            if "test message" in verdict:
                ada.send("real")
                assert ada.recv(timeout=60) == "real"
            page.get_by_label("Client").fill(client)
            page.get_by_label("Channel", exact=True).fill(channel)
            page.get_by_role("button", name="Look").click()
            expect(page.get_by_role("heading", level=2)).to_contain_text(verdict)
            expect(page.get_by_role("list", name="The way of a message").get_by_role("listitem")).to_have_count(7)


def test_many_hostile_names(visit: Visit, site: Site) -> None:
    """With 5,000 connections in 10,000 channels each screen answers, has a bounded size, and executes nothing."""
    with _crowd(site, CONNECTIONS):
        page = visit.open("channels")
        expect(page.get_by_text(f"{CHANNELS:,} channels")).to_be_visible(timeout=60_000)
        rows = page.get_by_role("table", name="Channels").locator("tbody tr")
        expect(rows).to_have_count(100)

        page.get_by_label("Name begins with").fill(f"h:{'<img src=x onerror=hacked=1>'}:13")
        expect(rows.first).to_contain_text("<img src=x onerror=hacked=1>:13")
        assert page.evaluate("document.querySelectorAll('*').length") < MOST_ELEMENTS

        page.get_by_role("link", name="Connections", exact=True).click()
        expect(page.get_by_text(f"{CONNECTIONS:,} connections")).to_be_visible(timeout=60_000)
        expect(page.get_by_role("table", name="Connections").locator("tbody tr")).to_have_count(100)
        page.get_by_role("link", name="Next page").click()
        expect(page.get_by_role("link", name="First page")).to_be_visible()
        page.get_by_label("Client").fill(hostile(14))
        expect(page.get_by_text("1 connection.")).to_be_visible()
        page.get_by_role("table", name="Connections").get_by_role("rowheader").get_by_role("link").click()
        expect(page.locator(".chips li")).to_have_count(2)

        for screen in SCREENS:
            page.goto(f"{site.address}/admin/#/{screen}")
            expect(page.get_by_role("main", name="Why?" if screen == "why" else screen.title())).to_be_visible()
            assert page.evaluate("document.querySelectorAll('*').length") < MOST_ELEMENTS
            assert page.locator("main img, main iframe, main script").count() == 0


def test_page_that_stops_reading(site: Site) -> None:
    """A page that reads nothing costs its worker a bounded buffer, and others are shown the same figures meanwhile."""
    with socket.create_connection(("127.0.0.1", site.port)) as stuck:
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stuck.sendall(b"GET /admin/api/tail?channel=room HTTP/1.1\r\nHost: x\r\nCookie: session=staff\r\n\r\n")
        assert stuck.recv(12) == b"HTTP/1.1 200"
        with connect(f"ws://127.0.0.1:{site.port}/rooms/room") as client:
            for _ in range(3_000):
                client.send("x" * 4_000)
                client.recv()
        waiting = max(worker["waiting_bytes"] for worker in site.overview()["workers"])
        assert waiting <= 1024 * 1024


@pytest.mark.parametrize(
    ("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 320), ("dark", 320)], ids=lambda value: str(value)
)
def test_accessibility(browser: Browser, site: Site, scheme: Any, width: int) -> None:
    """Axe finds nothing on any screen, in both colour schemes, and no screen of 320 pixels scrolls sideways."""
    try:
        axe = (node_modules() / "node_modules" / "axe-core" / "axe.min.js").read_text(encoding="utf-8")
    except MissingError as error:
        pytest.skip(str(error))
    options: dict[str, Any] = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme, "bypass_csp": True}
    with (
        connect(f"ws://127.0.0.1:{site.port}/rooms/room?key=ada") as client,
        visiting(browser, site, **options) as visit,
    ):
        page = visit.open()
        expect(page.get_by_text("All 2 workers are live.")).to_be_visible()
        for screen in SCREENS:
            page.goto(f"{site.address}/admin/#/{screen}" + QUERIES.get(screen, ""))
            expect(page.get_by_role("main", name="Why?" if screen == "why" else screen.title())).to_be_visible()
            if screen in ("workers", "connections"):
                page.get_by_role("rowheader").get_by_role("link").first.click()
                expect(page.locator("tr.details")).to_be_visible()
            if screen == "why":
                expect(page.get_by_role("list", name="The way of a message")).to_be_visible()
            if screen == "tail":
                expect(page.get_by_text("Every message from now on")).to_be_visible()
                client.send("hello")
                expect(page.locator(".messages pre")).to_have_text("hello")
            page.evaluate(axe)
            found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
            assert [f"{each['id']}: {each['nodes'][0]['html']}" for each in found["violations"]] == [], screen
            assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, screen


def test_keyboard(visit: Visit) -> None:
    """The page is used without a mouse: a skip link first, `/` for the search, and each control in its turn."""
    page = visit.open()
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("/")
    expect(page.get_by_label("Channel, or id of a connection")).to_be_focused()
    page.keyboard.type("orders")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(r"#/channels\?prefix=orders$"))
    expect(page.get_by_label("Name begins with")).to_have_value("orders")


@pytest.mark.parametrize(("screen", "fields"), [("why", ["Client", "Channel"]), ("tail", ["Channel"])])
def test_typed_text_stays(visit: Visit, screen: str, fields: list[str]) -> None:
    """What a visitor types stays where new figures are drawn meanwhile."""
    page = visit.open(screen)
    for name in fields:
        page.get_by_label(name, exact=name == "Channel").fill("typed")
    page.evaluate("dispatchEvent(new HashChangeEvent('hashchange'))")  # draws the screen, as new figures do
    page.evaluate("new Promise((drawn) => setTimeout(() => requestAnimationFrame(drawn)))")
    for name in fields:
        expect(page.get_by_label(name, exact=name == "Channel")).to_have_value("typed")


def test_server_ends_with_a_page_open(visit: Visit, site: Site) -> None:
    """An open page does not hold up the end of its worker; it states that it has no connection."""
    page = visit.open()
    expect(page.get_by_role("heading", level=1)).to_contain_text("All 2 workers are live.")
    site.server.process.send_signal(signal.SIGTERM)
    assert site.server.process.wait(30) == 0
    expect(page.get_by_role("alert")).to_contain_text("No connection to a worker since", timeout=60_000)
    visit.errors.clear()  # of the browser, which names each connection that was refused
