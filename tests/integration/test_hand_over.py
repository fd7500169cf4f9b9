"""Clients in the hands of callbacks on real Uvicorn servers: handed over, and in the task of a handler, alike."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import socket
import ssl
import struct
import zlib
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from fastapi import Depends, FastAPI
from starlette.websockets import WebSocket  # noqa: TC002  # FastAPI reads it
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.asyncio.client import ClientConnection, connect, unix_connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode

from backplane import Backlog, Backplane, ClosedError, Connection, History, Limits, Settings
from backplane.server.http import BoundedHTTPProtocol
from backplane.server.uvicorn import DirectLaneProtocol, SharedCompressionProtocol
from tests.brokers.certificate import self_signed_certificate
from tests.server_in_loop import serving_in_loop

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable
    from pathlib import Path

    from tests.server_in_loop import ServerInLoop

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 60.0
WAYS = {"handed over": DirectLaneProtocol, "handler": DirectLaneProtocol, "without a lane": WebSocketsSansIOProtocol}
HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


class Site:
    """A served application with one room, whose clients are served by callbacks.

    Attributes:
        backplane: Its backplane.
        opened: The connection of each client that was accepted.
        closed: The connection of each client that has ended.
        tasks: The names of the tasks that have handled messages.
        handle: What handles a message; replies by default.
    """

    def __init__(self, way: str, *, authorize: Any = None, **options: Any) -> None:
        self.backplane = Backplane("memory://", **options)
        if authorize is not None:
            self.backplane.authorize(authorize)
        self.opened: asyncio.Queue[Connection] = asyncio.Queue()
        self.closed: asyncio.Queue[Connection] = asyncio.Queue()
        self.tasks: set[str] = set()
        self.handle: Callable[[Connection, str | bytes], Any] = self.reply
        self.is_handed_over = way == "handed over"
        self._way = way

    async def serve(self, websocket: WebSocket, **options: Any) -> None:
        """Serve a client in the way of this site."""
        if self._way != "handler":
            return await self.backplane.hand_over(
                websocket,
                "room",
                on_open=self.opened.put_nowait,
                on_message=self.on_message,
                on_close=self.closed.put_nowait,
                **options,
            )
        connection: Connection | None = None
        try:
            async with self.backplane.connect(websocket, "room", **options) as connection:
                self.opened.put_nowait(connection)
                async for data in connection:
                    await self.on_message(connection, data)
        finally:
            if connection is not None:
                self.closed.put_nowait(connection)
        return None

    async def on_message(self, connection: Connection, data: str | bytes) -> None:
        """Note the task, and handle a message."""
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task.get_name().partition(connection.id)[0])
        await self.handle(connection, data)

    async def reply(self, connection: Connection, data: str | bytes) -> None:
        """Reply with the message."""
        await connection.send(data)

    async def connections(self) -> int:
        """Return how many clients there are."""
        return (await self.backplane.health()).connections

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition` holds."""
        async with asyncio.timeout(WAIT_SECONDS):
            while not condition():
                await asyncio.sleep(0.005)

    async def until_idle(self) -> None:
        """Wait until no client is counted."""
        async with asyncio.timeout(WAIT_SECONDS):
            while await self.connections():
                await asyncio.sleep(0.005)


class RawClient:
    """A client that writes bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def opened(cls, server: ServerInLoop) -> RawClient:
        """Open a WebSocket."""
        client = cls(*await asyncio.open_connection("127.0.0.1", server.port))
        client.writer.write(HANDSHAKE)
        async with asyncio.timeout(WAIT_SECONDS):
            assert (await client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        return client

    async def frame(self) -> tuple[int, bytes]:
        """Return opcode and payload of the next frame, which is short."""
        async with asyncio.timeout(WAIT_SECONDS):
            head = await self.reader.readexactly(2)
            return head[0] & 15, await self.reader.readexactly(head[1])

    def reset(self) -> None:
        """Send a RST."""
        plain = self.writer.get_extra_info("socket")
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


def frame(opcode: Opcode, data: bytes) -> bytes:
    """Return a masked frame."""
    return Frame(opcode, data).serialize(mask=True)


@asynccontextmanager
async def serving(
    way: str, *, connect_options: dict[str, Any] | None = None, server: dict[str, Any] | None = None, **options: Any
) -> AsyncGenerator[tuple[Site, ServerInLoop]]:
    """Serve a site; at the end Uvicorn has no connection left, and the site no client."""
    site = Site(way, **options)
    app = FastAPI(lifespan=site.backplane.lifespan)

    async def endpoint(websocket: WebSocket) -> None:
        await site.serve(websocket, **(connect_options or {}))

    app.add_api_websocket_route("/ws", endpoint)
    arguments: dict[str, Any] = {"ws": WAYS[way], "http": BoundedHTTPProtocol, **(server or {})}
    async with serving_in_loop(app, **arguments) as uvicorn:
        yield site, uvicorn
    assert uvicorn.server.server_state.connections == set()


async def close_of(client: ClientConnection) -> int | None:
    """Return the code of the server's close frame."""
    async with asyncio.timeout(WAIT_SECONDS):
        with suppress(ConnectionClosed):
            async for _ in client:
                pass
        await client.wait_closed()
    return client.close_code


# Handed over on both event loops; the others, which other tests cover, once each.
PAIRS = [
    pytest.param(("asyncio", {"use_uvloop": False}), "handed over", id="asyncio-handed over"),
    pytest.param(("asyncio", {"use_uvloop": True}), "handed over", id="uvloop-handed over"),
    pytest.param(("asyncio", {"use_uvloop": False}), "handler", id="asyncio-handler"),
    pytest.param(("asyncio", {"use_uvloop": True}), "without a lane", id="uvloop-without a lane"),
]
in_each_way = pytest.mark.parametrize(("anyio_backend", "way"), PAIRS, indirect=["anyio_backend"], scope="module")


# --- what a client does ----------------------------------------------------------------------------------------------


@in_each_way
async def test_task_of_messages(way: str) -> None:
    """Only a client that was handed over has a task of its own, while a message is handled."""
    async with serving(way) as (site, server), connect(f"{server.ws_url}/ws") as client:
        await client.send("one")
        assert await client.recv() == "one"
        assert (site.tasks == {"backplane-callbacks-"}) is site.is_handed_over
        names = {task.get_name() for task in asyncio.all_tasks()}
        assert not any(name.startswith("backplane-callbacks-") for name in names)


@in_each_way
async def test_message_before_the_answer_to_the_handshake(way: str) -> None:
    """What a client sends too early (RFC 6455, section 4.1) is handled, in the task of a handler in each way."""
    arrived, may_join = asyncio.Event(), asyncio.Event()

    async def decide(_: object, __: str) -> bool:
        arrived.set()
        await may_join.wait()
        return True

    async with serving(way, authorize=decide) as (site, server):
        client = RawClient(*await asyncio.open_connection("127.0.0.1", server.port))
        client.writer.write(HANDSHAKE)
        await arrived.wait()
        early = frame(Opcode.TEXT, b"first") + frame(Opcode.TEXT, b"second")
        client.writer.write(early[:-3])
        for _ in range(3):  # until the server has read it
            await asyncio.sleep(0)
        may_join.set()
        assert (await client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        client.writer.write(early[-3:])
        assert [await client.frame(), await client.frame()] == [(1, b"first"), (1, b"second")]
        assert not any(name.startswith("backplane-callbacks-") for name in site.tasks)
        client.writer.close()
        await site.closed.get()


@in_each_way
@pytest.mark.parametrize("cut", [0, 1, 6])
async def test_half_a_frame(way: str, cut: int) -> None:
    """A frame may be sent in parts, and a message right after the answer to the handshake."""
    later = frame(Opcode.TEXT, b"second")
    async with serving(way) as (site, server):
        client = await RawClient.opened(server)
        client.writer.write(frame(Opcode.TEXT, b"first") + later[:cut])
        assert await client.frame() == (Opcode.TEXT, b"first")
        client.writer.write(later[cut:] + frame(Opcode.PING, b"?"))
        assert sorted([await client.frame(), await client.frame()]) == [(1, b"second"), (10, b"?")]
        client.writer.write(frame(Opcode.CLOSE, b""))
        assert (await client.frame())[0] == Opcode.CLOSE
        await site.closed.get()
        client.writer.close()


@in_each_way
@pytest.mark.parametrize("end", ["FIN", "FIN after half a frame", "RST after half a frame", "RST"])
async def test_end_of_the_transport(way: str, end: str) -> None:
    """What came before a FIN is handled; however the transport ends, the connection ends once and is not counted."""
    handled: list[str | bytes] = []
    async with serving(way) as (site, server):

        async def keep(_: Connection, data: str | bytes) -> None:
            handled.append(data)

        site.handle = keep
        client = await RawClient.opened(server)
        connection = await site.opened.get()
        client.writer.write(frame(Opcode.TEXT, b"one") + frame(Opcode.TEXT, b"two"))
        if "half" in end:
            client.writer.write(frame(Opcode.TEXT, b"never" * 100)[:40])
        if "RST" in end:
            await site.until(lambda: len(handled) == 2)
            client.reset()
        else:
            client.writer.write_eof()
        async with asyncio.timeout(WAIT_SECONDS):
            assert await site.closed.get() is connection
        await site.until_idle()
        client.writer.close()
        assert site.closed.empty()
        assert connection.state == "closed"
        assert site.backplane.statistics().closed_by_client == 1
    assert handled == ["one", "two"]


@in_each_way
async def test_pings_without_reading(way: str) -> None:
    """A client that sends pings and reads nothing is served what is published as soon as it reads again."""
    async with serving(way) as (site, server):
        client = await RawClient.opened(server)
        pings = frame(Opcode.PING, b"x" * 125) * 500
        with suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                while True:
                    client.writer.write(pings)
                    await client.writer.drain()
        await site.backplane.publish("room", "published")
        async with asyncio.timeout(WAIT_SECONDS):
            while await client.frame() != (Opcode.TEXT, b"published"):
                pass
        client.reset()
        await site.closed.get()


@in_each_way
async def test_half_messages_of_many_clients(way: str) -> None:
    """Clients that never send the rest of a message delay no other client, and end with the server."""
    async with serving(way) as (site, server):
        halves = [await RawClient.opened(server) for _ in range(30)]
        for number, client in enumerate(halves):
            client.writer.write(frame(Opcode.TEXT, b"x" * 200)[: number + 1])
        async with connect(f"{server.ws_url}/ws") as whole:
            for text in ("one", "two", "three"):
                await whole.send(text)
                assert await whole.recv() == text
        await site.backplane.publish("room", "published")
        assert [await client.frame() for client in halves] == [(1, b"published")] * 30
        server.stop()
        assert {(await client.frame())[0] for client in halves} == {Opcode.CLOSE}
        for client in halves:
            client.writer.close()


@in_each_way
async def test_close_at_the_beginning(way: str) -> None:
    """A client that `on_open` closes receives the close frame, and `on_close` is called once."""
    closes = asyncio.Queue[Connection]()
    site = Site(way)
    app = FastAPI(lifespan=site.backplane.lifespan)

    @app.websocket("/ws")
    async def endpoint(websocket: WebSocket) -> None:
        await site.backplane.hand_over(
            websocket, "room", on_open=lambda connection: connection.close(4003, "no"), on_close=closes.put_nowait
        )

    async with serving_in_loop(app, ws=WAYS[way]) as server:
        async with connect(f"{server.ws_url}/ws") as client:
            assert await close_of(client) == 4003
        connection = await closes.get()
        with pytest.raises(ClosedError):
            await connection.join("another")
        await site.until_idle()
        assert closes.empty()


# --- what surrounds the hand-over ------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", ["raises", "sends", "receives", "closes"])
async def test_code_after_the_hand_over(after: str, caplog: pytest.LogCaptureFixture) -> None:
    """What the handler does after the hand-over does not reach the client, which is served until it leaves."""
    site = Site("handed over")
    app = FastAPI(lifespan=site.backplane.lifespan)
    done: asyncio.Queue[object] = asyncio.Queue()

    @app.websocket("/ws")
    async def endpoint(websocket: WebSocket) -> None:
        await site.serve(websocket)
        try:
            if after == "raises":
                raise LookupError("after the hand-over")
            if after == "sends":
                await websocket.send_text("never")
            if after == "receives":
                await websocket.receive_text()
            if after == "closes":
                await websocket.close(4999)
        except RuntimeError as error:
            done.put_nowait(error)
        finally:
            done.put_nowait(None)

    async with serving_in_loop(app, ws=DirectLaneProtocol) as server, connect(f"{server.ws_url}/ws") as client:
        async with asyncio.timeout(WAIT_SECONDS):
            await done.get()
        await client.send("still there")
        assert await client.recv() == "still there"
        await client.close(1000)
        await site.closed.get()
    assert site.backplane.statistics() is not None
    tracebacks = [record for record in caplog.records if record.exc_info]
    assert [record.name for record in tracebacks] == (["uvicorn.error"] if after == "raises" else [])


@in_each_way
async def test_middleware_and_dependencies(way: str) -> None:
    """What surrounds a handler ends with it: at the hand-over where there is one, else with the client."""
    site = Site(way)
    app = FastAPI(lifespan=site.backplane.lifespan)
    ended: asyncio.Queue[str] = asyncio.Queue()
    sent: list[str] = []

    async def dependency() -> AsyncIterator[None]:
        yield
        ended.put_nowait("dependency")

    async def endpoint(websocket: WebSocket) -> None:
        await site.serve(websocket)

    app.add_api_websocket_route("/ws", endpoint, dependencies=[Depends(dependency)])

    async def middleware(scope: Any, receive: Any, send: Any) -> None:
        async def recorded(message: Any) -> None:
            sent.append(message["type"])
            await send(message)

        await app(scope, receive, recorded)
        if scope["type"] == "websocket":
            ended.put_nowait("middleware")

    async with serving_in_loop(middleware, ws=WAYS[way]) as server:
        async with connect(f"{server.ws_url}/ws") as client:
            await client.send("hello")
            assert await client.recv() == "hello"
            if site.is_handed_over:
                assert [await ended.get(), await ended.get()] == ["dependency", "middleware"]
            assert ended.empty()
        if not site.is_handed_over:
            assert [await ended.get(), await ended.get()] == ["dependency", "middleware"]
        await site.until_idle()
    assert sent.count("websocket.accept") == 1
    assert ("websocket.send" in sent) is (way == "without a lane")


# --- the end of the server -------------------------------------------------------------------------------------------


@in_each_way
@pytest.mark.parametrize("ends", ["by itself", "never"])
async def test_end_of_the_server_while_a_message_is_handled(way: str, ends: str) -> None:
    """The client is closed with 1012; what handles its message may end within its grace, and is cancelled after it."""
    settings = Settings(drain_seconds=0.1, handler_grace_seconds=0.1 if ends == "never" else 10)
    began, may_end, result = asyncio.Event(), asyncio.Event(), list[str]()
    async with serving(way, settings=settings) as (site, server), connect(f"{server.ws_url}/ws") as client:

        async def wait(connection: Connection, _: str | bytes) -> None:
            began.set()
            try:
                await may_end.wait()
                assert connection.is_over
                await site.backplane.publish("other", "from a handler that ends late")
                result.append("ended")
            except asyncio.CancelledError:
                result.append("cancelled")
                raise

        site.handle = wait
        await client.send("work")
        await began.wait()
        server.stop()
        assert await close_of(client) == 1012
        if ends == "by itself":
            may_end.set()
        async with asyncio.timeout(WAIT_SECONDS):
            await site.closed.get()
    assert result == ["ended" if ends == "by itself" else "cancelled"]


@in_each_way
async def test_access_log(way: str, caplog: pytest.LogCaptureFixture) -> None:
    """Uvicorn logs the same of a client in each way."""
    caplog.set_level(logging.INFO, "uvicorn.error")
    async with serving(way) as (site, server):
        async with connect(f"{server.ws_url}/ws") as client:
            await client.send("hello")
            assert await client.recv() == "hello"
        await site.closed.get()
        await site.until_idle()
        lines = [record.getMessage() for record in caplog.records if "/ws" in record.getMessage()]
        assert [line.partition(" - ")[2] for line in lines] == ['"WebSocket /ws" [accepted]']
        assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@in_each_way
async def test_limit_of_concurrency(way: str) -> None:
    """Clients count for `--limit-concurrency` of Uvicorn until they are gone."""
    async with serving(way, server={"limit_concurrency": 4}) as (_, server), AsyncExitStack() as clients:
        for _ in range(4):
            await clients.enter_async_context(connect(f"{server.ws_url}/ws"))
        async with httpx2.AsyncClient(trust_env=False) as http:
            assert (await http.get(f"{server.http_url}/none")).status_code == 503
        await clients.aclose()
        async with asyncio.timeout(WAIT_SECONDS), httpx2.AsyncClient(trust_env=False) as http:
            while (await http.get(f"{server.http_url}/none")).status_code != 404:
                await asyncio.sleep(0.005)


# --- limits ----------------------------------------------------------------------------------------------------------


@in_each_way
async def test_limits_of_connections(way: str) -> None:
    """A client counts for each limit until its transport is gone, though it was closed before."""
    options = {"client_key": "alice"}
    async with serving(way, connect_options=options, limits=Limits(max_connections_per_client=1)) as (site, server):
        client = await RawClient.opened(server)
        connection = await site.opened.get()
        await connection.close(4000)
        assert await client.frame() == (Opcode.CLOSE, struct.pack("!H", 4000) + b"messages missed")
        if way != "without a lane":  # which reports no end of a transport
            await site.closed.get()
            assert await site.connections() == 1
            with pytest.raises(InvalidStatus) as refused:
                await connect(f"{server.ws_url}/ws")
            assert refused.value.response.status_code == 429
        client.writer.close()
        await site.until_idle()
        async with connect(f"{server.ws_url}/ws") as after:
            await after.send("x")
            assert await after.recv() == "x"


@in_each_way
@pytest.mark.parametrize("policy", ["close", "drop_oldest"])
async def test_client_that_does_not_read(way: str, policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that reads nothing is closed as too slow, or misses messages, as its backlog requires."""
    monkeypatch.setattr("backplane.server.handed_over.ANSWER_SECONDS", 0.2)
    monkeypatch.setattr("backplane.server.transport._LINGER_SECONDS", 0.2)
    backlog = Backlog(max_bytes=64 * 1024, when_full=policy)
    async with serving(way, backlog=backlog, settings=Settings(drain_seconds=0.2)) as (site, server):
        client = await RawClient.opened(server)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        connection = await site.opened.get()
        for number in range(2000):
            await site.backplane.publish("room", f"{number} ".ljust(8192, "x"))
            if number % 50 == 0:
                await asyncio.sleep(0)
            if connection.is_over:
                break
        statistics = site.backplane.statistics()
        if policy == "close":
            async with asyncio.timeout(WAIT_SECONDS):
                await site.closed.get()
            assert statistics.closed_slow == 1
        else:
            assert not connection.is_over
            assert statistics.dropped_oldest > 0
            async with asyncio.timeout(WAIT_SECONDS):  # a drain ends although this client reads nothing
                await site.backplane.drain()
                await site.closed.get()
        await site.until_idle()
        client.reset()


# --- transports ------------------------------------------------------------------------------------------------------


@in_each_way
@pytest.mark.parametrize("end", ["client", "server", "limit"])
async def test_tls(way: str, end: str, tmp_path: Path) -> None:
    """Over TLS messages arrive and connections end as without."""
    certificate = self_signed_certificate(tmp_path)
    context = ssl.create_default_context(cafile=str(certificate))
    options = {"ssl_certfile": certificate, "ssl_keyfile": certificate.with_name("key.pem")}
    async with serving(way, server=options, limits=Limits(max_message_bytes=300_000)) as (site, server):
        url = server.ws_url.replace("ws://127.0.0.1", "wss://localhost") + "/ws"
        async with connect(url, ssl=context, max_size=None) as client:
            for size in (1, 70_000, 300_000):
                await client.send("x" * size)
                assert await client.recv() == "x" * size
            await site.backplane.publish("room", "published")
            assert await client.recv() == "published"
            if end == "client":
                await client.close(4001)
            elif end == "limit":
                await client.send("x" * 300_001)
                assert await close_of(client) == 1009
            else:
                server.stop()
                assert await close_of(client) == 1012
        async with asyncio.timeout(WAIT_SECONDS):
            await site.closed.get()
        await site.until_idle()


@in_each_way
async def test_tls_with_a_full_transport(way: str, tmp_path: Path) -> None:
    """What does not fit into the transport at the handshake follows in order, though its protocol was replaced."""
    certificate = self_signed_certificate(tmp_path)
    context = ssl.create_default_context(cafile=str(certificate))
    options = {"ssl_certfile": certificate, "ssl_keyfile": certificate.with_name("key.pem")}
    history = {"room": History(max_messages=1000)}
    async with serving(way, server=options, history=history, connect_options={"rewind": 1000}) as (site, server):
        for number in range(600):
            await site.backplane.publish("room", f"{number} ".ljust(4096, "x"))
        url = server.ws_url.replace("ws://127.0.0.1", "wss://localhost") + "/ws"
        async with connect(url, ssl=context, max_queue=1) as client:
            await site.opened.get()
            await site.backplane.publish("room", "600 ")
            async with asyncio.timeout(WAIT_SECONDS):
                received = [str(await client.recv()).partition(" ")[0] for _ in range(601)]
        assert received == [str(number) for number in range(601)]
        await site.closed.get()
        await site.until_idle()


@in_each_way
async def test_unix_socket(way: str, ipc_url: str) -> None:
    """A server on a Unix socket serves as one on TCP."""
    path = ipc_url.partition("directory=")[2] + "/s"
    site = Site(way)
    app = FastAPI(lifespan=site.backplane.lifespan)

    @app.websocket("/ws")
    async def endpoint(websocket: WebSocket) -> None:
        await site.serve(websocket)

    async with serving_in_loop(app, ws=WAYS[way], unix_path=path):
        async with unix_connect(path, uri="ws://localhost/ws") as client:
            await client.send("hello")
            assert await client.recv() == "hello"
        await site.closed.get()
        await site.until_idle()


@pytest.mark.parametrize("protocol", [DirectLaneProtocol, SharedCompressionProtocol])
async def test_compressed_message_over_the_limit(protocol: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A message that inflates above the limit is refused with 1009, whole or in its second fragment."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -12)
    data = deflate.compress(bytes(15 * 2**20)) + deflate.flush(zlib.Z_SYNC_FLUSH)
    bomb = bytearray(Frame(Opcode.BINARY, data[:-4]).serialize(mask=True))
    bomb[0] |= 0x40
    headers = b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
    async with serving("handed over", server={"ws": protocol}) as (site, server):
        client = RawClient(*await asyncio.open_connection("127.0.0.1", server.port))
        client.writer.write(HANDSHAKE[:-2] + headers)
        assert b"permessage-deflate" in await client.reader.readuntil(b"\r\n\r\n")
        await site.opened.get()
        client.writer.write(bytes(bomb))
        opcode, payload = await client.frame()
        assert (opcode, payload[:2]) == (Opcode.CLOSE, struct.pack("!H", 1009))
        await site.closed.get()
        await site.until_idle()
        assert site.backplane.statistics().closed_too_big == 1
        client.writer.close()


# --- faults ----------------------------------------------------------------------------------------------------------


class Unusual(BaseException):
    """An error that is no `Exception`."""


@in_each_way
@pytest.mark.parametrize("error", [ValueError, Unusual, asyncio.CancelledError])
async def test_error_of_a_message(way: str, error: type[BaseException], caplog: pytest.LogCaptureFixture) -> None:
    """An error ends the connection of its client alone: with 1011, or without a close frame if it is no `Exception`."""
    async with serving(way) as (site, server), connect(f"{server.ws_url}/ws") as other:

        async def fail(connection: Connection, data: str | bytes) -> None:
            if data == "fail":
                raise error
            await connection.send(data)

        site.handle = fail
        async with connect(f"{server.ws_url}/ws") as client:
            await client.send("fail")
            assert await close_of(client) == (1011 if error is ValueError else 1006)
        async with asyncio.timeout(WAIT_SECONDS):
            await site.closed.get()
        await other.send("fine")
        assert await other.recv() == "fine"
        site.opened = asyncio.Queue()  # which holds the connection
        gc.collect()  # asyncio logs what a task has raised when the task is freed
        logged = [record.name for record in caplog.records if record.levelno >= logging.ERROR and record.exc_info]
        if not site.is_handed_over:
            assert logged == ["uvicorn.error"]
        elif error is asyncio.CancelledError:
            assert logged == []
        else:
            assert logged == ["backplane.connection.callback_handler" if error is ValueError else "asyncio"]


@in_each_way
async def test_commands_from_elsewhere(way: str) -> None:
    """Another part of the worker reaches a client by its user: join, send, leave, disconnect."""
    async with (
        serving(way, connect_options={"client_key": "alice"}, cluster=True) as (site, server),
        connect(f"{server.ws_url}/ws") as client,
    ):
        connection = await site.opened.get()
        backplane = site.backplane
        await backplane.join(user="alice", channel="news")
        await site.until(lambda: "news" in connection.channels)
        await backplane.publish("news", "1")
        assert await client.recv() == "1"
        await backplane.send_to(user="alice", data="2")
        assert await client.recv() == "2"
        await backplane.leave(user="alice", channel="news")
        await site.until(lambda: "news" not in connection.channels)
        await backplane.disconnect(user="alice", code=4321)
        assert await close_of(client) == 4321


@in_each_way
async def test_churn(way: str) -> None:
    """Clients that leave at any moment leave nothing: no client, task, connection, object."""
    draw = random.Random(17)
    visits = 120
    async with serving(way) as (site, server):

        async def visit() -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            client = RawClient(reader, writer)
            part = draw.choice([10, len(HANDSHAKE), len(HANDSHAKE)])
            writer.write(HANDSHAKE[:part])
            for _ in range(draw.randint(0, 12)):
                await asyncio.sleep(0)
            if part == len(HANDSHAKE) and draw.random() < 0.7:
                with suppress(asyncio.IncompleteReadError, ConnectionError):
                    await reader.readuntil(b"\r\n\r\n")
                message = frame(Opcode.TEXT, b"hello" * 30) * draw.randint(0, 3)
                writer.write(message[: draw.randint(0, len(message))])
                for _ in range(draw.randint(0, 8)):
                    await asyncio.sleep(0)
            end = draw.choice(["reset", "close", "eof", "frame"])
            with suppress(ConnectionError):
                if end == "reset":
                    client.reset()
                elif end == "eof":
                    writer.write_eof()
                    await reader.read()
                elif end == "frame":
                    writer.write(frame(Opcode.CLOSE, b""))
            writer.close()

        async def all_visits() -> None:
            for _ in range(visits // 8):
                await asyncio.gather(*(visit() for _ in range(8)))
                await site.backplane.publish("room", "to those that are there")

        await all_visits()
        await site.until_idle()
        ids = {site.opened.get_nowait().id for _ in range(site.opened.qsize())}
        site.closed = asyncio.Queue()  # which holds connections
        await site.until(lambda: not server.server.server_state.connections)
        gc.collect()
        held = [found for found in gc.get_objects() if type(found) is Connection and found.id in ids]
        assert held == []
        names = [task.get_name() for task in asyncio.all_tasks()]
        assert not any(name.startswith("backplane-callbacks-") for name in names)
