"""examples/celery: a FastAPI worker and Celery under each of its pools, with Redis between them."""

from __future__ import annotations

import json
import os
import sys
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.examples.example_server import EXAMPLES, SECONDS, ExampleServer, running
from tests.server_process import server_process

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from tests.brokers.broker import Broker

pytestmark = pytest.mark.timeout(120)

FOLDER = EXAMPLES / "celery"
ORDERS = 40
FIRST_ORDERS = count(step=ORDERS)  # an order that was shipped sends its state to each later page


@pytest.fixture(scope="module")
def server(module_redis: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExampleServer]:
    """The web worker of the example."""
    command = [sys.executable, "-m", "uvicorn", "shop:app", "--port", "{port}"]
    queue = {"CELERY_BROKER_URL": module_redis.url}
    folder = tmp_path_factory.mktemp("shop")
    with running(command, folder, broker_url=module_redis.url, environment=queue, cwd=FOLDER) as made:
        yield made


@contextmanager
def celery(module: str, pool: str, url: str, folder: Path) -> Generator[None]:
    """Run a Celery worker until the block ends; it must end within 15 s of SIGTERM."""
    command = [sys.executable, "-m", "celery", "--app", f"{module}:queue", "worker", "--loglevel", "INFO"]
    command += ["--pool", pool, "--concurrency", "4", "--without-gossip", "--without-mingle"]
    paths = os.pathsep.join((str(FOLDER), str(Path(__file__).parent)))
    variables = {"BACKPLANE_URL": url, "CELERY_BROKER_URL": url, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
    with server_process(command, folder, cwd=folder, name="celery", environment=variables) as worker:
        worker.wait_until(lambda: " ready." in worker.log.read_text(), "Celery is ready", seconds=40)
        yield


@pytest.mark.parametrize(
    ("pool", "module"),
    [
        pytest.param("prefork", "shop", id="prefork-at the first task"),
        pytest.param("prefork", "celery_warm", id="prefork-at import"),
        pytest.param("gevent", "shop", id="gevent-at the first task"),
        pytest.param("gevent", "celery_warm", id="gevent-at import", marks=pytest.mark.full),
        pytest.param("threads", "shop", id="threads-at the first task", marks=pytest.mark.full),
        pytest.param("threads", "celery_warm", id="threads-at import"),
        pytest.param("solo", "shop", id="solo-at the first task"),
        pytest.param("solo", "celery_warm", id="solo-at import", marks=pytest.mark.full),
    ],
)
def test_tasks_reach_the_sockets(server: ExampleServer, pool: str, module: str, tmp_path: Path) -> None:
    """What 40 tasks publish reaches the page of each order, whatever the pool, and whenever the publisher started."""
    with celery(module, pool, server.broker_url, tmp_path), ExitStack() as stack:
        first = next(FIRST_ORDERS)
        orders = range(first, first + ORDERS)
        pages = [stack.enter_context(server.connect(f"/orders/{order}")) for order in orders]
        for order in orders:
            assert server.request("POST", f"/orders/{order}/ship")[0] == 202
        for order, page in zip(orders, pages, strict=True):
            states = {json.loads(page.recv(timeout=SECONDS))["state"] for _ in range(2)}
            assert states == {"accepted", "shipped"}, order
