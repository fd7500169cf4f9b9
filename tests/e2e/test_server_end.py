"""However a server ends its worker, every waiting client and handler is notified, and the server ends in time."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
from contextlib import ExitStack, closing, contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import psutil
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.brokers.process import end, free_port, start, wait_until

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Generator

    from websockets.sync.client import ClientConnection

pytestmark = pytest.mark.timeout(150)

FOLDER = Path(__file__).parent
SECONDS = 40

UVICORN = ("-m", "uvicorn", "ending:app", "--port", "{port}", "--log-level", "warning")
GUNICORN = ("-m", "gunicorn", "ending:app", "--bind", "127.0.0.1:{port}", "--log-level", "warning", "--worker-class")
OURS = (*GUNICORN, "backplane.server.gunicorn.Worker")
HYPERCORN = ("-m", "hypercorn", "ending:app", "--bind", "127.0.0.1:{port}")
GRANIAN = ("-m", "granian", "ending:app", "--interface", "asgi", "--port", "{port}", "--log-level", "warning")
RUN = ("-m", "backplane.cli", "run", "ending:app", "--port", "{port}", "--log-level", "warning")

# Before Python 3.12 asyncio's streams log an error for each connection that Hypercorn cancels at its end.
TOLERATED = re.compile(r"Exception in callback StreamReaderProtocol\.connection_made.*?CancelledError\n", re.DOTALL)


class ServerEnd(NamedTuple):
    """One way in which a server ends its worker, as a row of the table in docs/operations/servers.md.

    Attributes:
        server: Its name there.
        how: What ends it there.
        codes: The codes with which WebSockets are closed, there too.
        command: How the server is started.
        ending: A signal to the server, or the number of requests after which it ends.
    """

    server: str
    how: str
    codes: str
    command: tuple[str, ...]
    ending: signal.Signals | int


SERVER_ENDS = [
    ServerEnd("Uvicorn", "SIGTERM", "1012", UVICORN, signal.SIGTERM),
    ServerEnd("Uvicorn", "Ctrl-C", "1012", UVICORN, signal.SIGINT),
    ServerEnd("Uvicorn", "`should_exit`, in a thread", "1012", ("ending.py", "{port}"), signal.SIGUSR1),
    ServerEnd("Uvicorn", "`--limit-max-requests`", "1012", (*UVICORN, "--limit-max-requests", "30"), 30),
    ServerEnd("Uvicorn", "a reload", "1012", (*UVICORN, "--reload"), signal.SIGTERM),
    ServerEnd("`backplane run`", "Ctrl-C", "1012", (*RUN, "--workers", "2"), signal.SIGINT),
    ServerEnd("`backplane.server.gunicorn.Worker`", "SIGTERM", "1012", OURS, signal.SIGTERM),
    ServerEnd("`backplane.server.gunicorn.Worker`", "Ctrl-C", "1012", OURS, signal.SIGINT),
    ServerEnd("`backplane.server.gunicorn.Worker`", "`--max-requests`", "1012", (*OURS, "--max-requests", "30"), 30),
    ServerEnd(
        "Gunicorn's `asgi` worker", "SIGTERM", "1012", (*GUNICORN, "asgi", "--graceful-timeout", "5"), signal.SIGTERM
    ),
    ServerEnd("Gunicorn's `asgi` worker", "Ctrl-C", "1011 or 1006", (*GUNICORN, "asgi"), signal.SIGINT),
    ServerEnd("Hypercorn", "SIGTERM", "1012", HYPERCORN, signal.SIGTERM),
    ServerEnd("Hypercorn", "Ctrl-C", "1012", HYPERCORN, signal.SIGINT),
    ServerEnd("Hypercorn", "`--max-requests`", "1012", (*HYPERCORN, "--max-requests", "30"), 30),
    ServerEnd("Granian", "SIGTERM", "1012 or 1006", GRANIAN, signal.SIGTERM),
    ServerEnd("Granian", "Ctrl-C", "1012 or 1006", GRANIAN, signal.SIGINT),
]


class Clients:
    """One client of each kind of handler, one that reads nothing, and two that read a stream."""

    def __init__(self, stack: ExitStack, port: int) -> None:
        self._stack = stack
        self._port = port
        self.stalled = self._stalled("/send")
        self.sockets = [self._connected(path) for path in ("/iterate", "/wait", "/forward", "/send")]
        self.streams = [self._streaming(path) for path in ("/events", "/own-stream")]

    def codes(self) -> set[int | None]:
        """Read every WebSocket to its end; return the codes."""
        for client in self.sockets:
            with suppress(ConnectionClosed):
                while True:
                    client.recv(timeout=SECONDS)
        return {client.close_code for client in self.sockets}

    def read_streams(self) -> None:
        """Read the event streams to their end."""
        for stream in self.streams:
            with suppress(OSError):
                while stream.recv(65536):
                    pass

    def _connected(self, path: str) -> ClientConnection:
        client = self._stack.enter_context(
            connect(
                f"ws://127.0.0.1:{self._port}{path}",
                compression=None,
                max_queue=None,
                open_timeout=SECONDS,
                close_timeout=1,
            )
        )
        client.recv(timeout=SECONDS)
        return client

    def _stalled(self, path: str) -> socket.socket:
        client = self._stack.enter_context(socket.create_connection(("127.0.0.1", self._port), timeout=SECONDS))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        assert client.recv(12) == b"HTTP/1.1 101"
        return client

    def _streaming(self, path: str) -> socket.socket:
        client = self._stack.enter_context(socket.create_connection(("127.0.0.1", self._port), timeout=SECONDS))
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\n\r\n".encode())
        received = b""
        while b"retry" not in received and b"here" not in received:
            received += client.recv(65536)
        return client


@contextmanager
def running(command: tuple[str, ...], port: int, folder: Path, broker_url: str) -> Generator[subprocess.Popen[bytes]]:
    """Run a server, entered when it answers; processes left at the end are killed."""
    log = folder / "server.log"
    environment = {**os.environ, "BACKPLANE_URL": broker_url, "HOME": str(folder), "XDG_RUNTIME_DIR": ""}
    arguments = [part.format(port=port) for part in command]
    process = start([sys.executable, *arguments], cwd=FOLDER, log=log, env=environment)
    try:
        wait_until(lambda: answers(port) > 0, "the server answers", seconds=SECONDS)
        yield process
        logged = TOLERATED.sub("", log.read_text())
        assert "Traceback" not in logged, logged
    except BaseException as error:
        error.add_note(log.read_text()[-5_000:])
        raise
    finally:
        end(process, seconds=0.1)
        with suppress(ProcessLookupError):  # also of a worker that was begun meanwhile
            os.killpg(process.pid, signal.SIGKILL)


def answers(port: int) -> int:
    """Return the pid of the worker that answers, on a connection of its own; 0 if none does."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=5)) as connection, suppress(OSError, HTTPException):
        connection.request("GET", "/pid")
        return int(connection.getresponse().read())
    return 0


@pytest.mark.parametrize("server_end", SERVER_ENDS, ids=lambda server_end: f"{server_end.server} {server_end.how}")
def test_end_reaches_every_waiting_client(server_end: ServerEnd, tmp_path: Path, ipc_url: str) -> None:
    """With handlers that wait and that only send, a client that reads nothing and open streams, the worker ends."""
    port = free_port()
    with running(server_end.command, port, tmp_path, ipc_url) as process, ExitStack() as stack:
        clients = Clients(stack, port)
        worker = psutil.Process(answers(port))
        if isinstance(server_end.ending, signal.Signals):
            send = os.killpg if server_end.ending is signal.SIGINT else os.kill  # Ctrl-C reaches the workers too
            send(process.pid, server_end.ending)
        else:
            for _ in range(server_end.ending):
                answers(port)
        assert clients.codes() <= {int(code) for code in server_end.codes.split(" or ")}
        clients.read_streams()
        gone, _ = psutil.wait_procs([worker], timeout=SECONDS)
        assert gone == [worker]


def test_server_ends_are_those_of_the_documentation() -> None:
    """The table on how servers end holds what is tested here, row by row."""
    page = (FOLDER.parents[1] / "docs" / "operations" / "servers.md").read_text()
    rows = re.findall(r"^\| (.+?) \| (.+?) \| (\d{4}.*?) \|", page, re.MULTILINE)
    assert rows == [(server_end.server, server_end.how, server_end.codes) for server_end in SERVER_ENDS]
