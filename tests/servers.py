"""The application of the end-to-end tests under real web servers with several workers, as users run it."""

from __future__ import annotations

import sys
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import TYPE_CHECKING

from tests.brokers.process import free_port, wait_until
from tests.server_process import ServerProcess, server_process

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Mapping, Sequence

__all__ = ["COMMANDS", "WORKERS", "Server", "serving"]

WORKERS = 4

# Longer than a test, so that a publisher's connection stays with its worker.
_KEEP_ALIVE_SECONDS = "120"

# By default Uvicorn kills a worker that does not run for five seconds: one that a test stops, or a busy machine. It
# waits as long for one that was killed between its question and the answer, and replaces it only then.
_HEALTHCHECK_SECONDS = "15"

COMMANDS = {
    "gunicorn": (
        *("gunicorn", "{app}:app", "--worker-class", "uvicorn_worker.UvicornWorker"),
        *("--workers", "{workers}", "--log-level", "warning"),
        *("--keep-alive", _KEEP_ALIVE_SECONDS, "--bind", "127.0.0.1:{port}"),
    ),
    "uvicorn": (
        *("uvicorn", "{app}:app", "--workers", "{workers}", "--log-level", "warning"),
        *("--ws", "backplane.server.uvicorn:DirectLaneProtocol"),
        *("--timeout-keep-alive", _KEEP_ALIVE_SECONDS, "--timeout-worker-healthcheck", _HEALTHCHECK_SECONDS),
        *("--host", "127.0.0.1", "--port", "{port}"),
    ),
    "granian": (
        *("granian", "{app}:app", "--interface", "asgi", "--workers", "{workers}", "--log-level", "warning"),
        *("--host", "127.0.0.1", "--port", "{port}"),
    ),
    "hypercorn": ("hypercorn", "{app}:app", "--workers", "{workers}", "--bind", "127.0.0.1:{port}"),
}
"""How a server is started, by its name; `{app}`, `{port}` and `{workers}` are filled in.

Gunicorn runs without the direct lane and Uvicorn with it, so that tests under both cover both.
"""

_APP_FOLDER = Path(__file__).parent / "e2e"


class Server:
    """A running server; its application answers `GET /pid`.

    Attributes:
        port: Where it listens.
        log: The file of what it and its workers log.
        pids: Its workers when it had started.
    """

    def __init__(self, process: ServerProcess, port: int, workers: int) -> None:
        self.port = port
        self.log = process.log
        self._workers = workers
        self._process = process
        self.pids = self.wait_for_workers()

    @property
    def ws_url(self) -> str:
        """The URL of its WebSockets, without a path."""
        return f"ws://127.0.0.1:{self.port}"

    def wait_for_workers(self, without: Collection[int] = ()) -> set[int]:
        """Wait until all of its workers have answered, each on a connection of its own; return their pids.

        Blocks. Pids in `without` do not count.
        """
        pids: set[int] = set()

        def all_answered() -> bool:
            pids.update(self._get_pids())
            return len(pids.difference(without)) >= self._workers

        self._process.wait_until(all_answered, f"{self._workers} workers answer", seconds=60)
        return pids.difference(without)

    def terminate(self) -> None:
        """Send SIGTERM; the server ends when it has drained."""
        self._process.process.terminate()

    def wait_for_end(self) -> None:
        """Wait until it has ended. Blocks.

        Raises:
            TimeoutError: Not within 30 s.
        """
        wait_until(lambda: self._process.process.poll() is not None, "the server ends", seconds=30)

    def get_ready(self) -> tuple[int, str]:
        """Return status and body of `GET /health/ready`, which a load balancer reads. Blocks."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", "/health/ready")
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def _get_pids(self) -> list[int]:
        # Several at once: the same idle worker may accept all of several connections in sequence.
        connections = [HTTPConnection("127.0.0.1", self.port, timeout=5) for _ in range(2 * self._workers)]
        pids: list[int] = []
        with suppress(OSError, HTTPException):
            for connection in connections:
                connection.request("GET", "/pid")
            pids += [int(connection.getresponse().read()) for connection in connections]
        for connection in connections:
            connection.close()
        return pids


@contextmanager
def serving(
    name: str,
    broker_url: str,
    folder: Path,
    *,
    workers: int = WORKERS,
    environment: Mapping[str, str] | None = None,
    app: str = "app",
    options: Sequence[str] = (),
) -> Generator[Server]:
    """Run a module of `tests/e2e` under the server `name` of `COMMANDS`, entered when every worker answers.

    At the end the server must end within 30 s of SIGTERM and must not have logged a traceback. An error of the block
    shows the log.
    """
    port = free_port()
    parts = (part.format(port=port, workers=workers, app=app) for part in COMMANDS[name])
    command = [sys.executable, "-m", *parts, *options]
    variables = {"BACKPLANE_URL": broker_url, **(environment or {})}
    with server_process(command, folder, cwd=_APP_FOLDER, name=name, environment=variables) as process:
        yield Server(process, port, workers)
