"""examples/dashboard.py."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import psutil
from playwright.sync_api import expect

from tests.examples.example_server import SECONDS

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from tests.examples.conftest import Serve


def test_client_receives_readings_of_every_worker(serve: Serve) -> None:
    """Two readings of each of four workers arrive, and one of the workers has this connection."""
    server = serve("dashboard")
    children = {child.pid for child in psutil.Process(server.process.pid).children(recursive=True)}
    received: dict[int, list[int]] = {}
    with server.connect("/readings") as client:
        while len(received) < 4 or any(len(connections) < 2 for connections in received.values()):
            reading = json.loads(client.recv(timeout=SECONDS))
            received.setdefault(reading["worker"], []).append(reading["connections"])
    assert set(received) <= children
    assert sum(connections[-1] for connections in received.values()) == 1


def test_page_shows_a_row_for_each_worker(serve: Serve, browser: Browser) -> None:
    """The page is live and shows four workers."""
    page = browser.new_page()
    page.goto(serve("dashboard").http_url)
    expect(page.get_by_role("status")).to_have_text("live")
    expect(page.locator("#rows tr")).to_have_count(4)


def test_page_shows_the_current_status_at_once(serve: Serve, browser: Browser) -> None:
    """Pages show a new status, one that is opened later the current one, and after a kill of all workers the newest."""
    server = serve("dashboard")
    first, second = browser.new_page(), browser.new_page()
    first.goto(server.http_url)
    for status in ("one", "two"):
        assert server.request("PUT", "/status", {"status": status})[0] == 202
        expect(first.locator("#status")).to_have_text(status)
    second.goto(server.http_url)
    expect(second.locator("#status")).to_have_text("two")

    for page in (first, second):
        page.clock.pause_at(datetime.now(UTC) + timedelta(minutes=1))  # so they come back when the test wants it to
    server.kill_workers()
    for page in (first, second):
        expect(page.get_by_role("status")).not_to_have_text("live")
    assert server.request("PUT", "/status", {"status": "three"})[0] == 202
    for page in (first, second):
        page.clock.resume()
        expect(page.locator("#status")).to_have_text("three")
