"""The commands that ask the workers, as processes, with the workers of a real server at each broker."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.brokers.process import free_port
from tests.cluster_app import HEARTBEAT_SECONDS
from tests.e2e.brokers import by_default_on
from tests.server_process import server_process

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from websockets.sync.client import ClientConnection

pytestmark = pytest.mark.timeout(240)

_ROOT = Path(__file__).parents[2]
_SECRET = "0123456789abcdef"
_WORKERS = 3
# How long a command waits for heartbeats: several of them, as a busy machine delays some.
_WAIT = ("--seconds", str(4 * HEARTBEAT_SECONDS))


class Application:
    """A running application, and the commands at its broker."""

    def __init__(self, port: int, url: str) -> None:
        self.port = port
        self._environment = {**os.environ, "BACKPLANE_URL": url, "BACKPLANE_CONTROL_SECRET": _SECRET}

    def command(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        """Run a command with `--json`; return status and object."""
        line = [sys.executable, "-m", "backplane", *arguments, *_WAIT, "--json"]
        done = subprocess.run(line, env=self._environment, capture_output=True, text=True, check=False, timeout=60)
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)

    @contextmanager
    def command_with_progress(
        self, *arguments: str
    ) -> Generator[tuple[subprocess.Popen[bytes], Callable[[str], None]]]:
        """Run a command with `--json` that waits for 2 s, on a terminal; what waits for a text there comes with it."""
        terminal, end_of_process = pty.openpty()
        line = [sys.executable, "-m", "backplane", *arguments, "--seconds", "2", "--json"]
        environment = {**self._environment, "TERM": "xterm", "COLUMNS": "200"}
        with (
            os.fdopen(terminal, "rb", buffering=0) as shown,
            os.fdopen(end_of_process, "wb", buffering=0) as other_end,
            subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=other_end) as process,
        ):
            read = b""

            def wait_for(text: str) -> None:
                nonlocal read
                while text.encode() not in read:
                    read += shown.read(100_000)

            yield process, wait_for

    def get(self, path: str) -> Any:
        """Return what one of the workers answers."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("GET", path)
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()

    def is_ready(self) -> bool:
        """Return whether all workers serve."""
        try:
            return len(self.get("/workers")) >= _WORKERS
        except (OSError, HTTPException):
            return False

    def client(self, room: str, user: str) -> ClientConnection:
        """Connect a user to a room; to be entered."""
        return connect(f"ws://127.0.0.1:{self.port}/{room}?user={user}", open_timeout=30)


@contextmanager
def _serving(url: str, folder: Path) -> Generator[Application]:
    port = free_port()
    command = [sys.executable, "-m", "backplane", "run", "tests.cluster_app:application", "--factory"]
    command += ["--workers", str(_WORKERS), "--port", str(port)]
    command += ["--", "--timeout-worker-healthcheck", "60"]  # else Uvicorn kills a worker that is stopped for 5 s
    environment = {"BACKPLANE_URL": url, "TEST_CONTROL_SECRET": _SECRET}
    with server_process(command, folder, cwd=_ROOT, environment=environment) as server:
        application = Application(port, url)
        server.wait_until(application.is_ready, "all workers know each other", seconds=60)
        yield application


@by_default_on("redis", "kafka")
def test_commands(broker_url: str, tmp_path: Path) -> None:
    """They list the workers and who is in a room, ask every worker, close a user's connections, and change nothing."""
    with _serving(broker_url, tmp_path) as application, ExitStack() as stack:
        clients = [stack.enter_context(application.client("room:1", "ada")) for _ in range(6)]
        bob = stack.enter_context(application.client("room:1", "bob"))
        for client in (*clients, bob):
            client.recv()

        status, report = application.command("workers")
        assert status == 0
        pids = {worker["pid"] for worker in report["workers"]}
        assert len(pids) == _WORKERS
        ids = {worker["id"] for worker in report["workers"]}

        status, report = application.command("present", "room:1")
        assert (status, report["connections"]) == (0, 7)
        assert [(user["user"], user["connections"]) for user in report["users"]] == [("ada", 6), ("bob", 1)]
        assert application.command("check", "--workers", str(_WORKERS))[1]["workers"] == _WORKERS

        status, report = application.command("survey", "load", '{"a": 1}')
        assert status == 0
        assert {answer["answer"]["pid"] for answer in report["answers"]} == pids

        # What has asked so far is no worker to any of them.
        assert set(application.get("/workers")) == ids
        assert application.get("/missing") == 0

        status, report = application.command("disconnect", "--user", "ada", "--confirm", "10", "--reason", "bye")
        assert (status, report["confirmed"], report["closed"]) == (0, True, 6)
        for client in clients:
            with pytest.raises(ConnectionClosed):
                client.recv(timeout=60)
            assert (client.close_code, client.close_reason) == (4503, "bye")
        status, report = application.command("present", "room:1")
        assert (status, [user["user"] for user in report["users"]]) == (0, ["bob"])


@pytest.mark.parametrize(
    ("broker_url", "command"),
    [
        ("ipc", ["survey", "load", "--timeout", "5"]),
        ("redis", ["disconnect", "--user", "ada", "--confirm", "5"]),
    ],
    indirect=["broker_url"],
)
def test_worker_that_does_not_answer(broker_url: str, tmp_path: Path, command: list[str]) -> None:
    """A worker that is stopped (SIGSTOP) once it was seen is named, with status 3, beside the answers of the others."""
    with _serving(broker_url, tmp_path) as application:
        pid = application.command("workers")[1]["workers"][0]["pid"]
        try:
            with application.command_with_progress(*command) as (process, wait_for):
                wait_for(f"waiting for heartbeats: {_WORKERS} workers")
                os.kill(pid, signal.SIGSTOP)
                printed, _ = process.communicate(timeout=60)
        finally:
            os.kill(pid, signal.SIGCONT)
        report = json.loads(printed)
        assert (process.returncode, report["ok"]) == (3, False)
        assert [worker["pid"] for worker in report["missing"]] == [pid]
        assert len(report["answers"]) == _WORKERS - 1
        assert f" {pid}" in report["problem"]
