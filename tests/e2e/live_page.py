"""Workers with the live page as processes, and the browser of a visitor."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from playwright.sync_api import expect

from tests.brokers.process import free_port
from tests.server_process import server_process

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page

    from tests.server_process import ServerProcess

__all__ = ["Site", "Visit", "serving", "visiting"]

ROOT = Path(__file__).parents[2]

expect.set_options(timeout=30_000)  # of a machine that others use

# Names what was executed or refused in the page, before any script of the page runs.
WATCH = """
addEventListener("securitypolicyviolation", (event) => (window.violations ??= []).push(event.violatedDirective));
window.violations = [];
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Workers with the page at /admin and /read-only."""

    server: ServerProcess
    port: int

    @property
    def address(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str, method: str = "GET", body: Any = None, **headers: str) -> tuple[int, bytes]:
        """Return what one of the workers answers to a visitor with the cookie."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            named = {"Cookie": "session=staff", **{name.replace("_", "-"): value for name, value in headers.items()}}
            connection.request(method, path, None if body is None else json.dumps(body), named)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def overview(self) -> Any:
        """Return what the page shows first."""
        return json.loads(self.get("/admin/api/overview")[1])


@contextmanager
def serving(
    url: str,
    folder: Path,
    workers: int = 2,
    *,
    port: int = 0,
    environment: Mapping[str, str] | None = None,
    known: int | None = None,
) -> Generator[Site]:
    """Run workers; entered when one of them knows so many, by default all of this server."""
    port = port or free_port()
    command = [sys.executable, "-m", "backplane", "run", "tests.e2e.live_page_app:app", "--workers", str(workers)]
    variables = {"BACKPLANE_URL": url, **(environment or {})}
    arguments = [*command, "--port", str(port)]
    with server_process(arguments, folder, cwd=ROOT, name=f"server-{port}", environment=variables) as server:
        site = Site(server=server, port=port)

        def is_ready() -> bool:
            try:
                return len(site.overview()["workers"]) == (workers if known is None else known)
            except (OSError, ValueError, KeyError):
                return False

        server.wait_until(is_ready, "all workers know each other")
        yield site


@dataclass(slots=True)
class Visit:
    """A visitor's browser.

    Attributes:
        errors: What stood on the consoles of its pages.
    """

    context: BrowserContext
    site: Site
    errors: list[str] = field(default_factory=list[str])

    def check(self) -> None:
        """Assert that no page has failed, and that nothing that it was given has been executed."""
        for page in self.context.pages:
            assert page.evaluate("window.hacked") is None
            assert page.evaluate("window.violations") == []
        assert self.errors == []

    def open(self, screen: str = "overview", at: str = "/admin/") -> Page:
        """Open a screen."""
        page = self.context.new_page()
        page.add_init_script(WATCH)

        def note(message: ConsoleMessage) -> None:
            if message.type == "error":
                self.errors.append(message.text)

        page.on("console", note)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.goto(f"{self.site.address}{at}#/{screen}")
        return page


@contextmanager
def visiting(browser: Browser, site: Site, **options: Any) -> Generator[Visit]:
    """Open the browser of a visitor who is let in."""
    context = browser.new_context(**options)
    context.add_cookies([{"name": "session", "value": "staff", "url": site.address}])
    try:
        yield Visit(context, site)
    finally:
        context.close()
