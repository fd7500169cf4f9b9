"""What one anonymous client can cost a server with the bounds of `backplane.server`: attacks on real processes."""

from __future__ import annotations

import json
import socket
import ssl
import struct
import sys
import time
import zlib
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import psutil
import pytest
from websockets.frames import Frame, Opcode

from tests.brokers.certificate import self_signed_certificate
from tests.brokers.process import end, free_port, start, wait_until

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Generator

MIB = 1024 * 1024
MOST = 8 * MIB  # what any attack may cost
HANDSHAKE = (
    b"GET %s HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n%s\r\n"
)
DEFLATE = b"Sec-WebSocket-Extensions: permessage-deflate\r\n"
SITE = '''
import asyncio, importlib, json, socket, sys
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from backplane import Backplane
from backplane.connection.limits import Limits
from backplane.settings import Settings

lane, options = sys.argv[1] == "lane", json.loads(sys.argv[2])
settings = Settings(max_outbox_bytes=64 * 1024, drain_seconds=0.1, **options.pop("settings", {}))
backplane = Backplane("memory://", settings=settings)
handlers = 0
released = asyncio.Event()

async def room(websocket):
    global handlers
    handlers += 1
    try:
        path = websocket.url.path
        limits = Limits(max_message_bytes=None) if path == "/unlimited" else None
        bound = 100_000_000 if path == "/hoarder" else None
        async with backplane.connect(websocket, "room", limits=limits, max_outbox_bytes=bound) as connection:
            if path == "/stubborn":
                await released.wait()
            if path == "/deaf":
                while not connection.is_over:
                    await asyncio.sleep(0.1)
            async for message in connection:
                if message == "close":
                    break
                await connection.send(str(len(message)))
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

async def release(request):
    released.set()
    return JSONResponse(None)

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

for place, value in options.pop("patch", {}).items():
    module, _, name = place.rpartition(".")
    setattr(importlib.import_module(module), name, value)

app = Starlette(lifespan=backplane.lifespan, routes=[
    Route("/publish", publish), Route("/health", health), Route("/release", release),
    Route("/events", events),
    Route("/echo", echo, methods=["POST"]), WebSocketRoute("/denied", deny), WebSocketRoute("/{path}", room),
])
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)  # its clients' too, for the kernel's sake
listener.bind(("127.0.0.1", options.pop("port")))
config = uvicorn.Config(app if lane else OnlyPlain(app), **options)
uvicorn.Server(config).run(sockets=[listener])
'''


class Client:
    """A hostile client: raw bytes on a socket with a small receive buffer."""

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.settimeout(30)
        self.socket.connect(("127.0.0.1", port))
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_hostname="localhost")

    def handshake(self, path: bytes = b"/ws", headers: bytes = b"") -> bytes:
        """Open a WebSocket; return the head of the answer."""
        self.socket.sendall(HANDSHAKE % (path, headers))
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
        """Send `data` again and again, until it was `total` bytes, or the server has ended it."""
        for _ in range(0, total, len(data)):
            if not self.send(data):
                return

    def read_text(self) -> str:
        """Return the next text, past any pongs."""
        while True:
            opcode, data = self.read_frame()
            if opcode == Opcode.TEXT:
                return data.decode()

    def read_close(self) -> int:
        """Return the code of the close frame, past anything else."""
        while True:
            opcode, data = self.read_frame()
            if opcode == Opcode.CLOSE:
                return int.from_bytes(data[:2], "big")

    def read_frame(self) -> tuple[int, bytes]:
        """Return opcode and payload of the next frame."""
        head = self._read(2)
        length = head[1] if head[1] < 126 else int.from_bytes(self._read(2 if head[1] == 126 else 8), "big")
        return head[0] & 15, self._read(length)

    def _read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self.socket.recv(count - len(data))
            assert more, "the server has ended the connection"
            data += more
        return data

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

    def __init__(self, port: int, process: subprocess.Popen[bytes], log: Path, tls: ssl.SSLContext | None) -> None:
        self.port = port
        self._tls = tls
        self.process = process
        self.log = log
        self._stack = ExitStack()

    def client(self) -> Client:
        """Connect; the client leaves when the site ends."""
        client = Client(self.port, self._tls)
        self._stack.callback(client.reset)
        return client

    def leave(self) -> None:
        """Let every client leave."""
        self._stack.close()

    def get(self, path: str) -> list[int]:
        """Ask the site."""
        connection = (
            HTTPConnection("127.0.0.1", self.port, timeout=30)
            if self._tls is None
            else HTTPSConnection("localhost", self.port, timeout=30, context=self._tls)
        )
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

    def agrees(self) -> None:
        """Fail if the site counts more clients than it has sockets, or fewer, while some of them may go."""
        before = self.sockets()
        count = self.get("/health")[0]
        assert self.sockets() - 1 <= count <= before + 1  # this request has a socket too

    @contextmanager
    def cost(self) -> Generator[None]:
        """Fail if the process has, at any time within the block, much more memory than before it."""
        status = Path(f"/proc/{self.process.pid}/status")
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5", encoding="ascii")  # the peak is counted from now
        before = _kib(status, "VmHWM")
        yield
        more = (_kib(status, "VmHWM") - before) * 1024
        assert more <= MOST, f"{more / MIB:.1f} MiB"


def _kib(status: Path, name: str) -> int:
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name))


@contextmanager
def serving(folder: Path, setup: Setup, certificate: Path | None = None, **options: object) -> Generator[Site]:
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
    tls = None
    if certificate is not None:
        all_options |= {"ssl_certfile": str(certificate), "ssl_keyfile": str(certificate.with_name("key.pem"))}
        tls = ssl.create_default_context(cafile=str(certificate))
    command = [sys.executable, "site_under_attack.py", setup.lane, json.dumps(all_options)]
    process = start(command, cwd=folder, log=log)
    site = Site(port, process, log, tls)

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
        client = site.client()
        client.handshake()
        client.send(Frame(Opcode.TEXT, b"x" * 1000).serialize(mask=True))
    site.leave()
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
    frame = Frame(Opcode.BINARY, data[:-4], fin=False).serialize(mask=True)
    return bytes([frame[0] | 0x40]) + frame[1:]


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
            client.flood(many(Frame(Opcode.CONT, payload, fin=False)), 2_000_000)
            client.send(Frame(Opcode.CONT, b"").serialize(mask=True))
            length = int(client.read_text())
    assert length == 1 + len(payload) * (2_000_000 // 65536 + 1) * (65536 // (6 + len(payload)))


def test_pings(setup: Setup, tmp_path: Path) -> None:
    """A client that sends 150 MB of pings and reads no pong costs no more than a full transport, and is served on."""
    with serving(tmp_path, setup) as site:
        client = site.client()
        client.handshake()
        with site.cost():
            client.flood(many(Frame(Opcode.PING, b"x" * 125)), 150_000_000)
            client.send(Frame(Opcode.TEXT, b"still there").serialize(mask=True))
            assert client.read_text() == "11"


def test_pings_after_a_close_frame(setup: Setup, tmp_path: Path) -> None:
    """Pings cost nothing either after the server's close frame, to which the client never answers."""
    with serving(tmp_path, setup) as site:
        client = site.client()
        client.handshake()
        client.send(Frame(Opcode.TEXT, b"close").serialize(mask=True))
        with site.cost():
            client.flood(many(Frame(Opcode.PING, b"x" * 125)), 150_000_000)
        wait_until(lambda: site.sockets() == 0, "the client is gone", seconds=10)


def test_bombs(setup: Setup, tmp_path: Path) -> None:
    """20 clients send 15 KiB each that inflate to 15 MiB, as a fragment; it is refused before it is inflated."""
    with serving(tmp_path, setup, ws_max_size=16 * MIB if setup.lane == "lane" else 64 * 1024) as site:
        clients = [site.client() for _ in range(20)]
        assert all(b"permessage-deflate" in client.handshake(headers=DEFLATE) for client in clients)
        with site.cost():
            for client in clients:
                client.send(bomb(15 * MIB))
            assert [client.read_close() for client in clients] == [1009] * 20


def test_messages_that_nobody_takes(setup: Setup, tmp_path: Path) -> None:
    """20 clients send as many one-byte messages as the server reads, whose handlers take none."""
    with serving(tmp_path, setup) as site:
        clients = [site.client() for _ in range(20)]
        for client in clients:
            client.handshake(b"/deaf")
        with site.cost():
            for client in clients:
                client.socket.setblocking(False)
                client.send(many(Frame(Opcode.TEXT, b"x")) * 8)
            site.get("/health")
        site.leave()


def test_requests_that_nobody_answers(setup: Setup, tmp_path: Path) -> None:
    """10 clients send as many requests as the server reads, behind one for an event stream."""
    with serving(tmp_path, setup) as site:
        clients = [site.client() for _ in range(10)]
        for client in clients:
            client.send(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b" 200 " in client.read_head()
        with site.cost():
            for client in clients:
                client.socket.setblocking(False)
                client.send(b"GET / HTTP/1.1\r\nHost:\r\n\r\n" * 20_000)
            site.get("/health")
        site.leave()


@pytest.mark.timeout(180)
def test_cut_clients_are_gone(setup: Setup, tmp_path: Path) -> None:
    """2,000 clients that read nothing and are cut for it are gone within 10 s, and count until they are."""
    with serving(tmp_path, setup, log_level="error") as site:
        for _ in range(2_000):
            assert b" 101 " in site.client().handshake()
        assert site.get("/health")[0] == 2_000
        site.get("/publish?count=20")
        wait_until(lambda: site.get("/health")[1] == 0, "the handlers have ended", seconds=30)
        site.agrees()
        wait_until(lambda: site.sockets() == 0, "the clients are gone")
        assert site.get("/health")[0] == 0


def test_cut_clients_are_gone_with_tls(setup: Setup, tmp_path: Path) -> None:
    """With TLS, whose own goodbye nobody reads either, the same holds, for sockets and for streams."""
    with serving(tmp_path, setup, self_signed_certificate(tmp_path)) as site:
        for _ in range(5):
            assert b" 101 " in site.client().handshake()
            stream = site.client()
            stream.send(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b" 200 " in stream.read_head()
        site.get("/publish?count=100")
        wait_until(lambda: site.get("/health")[1] == 0 and "ending it" in site.log.read_text(), "all are cut")
        wait_until(lambda: site.sockets() == 0, "the clients are gone")
        assert site.get("/health")[0] == 0


def test_cut_client_of_a_handler_that_goes_on(tmp_path: Path) -> None:
    """A client with the lane that is cut goes though its handler does not end, and counts until both are over."""
    with serving(tmp_path, LOOPS[0]) as site:
        assert b" 101 " in site.client().handshake(b"/stubborn")
        site.get("/publish?count=20")
        wait_until(lambda: site.sockets() == 0, "the client is gone")
        assert site.get("/health") == [1, 1]
        site.get("/release")
        wait_until(lambda: site.get("/health") == [0, 0], "nothing counts")


def test_cut_streams_are_gone(setup: Setup, tmp_path: Path) -> None:
    """Event streams that nobody reads are cut, count until they are gone, are gone within 10 s, and fill no log."""
    with serving(tmp_path, setup) as site:
        for _ in range(200):
            client = site.client()
            client.send(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b" 200 " in client.read_head()
        site.get("/publish?count=20")
        wait_until(lambda: "ending it" in site.log.read_text(), "a stream is ended")
        site.agrees()
        wait_until(lambda: site.sockets() == 0, "the clients are gone")
        assert site.get("/health")[0] == 0
        assert "ERROR" not in site.log.read_text()


def test_stream_that_ended_on_a_connection_that_goes_on(tmp_path: Path) -> None:
    """A client whose stream was ended in order may ask for the next one on the same connection."""
    with serving(tmp_path, LOOPS[0], settings={"max_connections": 1}) as site:
        client = site.client()
        for _ in range(2):
            client.send(b"HEAD /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b" 200 " in client.read_head()


def test_as_many_as_a_client_may_have(setup: Setup, tmp_path: Path) -> None:
    """A client that is cut does not get another place before its socket is gone."""
    with serving(tmp_path, setup, settings={"max_connections_per_client": 5}) as site:
        stalled = [site.client() for _ in range(5)]
        assert all(b" 101 " in client.handshake() for client in stalled)
        site.get("/publish?count=20")
        wait_until(lambda: site.get("/health")[1] == 0, "the handlers have ended")
        assert b" 429 " in site.client().handshake()
        wait_until(lambda: site.get("/health")[0] == 0, "the clients are gone")
        assert b" 101 " in site.client().handshake()


def test_end_with_stalled_clients(setup: Setup, tmp_path: Path) -> None:
    """A server with clients that read nothing, on a socket and on a stream, ends on SIGTERM."""
    with serving(tmp_path, setup, settings={"max_outbox_messages": 1_000_000}) as site:
        assert b" 101 " in site.client().handshake(b"/hoarder")
        stream = site.client()
        stream.send(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b" 200 " in stream.read_head()
        site.get("/publish?count=20")
        began = time.monotonic()
        assert end(site.process, seconds=20)
        assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"GET / HT",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n",
        HANDSHAKE[:-6] % b"/",
        b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET ",
    ],
    ids=["nothing", "line", "header", "handshake", "the next one"],
)
def test_half_requests(setup: Setup, begun: bytes, tmp_path: Path) -> None:
    """A request that does not come to the end of its head in time ends its connection; others go on."""
    with serving(tmp_path, setup, timeout_keep_alive=60, patch={"backplane.server.http._HEAD_SECONDS": 1.0}) as site:
        member = site.client()
        assert b" 101 " in member.handshake()
        client = site.client()
        client.send(begun)
        if begun.endswith(b"GET "):
            assert b" 200 " in client.read_head()
            client.send(b"/")
        client.read_all()
        member.send(Frame(Opcode.TEXT, b"still there").serialize(mask=True))
        assert member.read_text() == "11"


def test_slow_body(setup: Setup, tmp_path: Path) -> None:
    """A body may take longer than a head."""
    with serving(tmp_path, setup, patch={"backplane.server.http._HEAD_SECONDS": 0.2}) as site:
        client = site.client()
        client.send(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
        for _ in range(10):
            client.send(b"x" * 10_000)
            time.sleep(0.05)
        assert b" 200 " in client.read_head()


@pytest.mark.parametrize("line", [b"A: " + b"x" * 1021, b"x" * 1024], ids=["lines", "one line"])
def test_endless_head(setup: Setup, line: bytes, tmp_path: Path) -> None:
    """A head of more than 64 KiB is refused."""
    with serving(tmp_path, setup) as site, site.cost():
        client = site.client()
        client.send(b"GET / HTTP/1.1\r\n")
        client.flood(line + (b"\r\n" if b":" in line else b""), 100_000_000)
        client.socket.settimeout(5)
        wait_until(lambda: site.sockets() == 0, "the client is gone")


def test_handshake_that_websockets_refuses(setup: Setup, tmp_path: Path) -> None:
    """A handshake with a header that is longer than the WebSocket's parser takes is answered with 431."""
    with serving(tmp_path, setup) as site:
        client = site.client()
        assert b" 431 " in client.handshake(headers=b"Cookie: " + b"x" * 9_000 + b"\r\n")
        client.read_all()


def test_denial_is_no_error(setup: Setup, tmp_path: Path) -> None:
    """A handshake that the application refuses is a line of the access log, and no error."""
    with serving(tmp_path, setup) as site:
        before = site.log.read_text()
        client = site.client()
        assert b" 418 " in client.handshake(b"/denied")
        client.read_all()
        site.get("/health")
        logged = site.log.read_text().removeprefix(before)
        assert '"WebSocket /denied" 418' in logged
        assert "ERROR" not in logged


@pytest.mark.parametrize("end", [b"", Frame(Opcode.CLOSE, b"").serialize(mask=True)], ids=["alone", "and a close"])
def test_text_that_is_none(setup: Setup, end: bytes, tmp_path: Path) -> None:
    """A text that is no UTF-8 ends the client with 1007, and logs no traceback."""
    with serving(tmp_path, setup) as site:
        client = site.client()
        client.handshake()
        client.send(Frame(Opcode.TEXT, b"\xc3").serialize(mask=True) + end)
        code = client.read_close()
        assert end or code == 1007
