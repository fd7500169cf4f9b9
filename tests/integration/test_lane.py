"""The direct lane on real Uvicorn servers: what is on the wire, in which order, and what its user is told."""

from __future__ import annotations

import asyncio
import logging
import shutil
import socket
import ssl
import struct
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn
import uvicorn.protocols.websockets.websockets_sansio_impl as sansio
from websockets.asyncio.client import ClientConnection, connect
from websockets.client import ClientProtocol
from websockets.exceptions import ConnectionClosedError
from websockets.frames import Close, Frame, Opcode
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

import backplane.server.uvicorn as server_module
from backplane.errors import LifecycleError
from backplane.fanout.frames import compress_frame, encode_frame
from backplane.lane import EXTENSION
from backplane.server.uvicorn import DirectLaneProtocol, SharedCompressionProtocol
from backplane.testing import LaneConformance
from tests.brokers.certificate import self_signed_certificate

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from pathlib import Path

    from backplane.lane import Lane

pytestmark = pytest.mark.anyio

HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
MESSAGES = 20_000
NODE = """
const socket = new WebSocket(process.argv[1]);
socket.binaryType = "arraybuffer";
socket.onmessage = (event) =>
    console.log(typeof event.data === "string" ? event.data : "bytes " + new Uint8Array(event.data).join());
socket.onclose = (event) => console.log("closed " + event.code);
"""


class Accepting:
    """The application's side of one WebSocket."""

    def __init__(
        self, scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
    ) -> None:
        self.extensions: dict[str, Any] = scope["extensions"]
        self.receive: Callable[[], Awaitable[Any]] = receive
        self._send = send

    @property
    def lane(self) -> Lane:
        """The lane."""
        lane: Lane = self.extensions[EXTENSION]
        return lane

    async def accept(self) -> None:
        """Answer the handshake."""
        await self._send({"type": "websocket.accept"})

    async def accept_with_user(self) -> User:
        """Answer the handshake and attach a user."""
        await self.accept()
        return User(self.lane)

    async def send(self, text: str) -> None:
        """Send through ASGI."""
        await self._send({"type": "websocket.send", "text": text})

    async def close(self) -> None:
        """Close through ASGI."""
        await self._send({"type": "websocket.close", "code": 1000})


class User:
    """A user of a lane that writes what it may and keeps the rest."""

    def __init__(self, lane: Lane) -> None:
        self.told: list[bool] = []
        self.closed = asyncio.Event()
        self.spill: deque[bytes] = deque()
        self._lane = lane
        self._writable = False
        self._write = lane.write
        lane.attach(self)
        self._write = lane.write  # past the lane's own guard, which would hide that it tells too late

    def offer(self, text: str) -> None:
        """Write, or keep."""
        self.spill.append(encode_frame(text))
        self._drain()

    def lane_writable(self, writable: bool, /) -> None:
        """Go on, or stop."""
        self.told.append(writable)
        self._writable = writable
        self._drain()

    def lane_closed(self) -> None:
        """Write once more, which is just in time, and once too late."""
        assert not self.closed.is_set()
        self._writable = False
        self._write(encode_frame("last"))
        self._lane.write(encode_frame("never"))
        self.closed.set()

    def _drain(self) -> None:
        while self._writable and self.spill:
            self._lane.write(self.spill.popleft())


class Client:
    """A client that reads and writes raw bytes, after the handshake."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._protocol = ClientProtocol(parse_uri("ws://localhost"), state=State.OPEN, max_size=None)

    def send(self, opcode: Opcode, data: bytes) -> None:
        """Send one frame."""
        self._writer.write(Frame(opcode, data).serialize(mask=True))

    def send_bytes(self, data: bytes) -> None:
        """Send what may be no frame."""
        self._writer.write(data)

    def end(self) -> None:
        """Send a FIN."""
        self._writer.write_eof()

    def reset(self) -> None:
        """Send a RST."""
        self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def frames(self) -> AsyncGenerator[Frame]:
        """Yield frames to the end of the connection, and see that none follows a close frame."""
        closing = False
        while data := await self._reader.read(65536):
            assert not closing, data
            self._protocol.receive_data(data)
            assert self._protocol.parser_exc is None
            assert b"never" not in data
            for event in self._protocol.events_received():
                assert isinstance(event, Frame)
                yield event
                closing = event.opcode is Opcode.CLOSE
            if closing and not self._writer.transport.is_closing():
                self._writer.close() if self._writer.get_extra_info("ssl_object") else self.end()

    async def texts(self) -> AsyncGenerator[str]:
        """Yield texts to the end of the connection."""
        async for frame in self.frames():
            if frame.opcode is Opcode.TEXT:
                yield bytes(frame.data).decode()

    def close(self) -> None:
        """Leave."""
        self._writer.close()


class Server:
    """A running server."""

    def __init__(self, server: uvicorn.Server, port: int, tls: ssl.SSLContext | None) -> None:
        self.port = port
        self._server = server
        self._tls = tls

    @property
    def url(self) -> str:
        """Where its WebSockets are."""
        return f"ws://127.0.0.1:{self.port}"

    def stop(self) -> None:
        """Shut down, as on SIGTERM."""
        self._server.should_exit = True

    @asynccontextmanager
    async def client(self) -> AsyncGenerator[Client]:
        """Connect with a small receive buffer; entered when the handshake was answered."""
        plain = socket.socket()
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        plain.setblocking(False)
        await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", self.port))
        name = "localhost" if self._tls else None
        reader, writer = await asyncio.open_connection(sock=plain, ssl=self._tls, server_hostname=name, limit=65536)
        writer.write(HANDSHAKE)
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 101 ")
        client = Client(reader, writer)
        try:
            yield client
        finally:
            client.close()


@asynccontextmanager
async def serving(
    application: Callable[[Accepting], Awaitable[None]],
    ws: type[DirectLaneProtocol] = DirectLaneProtocol,
    certificate: Path | None = None,
    **options: Any,
) -> AsyncGenerator[Server]:
    """Run `application` under Uvicorn on the test's loop; an error of the application fails the test."""
    errors: list[BaseException] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "websocket.connect"
        try:
            await application(Accepting(scope, receive, send))
        except BaseException as error:
            errors.append(error)
            raise

    if certificate is not None:
        options |= {"ssl_certfile": certificate, "ssl_keyfile": certificate.with_name("key.pem")}
    config = uvicorn.Config(app, ws=ws, lifespan="off", log_config=None, **options)
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    serve = asyncio.create_task(server.serve(sockets=[listener]))
    tls = ssl.create_default_context(cafile=str(certificate)) if certificate is not None else None
    try:
        yield Server(server, listener.getsockname()[1], tls)
    finally:
        server.should_exit = True
        await serve
    assert errors == []


class UvicornSite:
    """A `LaneSite` on Uvicorn, whose client is that of websockets: it reads what a test asks for, and no more."""

    def __init__(self) -> None:
        self._arrived = asyncio.Event()
        self._may_accept = asyncio.Event()
        self._ended = asyncio.Event()
        self._events: asyncio.Queue[str] = asyncio.Queue()
        self._socket: Accepting | None = None
        self._client: ClientConnection | None = None
        self._connecting: asyncio.Task[ClientConnection] | None = None

    @property
    def lane(self) -> Lane:
        """The lane."""
        assert self._socket is not None
        return self._socket.lane

    async def application(self, socket: Accepting) -> None:
        """Accept when the test says so, and receive until the client has gone; return when the test is over."""
        self._socket = socket
        self._arrived.set()
        await self._may_accept.wait()
        await socket.accept()
        event = ""
        while event != "websocket.disconnect":
            event = (await socket.receive())["type"]
            self._events.put_nowait(event)
        await self._ended.wait()

    @asynccontextmanager
    async def connected(self, url: str) -> AsyncGenerator[None]:
        """Begin the handshake, and leave when the block ends."""

        async def client() -> ClientConnection:
            return await connect(url, max_queue=1, max_size=None, ping_interval=None, compression=None)

        self._connecting = asyncio.create_task(client())
        await self._arrived.wait()
        try:
            yield
        finally:
            self._ended.set()
            self._may_accept.set()
            (await self._connecting).transport.abort()

    async def accept(self) -> None:
        """Accept the handshake."""
        assert self._connecting is not None
        self._may_accept.set()
        self._client = await self._connecting

    def stop_reading(self) -> None:
        """Read nothing: the client stops after a message that no one asks for."""

    def resume_reading(self) -> None:
        """Read in `received`."""

    async def send(self, text: str) -> None:
        """Send, and wait for what the application receives."""
        assert self._client is not None
        await self._client.send(text)
        await self._events.get()

    async def close(self) -> None:
        """Close with a close frame."""
        assert self._client is not None
        await self._client.close()

    async def received(self, count: int) -> list[str | bytes]:
        """Receive."""
        assert self._client is not None
        return [await self._client.recv() for _ in range(count)]


class TestUvicornLane(LaneConformance):
    """The contract of a lane, on the one of Uvicorn."""

    @pytest.fixture
    async def site(self) -> AsyncGenerator[UvicornSite]:
        """A client in its handshake with a server in this event loop."""
        site = UvicornSite()
        async with serving(site.application) as server, site.connected(server.url):
            yield site


@pytest.fixture(params=["plain", "TLS"])
def certificate(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    """Every test that takes it runs without TLS and with it."""
    return self_signed_certificate(tmp_path) if request.param == "TLS" else None


@pytest.mark.parametrize("compression", ["deflate", None])
@pytest.mark.parametrize("protocol", [DirectLaneProtocol, SharedCompressionProtocol])
async def test_lane_and_asgi_in_order(protocol: type[DirectLaneProtocol], compression: str | None) -> None:
    """What goes by the lane and what goes by ASGI arrives in the order of the calls, deflate negotiated or not."""

    async def application(socket: Accepting) -> None:
        user = await socket.accept_with_user()
        for number in range(0, 100, 2):
            user.offer(str(number))
            await socket.send(str(number + 1))
        await socket.close()

    async with serving(application, protocol) as server, connect(server.url, compression=compression) as client:
        assert [message async for message in client] == [str(number) for number in range(100)] + ["last"]


@pytest.mark.parametrize(
    ("protocol", "compression", "bits"),
    [
        (SharedCompressionProtocol, "deflate", 12),
        (SharedCompressionProtocol, None, None),
        (DirectLaneProtocol, "deflate", None),
    ],
)
async def test_compressed_once(protocol: type[DirectLaneProtocol], compression: str | None, bits: int | None) -> None:
    """Frames can be shared where each message is compressed alone, and only there, between ASGI's own."""
    seen: list[int | None] = []

    async def application(socket: Accepting) -> None:
        user = await socket.accept_with_user()
        seen.append(socket.lane.deflate_window_bits)
        for number in range(3):
            frame = compress_frame("shared " * 1000, seen[0]) if seen[0] else encode_frame("shared " * 1000)
            user.spill.append(frame)
            user.offer(f"plain {number}")
            await socket.send("asgi " * 1000)
        await socket.close()

    async with serving(application, protocol) as server, connect(server.url, compression=compression) as client:
        heard = [message async for message in client]

    assert seen == [bits]
    expected = [["shared " * 1000, f"plain {number}", "asgi " * 1000] for number in range(3)]
    assert heard == [*(message for three in expected for message in three), "last"]


@pytest.mark.skipif(shutil.which("node") is None, reason="no node, whose WebSocket is one of a browser's kind")
@pytest.mark.parametrize("protocol", [DirectLaneProtocol, SharedCompressionProtocol])
async def test_node_reads_the_lane(protocol: type[DirectLaneProtocol]) -> None:
    """The WebSocket of Node.js reads text, bytes, long frames and, where it negotiated them, compressed ones."""

    async def application(socket: Accepting) -> None:
        user = await socket.accept_with_user()
        bits = socket.lane.deflate_window_bits
        user.spill.append(compress_frame("again " * 50, bits) if bits else encode_frame("again " * 50))
        user.spill.append(encode_frame(b"\x00\xff"))
        user.offer("x" * 70_000)
        await socket.send("behind")
        await socket.close()

    async with serving(application, protocol) as server:
        command = ("node", "--no-warnings", "--experimental-websocket", "-e", NODE, server.url)
        pipe = asyncio.subprocess.PIPE
        node = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
        printed, said = await node.communicate()
    if b"bad option" in said:
        pytest.skip("this node has no WebSocket")
    assert printed.decode().splitlines() == [
        "again " * 50, "bytes 0,255", "x" * 70_000, "behind", "last", "closed 1000",
    ]  # fmt: skip


async def test_nothing_before_the_handshake() -> None:
    """Before the handshake is answered the lane cannot be taken, and what is written to it is dropped."""

    async def application(socket: Accepting) -> None:
        with pytest.raises(LifecycleError, match="after its handshake"):
            User(socket.lane)
        socket.lane.write(encode_frame("never"))
        socket.lane.ping()
        user = await socket.accept_with_user()
        user.offer("first")
        await socket.close()

    async with serving(application) as server, server.client() as client:  # which sees the answer come first
        assert [text async for text in client.texts()] == ["first", "last"]


async def test_one_user() -> None:
    """A lane with a user cannot be taken again; one that has ended tells so at once, and nothing else."""
    ended: list[tuple[list[bool], bool]] = []

    async def application(socket: Accepting) -> None:
        await socket.accept_with_user()
        with pytest.raises(LifecycleError, match="has a writer"):
            socket.lane.attach(User.__new__(User))
        await socket.close()
        late = User(socket.lane)
        ended.append((late.told, late.closed.is_set()))
        assert not socket.lane.writable

    async with serving(application) as server, server.client() as client:
        assert [text async for text in client.texts()] == ["last"]
    assert ended == [([], True)]


END: dict[str, tuple[int, Callable[[Client], None]]] = {
    "application": (1000, lambda _: None),
    "peer": (1001, lambda client: client.send(Opcode.CLOSE, Close(1001, "").serialize())),
    "no frame": (1002, lambda client: client.send_bytes(b"\xff\xff\xff\xff")),
    "no text": (1007, lambda client: client.send(Opcode.TEXT, b"\xff")),
    "too big": (1009, lambda client: client.send(Opcode.TEXT, bytes(2000))),
    "no pong": (1011, lambda _: None),
    "shutdown": (1012, lambda _: None),
}


@pytest.mark.parametrize("end", END)
async def test_nothing_behind_a_close_frame(end: str, certificate: Path | None) -> None:
    """Whoever ends the connection, the user learns before the close frame is written, once, and nothing follows it."""
    code, act = END[end]
    opened = asyncio.Event()

    async def application(socket: Accepting) -> None:
        user = await socket.accept_with_user()
        opened.set()
        if end == "application":
            await socket.close()
        await user.closed.wait()

    options: dict[str, Any] = {"ws_max_size": 1000}
    if end == "no pong":
        options |= {"ws_ping_interval": 0.01, "ws_ping_timeout": 0.01}
    async with serving(application, certificate=certificate, **options) as server, server.client() as client:
        await opened.wait()
        act(client)
        if end == "shutdown":
            server.stop()
        frames = [frame async for frame in client.frames() if frame.opcode is not Opcode.PING]

    assert [(frame.opcode, bytes(frame.data)[:4]) for frame in frames] == [
        (Opcode.TEXT, b"last"),
        (Opcode.CLOSE, struct.pack("!H", code) + bytes(frames[1].data)[2:4]),
    ]


@pytest.mark.parametrize("end", ["FIN", "RST", "return", "abort"])
async def test_end_without_a_close_frame(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that ends without a close frame tells its user too, once, and takes nothing any more."""
    monkeypatch.setattr(logging.getLogger("uvicorn.error"), "disabled", True)
    users: asyncio.Queue[User] = asyncio.Queue()

    async def application(socket: Accepting) -> None:
        user = await socket.accept_with_user()
        users.put_nowait(user)
        if end == "return":
            return
        if end == "abort":
            socket.lane.abort()
        await user.closed.wait()
        assert not socket.lane.writable

    async with serving(application) as server, server.client() as client:
        user = await users.get()
        if end == "FIN":
            client.end()
        elif end == "RST":
            client.reset()
        await user.closed.wait()
    assert user.told[0]


async def test_stalled_reader(certificate: Path | None) -> None:
    """A client that stops reading gets everything later, in order, an awaited ASGI send behind what had spilled."""
    spilled = asyncio.Event()
    users: list[User] = []
    lanes: list[Lane] = []

    async def application(socket: Accepting) -> None:
        user = await socket.accept_with_user()
        users.append(user)
        lanes.append(socket.lane)
        for number in range(MESSAGES):
            user.offer(f"{number} ".ljust(1024, "."))
        spilled.set()
        await socket.send("behind ")
        user.offer("after ")
        assert not user.spill
        await socket.close()

    async with serving(application, certificate=certificate) as server, server.client() as client:
        await spilled.wait()
        assert users[0].told == [True, False]
        assert len(users[0].spill) > MESSAGES / 4
        assert not lanes[0].writable
        assert 65_536 < lanes[0].buffered_bytes < 1_000_000  # asyncio's TLS takes 512 KiB before it says stop
        heard = [text.split(" ")[0] async for text in client.texts()]

    assert heard == [*map(str, range(MESSAGES)), "behind", "after", "last"]
    assert users[0].told.count(True) > 2
    assert users[0].told == [index % 2 == 0 for index in range(len(users[0].told))]


async def test_stalled_reader_that_vanishes() -> None:
    """An ASGI send that waits behind a stalled client ends with it."""
    spilled = asyncio.Event()
    ended = asyncio.Event()

    async def application(socket: Accepting) -> None:
        user = await socket.accept_with_user()
        while not user.spill:
            user.offer("x" * 65_536)
        spilled.set()
        try:
            await socket.send("never")
        finally:
            assert user.closed.is_set()
            ended.set()

    async def application_ending_quietly(socket: Accepting) -> None:
        try:
            await application(socket)
        except OSError:  # how Uvicorn says that the client is gone
            ended.set()

    async with serving(application_ending_quietly) as server, server.client() as client:
        await spilled.wait()
        client.reset()
        await ended.wait()


@pytest.mark.parametrize("end", ["FIN", "return"])
async def test_end_behind_a_stalled_reader(end: str) -> None:
    """The user learns of the end at once where the transport still holds bytes that nobody reads."""
    users: asyncio.Queue[User] = asyncio.Queue()

    async def application(socket: Accepting) -> None:
        user = await socket.accept_with_user()
        while not user.spill:
            user.offer("x" * 65_536)
        users.put_nowait(user)
        if end == "FIN":
            await user.closed.wait()

    async with serving(application) as server, server.client() as client:
        user = await users.get()
        if end == "FIN":
            client.end()
        await user.closed.wait()  # which the connection's loss would bring after this block only
        assert user.told == [True, False]
        client.reset()


async def test_ping_is_heard() -> None:
    """A ping goes out at once, and its pong, which ASGI does not see, sets when the client was last heard."""
    heard = asyncio.Event()

    async def application(socket: Accepting) -> None:
        await socket.accept_with_user()
        before = socket.lane.last_received_at
        assert socket.lane.reading
        while asyncio.get_running_loop().time() == before:  # uvloop's clock counts milliseconds
            await asyncio.sleep(0)
        socket.lane.ping()
        while socket.lane.last_received_at == before:
            await asyncio.sleep(0)
        heard.set()
        await socket.close()

    async with serving(application) as server, server.client() as client:
        frames = client.frames()
        ping = await anext(frames)
        assert (ping.opcode, bytes(ping.data)) == (Opcode.PING, b"")
        client.send(Opcode.PONG, b"")
        assert [frame.opcode async for frame in frames] == [Opcode.TEXT, Opcode.CLOSE]
    assert heard.is_set()


async def test_server_that_reads_no_more() -> None:
    """That the server stopped reading, for the application receives nothing, can be told from a silent client."""

    async def application(socket: Accepting) -> None:
        await socket.accept_with_user()
        while socket.lane.reading:
            await asyncio.sleep(0)
        await socket.receive()
        assert socket.lane.reading
        await socket.close()

    async with serving(application) as server, server.client() as client:
        client.send(Opcode.TEXT, b"unread")
        assert [text async for text in client.texts()] == ["last"]


@pytest.mark.parametrize("compression", ["deflate", None])
@pytest.mark.parametrize(
    ("of_application", "of_server", "limit"), [(1000, 2000, 1000), (2000, 1000, 1000), (9, None, 9)]
)
async def test_limit_of_messages(
    of_application: int,
    of_server: int | None,
    limit: int,
    compression: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The lower limit counts, the application's or the server's; that the server's is lower is logged once.

    The lane knows that it was the server who closed, and why.
    """
    codes: list[int | None] = []
    server_module._warn_of_lower_limit.cache_clear()  # pyright: ignore[reportPrivateUsage]

    async def application(socket: Accepting) -> None:
        socket.lane.limit_messages(of_application)
        await socket.accept()
        while (message := await socket.receive())["type"] == "websocket.receive":
            await socket.send(str(len(message["text"])))
        codes.append(socket.lane.close_code)

    async with serving(application, ws_max_size=of_server) as server:
        async with connect(server.url, compression=compression):
            pass  # which the client closes
        for _ in range(2):
            async with connect(server.url, compression=compression) as client:
                await client.send("x" * limit)
                assert await client.recv() == str(limit)
                if compression is None:  # a compressed fragment is refused if it is longer than what is left
                    await client.send(["x" * (limit - 1), "x"])
                    assert await client.recv() == str(limit)
                await client.send(["x" * (limit - 1), "xx"])
                with pytest.raises(ConnectionClosedError) as caught:
                    await client.recv()
                assert caught.value.rcvd is not None
                assert caught.value.rcvd.code == 1009
    assert codes == [None, 1009, 1009]
    words = [record.getMessage() for record in caplog.records if record.name == "backplane.server.uvicorn"]
    assert len(words) == (of_application > limit)
    assert all("1000 bytes" in word and "ws_max_size" in word for word in words)


async def test_write_is_the_transports_own() -> None:
    """What bounds a client costs a message nothing: the lane writes by the event loop's method, and nothing between."""

    async def application(socket: Accepting) -> None:
        user = await socket.accept_with_user()
        write: Any = socket.lane.write
        assert type(write.__self__).__module__.partition(".")[0] in {"asyncio", "uvloop"}
        user.offer("there")
        await socket.close()

    async with serving(application) as server, server.client() as client:
        assert [text async for text in client.texts()] == ["there", "last"]


async def test_last_ping_is_answered() -> None:
    """A client that reads again gets the pong of its last ping, in time, among what waited for it."""
    spilled = asyncio.Event()
    full = asyncio.Event()

    async def application(socket: Accepting) -> None:
        user = await socket.accept_with_user()
        while not user.spill:
            user.offer("x" * 65_536)
        spilled.set()
        before = socket.lane.last_received_at
        while socket.lane.last_received_at == before:
            await asyncio.sleep(0.001)
        full.set()
        await user.closed.wait()

    async with serving(application) as server, server.client() as client:
        await spilled.wait()
        for number in range(100):
            client.send(Opcode.PING, b"%d" % number)
        await full.wait()
        pongs: list[bytes] = []
        async for frame in client.frames():
            if frame.opcode is Opcode.PONG:
                pongs.append(bytes(frame.data))
                client.send(Opcode.CLOSE, Close(1000, "").serialize())
        assert pongs[-1] == b"99"
        assert len(pongs) < 10


class OtherProtocol(ServerProtocol):
    """What a later Uvicorn might use in place of the class that is known."""


@pytest.mark.parametrize(
    ("patch", "words"),
    [
        pytest.param((sansio, "ServerProtocol", OtherProtocol), "not as expected: conn", id="another class"),
        pytest.param((server_module, "_STATE", None), "the state of conn", id="no state"),
        pytest.param((server_module, "_MAX_SIZE", ""), "the largest size of a message", id="no limit"),
    ],
)
async def test_another_uvicorn(
    patch: tuple[Any, str, Any], words: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where a Uvicorn lacks what the lane leans on, its own protocol serves, and one warning says so."""
    monkeypatch.setattr(*patch)
    monkeypatch.setattr(DirectLaneProtocol, "_offers_lane", None)

    async def application(socket: Accepting) -> None:
        assert EXTENSION not in socket.extensions
        await socket.accept()
        await socket.send("plain")
        await socket.close()

    async with serving(application, SharedCompressionProtocol) as server:
        for _ in range(2):
            async with connect(server.url) as client:
                assert [message async for message in client] == ["plain"]

    warnings = [record for record in caplog.records if record.name == "backplane.server.uvicorn"]
    assert len(warnings) == 1
    assert words in warnings[0].getMessage()
