"""The examples as processes: started as their own first lines say, or under any other server."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import ClientConnection, connect

from tests.brokers.process import end, free_port, start, wait_until

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Generator, Mapping

__all__ = ["EXAMPLES", "SECONDS", "Site", "code_of_end", "documented_command", "running"]

EXAMPLES = Path(__file__).parents[2] / "examples"

SECONDS = 20
"""Generous: two cores serve everything. A wait that ends by it fails its test."""

# Without a bound of its own: a client that has stopped reading does not see the answer to its close.
_OPTIONS: dict[str, Any] = {"open_timeout": SECONDS, "close_timeout": SECONDS, "max_queue": None}

_connect: Any = connect  # what it returns is typed otherwise from one release of websockets to the next

# What a server says of an error that nobody handled, or of something it forgot.
_COMPLAINTS = re.compile(r"Traceback|Exception in|never retrieved|never awaited|was destroyed", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A server that runs.

    Attributes:
        process: The server.
        folder: Where it puts what it stores.
        broker_url: Its broker.
    """

    process: subprocess.Popen[bytes]
    port: int
    folder: Path
    broker_url: str

    @property
    def ws_url(self) -> str:
        """Where its WebSockets are, without a slash in the end."""
        return f"ws://127.0.0.1:{self.port}"

    @property
    def http_url(self) -> str:
        """Where its pages are, without a slash in the end."""
        return f"http://127.0.0.1:{self.port}"

    def connect(self, path: str, **options: Any) -> ClientConnection:
        """Open a WebSocket; to be closed by the caller."""
        client: ClientConnection = _connect(f"{self.ws_url}{path}", **{**_OPTIONS, **options})
        return client

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
        """Send a request with a JSON body, on a connection of its own; return the status and what was answered."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        try:
            connection.request(method, path, json.dumps(body), {"Content-Type": "application/json", **headers})
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        is_json = answer.headers.get_content_type() == "application/json"
        return answer.status, json.loads(text) if is_json else text

    def health(self) -> dict[str, Any]:
        """Return how the worker that answers is."""
        return dict(self.ask("GET", "/health/ready")[1])

    def wait_until_idle(self) -> None:
        """Wait until the site, of one worker, has no connection and no channel left."""

        def is_idle() -> bool:
            health = self.health()
            return not health["connections"] and not health["channels"] and not health["subscriptions"]

        wait_until(is_idle, f"no connection and no channel is left: {self.health()}", seconds=SECONDS)


def code_of_end(client: ClientConnection) -> int | None:
    """Read until the server ends the connection; return the code it gave, 1006 if none."""
    with suppress(ConnectionClosedError):
        for _ in client:
            pass
    return client.close_code


def documented_command(name: str) -> list[str]:
    """Return the command that the example's docstring tells to run, to be run with this interpreter."""
    docstring = ast.get_docstring(ast.parse((EXAMPLES / f"{name}.py").read_text(encoding="utf-8"))) or ""
    found = re.search(r"^    .*?((?:uvicorn|backplane run|python) .*)$", docstring, re.MULTILINE)
    assert found, f"{name}.py does not say how to run it"
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
) -> Generator[Site]:
    """Run a server in `cwd`, by default the folder of the examples, entered when it is ready; `{port}` is filled in.

    On leaving it must end within 15 s of SIGTERM, with all its workers, and must not have complained in its log. An
    error of the block shows the log. What the regular expression `tolerated` matches there is no complaint.
    """
    port = free_port()
    log = folder / f"server-{port}.log"
    # Gunicorn puts a control socket into the home folder; two of them would share it.
    variables = {**os.environ, "HOME": str(folder), "XDG_RUNTIME_DIR": "", "PYTHONDONTWRITEBYTECODE": "1"}
    variables |= {"BACKPLANE_URL": broker_url, "UPLOADS": str(folder / "uploads"), **(environment or {})}
    process = start([part.format(port=port) for part in command], cwd=cwd, log=log, env=variables)
    site = Site(process=process, port=port, folder=folder, broker_url=broker_url)
    try:
        wait_until(lambda: _is_ready(site), "the server is ready", seconds=SECONDS)
        yield site
    except BaseException as error:
        error.add_note(f"The log of the server:\n{log.read_text()[-10_000:]}")
        raise
    finally:
        killed = end_with_children(process)
    words = log.read_text()
    assert not killed, f"it did not end on SIGTERM:\n{words}"
    if tolerated is not None:
        words = re.sub(tolerated, "", words, flags=re.DOTALL)
    assert not _COMPLAINTS.search(words), f"it complained:\n{words}"


def end_with_children(process: subprocess.Popen[bytes]) -> list[int]:
    """End a program and, by their pids, the children that outlive it; return the pids that had to be killed."""
    children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    killed = [] if end(process, seconds=15) else [process.pid]
    for child in psutil.wait_procs(children, timeout=5)[1]:
        child.kill()
        killed.append(child.pid)
    return killed


def _is_ready(site: Site) -> bool:
    assert site.process.poll() is None, "the server has ended"
    with suppress(OSError, HTTPException):
        return site.ask("GET", "/health/ready")[0] == 200
    return False
