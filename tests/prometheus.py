"""A real Prometheus and its tool, of Debian's package `prometheus`: installed where that is permitted, else skipped."""

from __future__ import annotations

import json
import os
import shutil
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

from tests.brokers.process import free_port, install
from tests.server_process import ServerProcess, server_process

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

__all__ = ["Prometheus", "configured_prometheus", "prometheus", "prometheus_program"]

_CONFIG = """
global:
  scrape_interval: 500ms
  scrape_timeout: 500ms
scrape_configs:
  - job_name: backplane
    scrape_interval: {interval}
    scrape_timeout: {interval}
    static_configs:
      - targets: ["127.0.0.1:{target}"]
"""


def prometheus_program(name: str) -> str:
    """Return the path of `prometheus` or `promtool`; without it skip, but fail in CI."""
    if (path := shutil.which(name) or (install("prometheus") and shutil.which(name))) is not None:
        return path
    reason = f"{name} is not installed: apt-get install prometheus"
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


class Prometheus:
    """A running Prometheus that scrapes one target."""

    def __init__(self, process: ServerProcess, port: int) -> None:
        self._process = process
        self._url = f"http://127.0.0.1:{port}"

    def query(self, expression: str) -> dict[str, float]:
        """Return the present value of each series of an expression, by its label `worker`, or by nothing."""
        return {labels.get("worker", ""): value for labels, value in self.series(expression)}

    def series(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Return the present series of an expression, each with its labels and its value."""
        response = httpx2.get(f"{self._url}/api/v1/query", params={"query": expression}, timeout=60, trust_env=False)
        answer: dict[str, Any] = json.loads(response.text)
        assert answer["status"] == "success", answer
        result = answer["data"]["result"]
        if answer["data"]["resultType"] == "scalar":
            return [({}, float(result[1]))]
        return [(series["metric"], float(series["value"][1])) for series in result]

    def traces(self, expression: str) -> set[str]:
        """Return the traces that the exemplars of an expression name, in the last hour."""
        now = time.time()
        response = httpx2.get(
            f"{self._url}/api/v1/query_exemplars",
            params={"query": expression, "start": now - 3_600, "end": now + 3_600},
            timeout=60,
            trust_env=False,
        )
        answer: dict[str, Any] = json.loads(response.text)
        assert answer["status"] == "success", answer
        return {each["labels"]["trace_id"] for series in answer["data"] for each in series["exemplars"]}

    def wait_until(self, condition: Callable[[], bool], what: str, *, seconds: float = 60) -> None:
        """Wait until `condition` holds, which asks this Prometheus. Blocks."""
        self._process.wait_until(condition, what, seconds=seconds)


@contextmanager
def prometheus(target: int, folder: Path, *, interval: str = "2s") -> Generator[Prometheus]:
    """Run a Prometheus that scrapes `/metrics` of a port of this host, entered when it answers."""
    with configured_prometheus(_CONFIG.format(target=target, interval=interval), folder) as started:
        yield started


@contextmanager
def configured_prometheus(configuration: str, folder: Path) -> Generator[Prometheus]:
    """Run a Prometheus with this configuration, entered when it answers."""
    program, port = prometheus_program("prometheus"), free_port()
    config = folder / "prometheus.yml"
    config.write_text(configuration)
    command = [
        program,
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--enable-feature=exemplar-storage",
        "--log.level=warn",
    ]
    with server_process(command, folder, cwd=folder, name="prometheus") as process:
        process.wait_until(lambda: _is_ready(port), "Prometheus is ready", seconds=60)
        yield Prometheus(process, port)


def _is_ready(port: int) -> bool:
    try:
        return httpx2.get(f"http://127.0.0.1:{port}/-/ready", timeout=5, trust_env=False).status_code == 200
    except httpx2.HTTPError:
        return False
