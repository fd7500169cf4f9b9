"""examples/celery: a FastAPI worker and Celery under each of its pools, with Redis between them."""

from __future__ import annotations

import json
import os
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.brokers.process import end, start, wait_until
from tests.examples.site import EXAMPLES, SECONDS, Site, running

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from tests.brokers.broker import Broker

pytestmark = pytest.mark.timeout(120)

FOLDER = EXAMPLES / "celery"
ORDERS = 40


@pytest.fixture(scope="module")
def site(redis_broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The web worker of the example."""
    command = [sys.executable, "-m", "uvicorn", "shop:app", "--port", "{port}"]
    queue = {"CELERY_BROKER_URL": redis_broker.url}
    folder = tmp_path_factory.mktemp("shop")
    with running(command, folder, broker_url=redis_broker.url, environment=queue, cwd=FOLDER) as made:
        yield made


@contextmanager
def celery(module: str, pool: str, url: str, folder: Path) -> Generator[Path]:
    """Run a Celery worker until the block ends; it must end within 15 s of SIGTERM. Yields its log."""
    log = folder / "celery.log"
    command = [sys.executable, "-m", "celery", "--app", f"{module}:queue", "worker", "--loglevel", "INFO"]
    command += ["--pool", pool, "--concurrency", "4", "--without-gossip", "--without-mingle"]
    paths = os.pathsep.join((str(FOLDER), str(Path(__file__).parent)))
    variables = {"BACKPLANE_URL": url, "CELERY_BROKER_URL": url, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
    process = start(command, cwd=folder, log=log, env={**os.environ, **variables})
    try:
        wait_until(lambda: " ready." in log.read_text() or process.poll() is not None, "Celery is ready", seconds=40)
        assert process.poll() is None, log.read_text()
        yield log
    except BaseException as error:
        error.add_note(f"The log of Celery:\n{log.read_text()[-5_000:]}")
        raise
    finally:
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        ended = end(process, seconds=15)
        for child in psutil.wait_procs(children, timeout=5)[1]:
            child.kill()
            ended = False
    assert ended, f"Celery did not end on SIGTERM:\n{log.read_text()}"
    assert "Traceback" not in log.read_text(), log.read_text()


@pytest.mark.parametrize("module", ["shop", "celery_warm"], ids=["at the first task", "at import"])
@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent", "solo"])
def test_tasks_reach_the_sockets(site: Site, pool: str, module: str, tmp_path: Path) -> None:
    """What 40 tasks publish reaches the page of each order, whatever the pool, and whenever the publisher began."""
    with celery(module, pool, site.broker_url, tmp_path), ExitStack() as stack:
        pages = [stack.enter_context(site.connect(f"/orders/{order}")) for order in range(ORDERS)]
        for order in range(ORDERS):
            assert site.ask("POST", f"/orders/{order}/ship")[0] == 202
        for order, page in enumerate(pages):
            states = {json.loads(page.recv(timeout=SECONDS))["state"] for _ in range(2)}
            assert states == {"accepted", "shipped"}, order
