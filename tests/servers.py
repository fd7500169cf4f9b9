"""Real web servers for tests: an application under several workers, as users run it."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from tests.brokers.process import end, free_port, start, wait_until

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Collection, Generator, Mapping

__all__ = ["COMMANDS", "WORKERS", "Server", "serving"]

WORKERS = 4

# Longer than a test: a publisher's connection stays with the worker it has.
_KEEP_ALIVE_SECONDS = "120"

COMMANDS = {
    "gunicorn": (
        *("gunicorn", "app:app", "--worker-class", "uvicorn_worker.UvicornWorker"),
        *("--workers", "{workers}", "--log-level", "warning"),
        *("--keep-alive", _KEEP_ALIVE_SECONDS, "--bind", "127.0.0.1:{port}"),
    ),
    "uvicorn": (
        *("uvicorn", "app:app", "--workers", "{workers}", "--log-level", "warning"),
        *("--ws", "backplane.server.uvicorn:DirectLaneProtocol"),
        *("--timeout-keep-alive", _KEEP_ALIVE_SECONDS, "--host", "127.0.0.1", "--port", "{port}"),
    ),
}
"""How a server is started, by its name; `{port}` and `{workers}` are filled in.

Gunicorn without the direct lane and Uvicorn with it, so that what runs under both has gone both ways.
"""

_APP_FOLDER = Path(__file__).parent / "e2e"


class Server:
    """A running server; its application answers `GET /pid`.

    Attributes:
        port: Where it listens.
        log: The file of what it and its workers log.
        pids: Its workers when it had started.
    """

    def __init__(self, process: subprocess.Popen[bytes], port: int, workers: int, log: Path) -> None:
        self.port = port
        self.log = log
        self._workers = workers
        self._process = process
        self.pids = self.wait_for_workers()

    @property
    def ws_url(self) -> str:
        """Where its WebSockets are."""
        return f"ws://127.0.0.1:{self.port}"

    def wait_for_workers(self, without: Collection[int] = ()) -> set[int]:
        """Wait until as many workers as it has have answered, each on a connection of its own; return their pids.

        Blocks. Pids in `without` do not count.
        """
        pids: set[int] = set()

        def all_answered() -> bool:
            assert self._process.poll() is None, "the server has ended"
            pids.update(self._ask_pids())
            return len(pids.difference(without)) >= self._workers

        wait_until(all_answered, f"{self._workers} workers answer", seconds=30)
        return pids.difference(without)

    def terminate(self) -> None:
        """Send SIGTERM, as whoever ends a server does; it goes on until it has drained."""
        self._process.terminate()

    def wait_for_end(self) -> None:
        """Wait until it has ended by itself. Blocks.

        Raises:
            TimeoutError: Not within 15 s.
        """
        wait_until(lambda: self._process.poll() is not None, "the server ends", seconds=15)

    def ask_ready(self) -> tuple[int, str]:
        """Return what a load balancer would be told: code and body of `GET /health/ready`. Blocks."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/health/ready")
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def _ask_pids(self) -> list[int]:
        # Several at once: of connections one after the other, the same idle worker may take all.
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
    name: str, broker_url: str, folder: Path, *, workers: int = WORKERS, environment: Mapping[str, str] | None = None
) -> Generator[Server]:
    """Run `tests/e2e/app.py` under the server `name` of `COMMANDS`, entered when every worker answers.

    On leaving, the server must end within 15 s of SIGTERM and must not have logged a traceback. An error of the block
    shows the log.
    """
    port, log = free_port(), folder / f"{name}.log"
    command = [sys.executable, "-m", *(part.format(port=port, workers=workers) for part in COMMANDS[name])]
    # Gunicorn puts a control socket into the home folder; two of them would share it.
    own = {"BACKPLANE_URL": broker_url, "HOME": str(folder), "XDG_RUNTIME_DIR": ""}
    process = start(command, cwd=_APP_FOLDER, log=log, env={**os.environ, **own, **(environment or {})})
    try:
        yield Server(process, port, workers, log)
    except BaseException as error:
        error.add_note(f"The log of {name}:\n{log.read_text()[-10_000:]}")
        raise
    finally:
        killed = _end_with_workers(process)
    words = log.read_text()
    assert not killed, f"{name} did not end on SIGTERM:\n{words}"
    assert "Traceback" not in words, f"{name} logged a traceback:\n{words}"


def _end_with_workers(process: subprocess.Popen[bytes]) -> list[int]:
    """End the server and, by their pids, the workers that outlive it; return the pids that had to be killed."""
    if process.poll() is not None:
        return []
    workers = psutil.Process(process.pid).children(recursive=True)
    killed = [] if end(process, seconds=15) else [process.pid]
    for worker in psutil.wait_procs(workers, timeout=5)[1]:
        worker.kill()
        killed.append(worker.pid)
    return killed
