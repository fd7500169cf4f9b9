"""The live page under what broke other dashboards: proxies, floods, restarts, names, and tabs that are left open."""

from __future__ import annotations

import http.client
import re
import signal
import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import psutil
import pytest
from playwright.sync_api import expect
from websockets.sync.client import connect

from tests.e2e.live_page import serving, visiting
from tests.e2e.live_page_app import HOSTILE

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

    from playwright.sync_api import Browser

    from tests.e2e.live_page import Site

pytestmark = pytest.mark.timeout(240)

MOST_SHOWN = 300
AT_ONCE = 50
PREFIX = "/tools/staff only"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One worker, for all tests that leave it as it is."""
    with serving("memory://", tmp_path_factory.mktemp("live-page"), 1) as site:
        yield site


@contextmanager
def proxied(site: Site, *, host: str | None) -> Generator[str]:
    """Run a proxy that takes off a prefix of each path, as `proxy_pass` of nginx does; yield its address.

    Args:
        site: Where it passes requests on.
        host: What it makes of the header `Host`. Defaults to what the browser sent.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path.startswith(quote(PREFIX))
            upstream = http.client.HTTPConnection("127.0.0.1", site.port, timeout=60)
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
            if host is not None:
                headers["Host"] = host
            upstream.request(self.command, self.path.removeprefix(quote(PREFIX)), body, headers)
            answer = upstream.getresponse()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() != "transfer-encoding":
                    self.send_header(name, value)
            self.send_header("Connection", "close")
            self.end_headers()
            self.close_connection = True
            with suppress(OSError):  # the page is gone
                while part := answer.read1(65536):
                    self.wfile.write(part)
                    self.wfile.flush()
            upstream.close()

        do_POST = do_GET  # noqa: N815  # as the standard library names it

        def log_message(self, format: str, *_: Any) -> None:  # noqa: A002  # its name there
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}{quote(PREFIX)}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("host", [None, "10.0.0.7:8000"], ids=["host-kept", "host-replaced"])
def test_proxy_with_a_prefix(browser: Browser, site: Site, host: str | None) -> None:
    """Behind a proxy that takes off a prefix every file, stream and change works, whatever it makes of `Host`."""
    with proxied(site, host=host) as address, visiting(browser, site) as visit:
        page = visit.open()
        page.goto(f"{address}/admin/#/tail?channel=room")
        expect(page.get_by_text("Every message from now on")).to_be_visible()
        page.get_by_label("Publish a message").fill("through the proxy")
        page.get_by_role("button", name="Publish").click()
        expect(page.locator(".messages pre")).to_have_text("through the proxy")
        page.get_by_role("link", name="Workers", exact=True).click()
        expect(page.get_by_role("table", name="Workers").get_by_role("row")).to_have_count(2)
        visit.check()


@pytest.mark.parametrize("path", ["/admin", "//admin/", "/admin//", "/admin/%2e%2e/admin/", "/x/admin/", "/ADMIN/"])
def test_path_that_leads_around_authorize(site: Site, path: str) -> None:
    """No spelling of the address shows anything to a visitor who is not let in."""
    for name in ("", "api/overview", "api/log", "api/configuration"):
        status, body = site.get(f"{path}/{name}" if not path.endswith("/") else path + name, Cookie="session=other")
        assert status in (307, 403, 404)
        assert b"workers" not in body
        assert b"<html" not in body


def test_flood(browser: Browser, site: Site) -> None:
    """Of a thousand messages a second few are shown and the rest is counted; the page answers meanwhile."""
    ended = threading.Event()

    def publish() -> None:
        with connect(f"ws://127.0.0.1:{site.port}/rooms/flood") as client:
            while not ended.is_set():
                for _ in range(AT_ONCE):
                    client.send(b"\xff\x00" * 500)
                for _ in range(AT_ONCE):
                    client.recv()

    thread = threading.Thread(target=publish)
    with visiting(browser, site) as visit:
        page = visit.open("tail?channel=flood")
        expect(page.get_by_text("Every message from now on")).to_be_visible()
        thread.start()
        try:
            expect(page.get_by_text("messages not shown")).to_be_visible()
            expect(page.locator(".messages li")).to_have_count(MOST_SHOWN)
            assert re.match(r"ff 00( ff 00)+", page.locator(".messages pre").first.inner_text())
            page.get_by_role("button", name="Pause").click()
            page.get_by_role("link", name="Workers", exact=True).click()
            expect(page.get_by_role("table", name="Workers").get_by_role("row")).to_have_count(2)
        finally:
            ended.set()
            thread.join()
        visit.check()


def test_names_in_links(browser: Browser, site: Site) -> None:
    """A name of any characters is followed from list to list and into the tail, and stays that name."""
    query = "&".join(f"channel={quote(name)}" for name in HOSTILE)
    with connect(f"ws://127.0.0.1:{site.port}/named?{query}"), visiting(browser, site) as visit:
        page = visit.open("channels?sort=name")
        links = page.get_by_role("table", name="Channels").get_by_role("rowheader").get_by_role("link")
        expect(links).to_have_count(len(HOSTILE))
        for number, name in enumerate(sorted(HOSTILE)):
            links.nth(number).click()
            expect(page.get_by_text("1 connection.")).to_be_visible()
            expect(page.get_by_label("Has joined the channel")).to_have_value(re.sub("[\r\n]", "", name))
            page.go_back()
            page.get_by_role("link", name=re.compile("^Tail of ")).nth(number).click()
            expect(page.get_by_text("Every message from now on")).to_be_visible()
            # A field of one line leaves out line ends; the tail is that of the name all the same.
            expect(page.get_by_label("Channel", exact=True)).to_have_value(re.sub("[\r\n]", "", name))
            page.go_back()
        visit.check()


def test_server_that_restarts(browser: Browser, ipc_url: str, tmp_path: Path) -> None:
    """A page that stays open while the server is replaced comes back by itself, with the new workers alone."""
    with serving(ipc_url, tmp_path) as old:
        visit_of = visiting(browser, old)
        visit = visit_of.__enter__()
        page = visit.open("workers")
        expect(page.get_by_role("table", name="Workers").get_by_role("row")).to_have_count(3)
        page.get_by_role("rowheader").get_by_role("link").first.click()
        expect(page.locator("tr.details")).to_be_visible()
        before = set(page.get_by_role("rowheader").get_by_role("link").all_inner_texts())
        old.server.process.send_signal(signal.SIGTERM)
        assert old.server.process.wait(30) == 0
        expect(page.get_by_role("alert")).to_contain_text("No connection to a worker since")
    with serving(ipc_url, tmp_path, port=old.port):
        expect(page.get_by_role("alert")).to_be_hidden(timeout=60_000)
        expect(page.get_by_text("is not there any more")).to_be_visible()
        expect(page.get_by_role("table", name="Workers").get_by_role("row")).to_have_count(3)
        assert before.isdisjoint(page.get_by_role("rowheader").get_by_role("link").all_inner_texts())
        visit.errors.clear()  # of the browser, which names each connection that was refused
        visit.check()
        visit_of.__exit__(None, None, None)


def test_worker_that_ends_while_it_is_open(browser: Browser, ipc_url: str, tmp_path: Path) -> None:
    """The details of a worker that is killed are replaced by what became of it."""
    with serving(ipc_url, tmp_path) as site, visiting(browser, site) as visit:
        page = visit.open("workers")
        serving_page = page.locator("tr", has_text="serves this page").get_by_role("rowheader").inner_text()
        [other] = [each for each in site.overview()["workers"] if each["worker"] not in serving_page]
        page.get_by_role("link", name=other["worker"]).click()
        expect(page.get_by_role("heading", name="Settings")).to_be_visible()
        psutil.Process(other["pid"]).kill()
        expect(page.get_by_text(f"Worker {other['id']} is not there any more")).to_be_visible(timeout=60_000)
        visit.check()


def test_tab_in_the_background_for_long(browser: Browser, site: Site) -> None:
    """What a page keeps is bounded: figures of ten minutes, a log, and no worker that is long gone."""
    with visiting(browser, site, timezone_id="Asia/Tokyo") as visit:
        page = visit.open()
        expect(page.get_by_role("heading", level=1)).to_contain_text("live")
        kept = page.evaluate(
            """async () => {
                const { state, take } = await import("./source.js");
                const view = state.view, begin = view.at;
                for (let hour = 1; hour <= 24; hour += 1)
                    for (let step = 0; step < 600; step += 1) {
                        const link = step % 2 ? "live" : "degraded";
                        const now = { id: `${hour}`.padStart(16, "0"), state: link, since: null };
                        const workers = view.workers.map((worker) => ({ ...worker, ...now }));
                        take({ ...view, at: begin + 3600 * hour + 6 * step, workers });
                    }
                const states = Object.values(state.courses).map(({ states }) => states.length);
                return [state.samples.length, state.log.length, states.length, Math.max(...states)];
            }"""
        )
        assert kept[0] <= 300
        assert kept[1] <= 1000
        assert kept[2] <= 3
        assert kept[3] <= 200
        page.goto(f"{site.address}/admin/#/log")
        at = site.overview()["at"]
        page.reload()
        expect(page.locator(".log time").last).to_be_visible()
        shown = page.evaluate("(at) => new Date(at * 1000).toLocaleTimeString('en-GB').slice(0, 2)", at)
        utc = int(at // 3600) % 24
        assert int(shown) == (utc + 9) % 24
        visit.check()
