"""What one anonymous client can cost a server with the bounds of `backplane.server`: attacks on real processes."""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import time
import zlib
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import psutil
import pytest
from websockets.frames import Frame, Opcode

from tests.brokers.process import end, free_port, start, wait_until

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Generator, Iterator

MIB = 1024 * 1024
MOST = 8 * MIB  # what any attack may cost
HANDSHAKE = (
    b"GET %s HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
)
SITE = '''
import asyncio, json, logging, socket, sys
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from backplane import Backplane
from backplane.settings import Settings

lane, options = sys.argv[1] == "lane", json.loads(sys.argv[2])
settings = Settings(max_outbox_bytes=64 * 1024, drain_seconds=0.1, **options.pop("settings", {}))
backplane = Backplane("memory://", settings=settings)
handlers = 0

async def room(websocket):
    global handlers
    handlers += 1
    try:
        async with backplane.connect(websocket, "room") as connection:
            if websocket.url.path == "/deaf":
                await asyncio.Event().wait()
            async for message in connection:
                pass
    finally:
        handlers -= 1

async def deny(websocket):
    from starlette.responses import PlainTextResponse
    await websocket.send_denial_response(PlainTextResponse("no", 418))

async def publish(request):
    for _ in range(int(request.query_params["count"])):
        await backplane.publish("room", "x" * 16 * 1024)
        await asyncio.sleep(0)
    return JSONResponse(None)

async def health(request):
    return JSONResponse([(await backplane.health()).connections, handlers])

async def events(request):
    return backplane.sse(request, "room")

async def echo(request):
    return JSONResponse(len(await request.body()))

class OnlyPlain:
    """Takes the lane away, so that everything goes by ASGI."""
    def __init__(self, app):
        self.app = app
    async def __call__(self, scope, receive, send):
        scope.get("extensions", {}).pop("backplane.lane", None)
        await self.app(scope, receive, send)

app = Starlette(lifespan=backplane.lifespan, routes=[
    Route("/publish", publish), Route("/health", health), Route("/events", events),
    Route("/echo", echo, methods=["POST"]), WebSocketRoute("/denied", deny), WebSocketRoute("/{path}", room),
])
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)  # its clients' too: a stalled one costs the kernel little
listener.bind(("127.0.0.1", options.pop("port")))
config = uvicorn.Config(app if lane else OnlyPlain(app), **options)
asyncio_run = uvicorn.Server(config).run(sockets=[listener])
'''


class Client:
    """A hostile client: raw bytes on a socket with a small receive buffer."""

    def __init__(self, port: int) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.settimeout(30)
        self.socket.connect(("127.0.0.1", port))

    def handshake(self, path: bytes = b"/ws") -> bytes:
        """Open a WebSocket; return the head of the answer."""
        self.socket.sendall(HANDSHAKE % path)
        return self.read_head()

    def read_head(self) -> bytes:
        """Return what comes up to an empty line."""
        head = b""
        while b"\r\n\r\n" not in head and (data := self.socket.recv(4096)):
            head += data
        return head

    def send(self, data: bytes) -> bool:
        """Send; return whether the server still takes it."""
        try:
            self.socket.sendall(data)
        except OSError:
            return False
        return True

    def flood(self, data: bytes, total: int) -> None:
        """Send `data` again and again, until it was `total` bytes, or the server ends it or reads no more."""
        self.socket.settimeout(2)
        for _ in range(0, total, len(data)):
            if not self.send(data):
                return

    def read_all(self) -> bytes:
        """Return everything to the end of the connection."""
        parts: list[bytes] = []
        with suppress(ConnectionError):
            while data := self.socket.recv(65536):
                parts.append(data)
        return b"".join(parts)

    def reset(self) -> None:
        """Leave at once."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


class Setup(NamedTuple):
    """A way to serve."""

    loop: str
    lane: str
    http: str


LOOPS = [
    Setup("asyncio", "lane", "BoundedH11Protocol"),
    Setup("uvloop", "lane", "BoundedHTTPProtocol"),
    Setup("asyncio", "plain", "BoundedHTTPProtocol"),
    Setup("uvloop", "plain", "BoundedH11Protocol"),
]


class Site:
    """The site under attack."""

    def __init__(self, port: int, process: subprocess.Popen[bytes], log: Path) -> None:
        self.port = port
        self.process = process
        self.log = log
        self._stack = ExitStack()

    def client(self) -> Client:
        """Connect; the client leaves when the site ends."""
        client = Client(self.port)
        self._stack.callback(client.reset)
        return client

    def leave(self) -> None:
        """Let every client leave."""
        self._stack.close()

    def get(self, path: str) -> list[int]:
        """Ask the site."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", path)
            answer: list[int] = json.loads(connection.getresponse().read())
            return answer
        finally:
            connection.close()

    def sockets(self) -> int:
        """Return how many sockets the process has with clients."""
        connections = psutil.Process(self.process.pid).net_connections()
        return sum(each.laddr.port == self.port and each.status != "LISTEN" for each in connections)

    @contextmanager
    def cost(self) -> Generator[None]:
        """Fail if the process has, at any time within the block, much more memory than before it."""
        status = Path(f"/proc/{self.process.pid}/status")
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5", encoding="ascii")  # the peak is counted from now
        before = _kib(status, "VmHWM")
        yield
        more = (_kib(status, "VmHWM") - before) * 1024
        print(f"{more / MIB:.1f} MiB")
        assert more <= MOST, f"{more / MIB:.1f} MiB"


def _kib(status: Path, name: str) -> int:
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name))


@contextmanager
def serving(folder: Path, setup: Setup, **options: object) -> Generator[Site]:
    """Serve the site in a process of its own, warm; it must end on SIGTERM, without a traceback."""
    (folder / "site_under_attack.py").write_text(SITE, encoding="utf-8")
    port, log = free_port(), folder / "log"
    all_options = {
        "port": port,
        "loop": setup.loop,
        "http": f"backplane.server.http:{setup.http}",
        "ws": "backplane.server.uvicorn:DirectLaneProtocol",
        "ws_ping_interval": None,
        "log_level": "info",
        "timeout_graceful_shutdown": 10,
        **options,
    }
    command = [sys.executable, "site_under_attack.py", setup.lane, json.dumps(all_options)]
    path = os.pathsep.join(filter(None, [os.environ.get("BACKPLANE_UNDER_TEST"), os.environ.get("PYTHONPATH")]))
    process = start(command, cwd=folder, log=log, env={**os.environ, "PYTHONPATH": path})
    site = Site(port, process, log)

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        with suppress(OSError):
            return site.get("/health") == [0, 0]
        return False

    try:
        wait_until(answers, "the site answers", seconds=20)
        warm(site)
        yield site
    finally:
        in_time = end(process, seconds=20)
        site.leave()
    words = log.read_text()
    assert in_time, words
    assert "Traceback" not in words, words


def warm(site: Site) -> None:
    """Let the process do once what it will do often."""
    for _ in range(20):
        client = Client(site.port)
        client.handshake()
        client.send(Frame(Opcode.TEXT, b"x" * 1000).serialize(mask=True))
        client.reset()
    wait_until(lambda: site.get("/health")[0] == 0, "the site is empty again")


@pytest.fixture(params=LOOPS, ids=lambda setup: f"{setup.loop}-{setup.lane}")
def setup(request: pytest.FixtureRequest) -> Setup:
    """Every test that takes it runs on both loops, with the lane and without."""
    chosen: Setup = request.param
    return chosen


def bomb(size: int) -> bytes:
    """Return the first fragment of a message, compressed, that inflates to `size` bytes."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -12)
    data = deflate.compress(bytes(size)) + deflate.flush(zlib.Z_SYNC_FLUSH)
    frame = Frame(Opcode.BINARY, data[:-4], fin=False, rsv1=True)
    return frame.serialize(mask=True)


def many(frame: Frame) -> bytes:
    """Return about 64 KiB of the same frame."""
    data = frame.serialize(mask=True)
    return data * (65536 // len(data))


def test_fragments(setup: Setup, tmp_path: Path) -> None:
    """60 MB of one-byte fragments of one message cost little memory: they end at the message's limit."""
    with serving(tmp_path, setup, ws_max_size=64 * 1024) as site:
        client = site.client()
        client.handshake()
        client.send(Frame(Opcode.TEXT, b"x", fin=False).serialize(mask=True))
        with site.cost():
            client.flood(many(Frame(Opcode.CONT, b"x", fin=False)), 60_000_000)
            wait_until(lambda: site.get("/health")[0] == 0, "the client is gone", seconds=20)


@pytest.mark.parametrize("payload", [b"", b"x"], ids=["empty", "one byte"])
def test_fragments_below_the_limit(setup: Setup, payload: bytes, tmp_path: Path) -> None:
    """Fragments that never reach the limit are as many bytes as they carry, and no objects."""
    with serving(tmp_path, setup, ws_max_size=16 * MIB) as site:
        client = site.client()
        client.handshake(b"/unlimited")
        client.send(Frame(Opcode.TEXT, b"x", fin=False).serialize(mask=True))
        with site.cost():
            client.flood(many(Frame(Opcode.CONT, payload, fin=False)), 3_000_000)
            site.get("/health")
