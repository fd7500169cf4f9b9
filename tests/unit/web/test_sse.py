"""`backplane.sse`: channels as server-sent events, through a real server and by hand-written ASGI."""

from __future__ import annotations

import asyncio
import errno
import re
import time
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from fastapi import FastAPI, Request, Response
from starlette.background import BackgroundTask
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException, WebSocketException
from starlette.middleware.gzip import GZipMiddleware

from backplane import (
    Backlog,
    Backplane,
    BrokerUnavailableError,
    ConfigurationError,
    FullPolicy,
    History,
    LifecycleError,
    Presence,
    Settings,
    SubscribeError,
    Who,
)
from backplane import Client as Asked
from backplane.adapters.memory import MemoryBroadcaster
from backplane.connection.limits import Limits
from backplane.message import Gap, Position
from backplane.web import sse
from tests.server_in_loop import serving_in_loop
from tests.unit.doubles import Gate, until_idle
from tests.unit.keeping_hub import KeepingHub

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection

    from starlette.types import ASGIApp, Receive, Scope, Send

    from backplane.worker.runtime import Runtime

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 60.0
# Long enough that a busy machine gets to what precedes the expiry.
EXPIRY_SECONDS = 1.0
REQUEST = Request({"type": "http"})


def running_of(backplane: Backplane) -> Runtime:
    """Return what a started backplane is made of."""
    running = backplane._runtime  # pyright: ignore[reportPrivateUsage]
    assert running is not None
    return running


def stream_of(
    backplane: Backplane, *channels: str, max_messages: int = 100, when_full: FullPolicy = "close", **options: Any
) -> Response:
    """Return the response that streams `channels`."""
    backlog = Backlog(when_full=when_full, max_messages=max_messages)
    return backplane.sse(REQUEST, *channels, backlog=backlog, **options)


class StreamsApp:
    """An application with event streams.

    Attributes:
        ended: One item for each stream whose handler has ended.
    """

    def __init__(self, backplane: Backplane, **options: Any) -> None:
        self.backplane = backplane
        self.ended: asyncio.Queue[None] = asyncio.Queue()
        self.app = FastAPI(lifespan=backplane.lifespan)

        async def events(channel: str) -> Response:
            response = stream_of(backplane, channel, **options)
            response.background = BackgroundTask(self.ended.put, None)
            return response

        self.app.add_api_route("/events/{channel}", events, methods=["GET", "HEAD"])

    async def until_ended(self) -> None:
        """Wait until the handler of a stream has ended."""
        await asyncio.wait_for(self.ended.get(), WAIT_SECONDS)


@asynccontextmanager
async def serving(streams: StreamsApp) -> AsyncGenerator[httpx2.AsyncClient]:
    """Serve an application; yield a client of it."""
    async with (
        serving_in_loop(streams.app) as server,
        httpx2.AsyncClient(base_url=server.http_url, trust_env=False, timeout=WAIT_SECONDS) as client,
    ):
        yield client


class Events:
    """The events of an open stream, as text, one block each."""

    def __init__(self, response: httpx2.Response) -> None:
        self.response = response
        self._text: AsyncIterator[str] = response.aiter_text()
        self._buffer = ""

    async def take(self) -> str:
        """Return the next block."""
        async with asyncio.timeout(WAIT_SECONDS):
            while "\n\n" not in self._buffer:
                self._buffer += await anext(self._text)
        block, _, self._buffer = self._buffer.partition("\n\n")
        return block

    async def rest(self) -> str:
        """Return everything up to the orderly end of the stream."""
        async with asyncio.timeout(WAIT_SECONDS):
            return self._buffer + "".join([text async for text in self._text])


@asynccontextmanager
async def streamed(client: httpx2.AsyncClient, channel: str = "a") -> AsyncGenerator[Events]:
    """Open a stream, and read its first hint."""
    async with client.stream("GET", f"/events/{channel}", headers={"Accept": "text/event-stream"}) as response:
        assert response.status_code == 200
        events = Events(response)
        assert 1500 <= int((await events.take()).removeprefix("retry: ")) <= 4500
        yield events


class Client:
    """A client as a server shows it to the application: hand-written `receive` and `send`.

    Attributes:
        status: With which status it was answered.
        headers: With which headers.
        sent: The bodies that the application sent.
        more: Whether more was to come after the last one.
        send_gate: Holds what is sent after the headers, as a client that does not read would.
        blocked: Set when something waits at the gate.
        gone: Lets the client go away.
        send_error: What `send` raises for a body, if anything; `receive_error` the same.
    """

    def __init__(
        self, method: str = "GET", accept: str = "*/*", address: str = "192.0.2.1", *, last_event_id: str | None = None
    ) -> None:
        self.scope: dict[str, Any] = {
            "type": "http",
            "method": method,
            "headers": [(b"accept", accept.encode()), (b"accept-encoding", b"gzip")],
            "client": (address, 4711),
        }
        if last_event_id is not None:
            self.scope["headers"].append((b"last-event-id", last_event_id.encode()))
        self.status: int | None = None
        self.headers: dict[bytes, bytes] = {}
        self.sent: list[bytes] = []
        self.more = True
        self.send_gate = Gate()
        self.blocked = asyncio.Event()
        self.gone = asyncio.Event()
        self.send_error: Exception | None = None
        self.receive_error: Exception | None = None

    @property
    def text(self) -> str:
        """Everything it was sent."""
        return b"".join(self.sent).decode()

    async def gets(self, response: ASGIApp) -> None:
        """Run the response to its end."""
        await asyncio.wait_for(response(self.scope, self._receive, self._send), WAIT_SECONDS)

    async def _receive(self) -> dict[str, Any]:
        if self.receive_error is not None:
            raise self.receive_error
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, event: Any) -> None:
        if event["type"] == "http.response.start":
            self.status, self.headers = event["status"], dict(event["headers"])
            return
        self.blocked.set()
        await self.send_gate.passage()
        if self.send_error is not None:
            raise self.send_error
        self.sent.append(event["body"])
        self.more = event.get("more_body", False)


def ends(backplane: Backplane) -> list[tuple[object, object]]:
    """Return who ended each stream, and why."""
    ended = [entry["fields"] for entry in running_of(backplane).journal.recent("ended")]
    return [(fields["by"], fields.get("reason")) for fields in ended if fields["kind"] == "event stream"]


@asynccontextmanager
async def streaming(client: Client, response: ASGIApp) -> AsyncGenerator[asyncio.Task[None]]:
    """Stream to a client, from its first byte on, and in the end until its handler has ended."""
    handling = asyncio.create_task(client.gets(response))
    blocked = asyncio.create_task(client.blocked.wait())
    await asyncio.wait([handling, blocked], return_when=asyncio.FIRST_COMPLETED)
    blocked.cancel()
    yield handling
    await handling


async def until_published(backplane: Backplane, *data: str) -> None:
    """Publish to channel `a`, and wait until all of it was delivered."""
    for each in data:
        await backplane.publish("a", each)
    async with backplane.subscribe("barrier") as barrier:
        await backplane.publish("barrier", "")
        await anext(aiter(barrier))


# --- through a real server -----------------------------------------------------------------------------------------


async def test_headers() -> None:
    """The answer is an event stream that neither a cache nor nginx keeps back, without a length."""
    async with serving(StreamsApp(Backplane("memory://"))) as client, streamed(client) as events:
        headers = events.response.headers
        assert headers["content-type"] == "text/event-stream; charset=utf-8"
        assert headers["cache-control"] == "no-store, no-transform"
        assert headers["x-accel-buffering"] == "no"
        assert "content-length" not in headers


async def test_messages() -> None:
    """A text keeps to its data lines whatever it holds, binary is base64 with an event name of its own."""
    blocks: list[tuple[Any, str]] = [
        ("hello", "data: hello"),
        ("", "data: "),
        (" two blanks  ", "data:  two blanks  "),
        ("one\ntwo\r\nthree\rfour\n", "data: one\ndata: two\ndata: three\ndata: four\ndata: "),
        ("x\n\nevent: gap\nid: 7", "data: x\ndata: \ndata: event: gap\ndata: id: 7"),
        ("äöü ✓\u2028\x85", "data: äöü ✓\u2028\x85"),
        ({"number": 1}, 'data: {"number":1}'),
        (b"\x00\xff\n", "event: binary\ndata: AP8K"),
        (b"", "event: binary\ndata: "),
    ]
    streams = StreamsApp(Backplane("memory://"))
    async with serving(streams) as client, streamed(client) as events:
        for data, block in blocks:
            await streams.backplane.publish("a", data)
            assert await events.take() == block


async def test_joined_before_the_headers() -> None:
    """What is published as soon as the client sees the headers reaches it, in order."""
    streams = StreamsApp(Backplane("memory://"))
    async with serving(streams) as client, client.stream("GET", "/events/a") as response:
        for number in range(50):
            await streams.backplane.publish("a", str(number))
        events = Events(response)
        await events.take()
        assert [await events.take() for _ in range(50)] == [f"data: {number}" for number in range(50)]


async def test_gap() -> None:
    """A gap is an event in its place, with the channel and without the reason."""
    streams = StreamsApp(Backplane("memory://"))
    async with serving(streams) as client, streamed(client) as events:
        await streams.backplane.publish("a", "before")
        assert await events.take() == "data: before"
        running_of(streams.backplane).hub.gap(["a"], "password of the broker")
        await streams.backplane.publish("a", "after")
        assert await events.take() == 'event: gap\ndata: {"channel": "a"}'
        assert await events.take() == "data: after"


async def test_heartbeat() -> None:
    """In silence comments are sent, and a message between them is not lost."""
    streams = StreamsApp(Backplane("memory://"), heartbeat_seconds=0.01)
    async with serving(streams) as client, streamed(client) as events:
        assert [await events.take() for _ in range(3)] == [":", ":", ":"]
        await streams.backplane.publish("a", "there")
        while (block := await events.take()) == ":":
            pass
        assert block == "data: there"


async def test_client_that_goes() -> None:
    """When the client goes in silence, its handler ends, and nothing of it stays in the hub."""
    streams = StreamsApp(Backplane("memory://"))
    async with serving(streams) as client:
        async with streamed(client):
            assert (await streams.backplane.health()).connections == 1
        await streams.until_ended()
        assert (await streams.backplane.health()).connections == 0
        assert list(running_of(streams.backplane).hub.channels) == []


async def test_drain() -> None:
    """A drain ends the stream in order, after what waits and a hint when to reconnect, and waits for its handler."""
    streams = StreamsApp(Backplane("memory://"))
    async with serving(streams) as client, streamed(client) as events:
        await streams.backplane.publish("a", "last")
        assert await events.take() == "data: last"
        await asyncio.wait_for(streams.backplane.drain(), WAIT_SECONDS)
        assert (await streams.backplane.health()).connections == 0
        assert ends(streams.backplane) == [("worker", "restart")]
        rest = await events.rest()
        assert rest.startswith("retry: ")
        assert rest.endswith("\n\n")


async def test_stop() -> None:
    """A stop ends the stream in the same way."""
    streams = StreamsApp(Backplane("memory://"))
    async with serving(streams) as client, streamed(client) as events:
        await streams.backplane.stop()
        assert (await events.rest()).startswith("retry: ")
        await streams.until_ended()


async def test_http_1_0() -> None:
    """A client or proxy that speaks HTTP/1.0 gets a stream without chunks, which ends with its connection."""
    streams = StreamsApp(Backplane("memory://", history={"a": History()}))
    async with serving_in_loop(streams.app, http="h11") as server, asyncio.timeout(WAIT_SECONDS):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /events/a HTTP/1.0\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.")
        assert b"200 OK" in head
        assert b"chunked" not in head.lower()
        begin = await reader.readuntil(b"data:\n\n")
        await streams.backplane.publish("a", "1")
        assert re.fullmatch(rb"id: [\w-]+\ndata: 1\n\n", await reader.readuntil(b"data: 1\n\n"))
        assert begin.startswith(b"retry: ")
        await streams.backplane.drain()
        assert (await reader.read()).startswith(b"retry: ")
        writer.close()


async def test_arriving_at_a_drain() -> None:
    """A new client of a worker that drains is refused: an event source by a stream that ends, others by the status."""
    streams = StreamsApp(Backplane("memory://"))
    async with serving(streams) as client:
        await streams.backplane.drain()
        other = await client.get("/events/a")
        assert (other.status_code, other.text) == (503, "not available, try again later")
        assert other.headers["cache-control"] == "no-store"
        source = await client.get("/events/a", headers={"Accept": "text/event-stream"})
        assert source.status_code == 200
        assert source.text.startswith(": not available, try again later\nretry: ")
        for _ in (other, source):
            await streams.until_ended()
        assert (await streams.backplane.health()).connections == 0


# --- by hand-written ASGI: the answer --------------------------------------------------------------------------------


async def test_head() -> None:
    """A HEAD is answered as a GET would be, without a body, and leaves nothing."""
    async with Backplane("memory://") as backplane:
        client = Client("HEAD")
        await client.gets(stream_of(backplane, "a"))
        assert (client.status, client.headers[b"content-type"]) == (200, b"text/event-stream; charset=utf-8")
        assert (client.sent, client.more) == ([b""], False)
        assert (await backplane.health()).connections == 0


async def test_presence_of_a_stream() -> None:
    """Its user is present from the headers to the end, and a HEAD is no visit."""
    async with Backplane("memory://", presence={"a": Presence(grace_seconds=0)}) as backplane:
        ada = Who(user="ada")
        await Client("HEAD").gets(stream_of(backplane, "a", presence=ada))
        assert dict((await backplane.present("a")).users) == {}
        client = Client()
        async with streaming(client, stream_of(backplane, "a", presence=ada)):
            assert list((await backplane.present("a")).users) == ["ada"]
            client.gone.set()
        assert dict((await backplane.present("a")).users) == {}


@pytest.mark.parametrize(
    ("error", "channel", "options", "status"),
    [
        (None, "x" * 256, {}, 400),
        (None, "a", {"rewind": -1}, 400),
        (None, "a", {"expires_at": 1.5e9}, 401),
        (None, "secret", {}, 403),
        (SubscribeError({"a": "the broker's own words"}), "a", {}, 403),
        (SubscribeError({}, unconfirmed={"a": "the broker's own words"}), "a", {}, 503),
        (BrokerUnavailableError("away"), "a", {}, 503),
    ],
    ids=["illegal", "rewind", "expired", "not authorized", "refused by the broker", "passing state", "away"],
)
async def test_refused(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None, channel: str, options: dict[str, Any], status: int
) -> None:
    """A join that fails is an HTTP error without the broker's words; one that may succeed later ends no source."""

    async def subscribe(_: MemoryBroadcaster, channels: Collection[str]) -> None:
        if error is not None and channel in channels:
            raise error

    monkeypatch.setattr(MemoryBroadcaster, "subscribe", subscribe)
    for accept, method in (("*/*", "GET"), ("text/event-stream", "GET"), ("*/*", "HEAD")):
        client = Client(method, accept)
        backplane = Backplane("memory://", settings=Settings(subscribe_timeout_seconds=0.1))
        backplane.authorize(lambda _, name: name != "secret")
        async with backplane:
            await client.gets(stream_of(backplane, channel, **options))
            assert backplane.statistics().streams_refused == 1
            assert (await backplane.health()).connections == 0
            assert list(running_of(backplane).hub.channels) == []
        later = status == 503 and accept == "text/event-stream"
        assert client.status == (200 if later else status)
        assert ("words" in client.text, b"retry-after" in client.headers) == (False, status == 503 and not later)


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (HTTPException(402, "pay first"), 402, "pay first"),
        (WebSocketException(4503, "not you"), 403, "not you"),
        (WebSocketException(1008), 403, "this channel is not allowed"),
        (WebSocketException(1013, "later"), 503, "not available, try again later"),
    ],
    ids=["HTTPException", "stays away", "without words", "comes back"],
)
async def test_refused_in_the_words_of_the_framework(error: Exception, status: int, text: str) -> None:
    """What `authorize` may raise for a WebSocket it may raise for a stream; both are counted as refused."""

    def refuse(_: object, __: str) -> bool:
        raise error

    backplane = Backplane("memory://")
    backplane.authorize(refuse)
    async with backplane:
        transport = httpx2.ASGITransport(StreamsApp(backplane).app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
            answer = await client.get("/events/a")
        assert (answer.status_code, text in answer.text) == (status, True)
        assert backplane.statistics().streams_refused == 1


async def test_permission_that_runs_out_while_it_joins() -> None:
    """A permission that runs out while `authorize` is asked is refused before the stream begins."""
    expires_at = time.time() + 0.05

    async def take_time(_: object, __: str) -> bool:
        while time.time() < expires_at:
            await asyncio.sleep(0.01)
        return True

    backplane = Backplane("memory://")
    backplane.authorize(take_time)
    async with backplane:
        client = Client()
        await client.gets(stream_of(backplane, "a", expires_at=expires_at))
        assert (client.status, (await backplane.health()).connections) == (401, 0)


async def test_authorize_sees_the_client() -> None:
    """The application is asked for each channel, and sees who the client is, and what it has joined so far."""
    user, asked = object(), list[tuple[object, str, list[str], int]]()
    backplane = Backplane("memory://")

    @backplane.authorize
    async def may_join(client: Asked, channel: str) -> bool:
        await asyncio.sleep(0)
        asked.append((client.context, client.kind, list(client.channels), len(client.id)))
        return True

    async with backplane:
        async with streaming(Client(), stream_of(backplane, "a", "b", context=user)):
            await backplane.drain()
        assert asked == [(user, "event stream", [], 16), (user, "event stream", ["a"], 16)]


async def test_limits() -> None:
    """The limits of a WebSocket hold: channels for each client, and clients for each address or key."""
    limits = Limits(max_channels=1, max_connections_per_client=1)
    async with Backplane("memory://", limits=limits) as backplane:
        many = Client()
        await many.gets(stream_of(backplane, "a", "b"))
        assert (many.status, many.text) == (403, "a client may join 1 channels: Limits(max_channels=...)")
        async with streaming(Client(), stream_of(backplane, "a", "b", limits=Limits(max_channels=2))):
            refused, with_key, elsewhere = Client("HEAD"), Client("HEAD"), Client("HEAD", address="192.0.2.2")
            await refused.gets(stream_of(backplane, "a"))
            await with_key.gets(stream_of(backplane, "a", client_key="alice"))
            await elsewhere.gets(stream_of(backplane, "a"))
            assert (refused.status, with_key.status, elsewhere.status) == (429, 200, 200)
            await backplane.drain()


@pytest.mark.parametrize(
    ("host", "status"), [("shop.example:8000", 200), (None, 200), ("evil.example", 403), ("<b>evil", 403)]
)
async def test_allowed_hosts(host: str | None, status: int) -> None:
    """A page that was loaded under a foreign name of this server gets no stream: its browser sends no origin."""
    backplane = Backplane("memory://", allowed_hosts=["shop.example"])
    client = Client("HEAD", "text/event-stream")
    if host is not None:
        client.scope["headers"].append((b"host", host.encode()))
    async with backplane:
        await client.gets(stream_of(backplane, "a"))
        assert (client.status, "<" in client.text) == (status, False)
        refused = int(status == 403)
        counted = backplane.statistics()
        assert (counted.refused_origins, counted.streams_refused) == (refused, refused)
        assert (await backplane.health()).connections == 0


async def test_backlog_of_the_backplane() -> None:
    """A stream has the backlog of the backplane where it is given none, with its keys."""
    backlog = Backlog(when_full="latest", latest_by=lambda message: message.data[0])
    client = Client()
    async with Backplane("memory://", backlog=backlog) as backplane:
        client.send_gate.close()
        async with streaming(client, backplane.sse(REQUEST, "a")):
            await until_published(backplane, "a1", "b1", "a2", "b2")
            client.send_gate.open()
            await backplane.drain()
    assert [line for line in client.text.splitlines() if line.startswith("data: ")] == ["data: a2", "data: b2"]


class HoldsBack:
    """A middleware that keeps a body until all of it is there, as compression does, unless a header forbids it.

    Args:
        app: What it wraps.
        header: The header that it respects.
        value: What this must hold.
    """

    def __init__(self, app: ASGIApp, header: str, value: str) -> None:
        self.app = app
        self.header = header
        self.value = value

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application."""
        kept: list[Any] = []
        passes = False

        async def keep(event: Any) -> None:
            nonlocal passes
            if event["type"] == "http.response.start":
                passes = self.value in Headers(raw=event["headers"]).get(self.header, "")
            kept.append(event)
            if passes or (event["type"] == "http.response.body" and not event["more_body"]):
                while kept:
                    await send(kept.pop(0))

        await self.app(scope, receive, keep)


@pytest.mark.parametrize(
    "middleware",
    [
        GZipMiddleware,  # that of the lowest Starlette compresses event streams
        partial(HoldsBack, header="content-encoding", value="identity"),  # brotli-asgi, Django
        partial(HoldsBack, header="cache-control", value="no-transform"),  # Express, Next.js
        partial(HoldsBack, header="x-accel-buffering", value="no"),  # nginx
    ],
    ids=["Starlette", "content-encoding", "no-transform", "nginx"],
)
async def test_middleware_that_holds_back(middleware: Callable[[ASGIApp], ASGIApp]) -> None:
    """What compresses or buffers a body lets a stream pass: the headers and first bytes at once, then each event."""
    async with Backplane("memory://") as backplane:
        client = Client()
        handling = asyncio.create_task(client.gets(middleware(stream_of(backplane, "a"))))
        await asyncio.wait_for(client.blocked.wait(), WAIT_SECONDS)
        await until_published(backplane, "now")
        assert (client.status, client.sent[1:]) == (200, [b"data: now\n\n"])
        assert client.text.startswith("retry: ")
        await backplane.drain()
        await handling


async def test_answer_to_a_websocket() -> None:
    """A stream answers HTTP requests alone, and as the denial of a WebSocket it raises what names the mistake."""
    async with Backplane("memory://") as backplane:
        websocket = Request({"type": "http"})
        websocket.scope["type"] = "websocket"
        with pytest.raises(ConfigurationError, match="a WebSocket is for connect"):
            backplane.sse(websocket, "a")
        client = Client()
        client.scope["type"] = "websocket"
        with pytest.raises(LifecycleError, match="deny a WebSocket with a plain Response"):
            await client.gets(stream_of(backplane, "a"))
        assert (await backplane.health()).connections == 0


# --- by hand-written ASGI: the end -----------------------------------------------------------------------------------


async def test_permission_that_runs_out() -> None:
    """A stream whose permission runs out receives nothing from then on, and ends with an event and a hint."""
    client = Client()
    async with Backplane("memory://") as backplane:
        await client.gets(stream_of(backplane, "a", expires_at=time.time() + EXPIRY_SECONDS))
        assert re.fullmatch(r"retry: \d+\n\nevent: expired\ndata: {}\n\nretry: \d+\n\n", client.text)
        assert (client.more, list(running_of(backplane).hub.channels)) == (False, [])
        assert ends(backplane) == [("worker", "permission has run out")]


async def test_largest_age() -> None:
    """A stream that has reached its largest age ends in order, and its client comes back."""
    client = Client()
    async with Backplane("memory://", limits=Limits(max_age_seconds=0.05)) as backplane:
        await client.gets(stream_of(backplane, "a"))
        assert re.fullmatch(r"retry: \d+\n\nretry: \d+\n\n", client.text)
        assert not client.more
        assert ends(backplane) == [("worker", "max_age_seconds")]


@pytest.mark.parametrize("of", ["send_error", "receive_error"])
async def test_error_of_the_server(of: str) -> None:
    """What `send` or `receive` raises leaves as it is, in no group, and the stream has ended."""
    async with Backplane("memory://") as backplane:
        # The second is one of a middleware's, of the same kind as that of a lost client.
        for error in (ValueError("mine"), FileNotFoundError("mine")):
            client = Client()
            setattr(client, of, error)
            with pytest.raises(type(error)) as caught:
                await client.gets(stream_of(backplane, "a"))
            assert caught.value is error
        counted = backplane.statistics()
        assert counted.streams_opened == counted.streams_closed
        assert (await backplane.health()).connections == 0


async def test_server_that_raises_for_a_lost_client() -> None:
    """An `OSError` of `send` is an ordinary end where `receive` reports that the client is gone (ASGI, HTTP 2.4)."""
    async with Backplane("memory://") as backplane:
        client = Client()
        client.send_error = ConnectionResetError()
        client.send_gate.close()
        async with streaming(client, stream_of(backplane, "a")):
            client.send_gate.open()
            await until_idle()
            client.gone.set()
        assert (await backplane.health()).connections == 0


@pytest.mark.parametrize("at", ["authorize", "broker"])
async def test_client_that_goes_while_it_joins(at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that leaves while the application or the broker takes its time gives its place back at once."""
    asked, answered = asyncio.Event(), asyncio.Event()

    async def wait(*_: object) -> bool:
        asked.set()
        return await answered.wait()

    backplane = Backplane("memory://")
    if at == "authorize":
        backplane.authorize(wait)
    else:
        monkeypatch.setattr(MemoryBroadcaster, "subscribe", wait)
    async with backplane:
        client = Client()
        handling = asyncio.create_task(client.gets(stream_of(backplane, "a")))
        await asyncio.wait_for(asked.wait(), WAIT_SECONDS)
        client.gone.set()
        await handling
        assert (client.status, (await backplane.health()).connections) == (None, 0)
        assert backplane.statistics().streams_refused == 0
        answered.set()


async def test_error_of_authorize() -> None:
    """What `authorize` raises leaves as it is, before any answer, though it may look like that of a lost client."""
    for error in (ConnectionRefusedError("the database"), TimeoutError("the database")):

        def fail(_: object, __: str, error: Exception = error) -> bool:
            raise error

        backplane = Backplane("memory://")
        backplane.authorize(fail)
        async with backplane:
            client = Client()
            with pytest.raises(type(error)) as caught:
                await client.gets(stream_of(backplane, "a"))
            assert (caught.value is error, client.status) == (True, None)


async def test_client_that_takes_nothing() -> None:
    """A client that takes nothing for two heartbeats is given up, also where its policy would drop for it for ever."""
    async with Backplane("memory://") as backplane:
        client = Client()
        client.send_gate.close()
        await client.gets(stream_of(backplane, "a", when_full="drop_oldest", heartbeat_seconds=0.02))
        assert (client.sent, (await backplane.health()).connections) == ([], 0)


async def test_slow_client_that_reads_on(caplog: pytest.LogCaptureFixture) -> None:
    """A client that is too slow receives what waited for it, then the end, and that is logged."""
    async with Backplane("memory://") as backplane:
        client = Client()
        client.send_gate.close()
        async with streaming(client, stream_of(backplane, "a", max_messages=2)):
            await until_published(backplane, *"01234")
            client.send_gate.open()
        assert client.sent[1:3] == [b"data: 0\n\n", b"data: 1\n\n"]
        assert client.sent[3].startswith(b"retry: ")
        assert not client.more
        assert ends(backplane) == [("worker", "too slow")]
        assert (await backplane.health()).connections == 0
        assert (backplane.statistics().slow_streams, backplane.statistics().streams_closed) == (1, 1)
    assert "is too slow for channel 'a': ending it" in caplog.text


async def test_slow_client_that_never_reads(caplog: pytest.LogCaptureFixture) -> None:
    """A client that does not read at all is given up, with what waits for it."""
    async with Backplane("memory://") as backplane:
        client = Client()
        client.send_gate.close()
        async with streaming(client, stream_of(backplane, "a", max_messages=2)):
            await until_published(backplane, *"01234")
        assert client.sent == []
        assert list(running_of(backplane).hub.channels) == []
        assert (backplane.statistics().slow_streams, backplane.statistics().streams_closed) == (1, 1)
    assert "is too slow for channel 'a': ending it" in caplog.text


async def test_policy() -> None:
    """With a policy that drops, a slow client's stream goes on."""
    async with Backplane("memory://") as backplane:
        client = Client()
        client.send_gate.close()
        async with streaming(client, stream_of(backplane, "a", max_messages=2, when_full="drop_oldest")):
            await until_published(backplane, *"01234")
            client.send_gate.open()
            await backplane.drain()
        assert client.sent[1:3] == [b"data: 3\n\n", b"data: 4\n\n"]


async def test_client_that_goes_while_it_does_not_read() -> None:
    """A client that goes in the middle of a send ends the handler at once."""
    async with Backplane("memory://") as backplane:
        client = Client()
        client.send_gate.close()
        async with streaming(client, stream_of(backplane, "a")):
            client.gone.set()
        assert client.sent == []
        assert ends(backplane) == [("client", None)]


async def test_cancelled_handler() -> None:
    """A handler that the server cancels leaves no task, client or channel."""
    async with Backplane("memory://") as backplane:
        with pytest.raises(asyncio.CancelledError):
            async with streaming(Client(), stream_of(backplane, "a")) as handling:
                handling.cancel()
        assert (await backplane.health()).connections == 0
        assert list(running_of(backplane).hub.channels) == []


@pytest.mark.parametrize(
    ("channels", "options"),
    [
        ([], {}),
        *((["a"], {"heartbeat_seconds": wrong}) for wrong in ("ten", None, True, 0, -1, float("inf"), float("nan"))),
        (["a"], {"retry_seconds": -1}),
        (["a"], {"expires_at": float("nan")}),
        (["a"], {"expires_at": "soon"}),
        (["a"], {"backlog": "ten"}),
    ],
    ids=str,
)
async def test_wrong_options(channels: list[str], options: dict[str, Any]) -> None:
    """A stream of nothing, and times and sizes that are none, are refused by name when the response is made."""
    async with Backplane("memory://") as backplane:
        with pytest.raises(ConfigurationError, match="|".join(options) or "at least one channel"):
            backplane.sse(REQUEST, *channels, **options)


@pytest.mark.parametrize(
    "error", [TimeoutError(), ConnectionRefusedError(errno.ECONNREFUSED, "")], ids=["timeout", "os"]
)
async def test_fault_while_sending(error: OSError, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a middleware raises for its own sake is not taken for a client that is gone: the server gets it."""

    async def fail(_: object) -> None:
        raise error

    client = Client()
    monkeypatch.setattr(client, "_send", fail)
    async with Backplane("memory://") as backplane:
        with pytest.raises(type(error)) as caught:
            await client.gets(stream_of(backplane, "a"))
        assert caught.value is error
        assert backplane.statistics().streams_closed == 1


# --- history ---------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def keeping() -> AsyncGenerator[tuple[Backplane, KeepingHub]]:
    """Run a backplane whose hub keeps the channels that begin with `kept`."""
    async with Backplane("memory://") as backplane:
        runtime = running_of(backplane)
        runtime.hub = hub = KeepingHub(runtime.broker_subscriptions)
        yield backplane, hub


async def events_of(response: ASGIApp, count: int, *, last_event_id: str | None = None) -> list[str]:
    """Return the first `count` events of a stream as blocks, without its first hint; then its client goes."""
    client = Client(last_event_id=last_event_id)
    async with streaming(client, response):
        async with asyncio.timeout(WAIT_SECONDS):
            while client.text.count("\n\n") <= count:
                await asyncio.sleep(0)
        client.gone.set()
    return client.text.split("\n\n")[1 : count + 1]


def id_of(block: str) -> str:
    """Return the id of an event."""
    found = re.match(r"id: ([\w.-]+)(\n|$)", block)
    assert found is not None, block
    return found[1]


async def test_no_ids_without_a_history() -> None:
    """Without a history nothing is different, except that a client that shows an id of another worker has a gap."""
    async with Backplane("memory://") as backplane:
        for last_event_id, gap in (("", ""), ("anything", 'event: gap\ndata: {"channel": "a"}\n\n')):
            client = Client(last_event_id=last_event_id)
            async with streaming(client, stream_of(backplane, "a")):
                await until_published(backplane, "1")
                client.gone.set()
            assert re.fullmatch(rf"retry: \d+\n\n{re.escape(gap)}data: 1\n\nretry: \d+\n\n", client.text)


async def test_ids() -> None:
    """The first event has an id and no message; each one has the positions of all kept channels after it, by name."""
    async with keeping() as (backplane, hub):
        hub.keep("kept:a", "old")
        response = stream_of(backplane, "kept:b", "kept:a", "plain", rewind=1)
        start = [hub.position("kept:b"), Position(b"an epoch", 0, 0)]
        first, event = await events_of(response, 2)
        of_a, of_b = id_of(first).split(".")
        assert (Position.parse(of_a).offset, of_b) == (0, str(start[0]))
        assert first == f"id: {of_a}.{of_b}\nevent: position\ndata:"
        assert event == f"id: {hub.position('kept:a')}.{of_b}\ndata: old"


async def test_last_event_id_resumes() -> None:
    """A client that comes back by itself gets exactly what it missed, in order per channel, and never a gap."""
    async with keeping() as (backplane, hub):
        channels = ("kept:b", "kept:a")
        (first,) = await events_of(stream_of(backplane, *channels), 1)
        last_id, received = id_of(first), list[str]()
        for number in range(9):
            hub.keep(f"kept:{'ab'[number % 2]}", str(number))
            if number % 3 == 2:
                repeated, *events = await events_of(stream_of(backplane, *channels), 4, last_event_id=last_id)
                assert id_of(repeated) == last_id
                received += [event.partition("data: ")[2] for event in events]
                last_id = id_of(events[-1])
        assert sorted(received) == [str(number) for number in range(9)]
        assert [number for number in received if int(number) % 2] == ["1", "3", "5", "7"]


async def test_client_that_stops_anywhere_resumes_there() -> None:
    """Whichever event is the last that a client receives, its id leads to the rest: nothing lost, nothing twice."""
    async with keeping() as (backplane, hub):
        (first,) = await events_of(stream_of(backplane, "kept:a", "kept:b"), 1)
        for number in range(6):
            hub.keep(f"kept:{'aab'[number % 3]}", str(number))
        whole = [
            event.partition("data: ")[2]
            for event in await events_of(stream_of(backplane, "kept:a", "kept:b"), 7, last_event_id=id_of(first))
        ][1:]
        for count in range(1, 7):
            part = await events_of(stream_of(backplane, "kept:a", "kept:b"), count, last_event_id=id_of(first))
            rest = await events_of(stream_of(backplane, "kept:a", "kept:b"), 8 - count, last_event_id=id_of(part[-1]))
            both = [*part[1:], *rest[1:]]
            assert [event.partition("data: ")[2] for event in both] == whole


async def test_last_event_id_replaces_what_the_address_has() -> None:
    """The page's own `since` is that of its first request; what the client shows is newer."""
    async with keeping() as (backplane, hub):
        old, new = hub.keep("kept", "1"), hub.keep("kept", "2")
        hub.keep("kept", "3")
        response = stream_of(backplane, "kept", since=str(old))
        assert (await events_of(response, 2, last_event_id=str(new)))[1].endswith("data: 3")
        response = stream_of(backplane, "kept", since=str(old))
        assert (await events_of(response, 2))[1].endswith("data: 2")
        response = stream_of(backplane, "kept", since={"kept": str(old)})
        assert (await events_of(response, 2, last_event_id=""))[1].endswith("data: 2")


async def test_last_event_id_that_grows() -> None:
    """Of several ids, in one header or in several as some clients send them, the last one is the newest."""
    async with keeping() as (backplane, hub):
        positions = [str(hub.keep("kept", str(number))) for number in range(3)]
        for shown in ([",".join(positions[:2])], positions[:2], [f"{positions[0]}, {positions[1]} "]):
            client = Client()
            client.scope["headers"] += [(b"last-event-id", each.encode()) for each in shown]
            async with streaming(client, stream_of(backplane, "kept")):
                await until_idle()
                client.gone.set()
            assert client.text.split("\n\n")[2] == f"id: {positions[2]}\ndata: 2"


async def test_id_in_the_address() -> None:
    """A polyfill that repeats a parameter with each return resumes from the last one, and any text is at most a gap."""
    async with keeping() as (backplane, hub):
        old, new = hub.keep("kept", "1"), hub.keep("kept", "2")
        hub.keep("kept", "3")
        for query, event in (
            (f"lastEventId={old}", "data: 2"),
            (f"lastEventId={old}&lastEventId={new}", "data: 3"),
            ("lastEventId=%FF%00%0A", 'event: gap\ndata: {"channel": "kept"}'),
        ):
            request = Request({"type": "http", "query_string": query.encode()})
            response = stream_of(backplane, "kept", since=request.query_params.get("lastEventId"))
            assert (await events_of(response, 2))[1].endswith(event)


@pytest.mark.parametrize("shown", ["garbage", "x" * 1_000_000, "." * 1_000_000, "..", ".", ",", "\u2028\0", "7", "-"])
async def test_last_event_id_that_is_not_found(shown: str) -> None:
    """It is a gap of each channel, then the rewind; the id of the gap resumes without another one: there is no loop."""
    async with keeping() as (backplane, hub):
        hub.keep("kept:a", "old")
        channels = ("kept:a", "kept:b")
        blocks = await events_of(stream_of(backplane, *channels, rewind=1), 4, last_event_id=shown)
        assert sorted(block.partition("\n")[2] for block in blocks[1:]) == [
            "data: old", 'event: gap\ndata: {"channel": "kept:a"}', 'event: gap\ndata: {"channel": "kept:b"}',
        ]  # fmt: skip
        again = await events_of(stream_of(backplane, *channels), 2, last_event_id=id_of(blocks[1]))
        assert again[1].endswith("data: old")


async def test_channels_that_changed_since() -> None:
    """Another number of channels is not found; a channel in place of another is not found, and the others resume."""
    async with keeping() as (backplane, hub):
        positions = {name: hub.keep(name, "seen") for name in ("kept:a", "kept:b")}
        both = ".".join(map(str, positions.values()))
        for name in positions:
            hub.keep(name, f"missed in {name}")
        (_, event) = await events_of(stream_of(backplane, "kept:a"), 2, last_event_id=both)
        assert "event: gap" in event
        blocks = await events_of(stream_of(backplane, "kept:a", "kept:c"), 3, last_event_id=both)
        assert blocks[1].endswith("data: missed in kept:a")
        assert blocks[2].endswith('event: gap\ndata: {"channel": "kept:c"}')


async def test_position_of_another_history() -> None:
    """One of the future, of another deployment or of another channel is a gap, and the stream goes on."""
    settings = Settings(recall_timeout_seconds=0.02)
    async with Backplane("memory://", history={"kept*": History()}, settings=settings) as backplane:
        receipt = await backplane.publish("kept", "1")
        other = await backplane.publish("kept:other", "1")
        assert receipt.position is not None
        epoch, offset, check = receipt.position.epoch, receipt.position.offset, receipt.position.check
        forged = (
            Position(epoch, offset + 7, check),
            Position(epoch, 2**63, check),
            Position(epoch, offset, check ^ 1),
            Position(b"8 bytes!", offset, check),
            other.position,
        )
        for position in forged:
            blocks = await events_of(stream_of(backplane, "kept", rewind=1), 3, last_event_id=str(position))
            assert [block.partition("\n")[2] for block in blocks] == [
                "event: position\ndata:", 'event: gap\ndata: {"channel": "kept"}', "data: 1",
            ]  # fmt: skip


@pytest.mark.parametrize("is_used", [True, False])
async def test_id_of_a_channel_that_is_refused(is_used: bool) -> None:
    """An id grants nothing: each channel is asked about, and the answer shows nothing, was it published to or not."""
    asked = list[str]()
    backplane = Backplane("memory://", history={"*": History()})

    @backplane.authorize
    def may_join(_: Asked, channel: str) -> bool:
        asked.append(channel)
        return channel == "open"

    async with backplane:
        ids = [(await backplane.publish(name, "1")).position for name in ("open", *["secret"] * is_used)]
        for shown in ("", "garbage", ".".join(map(str, ids)), f"{ids[0]}.{ids[0]}"):
            client = Client(last_event_id=shown)
            await client.gets(stream_of(backplane, "open", "secret", rewind=1))
            assert (client.status, client.text) == (403, "this client may not join channel 'secret'")
            assert client.headers.keys() == {b"content-length", b"content-type", b"cache-control"}
        assert asked == ["open", "secret"] * 4
        assert list(running_of(backplane).hub.channels) == []


async def test_expired_stream_that_was_quiet() -> None:
    """A stream on which nothing was published ends with an id too: one that was missed after it comes first."""
    async with Backplane("memory://", history={"kept": History()}) as backplane:
        endings: list[dict[str, Any]] = [
            {"expires_at": time.time() + EXPIRY_SECONDS},
            {"limits": Limits(max_age_seconds=0.01)},
        ]
        for ending in endings:
            client = Client()
            await client.gets(stream_of(backplane, "kept", **ending))
            blocks = [block for block in client.text.split("\n\n") if not block.startswith("retry: ")]
            assert [block.partition("\n")[2] for block in blocks if block] == [
                "event: position\ndata:", *["event: expired\ndata: {}"] * ("expires_at" in ending),
            ]  # fmt: skip
            last_id = {id_of(block) for block in blocks if block}
            await backplane.publish("kept", "missed")
            again = await events_of(stream_of(backplane, "kept"), 2, last_event_id=last_id.pop())
            assert (again[1].partition("\n")[2], last_id) == ("data: missed", set())


async def test_gap_while_streaming() -> None:
    """A gap has the id at which its channel goes on, where that is known."""
    async with keeping() as (backplane, hub):
        client, later = Client(), Position(b"an epoch", 9, 9)
        async with streaming(client, stream_of(backplane, "kept")):
            (stream,) = hub._subscribers["kept"]  # pyright: ignore[reportPrivateUsage]
            stream.gap(Gap(channel="kept", reason="trimmed"))
            stream.gap(Gap(channel="kept", reason="trimmed", position=later))
            await until_idle()
            client.gone.set()
        first, one, two = [id_of(block) for block in client.text.split("\n\n")[1:4]]
        assert (one, two) == (first, str(later))


async def test_position_that_is_not_known() -> None:
    """It is `-` in the id, which is found in no history: the client is notified of a gap when it shows that."""
    async with keeping() as (backplane, hub):
        client = Client()
        async with streaming(client, stream_of(backplane, "kept")):
            (stream,) = hub._subscribers["kept"]  # pyright: ignore[reportPrivateUsage]
            stream._positions["kept"] = None  # type: ignore[attr-defined]
            stream.gap(Gap(channel="kept", reason="trimmed"))
            await until_idle()
            client.gone.set()
        assert client.text.split("\n\n")[2].startswith("id: -\nevent: gap")


async def test_slow_client_resumes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream of a slow client ends; with its last id it gets the rest, nothing lost and nothing twice."""
    monkeypatch.setattr(sse, "_END_SECONDS", WAIT_SECONDS)  # it is not cut before it reads again
    async with keeping() as (backplane, hub):
        client = Client()
        async with streaming(client, stream_of(backplane, "kept", max_messages=3)):
            client.send_gate.close()
            for number in range(10):
                hub.keep("kept", str(number))
                await until_idle()
            client.send_gate.open()
        received = [block for block in client.text.split("\n\n") if "data: " in block]
        assert 0 < len(received) < 10
        rest = await events_of(
            stream_of(backplane, "kept", max_messages=3), 11 - len(received), last_event_id=id_of(received[-1])
        )
        assert [block.partition("data: ")[2] for block in [*received, *rest[1:]]] == [str(n) for n in range(10)]


async def test_previous_id() -> None:
    """What excludes the client's former stream or connection is not given back."""
    async with keeping() as (backplane, hub):
        hub.keep("kept", "own", b"previous")
        hub.keep("kept", "of another")
        blocks = await events_of(stream_of(backplane, "kept", rewind=2, previous_id=b"previous".hex()), 2)
        assert blocks[1].endswith("data: of another")


async def test_channels_with_a_history_per_stream() -> None:
    """Sixteen; one more is an error when the response is made. Those without a history do not count."""
    async with keeping() as (backplane, _):
        names = [f"kept:{number}" for number in range(17)]
        stream_of(backplane, *names[:16], *map(str, range(50)), names[0])
        with pytest.raises(ConfigurationError, match="takes 16 channels with a history, not 17"):
            stream_of(backplane, *names)


@pytest.mark.parametrize(
    "options", [{"since": 7}, {"rewind": "1"}, {"rewind": True}, {"previous_id": 7}], ids=lambda options: str(options)
)
async def test_history_options_of_another_type(options: dict[str, Any]) -> None:
    """They are errors when the response is made, as is a rewind where no channel has a history."""
    async with keeping() as (backplane, _):
        with pytest.raises(ConfigurationError, match=next(iter(options))):
            stream_of(backplane, "kept", **options)
    async with Backplane("memory://") as backplane:
        with pytest.raises(ConfigurationError, match=r"Backplane\(history="):
            stream_of(backplane, "a", rewind=1)
