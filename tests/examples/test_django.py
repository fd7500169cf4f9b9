"""examples/django: a Django site on Gunicorn whose views reach the pages connected to a FastAPI worker."""

from __future__ import annotations

import json
import sys
from http.client import HTTPConnection
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import pytest

from tests.brokers.process import free_port
from tests.examples.example_server import EXAMPLES, SECONDS, ExampleServer, running
from tests.server_process import server_process

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FOLDER = EXAMPLES / "django"

# Under gevent a connection that Django made before the fork cannot be used: no `--preload` there.
WORKERS = {
    "sync": ("--workers", "2", "--preload"),
    "gthread": ("--workers", "2", "--preload", "--threads", "4"),
    "gevent": ("--workers", "1"),
}

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def server(ipc_url: str, tmp_path: Path) -> Iterator[ExampleServer]:
    """The WebSocket server."""
    command = [sys.executable, "-m", "uvicorn", "sockets:app", "--port", "{port}"]
    with running(command, tmp_path, broker_url=ipc_url, cwd=FOLDER) as made:
        yield made


@pytest.fixture(params=WORKERS)
def django_port(request: pytest.FixtureRequest, server: ExampleServer, tmp_path: Path) -> Iterator[int]:
    """The Django server, under Gunicorn with each of its kinds of workers."""
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "shop:application", "--bind", f"127.0.0.1:{port}"]
    command += ["--worker-class", request.param, "--log-level", "warning", *WORKERS[request.param]]
    variables = {"BACKPLANE_URL": server.broker_url, "ORDERS": str(tmp_path / "orders.sqlite3")}
    environment = {**variables, "PYTHONDONTWRITEBYTECODE": "1"}
    with server_process(command, tmp_path, cwd=FOLDER, name="django", environment=environment) as django:
        django.wait_until(lambda: answers(port), "Django answers", seconds=SECONDS)
        yield port


def answers(port: int) -> bool:
    """Whether a server answers on this port."""
    try:
        return order(port, None) == 405
    except OSError:
        return False


def order(port: int, item: str | None) -> int:
    """Place an order, or with `None` send a request that is not allowed; return the status."""
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


def test_what_is_committed_reaches_the_pages(server: ExampleServer, django_port: int) -> None:
    """Each stored order reaches every page, in order; one that is rolled back is never published."""
    with server.connect("/orders") as one, server.connect("/orders") as other:
        assert order(django_port, "") == 422
        for number in range(20):
            assert order(django_port, f"tea {number}") == 202
        for page in (one, other):
            items = [json.loads(page.recv(timeout=SECONDS))["item"] for _ in range(20)]
            assert items == [f"tea {number}" for number in range(20)]
