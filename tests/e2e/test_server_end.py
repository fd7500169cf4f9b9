"""However a server ends its worker, whoever waits for anything learns of it, and the server ends within its limits."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.brokers.process import end, free_port, start, wait_until

if TYPE_CHECKING:
    from collections.abc import Generator

    from websockets.sync.client import ClientConnection

pytestmark = pytest.mark.timeout(60)

FOLDER = Path(__file__).parent
SECONDS = 20

UVICORN = ("-m", "uvicorn", "ending:app", "--port", "{port}", "--log-level", "warning")
GUNICORN = ("-m", "gunicorn", "ending:app", "--bind", "127.0.0.1:{port}", "--log-level", "warning")
HYPERCORN = ("-m", "hypercorn", "ending:app", "--bind", "127.0.0.1:{port}")
GRANIAN = ("-m", "granian", "ending:app", "--interface", "asgi", "--port", "{port}", "--log-level", "warning")


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way in which a server ends its worker.

    Attributes:
        command: How the server is started.
        ending: A signal to the server; `requests`, which it has answered enough of.
        code: With which code WebSockets are closed.
        seconds: Within how many seconds the worker has ended.
    """

    command: tuple[str, ...]
    ending: signal.Signals | str
    code: int = 1012
    seconds: float = 10.0


WAYS = {
    "uvicorn SIGTERM": Way(command=UVICORN, ending=signal.SIGTERM),
    "uvicorn SIGINT": Way(command=UVICORN, ending=signal.SIGINT),
    "uvicorn should_exit in a thread": Way(command=("ending.py", "{port}"), ending=signal.SIGUSR1),
    "uvicorn --limit-max-requests": Way(command=(*UVICORN, "--limit-max-requests", "30"), ending="requests"),
    "uvicorn --workers": Way(command=(*UVICORN, "--workers", "2"), ending=signal.SIGINT),
    "uvicorn --reload": Way(command=(*UVICORN, "--reload"), ending=signal.SIGTERM),
    "backplane run": Way(
        command=("-m", "backplane.cli", "run", "ending:app", "--port", "{port}", "--log-level", "warning"),
        ending=signal.SIGINT,
    ),
    "backplane worker SIGTERM": Way(
        command=(*GUNICORN, "-k", "backplane.server.gunicorn.Worker"), ending=signal.SIGTERM
    ),
    "backplane worker SIGQUIT": Way(
        command=(*GUNICORN, "-k", "backplane.server.gunicorn.Worker"), ending=signal.SIGQUIT
    ),
    "backplane worker --max-requests": Way(
        command=(*GUNICORN, "-k", "backplane.server.gunicorn.Worker", "--max-requests", "30"), ending="requests"
    ),
    "gunicorn asgi SIGTERM": Way(command=(*GUNICORN, "-k", "asgi"), ending=signal.SIGTERM),
    "gunicorn asgi SIGINT": Way(command=(*GUNICORN, "-k", "asgi"), ending=signal.SIGINT),
    "hypercorn SIGTERM": Way(command=HYPERCORN, ending=signal.SIGTERM),
    "hypercorn SIGINT": Way(command=HYPERCORN, ending=signal.SIGINT),
    "hypercorn --max-requests": Way(command=(*HYPERCORN, "--max-requests", "30"), ending="requests"),
    "granian SIGTERM": Way(command=GRANIAN, ending=signal.SIGTERM),
    "granian SIGINT": Way(command=GRANIAN, ending=signal.SIGINT),
}


class Clients:
    """One client of each kind: it waits, is sent to, is forwarded to, reads nothing, listens to a stream."""

    def __init__(self, stack: ExitStack, port: int) -> None:
        self._stack = stack
        self._port = port
        self.stalled = self._stalled("/send")
        self.sockets = [self._connected(path) for path in ("/wait", "/forward", "/send")]
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
                while data := stream.recv(65536):
                    assert data

    def _connected(self, path: str) -> ClientConnection:
        client = self._stack.enter_context(
            connect(f"ws://127.0.0.1:{self._port}{path}", compression=None, max_queue=None, close_timeout=1)
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
    """Run a server, entered when it answers; whatever is left of it in the end is killed."""
    log = folder / "server.log"
    environment = {**os.environ, "BACKPLANE_URL": broker_url, "HOME": str(folder), "XDG_RUNTIME_DIR": ""}
    arguments = [part.format(port=port) for part in command]
    process = start([sys.executable, *arguments], cwd=FOLDER, log=log, env=environment)
    try:
        wait_until(lambda: answers(port), "the server answers", seconds=SECONDS)
        yield process
        words = log.read_text()
        assert "Traceback" not in words, words
    except BaseException as error:
        error.add_note(log.read_text()[-5_000:])
        raise
    finally:
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        end(process, seconds=0.1)
        for child in psutil.wait_procs(children, timeout=1)[1]:
            child.kill()


def answers(port: int) -> int:
    """Return which worker answers, 0 if none."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=5)) as connection, suppress(OSError, HTTPException):
        connection.request("GET", "/pid")
        return int(connection.getresponse().read())
    return 0


@pytest.mark.parametrize("name", WAYS)
def test_end_reaches_everyone_who_waits(name: str, tmp_path: Path, ipc_url: str) -> None:
    """With handlers that wait and that only send, a client that reads nothing and open streams, the worker ends."""
    way, port = WAYS[name], free_port()
    with running(way.command, port, tmp_path, ipc_url) as process, ExitStack() as stack:
        clients = Clients(stack, port)
        worker = psutil.Process(answers(port))
        began = time.monotonic()
        match way.ending:
            case "requests":
                while answers(port) == worker.pid:
                    pass
            case number:
                process.send_signal(int(number))
        codes = clients.codes()
        print("CODES", name, codes, time.monotonic() - began)
        clients.read_streams()
        print("STREAMS", time.monotonic() - began)
        psutil.wait_procs([worker], timeout=way.seconds)
        print("ENDED", time.monotonic() - began, not worker.is_running())
        assert not worker.is_running()
        assert codes == {way.code}
