"""What an anonymous client can cost a server with the bounds of `backplane.server`: attacks on real processes."""

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
from typing import TYPE_CHECKING, Literal, NamedTuple

import psutil
import pytest
from websockets.frames import Frame, Opcode

from tests.brokers.certificate import self_signed_certificate
from tests.brokers.process import end, free_port, wait_until
from tests.server_process import server_process

if TYPE_CHECKING:
    from collections.abc import Generator

    from tests.server_process import ServerProcess

MIB = 1024 * 1024
MAX_COST = 8 * MIB  # of any attack
HANDSHAKE = (
    b"GET %s HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n%s\r\n"
)
DEFLATE = b"Sec-WebSocket-Extensions: permessage-deflate\r\n"
APP = '''
import asyncio, importlib, json, socket, sys
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from backplane import Backlog, Backplane, Limits, Settings

way, options = sys.argv[1], json.loads(sys.argv[2])
backplane = Backplane(
    "memory://",
    settings=Settings(drain_seconds=0.1, **options.pop("settings", {})),
    limits=Limits(**options.pop("limits", {})),
    backlog=Backlog(max_bytes=64 * 1024),
)
handlers = 0
released = asyncio.Event()

async def room(websocket):
    path = websocket.url.path
    limits = Limits(max_message_bytes=None) if path == "/unlimited" else None
    backlog = Backlog(max_bytes=100_000_000, max_messages=1_000_000) if path == "/large-outbox" else None

    async def begin(connection):
        global handlers
        handlers += 1
        if path == "/unfinished":
            await released.wait()
        if path == "/unread":
            while not connection.is_over:
                await asyncio.sleep(0.1)

    def end(connection):
        global handlers
        handlers -= 1

    async def reply(connection, message):
        if message == "close":
            await connection.close(1000)
        else:
            await connection.send(str(len(message)))

    if way == "handed over":
        return await backplane.hand_over(
            websocket, "room", limits=limits, backlog=backlog, on_open=begin, on_message=reply, on_close=end
        )
    async with backplane.connect(websocket, "room", limits=limits, backlog=backlog) as connection:
        try:
            await begin(connection)
            async for message in connection:
                if message == "close":
                    break
                await reply(connection, message)
        finally:
            end(connection)

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

class WithoutLane:
    """Removes the lane, so that everything is sent by ASGI."""
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
listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)  # inherited by the sockets of its clients
listener.bind(("127.0.0.1", options.pop("port")))
config = uvicorn.Config(WithoutLane(app) if way == "plain" else app, **options)
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
        """Open a WebSocket; return the head of the response."""
        self.socket.sendall(HANDSHAKE % (path, headers))
        return self.read_head()

    def read_head(self) -> bytes:
        """Return what is received up to an empty line."""
        head = b""
        while b"\r\n\r\n" not in head and (data := self.socket.recv(4096)):
            head += data
        return head

    def send(self, data: bytes) -> bool:
        """Send; return whether the connection is still open."""
        try:
            self.socket.sendall(data)
        except OSError:
            return False
        return True

    def flood(self, data: bytes, total: int) -> None:
        """Send `data` repeatedly, up to `total` bytes or until the server has closed."""
        for _ in range(0, total, len(data)):
            if not self.send(data):
                return

    def read_text(self) -> str:
        """Return the next text; other frames are skipped."""
        while True:
            opcode, data = self.read_frame()
            if opcode == Opcode.TEXT:
                return data.decode()

    def read_close(self) -> int:
        """Return the code of the close frame; other frames are skipped."""
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
        """Return all that is received until the connection ends."""
        parts: list[bytes] = []
        with suppress(ConnectionError):
            while data := self.socket.recv(65536):
                parts.append(data)
        return b"".join(parts)

    def reset(self) -> None:
        """Reset the connection."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


class Setup(NamedTuple):
    """An event loop, how a client is served, and an HTTP protocol."""

    loop: str
    way: Literal["lane", "handed over", "plain"]
    http: str


LOOPS = [
    Setup("asyncio", "lane", "BoundedH11Protocol"),
    Setup("uvloop", "handed over", "BoundedHTTPProtocol"),
    Setup("asyncio", "plain", "BoundedHTTPProtocol"),
    Setup("uvloop", "plain", "BoundedH11Protocol"),
]


class AttackedServer:
    """The server under attack."""

    def __init__(self, port: int, server: ServerProcess, clients: ExitStack, tls: ssl.SSLContext | None) -> None:
        self.port = port
        self.process = server.process
        self.log = server.log
        self._tls = tls
        self._clients = clients

    def client(self) -> Client:
        """Connect; the client disconnects after the server has ended."""
        client = Client(self.port, self._tls)
        self._clients.callback(client.reset)
        return client

    def disconnect_all(self) -> None:
        """Disconnect every client."""
        self._clients.close()

    def get(self, path: str) -> list[int]:
        """Return the response to a GET request."""
        connection = (
            HTTPConnection("127.0.0.1", self.port, timeout=30)
            if self._tls is None
            else HTTPSConnection("localhost", self.port, timeout=30, context=self._tls)
        )
        try:
            connection.request("GET", path)
            found: list[int] = json.loads(connection.getresponse().read())
            return found
        finally:
            connection.close()

    def is_idle(self) -> bool:
        """Whether it answers, and has no connection and no handler."""
        with suppress(OSError):
            return self.get("/health") == [0, 0]
        return False

    def sockets(self) -> int:
        """Return how many sockets the process has with clients."""
        connections = psutil.Process(self.process.pid).net_connections()
        return sum(one.laddr.port == self.port and one.status != "LISTEN" for one in connections)

    def assert_count_matches_sockets(self) -> None:
        """Fail if it counts more clients than it has sockets, or fewer; some may disconnect meanwhile."""
        before = self.sockets()
        count = self.get("/health")[0]
        assert self.sockets() - 1 <= count <= before + 1  # this request has a socket too

    @contextmanager
    def cost(self) -> Generator[None]:
        """Fail if the process uses, at any time within the block, much more memory than before it."""
        status = Path(f"/proc/{self.process.pid}/status")
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5", encoding="ascii")  # resets the peak
        before = _kib(status, "VmHWM")
        yield
        more = (_kib(status, "VmHWM") - before) * 1024
        assert more <= MAX_COST, f"{more / MIB:.1f} MiB"


def _kib(status: Path, name: str) -> int:
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name))


@contextmanager
def serving(
    folder: Path, setup: Setup, certificate: Path | None = None, **options: object
) -> Generator[AttackedServer]:
    """Serve the application in a process, warmed up; it must end on SIGTERM, without a traceback."""
    (folder / "attacked_app.py").write_text(APP, encoding="utf-8")
    port = free_port()
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
    command = [sys.executable, "attacked_app.py", setup.way, json.dumps(all_options)]
    # The clients disconnect after the server has ended.
    with ExitStack() as clients, server_process(command, folder, cwd=folder, end_seconds=20) as process:
        server = AttackedServer(port, process, clients, tls)
        process.wait_until(server.is_idle, "the server answers")
        warm(server)
        yield server


def warm(server: AttackedServer) -> None:
    """Connect and send some times, so that what is allocated once is allocated."""
    for _ in range(20):
        client = server.client()
        client.handshake()
        client.send(Frame(Opcode.TEXT, b"x" * 1000).serialize(mask=True))
    server.disconnect_all()
    wait_until(lambda: server.get("/health")[0] == 0, "no client is left")


@pytest.fixture(
    params=[*LOOPS[:2], *(pytest.param(setup, marks=pytest.mark.full) for setup in LOOPS[2:])],
    ids=lambda setup: f"{setup.loop}-{setup.way}",
)
def setup(request: pytest.FixtureRequest) -> Setup:
    """A test with this fixture runs on both event loops, with the lane and handed over; with --chaos=full without."""
    chosen: Setup = request.param
    return chosen


def bomb(size: int) -> bytes:
    """Return the first fragment of a compressed message that inflates to `size` bytes."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -12)
    data = deflate.compress(bytes(size)) + deflate.flush(zlib.Z_SYNC_FLUSH)
    frame = Frame(Opcode.BINARY, data[:-4], fin=False).serialize(mask=True)
    return bytes([frame[0] | 0x40]) + frame[1:]


def many(frame: Frame) -> bytes:
    """Return the same frame repeated, about 64 KiB."""
    data = frame.serialize(mask=True)
    return data * (65536 // len(data))


def test_fragments(setup: Setup, tmp_path: Path) -> None:
    """60 MB of one-byte fragments of one message cost little memory: the limit of a message ends them."""
    with serving(tmp_path, setup, ws_max_size=64 * 1024) as server:
        client = server.client()
        client.handshake()
        client.send(Frame(Opcode.TEXT, b"x", fin=False).serialize(mask=True))
        with server.cost():
            client.flood(many(Frame(Opcode.CONT, b"x", fin=False)), 60_000_000)
            wait_until(lambda: server.get("/health")[0] == 0, "the client is disconnected", seconds=60)


@pytest.mark.parametrize("payload", [b"", b"x"], ids=["empty", "one byte"])
def test_fragments_below_the_limit(setup: Setup, payload: bytes, tmp_path: Path) -> None:
    """Fragments below the limit cost their bytes, and no object each."""
    with serving(tmp_path, setup, ws_max_size=16 * MIB) as server:
        client = server.client()
        client.handshake(b"/unlimited")
        client.send(Frame(Opcode.TEXT, b"x", fin=False).serialize(mask=True))
        with server.cost():
            client.flood(many(Frame(Opcode.CONT, payload, fin=False)), 2_000_000)
            client.send(Frame(Opcode.CONT, b"").serialize(mask=True))
            length = int(client.read_text())
    assert length == 1 + len(payload) * (2_000_000 // 65536 + 1) * (65536 // (6 + len(payload)))


def test_pings(setup: Setup, tmp_path: Path) -> None:
    """A client that sends 50 MB of pings and reads no pong costs one full transport at most, and stays connected."""
    with serving(tmp_path, setup) as server:
        client = server.client()
        client.handshake()
        with server.cost():
            client.flood(many(Frame(Opcode.PING, b"x" * 125)), 50_000_000)
            client.send(Frame(Opcode.TEXT, b"still there").serialize(mask=True))
            assert client.read_text() == "11"


def test_pings_after_a_close_frame(setup: Setup, tmp_path: Path) -> None:
    """Pings cost nothing after the server's close frame, which the client does not answer."""
    with serving(tmp_path, setup) as server:
        client = server.client()
        client.handshake()
        client.send(Frame(Opcode.TEXT, b"close").serialize(mask=True))
        with server.cost():
            client.flood(many(Frame(Opcode.PING, b"x" * 125)), 50_000_000)
        wait_until(lambda: server.sockets() == 0, "the client is disconnected", seconds=60)


def test_bombs(setup: Setup, tmp_path: Path) -> None:
    """20 clients send a fragment of 15 KiB that inflates to 15 MiB; it is refused before it is inflated."""
    with serving(tmp_path, setup, ws_max_size=64 * 1024 if setup.way == "plain" else 16 * MIB) as server:
        clients = [server.client() for _ in range(20)]
        assert all(b"permessage-deflate" in client.handshake(headers=DEFLATE) for client in clients)
        fragment = bomb(15 * MIB)
        with server.cost():
            for client in clients:
                client.send(fragment)
            assert [client.read_close() for client in clients] == [1009] * 20


def test_messages_that_no_handler_receives(setup: Setup, tmp_path: Path) -> None:
    """20 clients send as many one-byte messages as the server reads; their handlers receive none."""
    with serving(tmp_path, setup) as server:
        clients = [server.client() for _ in range(20)]
        for client in clients:
            client.handshake(b"/unread")
        with server.cost():
            for client in clients:
                client.socket.setblocking(False)
                client.send(many(Frame(Opcode.TEXT, b"x")) * 8)
            server.get("/health")
        server.disconnect_all()


def test_requests_that_are_not_answered(setup: Setup, tmp_path: Path) -> None:
    """10 clients send as many requests as the server reads, after one for an event stream."""
    with serving(tmp_path, setup) as server:
        clients = [server.client() for _ in range(10)]
        for client in clients:
            client.send(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b" 200 " in client.read_head()
        with server.cost():
            for client in clients:
                client.socket.setblocking(False)
                client.send(b"GET / HTTP/1.1\r\nHost:\r\n\r\n" * 20_000)
            server.get("/health")
        server.disconnect_all()


@pytest.mark.timeout(180)
def test_cut_clients_are_disconnected(setup: Setup, tmp_path: Path) -> None:
    """2,000 clients that read nothing are cut, are disconnected within 10 s, and count until then."""
    with serving(tmp_path, setup, log_level="error") as server:
        for _ in range(2_000):
            assert b" 101 " in server.client().handshake()
        assert server.get("/health")[0] == 2_000
        server.get("/publish?count=20")
        wait_until(lambda: server.get("/health")[1] == 0, "the handlers have ended", seconds=60)
        server.assert_count_matches_sockets()
        wait_until(lambda: server.sockets() == 0, "the clients are disconnected", seconds=60)
        assert server.get("/health")[0] == 0


def test_cut_clients_are_disconnected_with_tls(setup: Setup, tmp_path: Path) -> None:
    """The same with TLS, whose closing alert is not read either, for sockets and streams."""
    with serving(tmp_path, setup, self_signed_certificate(tmp_path)) as server:
        for _ in range(5):
            assert b" 101 " in server.client().handshake()
            stream = server.client()
            stream.send(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b" 200 " in stream.read_head()
        server.get("/publish?count=100")
        wait_until(lambda: server.get("/health")[1] == 0 and "ending it" in server.log.read_text(), "all are cut")
        wait_until(lambda: server.sockets() == 0, "the clients are disconnected", seconds=60)
        assert server.get("/health")[0] == 0


def test_cut_client_of_an_unfinished_handler(tmp_path: Path) -> None:
    """A client with the lane is disconnected though its handler does not end, and counts until both have ended."""
    with serving(tmp_path, LOOPS[0]) as server:
        assert b" 101 " in server.client().handshake(b"/unfinished")
        server.get("/publish?count=20")
        wait_until(lambda: server.sockets() == 0, "the client is disconnected")
        assert server.get("/health") == [1, 1]
        server.get("/release")
        wait_until(lambda: server.get("/health") == [0, 0], "none is counted")


def test_cut_streams_are_disconnected(setup: Setup, tmp_path: Path) -> None:
    """Unread event streams are cut, are disconnected within 10 s, count until then, and fill no log."""
    with serving(tmp_path, setup) as server:
        for _ in range(200):
            client = server.client()
            client.send(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b" 200 " in client.read_head()
        server.get("/publish?count=20")
        wait_until(lambda: "ending it" in server.log.read_text(), "a stream is ended")
        server.assert_count_matches_sockets()
        wait_until(lambda: server.sockets() == 0, "the clients are disconnected", seconds=60)
        assert server.get("/health")[0] == 0
        assert "ERROR" not in server.log.read_text()


def test_next_stream_on_the_same_connection(tmp_path: Path) -> None:
    """A client whose stream has ended may request next request on the same connection."""
    with serving(tmp_path, LOOPS[0], settings={"max_connections": 1}) as server:
        client = server.client()
        for _ in range(2):
            client.send(b"HEAD /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b" 200 " in client.read_head()


def test_limit_of_connections_of_a_client(setup: Setup, tmp_path: Path) -> None:
    """A client that is cut gets no new connection before its socket is closed."""
    with serving(tmp_path, setup, limits={"max_connections_per_client": 5}) as server:
        stalled = [server.client() for _ in range(5)]
        assert all(b" 101 " in client.handshake() for client in stalled)
        server.get("/publish?count=20")
        wait_until(lambda: server.get("/health")[1] == 0, "the handlers have ended")
        assert b" 429 " in server.client().handshake()
        wait_until(lambda: server.get("/health")[0] == 0, "the clients are disconnected")
        assert b" 101 " in server.client().handshake()


def test_end_with_stalled_clients(setup: Setup, tmp_path: Path) -> None:
    """A server with clients that read nothing, of a WebSocket and of a stream, ends on SIGTERM."""
    with serving(tmp_path, setup) as server:
        assert b" 101 " in server.client().handshake(b"/large-outbox")
        stream = server.client()
        stream.send(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b" 200 " in stream.read_head()
        server.get("/publish?count=20")
        assert end(server.process, seconds=20)


HALF_REQUESTS = {
    "nothing": b"",
    "line": b"GET / HT",
    "header": b"GET / HTTP/1.1\r\nHost: localhost\r\n",
    "handshake": HANDSHAKE[:-6] % b"/",
    "next request": b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET ",
}


def test_half_requests(setup: Setup, tmp_path: Path) -> None:
    """A request whose head is not complete in time ends its connection; other connections stay."""
    with serving(tmp_path, setup, timeout_keep_alive=60, patch={"backplane.server.http._HEAD_SECONDS": 1.0}) as server:
        other = server.client()
        assert b" 101 " in other.handshake()
        clients = {name: server.client() for name in HALF_REQUESTS}
        for name, client in clients.items():
            client.send(HALF_REQUESTS[name])
        assert b" 200 " in clients["next request"].read_head()
        clients["next request"].send(b"/")
        for client in clients.values():
            client.read_all()
        other.send(Frame(Opcode.TEXT, b"still there").serialize(mask=True))
        assert other.read_text() == "11"


def test_slow_body(setup: Setup, tmp_path: Path) -> None:
    """A body may take longer than a head."""
    with serving(tmp_path, setup, patch={"backplane.server.http._HEAD_SECONDS": 0.2}) as server:
        client = server.client()
        client.send(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
        for _ in range(10):
            client.send(b"x" * 10_000)
            time.sleep(0.05)
        assert b" 200 " in client.read_head()


@pytest.mark.parametrize("line", [b"A: " + b"x" * 1021, b"x" * 1024], ids=["lines", "one line"])
def test_endless_head(setup: Setup, line: bytes, tmp_path: Path) -> None:
    """A head of more than 64 KiB is refused."""
    with serving(tmp_path, setup) as server, server.cost():
        client = server.client()
        client.send(b"GET / HTTP/1.1\r\n")
        client.flood(line + (b"\r\n" if b":" in line else b""), 100_000_000)
        client.socket.settimeout(5)
        wait_until(lambda: server.sockets() == 0, "the client is disconnected")


def test_handshake_that_websockets_refuses(setup: Setup, tmp_path: Path) -> None:
    """A handshake with a header over the limit of the WebSocket's parser is answered with 431."""
    with serving(tmp_path, setup) as server:
        client = server.client()
        assert b" 431 " in client.handshake(headers=b"Cookie: " + b"x" * 9_000 + b"\r\n")
        client.read_all()


def test_denial_is_not_an_error(setup: Setup, tmp_path: Path) -> None:
    """A handshake that the application refuses is logged as a line of the access log, not as an error."""
    with serving(tmp_path, setup) as server:
        before = server.log.read_text()
        client = server.client()
        assert b" 418 " in client.handshake(b"/denied")
        client.read_all()
        server.get("/health")
        logged = server.log.read_text().removeprefix(before)
        assert '"WebSocket /denied" 418' in logged
        assert "ERROR" not in logged


@pytest.mark.parametrize("end", [b"", Frame(Opcode.CLOSE, b"").serialize(mask=True)], ids=["alone", "and a close"])
def test_text_that_is_not_utf8(setup: Setup, end: bytes, tmp_path: Path) -> None:
    """A text that is not UTF-8 is closed with 1007, without a traceback in the log."""
    with serving(tmp_path, setup) as server:
        client = server.client()
        client.handshake()
        client.send(Frame(Opcode.TEXT, b"\xc3").serialize(mask=True) + end)
        code = client.read_close()
        assert end or code == 1007
