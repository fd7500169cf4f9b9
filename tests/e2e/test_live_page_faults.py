"""The live page where something is wrong: it names what, within ten seconds, in a real browser."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.request import Request, urlopen

import pytest
from playwright.sync_api import expect
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from backplane.testing import FaultProxy
from tests.brokers.redis import RedisConfig
from tests.e2e.live_page import serving, visiting

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

    from playwright.sync_api import Browser

    from tests.brokers.broker import Broker
    from tests.conftest import StartRedis
    from tests.e2e.live_page import Site

pytestmark = pytest.mark.timeout(240)

# Within ten seconds where the machine has nothing else to do, and several tests are no such machine.
NAMED_WITHIN_MS = 30_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """Workers of one deployment, each on a port of its own, and one of another.

    Attributes:
        asked: Whose page is open.
        healthy: Whose link works.
        silenced: Whose link can be made silent.
        elsewhere: Who has another prefix.
    """

    asked: Site
    healthy: Site
    silenced: Site
    elsewhere: Site
    proxy: Proxy


class Proxy:
    """A `FaultProxy` in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._silent = asyncio.Event()
        self._ended = asyncio.Event()

    @contextmanager
    def running(self, url: str) -> Generator[str]:
        """Run it; yield its URL."""
        begun = Future[str]()
        thread = threading.Thread(target=self._loop.run_until_complete, args=[self._run(url, begun)])
        thread.start()
        try:
            yield begun.result(30)
        finally:
            self._loop.call_soon_threadsafe(self._silent.set)
            self._loop.call_soon_threadsafe(self._ended.set)
            thread.join()
            self._loop.close()

    def silence(self) -> None:
        """Let nothing pass, with every connection open."""
        self._loop.call_soon_threadsafe(self._silent.set)

    async def _run(self, url: str, begun: Future[str]) -> None:
        async with FaultProxy(url) as proxy:
            begun.set_result(proxy.url)
            await self._silent.wait()
            proxy.silence()
            await self._ended.wait()
            proxy.heal()


@pytest.fixture(scope="module")
def workers(module_redis: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    """All of them, at one Redis."""
    folder, proxy = tmp_path_factory.mktemp("live-page"), Proxy()
    environment = {"LIVE_PAGE_DOWN_SECONDS": "60"}
    with ExitStack() as stack:
        through_proxy = stack.enter_context(proxy.running(module_redis.url))

        def start(url: str, prefix: str, known: int) -> Site:
            url = f"{url}?prefix={prefix}"
            return stack.enter_context(serving(url, folder, 1, environment=environment, known=known))

        yield Workers(
            asked=start(module_redis.url, "six:", 1),
            healthy=start(module_redis.url, "six:", 2),
            silenced=start(through_proxy, "six:", 3),
            elsewhere=start(module_redis.url, "six2:", 1),
            proxy=proxy,
        )


def plant(site: Site, fault: str) -> None:
    """Cause a fault in a worker."""
    with urlopen(Request(f"{site.address}/faults/{fault}", method="POST"), timeout=60) as answer:
        assert answer.status == 200


@pytest.mark.parametrize("way", ["hub", "subscription", "authorisation", "wrong-channel", "wrong-prefix", "link"])
def test_ways_to_receive_nothing(browser: Browser, workers: Workers, way: str) -> None:
    """Each way in which a client receives nothing is named, with the worker."""
    channel, asked = f"way:{way}", f"way:{way}"
    site, pid = workers.healthy, str(workers.healthy.server.process.pid)
    words = ["does not receive what is published", pid]
    if way == "authorisation":
        channel = asked = "forbidden"
        words = ["its join was refused", "authorize"]
    elif way == "wrong-channel":
        asked = "way-wrong-channel"
        words = ["whose name is similar", channel, pid]
    elif way == "wrong-prefix":
        site, words = workers.elsewhere, [f"/{workers.elsewhere.server.process.pid}", "prefix 'six2:'"]
    elif way == "link":
        site, words = workers.silenced, ["did not answer", str(workers.silenced.server.process.pid)]
    with ExitStack() as stack:
        with suppress(InvalidStatus):  # of the one that is refused
            stack.enter_context(connect(f"ws://127.0.0.1:{site.port}/rooms/{channel}?key=ada-{way}"))
        if way in ("hub", "subscription"):
            plant(site, f"{way}/{channel}")
        if way == "link":
            workers.proxy.silence()
        visit = stack.enter_context(visiting(browser, workers.asked))
        page = visit.open("why")
        page.get_by_label("Client").fill(f"ada-{way}")
        page.get_by_label("Channel", exact=True).fill(asked)
        page.get_by_role("button", name="Look").click()
        verdict = page.get_by_role("region", name="Verdict")
        for word in words:
            expect(verdict).to_contain_text(word, timeout=NAMED_WITHIN_MS)
        stations = page.get_by_role("list", name="The way of a message").get_by_role("listitem")
        expect(stations.filter(has_text="stops here")).not_to_have_count(0)
        visit.check()


def test_broker_that_is_away(browser: Browser, private_redis: StartRedis, tmp_path: Path) -> None:
    """An alert states it while it is away; afterwards a page that is opened then shows when each link was lost."""
    broker = private_redis(RedisConfig(users=("alice on >s3cret +@all ~* &*",), login="alice:s3cret"))
    with serving(broker.url, tmp_path) as site, visiting(browser, site) as visit:
        page = visit.open()
        expect(page.get_by_role("heading", level=1)).to_contain_text("All 2 workers are live.")
        broker.kill9()
        expect(page.get_by_role("alert")).to_contain_text("The broker is away")
        expect(page.get_by_role("heading", level=1)).to_contain_text("is lost")
        page.get_by_role("link", name="Log", exact=True).click()
        expect(page.locator(".log")).to_contain_text("link.lost: live -> degraded")
        expect(page.locator(".note-bad")).to_contain_text("1 of 2 workers answered")
        broker.start()
        expect(page.get_by_role("alert")).to_be_hidden()
        page.close()

        page = visit.open("workers")
        strips = page.get_by_role("table", name="Workers").get_by_role("img", name="Not live 1 time in the last hour")
        expect(strips).to_have_count(2)
        page.get_by_role("rowheader").get_by_role("link").first.click()
        details = page.locator("tr.details")
        expect(details.get_by_role("heading", level=2)).to_have_text(
            ["Settings", "Limits of a client", "Broker", "Rules of channels"]
        )
        facts = details.locator("dl div", has_text="max_channels")
        expect(facts).to_have_text("max_channels77 changed")
        expect(details.locator("dl div", has_text="url")).to_contain_text("alice:***@")
        assert "s3cret" not in page.content()
        visit.errors.clear()  # of the browser, where a worker answered 503 while the broker was away
        visit.check()
