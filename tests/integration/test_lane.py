"""The direct lane on real Uvicorn servers: what is sent, in which order, and of what its writer is notified."""

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
from backplane.testing import HandOverConformance
from tests.brokers.certificate import self_signed_certificate
from tests.server_in_loop import serving_in_loop

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from pathlib import Path

    from backplane.lane import Lane
    from tests.server_in_loop import ServerInLoop

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


class AppSocket:
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
        """Accept the handshake."""
        await self._send({"type": "websocket.accept"})

    async def accept_with_writer(self) -> Writer:
        """Accept the handshake and attach a writer."""
        await self.accept()
        return Writer(self.lane)

    async def send(self, text: str) -> None:
        """Send through ASGI."""
        await self._send({"type": "websocket.send", "text": text})

    async def close(self) -> None:
        """Close through ASGI."""
        await self._send({"type": "websocket.close", "code": 1000})


class Writer:
    """A writer of a lane that writes while it may and queues the rest."""

    def __init__(self, lane: Lane) -> None:
        self.notifications: list[bool] = []
        self.closed = asyncio.Event()
        self.queue: deque[bytes] = deque()
        self._lane = lane
        self._writable = False
        self._write = lane.write
        lane.attach(self)
        self._write = lane.write  # without the lane's own guard, which would hide that `lane_closed` comes too late

    def offer(self, text: str) -> None:
        """Write, or queue."""
        self.queue.append(encode_frame(text))
        self._drain()

    def lane_writable(self, writable: bool, /) -> None:
        """Continue, or stop."""
        self.notifications.append(writable)
        self._writable = writable
        self._drain()

    def lane_closed(self) -> None:
        """Write once, which is still allowed, and once too late."""
        assert not self.closed.is_set()
        self._writable = False
        self._write(encode_frame("last"))
        self._lane.write(encode_frame("never"))
        self.closed.set()

    def _drain(self) -> None:
        while self._writable and self.queue:
            self._lane.write(self.queue.popleft())


class Client:
    """A client that reads and writes raw bytes after the handshake."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._protocol = ClientProtocol(parse_uri("ws://localhost"), state=State.OPEN, max_size=None)

    def send(self, opcode: Opcode, data: bytes) -> None:
        """Send one frame."""
        self._writer.write(Frame(opcode, data).serialize(mask=True))

    def send_bytes(self, data: bytes) -> None:
        """Send bytes that may not be a frame."""
        self._writer.write(data)

    def end(self) -> None:
        """Send a FIN."""
        self._writer.write_eof()

    def reset(self) -> None:
        """Send a RST."""
        self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def frames(self) -> AsyncGenerator[Frame]:
        """Yield frames until the connection ends, and check that none follows a close frame."""
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
        """Yield texts until the connection ends."""
        async for frame in self.frames():
            if frame.opcode is Opcode.TEXT:
                yield bytes(frame.data).decode()

    def close(self) -> None:
        """Close the connection."""
        self._writer.close()


class LaneServer:
    """A running server, with raw clients for it."""

    def __init__(self, server: ServerInLoop, tls: ssl.SSLContext | None) -> None:
        self.url = server.ws_url
        self.stop = server.stop
        self._port = server.port
        self._tls = tls

    @asynccontextmanager
    async def client(self) -> AsyncGenerator[Client]:
        """Connect with a small receive buffer; entered when the handshake was accepted."""
        plain = socket.socket()
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        plain.setblocking(False)
        await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", self._port))
        name = "localhost" if self._tls else None
        reader, writer = await asyncio.open_connection(sock=plain, ssl=self._tls, server_hostname=name, limit=65536)
        writer.write(HANDSHAKE)
        response = await reader.readuntil(b"\r\n\r\n")
        assert response.startswith(b"HTTP/1.1 101 ")
        client = Client(reader, writer)
        try:
            yield client
        finally:
            client.close()


@asynccontextmanager
async def serving(
    application: Callable[[AppSocket], Awaitable[None]],
    ws: type[DirectLaneProtocol] = DirectLaneProtocol,
    certificate: Path | None = None,
    **options: Any,
) -> AsyncGenerator[LaneServer]:
    """Run `application` under Uvicorn on the test's loop; an error of the application fails the test."""
    errors: list[BaseException] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "websocket.connect"
        try:
            await application(AppSocket(scope, receive, send))
        except BaseException as error:
            errors.append(error)
            raise

    if certificate is not None:
        options |= {"ssl_certfile": certificate, "ssl_keyfile": certificate.with_name("key.pem")}
    tls = ssl.create_default_context(cafile=str(certificate)) if certificate is not None else None
    async with serving_in_loop(app, ws=ws, lifespan="off", **options) as server:
        yield LaneServer(server, tls)
    assert errors == []


class UvicornSite:
    """A `HandOverSite` on Uvicorn with a client of websockets, which reads no more than a test receives."""

    def __init__(self) -> None:
        self._arrived = asyncio.Event()
        self._may_accept = asyncio.Event()
        self._ended = asyncio.Event()
        self._application_ended = asyncio.Event()
        self._is_handed_over = False
        self._events: asyncio.Queue[str] = asyncio.Queue()
        self._socket: AppSocket | None = None
        self._client: ClientConnection | None = None
        self._connecting: asyncio.Task[ClientConnection] | None = None

    @property
    def lane(self) -> Lane:
        """The lane."""
        assert self._socket is not None
        return self._socket.lane

    async def application(self, socket: AppSocket) -> None:
        """Accept when the test allows it, receive until the client has disconnected, return when the test is over."""
        self._socket = socket
        self._arrived.set()
        await self._may_accept.wait()
        await socket.accept()
        event = ""
        while event != "websocket.disconnect":
            event = (await socket.receive())["type"]
            self._events.put_nowait(event)
        await self._ended.wait()
        asyncio.get_running_loop().call_later(0, self._application_ended.set)  # once its task has ended

    @asynccontextmanager
    async def connected(self, url: str) -> AsyncGenerator[None]:
        """Begin the handshake, and disconnect after the block."""

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
        """Do nothing: the client stops after one message that `received` does not take."""

    def resume_reading(self) -> None:
        """Do nothing: `received` reads."""

    async def send(self, text: str) -> None:
        """Send, and wait for what the application receives, until it receives the end."""
        assert self._client is not None
        await self._client.send(text)
        if not self._is_handed_over:
            self._is_handed_over = await self._events.get() == "websocket.disconnect"

    async def application_receives(self) -> str:
        """Return the type of the next event."""
        return await self._events.get()

    async def application_sends(self, text: str) -> None:
        """Send by ASGI."""
        assert self._socket is not None
        await self._socket.send(text)

    async def end_application(self) -> None:
        """Let it return."""
        self._ended.set()
        await self._application_ended.wait()

    async def closed(self) -> tuple[int, str]:
        """Return the close frame that the client has received."""
        assert self._client is not None
        await self._client.wait_closed()
        received = self._client.protocol.close_rcvd
        assert received is not None
        return received.code, received.reason

    async def close(self) -> None:
        """Close with a close frame."""
        assert self._client is not None
        await self._client.close()

    async def received(self, count: int) -> list[str | bytes]:
        """Receive."""
        assert self._client is not None
        return [await self._client.recv() for _ in range(count)]


class TestUvicornLane(HandOverConformance):
    """The contract of a lane that can be handed over, for the lane of Uvicorn."""

    @pytest.fixture
    async def site(self, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[UvicornSite]:
        """A client in its handshake with a server in this event loop."""
        monkeypatch.setattr("backplane.server.handed_over.ANSWER_SECONDS", 0.2)
        site = UvicornSite()
        async with serving(site.application) as server, site.connected(server.url):
            yield site


@pytest.fixture(params=["plain", "TLS"])
def certificate(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    """A test with this fixture runs without TLS and with it."""
    return self_signed_certificate(tmp_path) if request.param == "TLS" else None


@pytest.mark.parametrize("compression", ["deflate", None])
@pytest.mark.parametrize("protocol", [DirectLaneProtocol, SharedCompressionProtocol])
async def test_lane_and_asgi_in_order(protocol: type[DirectLaneProtocol], compression: str | None) -> None:
    """What is sent by the lane and by ASGI arrives in the order of the calls, with and without deflate."""

    async def application(socket: AppSocket) -> None:
        writer = await socket.accept_with_writer()
        for number in range(0, 100, 2):
            writer.offer(str(number))
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
    """Frames can be shared only where each message is compressed alone, and are mixed with those of ASGI."""
    seen: list[int | None] = []

    async def application(socket: AppSocket) -> None:
        writer = await socket.accept_with_writer()
        seen.append(socket.lane.deflate_window_bits)
        for number in range(3):
            frame = compress_frame("shared " * 1000, seen[0]) if seen[0] else encode_frame("shared " * 1000)
            writer.queue.append(frame)
            writer.offer(f"plain {number}")
            await socket.send("asgi " * 1000)
        await socket.close()

    async with serving(application, protocol) as server, connect(server.url, compression=compression) as client:
        received = [message async for message in client]

    assert seen == [bits]
    expected = [["shared " * 1000, f"plain {number}", "asgi " * 1000] for number in range(3)]
    assert received == [*(message for three in expected for message in three), "last"]


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
@pytest.mark.parametrize("protocol", [DirectLaneProtocol, SharedCompressionProtocol])
async def test_node_reads_the_lane(protocol: type[DirectLaneProtocol]) -> None:
    """The WebSocket of Node.js reads text, bytes, long frames and, where negotiated, compressed ones."""

    async def application(socket: AppSocket) -> None:
        writer = await socket.accept_with_writer()
        bits = socket.lane.deflate_window_bits
        writer.queue.append(compress_frame("again " * 50, bits) if bits else encode_frame("again " * 50))
        writer.queue.append(encode_frame(b"\x00\xff"))
        writer.offer("x" * 70_000)
        await socket.send("after")
        await socket.close()

    async with serving(application, protocol) as server:
        command = ("node", "--no-warnings", "--experimental-websocket", "-e", NODE, server.url)
        pipe = asyncio.subprocess.PIPE
        node = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
        printed, errors = await node.communicate()
    if b"bad option" in errors:
        pytest.skip("this node has no WebSocket")
    assert printed.decode().splitlines() == [
        "again " * 50, "bytes 0,255", "x" * 70_000, "after", "last", "closed 1000",
    ]  # fmt: skip


async def test_nothing_before_the_handshake() -> None:
    """Before the handshake is accepted the lane cannot be taken, and what is written to it is dropped."""

    async def application(socket: AppSocket) -> None:
        with pytest.raises(LifecycleError, match="after its handshake"):
            Writer(socket.lane)
        socket.lane.write(encode_frame("never"))
        socket.lane.ping()
        writer = await socket.accept_with_writer()
        writer.offer("first")
        await socket.close()

    async with serving(application) as server, server.client() as client:  # which checks that the response comes first
        assert [text async for text in client.texts()] == ["first", "last"]


async def test_one_writer() -> None:
    """A lane with a writer cannot be taken again; one that has ended calls `lane_closed` at once, and nothing else."""
    ended: list[tuple[list[bool], bool]] = []

    async def application(socket: AppSocket) -> None:
        await socket.accept_with_writer()
        with pytest.raises(LifecycleError, match="has a writer"):
            socket.lane.attach(Writer.__new__(Writer))
        await socket.close()
        late = Writer(socket.lane)
        ended.append((late.notifications, late.closed.is_set()))
        assert not socket.lane.writable

    async with serving(application) as server, server.client() as client:
        assert [text async for text in client.texts()] == ["last"]
    assert ended == [([], True)]


END: dict[str, tuple[int, Callable[[Client], None]]] = {
    "application": (1000, lambda _: None),
    "client": (1001, lambda client: client.send(Opcode.CLOSE, Close(1001, "").serialize())),
    "no frame": (1002, lambda client: client.send_bytes(b"\xff\xff\xff\xff")),
    "no text": (1007, lambda client: client.send(Opcode.TEXT, b"\xff")),
    "too big": (1009, lambda client: client.send(Opcode.TEXT, bytes(2000))),
    "no pong": (1011, lambda _: None),
    "shutdown": (1012, lambda _: None),
}


@pytest.mark.parametrize("end", END)
async def test_nothing_after_a_close_frame(end: str, certificate: Path | None) -> None:
    """However a connection ends, the writer is notified once, before the close frame, and nothing follows the frame."""
    code, act = END[end]
    opened = asyncio.Event()

    async def application(socket: AppSocket) -> None:
        writer = await socket.accept_with_writer()
        opened.set()
        if end == "application":
            await socket.close()
        await writer.closed.wait()

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
    """The writer is notified once of an end without a close frame, and the lane accepts nothing more."""
    monkeypatch.setattr(logging.getLogger("uvicorn.error"), "disabled", True)
    writers: asyncio.Queue[Writer] = asyncio.Queue()

    async def application(socket: AppSocket) -> None:
        writer = await socket.accept_with_writer()
        writers.put_nowait(writer)
        if end == "return":
            return
        if end == "abort":
            socket.lane.abort()
        await writer.closed.wait()
        assert not socket.lane.writable

    async with serving(application) as server, server.client() as client:
        writer = await writers.get()
        if end == "FIN":
            client.end()
        elif end == "RST":
            client.reset()
        await writer.closed.wait()
    assert writer.notifications[0]


async def test_stalled_reader(certificate: Path | None) -> None:
    """A client that stops reading receives everything later, in order, an ASGI send after what was queued."""
    queued = asyncio.Event()
    writers: list[Writer] = []
    lanes: list[Lane] = []

    async def application(socket: AppSocket) -> None:
        writer = await socket.accept_with_writer()
        writers.append(writer)
        lanes.append(socket.lane)
        for number in range(MESSAGES):
            writer.offer(f"{number} ".ljust(1024, "."))
        queued.set()
        await socket.send("asgi ")
        writer.offer("lane ")
        assert not writer.queue
        await socket.close()

    async with serving(application, certificate=certificate) as server, server.client() as client:
        await queued.wait()
        assert writers[0].notifications == [True, False]
        assert len(writers[0].queue) > MESSAGES / 4
        assert not lanes[0].writable
        assert 65_536 < lanes[0].buffered_bytes < 1_000_000  # asyncio's TLS buffers 512 KiB before it pauses the writer
        received = [text.split(" ")[0] async for text in client.texts()]

    assert received == [*map(str, range(MESSAGES)), "asgi", "lane", "last"]
    assert writers[0].notifications.count(True) > 2
    assert writers[0].notifications == [index % 2 == 0 for index in range(len(writers[0].notifications))]


async def test_stalled_reader_that_vanishes() -> None:
    """An ASGI send that waits for a stalled client ends with it."""
    queued = asyncio.Event()
    ended = asyncio.Event()

    async def application(socket: AppSocket) -> None:
        writer = await socket.accept_with_writer()
        while not writer.queue:
            writer.offer("x" * 65_536)
        queued.set()
        try:
            await socket.send("never")
        finally:
            assert writer.closed.is_set()
            ended.set()

    async def application_without_error(socket: AppSocket) -> None:
        try:
            await application(socket)
        except OSError:  # how Uvicorn reports that the client has disconnected
            ended.set()

    async with serving(application_without_error) as server, server.client() as client:
        await queued.wait()
        client.reset()
        await ended.wait()


@pytest.mark.parametrize("end", ["FIN", "return"])
async def test_end_with_a_stalled_reader(end: str) -> None:
    """The writer is notified of the end at once, while the transport still holds unread bytes."""
    writers: asyncio.Queue[Writer] = asyncio.Queue()

    async def application(socket: AppSocket) -> None:
        writer = await socket.accept_with_writer()
        while not writer.queue:
            writer.offer("x" * 65_536)
        writers.put_nowait(writer)
        if end == "FIN":
            await writer.closed.wait()

    async with serving(application) as server, server.client() as client:
        writer = await writers.get()
        if end == "FIN":
            client.end()
        await writer.closed.wait()  # which the loss of the connection would set only after this block
        assert writer.notifications == [True, False]
        client.reset()


async def test_pong_is_recorded() -> None:
    """A ping is sent at once, and its pong, which ASGI does not see, sets `last_received_at`."""
    answered = asyncio.Event()

    async def application(socket: AppSocket) -> None:
        await socket.accept_with_writer()
        before = socket.lane.last_received_at
        assert socket.lane.reading
        while asyncio.get_running_loop().time() == before:  # uvloop's clock counts milliseconds
            await asyncio.sleep(0)
        socket.lane.ping()
        while socket.lane.last_received_at == before:
            await asyncio.sleep(0)
        answered.set()
        await socket.close()

    async with serving(application) as server, server.client() as client:
        frames = client.frames()
        ping = await anext(frames)
        assert (ping.opcode, bytes(ping.data)) == (Opcode.PING, b"")
        client.send(Opcode.PONG, b"")
        assert [frame.opcode async for frame in frames] == [Opcode.TEXT, Opcode.CLOSE]
    assert answered.is_set()


async def test_server_that_reads_no_more() -> None:
    """`reading` is false while the server does not read because the application does not receive."""

    async def application(socket: AppSocket) -> None:
        await socket.accept_with_writer()
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
    """The lower limit applies, the application's or the server's; that the server's is lower is logged once.

    `close_code` of the lane holds the code with which the server closed.
    """
    codes: list[int | None] = []
    server_module._warn_of_lower_limit.cache_clear()  # pyright: ignore[reportPrivateUsage]

    async def application(socket: AppSocket) -> None:
        socket.lane.limit_messages(of_application)
        await socket.accept()
        while (message := await socket.receive())["type"] == "websocket.receive":
            await socket.send(str(len(message["text"])))
        codes.append(socket.lane.close_code)

    async with serving(application, ws_max_size=of_server) as server:
        async with connect(server.url, compression=compression):
            pass  # closed by the client
        for _ in range(2):
            async with connect(server.url, compression=compression) as client:
                await client.send("x" * limit)
                assert await client.recv() == str(limit)
                if compression is None:  # a compressed fragment is refused if it is longer than the remainder
                    await client.send(["x" * (limit - 1), "x"])
                    assert await client.recv() == str(limit)
                await client.send(["x" * (limit - 1), "xx"])
                with pytest.raises(ConnectionClosedError) as caught:
                    await client.recv()
                assert caught.value.rcvd is not None
                assert caught.value.rcvd.code == 1009
    assert codes == [None, 1009, 1009]
    warnings = [record.getMessage() for record in caplog.records if record.name == "backplane.server.uvicorn"]
    assert len(warnings) == (of_application > limit)
    assert all("1000 bytes" in warning and "ws_max_size" in warning for warning in warnings)


async def test_write_is_the_transports_own() -> None:
    """The bounds of a client cost a message nothing: the lane's `write` is the method of the event loop's transport."""

    async def application(socket: AppSocket) -> None:
        writer = await socket.accept_with_writer()
        write: Any = socket.lane.write
        assert type(write.__self__).__module__.partition(".")[0] in {"asyncio", "uvloop"}
        writer.offer("there")
        await socket.close()

    async with serving(application) as server, server.client() as client:
        assert [text async for text in client.texts()] == ["there", "last"]


async def test_last_ping_is_answered() -> None:
    """A client that reads again receives the pong of its last ping, among the queued messages."""
    queued = asyncio.Event()
    full = asyncio.Event()

    async def application(socket: AppSocket) -> None:
        writer = await socket.accept_with_writer()
        while not writer.queue:
            writer.offer("x" * 65_536)
        queued.set()
        before = socket.lane.last_received_at
        while socket.lane.last_received_at == before:
            await asyncio.sleep(0.001)
        full.set()
        await writer.closed.wait()

    async with serving(application) as server, server.client() as client:
        await queued.wait()
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
    """A class that a later Uvicorn might use instead of the expected one."""


@pytest.mark.parametrize(
    ("patch", "words"),
    [
        pytest.param((sansio, "ServerProtocol", OtherProtocol), "not as expected: conn", id="another class"),
        pytest.param((server_module, "_STATE", None), "the state of conn", id="no state"),
        pytest.param((server_module, "MAX_SIZE", ""), "the largest size of a message", id="no limit"),
    ],
)
async def test_another_uvicorn(
    patch: tuple[Any, str, Any], words: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where Uvicorn lacks what the lane depends on, its own protocol serves, with one warning."""
    monkeypatch.setattr(*patch)
    monkeypatch.setattr(DirectLaneProtocol, "_offers_lane", None)

    async def application(socket: AppSocket) -> None:
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
