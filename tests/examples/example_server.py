"""The examples as processes: started by the command in their docstrings, or under another server."""

from __future__ import annotations

import ast
import json
import re
import shlex
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from typer.testing import CliRunner
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import ClientConnection, connect

from backplane.cli import app
from tests.brokers.process import free_port, wait_until
from tests.server_process import server_process

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Generator, Mapping

__all__ = ["EXAMPLES", "SECONDS", "ExampleServer", "documented_command", "received_close_code", "running"]

EXAMPLES = Path(__file__).parents[2] / "examples"

SECONDS = 60
"""Generous, as two cores serve everything. A test fails when a wait takes longer."""

# Unbounded: a client that does not read would not receive the reply to its close.
_OPTIONS: dict[str, Any] = {"open_timeout": SECONDS, "close_timeout": SECONDS, "max_queue": None}

_connect: Any = connect  # the type of what it returns differs between releases of websockets

# What a server logs of an unhandled error, or of a resource that was not closed.
_ERRORS = re.compile(r"Traceback|Exception in|never retrieved|never awaited|was destroyed", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleServer:
    """A running server.

    Attributes:
        process: The server.
        folder: Where it stores files.
        broker_url: Its broker.
    """

    process: subprocess.Popen[bytes]
    port: int
    folder: Path
    broker_url: str

    @property
    def ws_url(self) -> str:
        """The URL of its WebSockets, without a path."""
        return f"ws://127.0.0.1:{self.port}"

    @property
    def http_url(self) -> str:
        """The URL of its pages, without a path."""
        return f"http://127.0.0.1:{self.port}"

    def connect(self, path: str, **options: Any) -> ClientConnection:
        """Open a WebSocket; to be closed by the caller."""
        client: ClientConnection = _connect(f"{self.ws_url}{path}", **{**_OPTIONS, **options})
        return client

    def request(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
        """Send a request with a JSON body, on a connection of its own; return the status and the response's body."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        try:
            connection.request(method, path, json.dumps(body), {"Content-Type": "application/json", **headers})
            response = connection.getresponse()
            text = response.read().decode()
        finally:
            connection.close()
        is_json = response.headers.get_content_type() == "application/json"
        return response.status, json.loads(text) if is_json else text

    def health(self) -> dict[str, Any]:
        """Return the health of the worker that answers."""
        return dict(self.request("GET", "/health/ready")[1])

    def kill_workers(self) -> None:
        """Kill every worker of `backplane run`, which starts others, and wait until one serves."""
        for child in psutil.Process(self.process.pid).children(recursive=True):
            if "spawn_main" in " ".join(child.cmdline()):  # a worker, and not Python's resource tracker
                child.kill()
                child.wait(SECONDS)
        wait_until(lambda: _is_ready(self), "a new worker serves", seconds=SECONDS)

    def wait_for_workers(self, number: int) -> None:
        """Wait until so many workers of its broker send heartbeats: one serves before the others have started."""
        check = ["check", self.broker_url, "--messages", "1", "--workers", str(number)]
        wait_until(lambda: not CliRunner().invoke(app, check).exit_code, f"{number} workers are seen", seconds=60)

    def wait_until_idle(self) -> None:
        """Wait until the server, of one worker, has no connection and no channel left."""

        def is_idle() -> bool:
            health = self.health()
            return not health["connections"] and not health["channels"] and not health["subscriptions"]

        wait_until(is_idle, f"no connection and no channel is left: {self.health()}", seconds=SECONDS)


def received_close_code(client: ClientConnection) -> int | None:
    """Receive until the server ends the connection; return its close code, 1006 if it sent none."""
    with suppress(ConnectionClosedError):
        for _ in client:
            pass
    return client.close_code


def documented_command(name: str) -> list[str]:
    """Return the command in the example's docstring, to be run with this interpreter."""
    docstring = ast.get_docstring(ast.parse((EXAMPLES / f"{name}.py").read_text(encoding="utf-8"))) or ""
    found = re.search(r"^    .*?((?:uvicorn|backplane run|python) .*)$", docstring, re.MULTILINE)
    assert found, f"{name}.py does not document how to run it"
    program, *arguments = shlex.split(found[1])
    module = {"uvicorn": ["-m", "uvicorn"], "backplane": ["-m", "backplane.cli"], "python": []}[program]
    return [sys.executable, *module, *arguments]


@contextmanager
def running(
    command: list[str],
    folder: Path,
    *,
    broker_url: str,
    environment: Mapping[str, str] | None = None,
    tolerated: str | None = None,
    cwd: Path = EXAMPLES,
) -> Generator[ExampleServer]:
    """Run a server in `cwd`, by default the folder of the examples, entered when it is ready; `{port}` is filled in.

    At the end it must end within 15 s of SIGTERM, with all its workers, and its log must hold no error but those that
    the regular expression `tolerated` matches. An error of the block shows the log.
    """
    port = free_port()
    variables = {"PYTHONDONTWRITEBYTECODE": "1", "BACKPLANE_URL": broker_url, "UPLOADS": str(folder / "uploads")}
    filled = [part.format(port=port) for part in command]
    with server_process(
        filled,
        folder,
        cwd=cwd,
        name=f"server-{port}",
        environment={**variables, **(environment or {})},
        errors=_ERRORS,
        tolerated=tolerated,
    ) as started:
        server = ExampleServer(process=started.process, port=port, folder=folder, broker_url=broker_url)
        started.wait_until(lambda: _is_ready(server), "the server is ready", seconds=SECONDS)
        yield server


def _is_ready(server: ExampleServer) -> bool:
    with suppress(OSError, HTTPException):
        return server.request("GET", "/health/ready")[0] == 200
    return False
