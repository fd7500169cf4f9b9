"""Metrics of real workers: one scrape of any shows all, through a kill, a stopped sibling and a stopped broker."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families
from websockets.sync.client import connect

from backplane.metrics.table import METRICS
from tests.brokers.process import wait_until
from tests.prometheus import prometheus, prometheus_program
from tests.servers import WORKERS, Server, serving

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.conftest import StartRedis

pytestmark = pytest.mark.timeout(180)

_SECONDS = 60

Series = tuple[str, tuple[tuple[str, str], ...]]


class Scraper:
    """Scrapes a server, each time on a new connection, and checks that no counter of a worker ever falls."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._counted: dict[Series, float] = {}
        self._shown: dict[Series, float] = {}
        self.seconds: float = 0.0

    def scrape(self) -> str:
        """Scrape once; return the text."""
        began = time.monotonic()
        response = httpx2.get(f"http://127.0.0.1:{self._server.port}/metrics", timeout=_SECONDS, trust_env=False)
        self.seconds = time.monotonic() - began
        assert response.status_code == 200
        self._shown = {}
        for family in text_string_to_metric_families(response.text):
            for sample in family.samples:
                series = sample.name, tuple(sorted(sample.labels.items()))
                assert series not in self._shown, f"{series} is there twice"
                self._shown[series] = sample.value
                if family.type in {"counter", "histogram"}:
                    before = self._counted.get(series, 0)
                    assert sample.value >= before, f"{series} fell from {before} to {sample.value}"
                    self._counted[series] = sample.value
        return response.text

    def of(self, name: str, **labels: str) -> dict[int, float]:
        """Scrape, and return the values of a metric by the pid of the worker."""
        self.scrape()
        return self.shown(name, **labels)

    def shown(self, name: str, **labels: str) -> dict[int, float]:
        """Return the values of a metric in the last scrape by the pid of the worker."""
        found: dict[int, float] = {}
        for (series, pairs), value in self._shown.items():
            by_label = dict(pairs)
            if series == name and labels.items() <= by_label.items():
                found[int(by_label.get("worker", 0))] = value
        return found

    def wait_for(self, name: str, values: dict[int, float]) -> None:
        """Scrape until a metric has these values and no other."""
        wait_until(lambda: self.of(name) == values, f"{name} is {values}", seconds=_SECONDS)


def publish(server: Server, times: int) -> None:
    """Publish to a room, each time on a new connection."""
    for _ in range(times):
        httpx2.post(f"http://127.0.0.1:{server.port}/rooms/lobby", content="x", timeout=_SECONDS, trust_env=False)


def run(name: str, url: str, folder: Path, *options: str, **environment: str) -> AbstractContextManager[Server]:
    """Run the application on four workers."""
    return serving(name, url, folder, app="metrics_app", options=options, environment=environment)


@pytest.fixture(params=["gunicorn", "gunicorn --preload", "uvicorn"])
def server_name(request: pytest.FixtureRequest) -> list[str]:
    """Each server, with its options."""
    return str(request.param).split()


def test_a_killed_worker_a_stopped_one_and_a_stopped_broker(
    server_name: list[str], private_redis: StartRedis, tmp_path: Path
) -> None:
    """Every scrape shows all workers that live, names the one that does not answer, and needs no broker."""
    broker = private_redis()
    with run(server_name[0], broker.url, tmp_path, *server_name[1:]) as server:
        scraper = Scraper(server)
        scraper.wait_for("backplane_link_up", dict.fromkeys(server.pids, 1))
        assert len(server.pids) == WORKERS
        publish(server, 20)
        scraper.wait_for("backplane_scrape_workers_missing", {0: 0})
        assert sum(scraper.shown("backplane_publishes_total", outcome="ok").values()) == 20
        # Every series is there for every worker, whatever it has done.
        names = {name for name, pairs in scraper._shown if dict(pairs).get("worker")}  # pyright: ignore[reportPrivateUsage]
        for name in names:
            assert scraper.shown(name).keys() == server.pids, name

        killed, stopped, *others = sorted(server.pids)
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: killed not in scraper.of("backplane_link_up"), "the killed one is gone", seconds=_SECONDS)
        assert set(others) <= scraper.shown("backplane_link_up").keys()
        assert killed not in scraper.shown("backplane_worker_up")
        [successor] = server.wait_for_workers(without=[killed]) - server.pids
        scraper.wait_for("backplane_link_up", dict.fromkeys((successor, stopped, *others), 1))

        os.kill(stopped, signal.SIGSTOP)
        scraper.wait_for("backplane_link_up", dict.fromkeys((successor, *others), 1))
        assert scraper.seconds > 0.9  # it is waited for
        assert scraper.shown("backplane_worker_up") == {**dict.fromkeys((successor, *others), 1), stopped: 0}
        assert scraper.shown("backplane_scrape_workers_missing") == {0: 1}
        os.kill(stopped, signal.SIGCONT)
        scraper.wait_for("backplane_link_up", dict.fromkeys((successor, stopped, *others), 1))
        assert scraper.shown("backplane_scrape_workers_missing") == {0: 0}

        broker.stop()
        scraper.wait_for("backplane_link_up", dict.fromkeys((successor, stopped, *others), 0))
        assert scraper.shown("backplane_scrape_workers_missing") == {0: 0}
        wait_until(
            lambda: bool(scraper.scrape()) and scraper.seconds < 0.9, "no timeout is waited for", seconds=_SECONDS
        )
        broker.start()
        scraper.wait_for("backplane_link_up", dict.fromkeys((successor, stopped, *others), 1))


def test_a_real_prometheus(private_redis: StartRedis, tmp_path: Path) -> None:
    """As Prometheus sees it: four workers in one target, one killed, one stopped, the broker stopped, no reset."""
    prometheus_program("prometheus")  # before anything is started
    broker = private_redis()
    with run("gunicorn", broker.url, tmp_path) as server, prometheus(server.port, tmp_path) as watcher:

        def wait_for(expression: str, values: dict[str, float]) -> None:
            watcher.wait_until(lambda: watcher.query(expression) == values, f"{expression} is {values}")

        def workers(*pids: int, value: float = 1) -> dict[str, float]:
            return {str(pid): value for pid in pids}

        wait_for("backplane_link_up", workers(*server.pids))
        publish(server, 20)
        wait_for('sum(backplane_publishes_total{outcome="ok"})', {"": 20})

        killed, stopped, *others = sorted(server.pids)
        os.kill(killed, signal.SIGKILL)
        [successor] = server.wait_for_workers(without=[killed]) - server.pids
        wait_for("backplane_link_up", workers(successor, stopped, *others))

        os.kill(stopped, signal.SIGSTOP)
        wait_for("backplane_worker_up", {**workers(successor, *others), str(stopped): 0})
        wait_for("backplane_link_up", workers(successor, *others))
        wait_for("backplane_scrape_workers_missing", {"": 1})
        os.kill(stopped, signal.SIGCONT)
        wait_for("backplane_link_up", workers(successor, stopped, *others))

        broker.stop()
        wait_for("backplane_link_up", workers(successor, stopped, *others, value=0))
        wait_for("up", {"": 1})
        broker.start()
        wait_for("backplane_link_up", workers(successor, stopped, *others))

        # On a loaded machine one that waits a second for the stopped worker can take longer than Prometheus waits.
        assert watcher.query('avg(avg_over_time(up{job="backplane"}[10m]))')[""] > 0.5
        for metric in METRICS:
            if metric.kind != "gauge":
                name = metric.name + "_count" * (metric.kind == "histogram")
                assert watcher.query(f"max(resets({name}[10m]))") == {"": 0}, name


def test_exemplars(private_redis: StartRedis, tmp_path: Path) -> None:
    """Prometheus keeps the traces that buckets of the lag name, whichever worker delivered and whichever is scraped."""
    prometheus_program("prometheus")
    with (
        run("gunicorn", private_redis().url, tmp_path, TRACED="1") as server,
        connect(f"{server.ws_url}/rooms/lobby", proxy=None) as client,
        prometheus(server.port, tmp_path) as watcher,
    ):
        publish(server, 3)
        assert client.recv(timeout=_SECONDS) == "x"
        expression = 'backplane_lag_seconds_bucket{stage="written"}'
        watcher.wait_until(lambda: bool(watcher.traces(expression)), "there are exemplars")
        assert {len(trace) for trace in watcher.traces(expression)} == {32}
        assert watcher.traces("backplane_publish_seconds_bucket") == set()


def test_metrics_lint(private_redis: StartRedis, tmp_path: Path) -> None:
    """Prometheus' own linter finds nothing in the answer of real workers with a client."""
    promtool = prometheus_program("promtool")
    with (
        run("gunicorn", private_redis().url, tmp_path) as server,
        connect(f"{server.ws_url}/rooms/lobby", proxy=None) as client,
    ):
        publish(server, 3)
        assert client.recv(timeout=_SECONDS) == "x"
        checked = subprocess.run(
            [promtool, "check", "metrics"], input=Scraper(server).scrape(), capture_output=True, text=True, check=False
        )
        assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


@pytest.mark.parametrize("server", ["granian", "hypercorn"])
def test_other_servers(server: str, private_redis: StartRedis, tmp_path: Path) -> None:
    """The workers of any server that starts them by `multiprocessing` find each other."""
    with run(server, private_redis().url, tmp_path) as started:
        Scraper(started).wait_for("backplane_link_up", dict.fromkeys(started.pids, 1))


def test_many_workers(private_redis: StartRedis, tmp_path: Path) -> None:
    """One scrape shows sixteen workers, whose text is made in a thread."""
    with serving("gunicorn", private_redis().url, tmp_path, app="metrics_app", workers=16) as server:
        Scraper(server).wait_for("backplane_link_up", dict.fromkeys(server.pids, 1))


@pytest.mark.parametrize("place", ["long", "readonly"])
def test_an_unusual_temporary_directory(place: str, private_redis: StartRedis, tmp_path: Path) -> None:
    """Where `TMPDIR` is too long for a socket, or cannot be written, the workers meet elsewhere."""
    strange = tmp_path / ("x" * 150 if place == "long" else "readonly")
    strange.mkdir()
    strange.chmod(0o700 if place == "long" else 0o500)
    with run("gunicorn", private_redis().url, tmp_path, TMPDIR=str(strange)) as server:
        Scraper(server).wait_for("backplane_link_up", dict.fromkeys(server.pids, 1))
