"""examples/django: a Django site on Gunicorn whose views reach the pages connected to a FastAPI worker."""

from __future__ import annotations

import json
import os
import sys
from http.client import HTTPConnection
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import pytest

from tests.brokers.process import free_port, start, wait_until
from tests.examples.site import EXAMPLES, SECONDS, Site, end_with_children, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FOLDER = EXAMPLES / "django"

# Under gevent a connection of Django's that was made before the fork cannot be used: no `--preload` there.
WORKERS = {
    "sync": ("--workers", "2", "--preload"),
    "gthread": ("--workers", "2", "--preload", "--threads", "4"),
    "gevent": ("--workers", "1"),
}

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def site(ipc_url: str, tmp_path: Path) -> Iterator[Site]:
    """The WebSocket side."""
    command = [sys.executable, "-m", "uvicorn", "sockets:app", "--port", "{port}"]
    with running(command, tmp_path, broker_url=ipc_url, cwd=FOLDER) as made:
        yield made


@pytest.fixture(params=WORKERS)
def django_port(request: pytest.FixtureRequest, site: Site, tmp_path: Path) -> Iterator[int]:
    """The Django side, under Gunicorn with each of its kinds of workers."""
    port, log = free_port(), tmp_path / "django.log"
    command = [sys.executable, "-m", "gunicorn", "shop:application", "--bind", f"127.0.0.1:{port}"]
    command += ["--worker-class", request.param, "--log-level", "warning", *WORKERS[request.param]]
    variables = {"BACKPLANE_URL": site.broker_url, "ORDERS": str(tmp_path / "orders.sqlite3"), "HOME": str(tmp_path)}
    process = start(command, cwd=FOLDER, log=log, env={**os.environ, **variables, "PYTHONDONTWRITEBYTECODE": "1"})
    try:
        wait_until(lambda: answers(port) or process.poll() is not None, "Django answers", seconds=SECONDS)
        assert process.poll() is None, log.read_text()
        yield port
    finally:
        killed = end_with_children(process)
    assert not killed, f"it did not end on SIGTERM:\n{log.read_text()}"
    assert "Traceback" not in log.read_text(), log.read_text()


def answers(port: int) -> bool:
    """Return whether somebody answers there."""
    try:
        return order(port, None) == 405
    except OSError:
        return False


def order(port: int, item: str | None) -> int:
    """Place an order, or with `None` ask in a way that is not allowed; return the status."""
    connection = HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    try:
        if item is None:
            connection.request("GET", "/orders")
        else:
            form = {"Content-Type": "application/x-www-form-urlencoded"}
            connection.request("POST", "/orders", urlencode({"item": item}), form)
        return connection.getresponse().status
    finally:
        connection.close()


def test_what_is_committed_reaches_the_pages(site: Site, django_port: int) -> None:
    """Each stored order reaches every page, in order; one that is rolled back is never published."""
    with site.connect("/orders") as one, site.connect("/orders") as other:
        assert order(django_port, "") == 422
        for number in range(20):
            assert order(django_port, f"tea {number}") == 202
        for page in (one, other):
            items = [json.loads(page.recv(timeout=SECONDS))["item"] for _ in range(20)]
            assert items == [f"tea {number}" for number in range(20)]
