"""examples/dashboard.py."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import psutil
from playwright.sync_api import expect

from tests.examples.site import SECONDS

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from tests.examples.conftest import Serve


def test_client_hears_every_worker_again_and_again(serve: Serve) -> None:
    """Two readings of each of four workers come by themselves, and one of them has this connection."""
    site = serve("dashboard")
    children = {child.pid for child in psutil.Process(site.process.pid).children(recursive=True)}
    heard: dict[int, list[int]] = {}
    with site.connect("/readings") as client:
        while len(heard) < 4 or any(len(connections) < 2 for connections in heard.values()):
            reading = json.loads(client.recv(timeout=SECONDS))
            heard.setdefault(reading["worker"], []).append(reading["connections"])
    assert set(heard) <= children
    assert sum(connections[-1] for connections in heard.values()) == 1


def test_page_shows_a_row_for_each_worker(serve: Serve, browser: Browser) -> None:
    """The page is live and shows four workers."""
    page = browser.new_page()
    page.goto(serve("dashboard").http_url)
    expect(page.get_by_role("status")).to_have_text("live")
    expect(page.locator("#rows tr")).to_have_count(4)
