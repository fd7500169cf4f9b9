"""`backplane.sse`: channels as server-sent events, through a real server and by hand-written ASGI."""

from __future__ import annotations

import asyncio
import errno
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
import uvicorn
from fastapi import FastAPI, Response
from starlette.background import BackgroundTask

from backplane import Backplane, BrokerUnavailableError, ConfigurationError, Settings, SubscribeError
from backplane.adapters.memory import MemoryBroadcaster
from backplane.outbox import FullPolicy, Outbox
from backplane.sse import event_stream
from tests.unit.doubles import Gate

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Collection

    from backplane.running import Running

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 5.0


def running_of(backplane: Backplane) -> Running:
    """Return what a started backplane is made of."""
    running = backplane._running  # pyright: ignore[reportPrivateUsage]
    assert running is not None
    return running


def stream_of(backplane: Backplane, *channels: str, max_messages: int = 100, **options: Any) -> Response:
    """Return the response that streams `channels`."""
    when_full: FullPolicy = options.pop("when_full", "close")
    outbox = Outbox(max_bytes=1024 * 1024, max_messages=max_messages, when_full=when_full)
    return event_stream(running_of(backplane), outbox, *channels, **options)


class Site:
    """An application with event streams, behind a real server.

    Attributes:
        ended: One item for each stream whose handler has ended.
    """

    def __init__(self, backplane: Backplane, **options: Any) -> None:
        self.backplane = backplane
        self.ended: asyncio.Queue[None] = asyncio.Queue()
        self.address = ""
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
async def serving(site: Site) -> AsyncGenerator[httpx2.AsyncClient]:
    """Serve a site, with a client for it."""
    listener = socket.create_server(("127.0.0.1", 0))
    site.address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = uvicorn.Server(uvicorn.Config(site.app, lifespan="on", log_config=None))
    serve = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        async with httpx2.AsyncClient(base_url=site.address, trust_env=False, timeout=WAIT_SECONDS) as client:
            assert (await client.get("/")).status_code == 404  # it has started
            yield client
    finally:
        server.should_exit = True
        await serve


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
async def listening(client: httpx2.AsyncClient, channel: str = "a") -> AsyncGenerator[Events]:
    """Open a stream, behind its first hint."""
    async with client.stream("GET", f"/events/{channel}", headers={"Accept": "text/event-stream"}) as response:
        assert response.status_code == 200
        events = Events(response)
        assert 1500 <= int((await events.take()).removeprefix("retry: ")) <= 4500
        yield events


class Client:
    """A client as a server shows it to the application: hand-written `receive` and `send`.

    Attributes:
        sent: The bodies that the application sent.
        send_gate: Holds what is sent behind the headers, as a client that does not read would.
        blocked: Set when something waits at the gate.
        gone: Lets the client go away.
    """

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.more = True
        self.send_gate = Gate()
        self.blocked = asyncio.Event()
        self.gone = asyncio.Event()

    async def gets(self, response: Response) -> None:
        """Run the response to its end."""
        scope: dict[str, Any] = {"type": "http", "method": "GET", "headers": [], "client": ("10.0.0.1", 1)}
        await asyncio.wait_for(response(scope, self._receive, self._send), WAIT_SECONDS)

    async def _receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, event: Any) -> None:
        if event["type"] == "http.response.body":
            self.blocked.set()
            await self.send_gate.passage()
            self.sent.append(event["body"])
            self.more = event["more_body"]


# --- through a real server -----------------------------------------------------------------------------------------


async def test_headers() -> None:
    """The answer is an event stream that neither a cache nor nginx keeps back, without a length."""
    async with serving(Site(Backplane("memory://"))) as client, listening(client) as events:
        headers = events.response.headers
        assert headers["content-type"] == "text/event-stream; charset=utf-8"
        assert headers["cache-control"] == "no-store"
        assert headers["x-accel-buffering"] == "no"
        assert "content-length" not in headers


@pytest.mark.parametrize(
    ("data", "block"),
    [
        ("hello", "data: hello"),
        ("", "data: "),
        (" two blanks  ", "data:  two blanks  "),
        ("one\ntwo\r\nthree\rfour\n", "data: one\ndata: two\ndata: three\ndata: four\ndata: "),
        ("x\n\nevent: gap\nid: 7", "data: x\ndata: \ndata: event: gap\ndata: id: 7"),
        ("äöü ✓\u2028\x85", "data: äöü ✓\u2028\x85"),
        ({"number": 1}, 'data: {"number":1}'),
        (b"\x00\xff\n", "event: binary\ndata: AP8K"),
        (b"", "event: binary\ndata: "),
    ],
)
async def test_messages(data: Any, block: str) -> None:
    """A text keeps to its data lines whatever it holds, binary is base64 with an event name of its own."""
    site = Site(Backplane("memory://"))
    async with serving(site) as client, listening(client) as events:
        await site.backplane.publish("a", data)
        assert await events.take() == block


async def test_joined_before_the_headers() -> None:
    """What is published as soon as the client sees the headers reaches it, in order."""
    site = Site(Backplane("memory://"))
    async with serving(site) as client, client.stream("GET", "/events/a") as response:
        for number in range(50):
            await site.backplane.publish("a", str(number))
        events = Events(response)
        await events.take()
        assert [await events.take() for _ in range(50)] == [f"data: {number}" for number in range(50)]


async def test_gap() -> None:
    """A gap is an event in its place, with the channel and without the reason."""
    site = Site(Backplane("memory://"))
    async with serving(site) as client, listening(client) as events:
        await site.backplane.publish("a", "before")
        assert await events.take() == "data: before"
        running_of(site.backplane).hub.gap(["a"], "password of the broker")
        await site.backplane.publish("a", "after")
        assert await events.take() == 'event: gap\ndata: {"channel": "a"}'
        assert await events.take() == "data: after"


async def test_heartbeat() -> None:
    """In silence comments are sent, and a message between them is not lost."""
    site = Site(Backplane("memory://"), heartbeat_seconds=0.01)
    async with serving(site) as client, listening(client) as events:
        assert [await events.take() for _ in range(3)] == [":", ":", ":"]
        await site.backplane.publish("a", "there")
        while (block := await events.take()) == ":":
            pass
        assert block == "data: there"


async def test_client_that_goes() -> None:
    """When the client goes in silence, its handler ends, and nothing of it stays in the hub."""
    site = Site(Backplane("memory://"))
    async with serving(site) as client:
        async with listening(client):
            assert (await site.backplane.health()).connections == 1
        await site.until_ended()
        assert (await site.backplane.health()).connections == 0
        assert list(running_of(site.backplane).hub.channels) == []


async def test_drain() -> None:
    """A drain ends the stream in order, behind what waits and a hint when to come back, and waits for its handler."""
    site = Site(Backplane("memory://"))
    async with serving(site) as client, listening(client) as events:
        await site.backplane.publish("a", "last")
        assert await events.take() == "data: last"
        await asyncio.wait_for(site.backplane.drain(), WAIT_SECONDS)
        assert (await site.backplane.health()).connections == 0
        rest = await events.rest()
        assert rest.startswith("retry: ")
        assert rest.endswith("\n\n")


async def test_stop() -> None:
    """A stop ends the stream in the same way."""
    site = Site(Backplane("memory://"))
    async with serving(site) as client, listening(client) as events:
        await site.backplane.stop()
        assert (await events.rest()).startswith("retry: ")
        await site.until_ended()


async def test_arriving_at_a_drain() -> None:
    """Who arrives at a worker that drains is told to come back: an event source by a stream, others by the status."""
    site = Site(Backplane("memory://"))
    async with serving(site) as client:
        await site.backplane.drain()
        other = await client.get("/events/a")
        assert (other.status_code, other.text) == (503, "not available, try again later")
        assert other.headers["cache-control"] == "no-store"
        source = await client.get("/events/a", headers={"Accept": "text/event-stream"})
        assert source.status_code == 200
        assert source.text.startswith(": not available, try again later\nretry: ")
        assert (await site.backplane.health()).connections == 0


async def test_head() -> None:
    """A HEAD is answered with the headers alone."""
    site = Site(Backplane("memory://"))
    async with serving(site) as client:
        answer = await client.head("/events/a")
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")


@pytest.mark.parametrize("accept", ["*/*", "text/event-stream"])
@pytest.mark.parametrize(
    ("error", "channel", "status"),
    [
        (None, "x" * 256, 400),
        (SubscribeError({"a": "the broker's own words"}), "a", 403),
        (SubscribeError({}, unconfirmed={"a": "the broker's own words"}), "a", 503),
        (BrokerUnavailableError("away"), "a", 503),
    ],
)
async def test_refused(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None, channel: str, status: int, accept: str
) -> None:
    """A join that fails is an HTTP error without the broker's words; one that may succeed later ends no source."""

    async def subscribe(_: MemoryBroadcaster, channels: Collection[str]) -> None:
        if error is not None and channel in channels:
            raise error

    monkeypatch.setattr(MemoryBroadcaster, "subscribe", subscribe)
    site = Site(Backplane("memory://", settings=Settings(subscribe_timeout_seconds=0.1)))
    async with serving(site) as client:
        answer = await client.get(f"/events/{channel}", headers={"Accept": accept})
        later = status == 503 and accept == "text/event-stream"
        assert answer.status_code == (200 if later else status)
        assert ("words" in answer.text, "retry-after" in answer.headers) == (False, status == 503 and not later)
        assert site.backplane.statistics()["streams_refused"] == 1
        assert (await site.backplane.health()).connections == 0


# --- by hand-written ASGI ------------------------------------------------------------------------------------------


async def test_slow_client_that_reads_on(caplog: pytest.LogCaptureFixture) -> None:
    """A client further behind than its outbox allows gets what waited for it, then the end, and that is logged."""
    async with Backplane("memory://") as backplane:
        client = Client()
        client.send_gate.close()
        streaming = asyncio.create_task(client.gets(stream_of(backplane, "a", max_messages=2)))
        await asyncio.wait_for(client.blocked.wait(), WAIT_SECONDS)
        for number in range(5):
            await backplane.publish("a", str(number))
        async with backplane.subscribe("b") as barrier:
            await backplane.publish("b", "")
            await anext(aiter(barrier))
        client.send_gate.open()
        await streaming
        assert client.sent[1:3] == [b"data: 0\n\n", b"data: 1\n\n"]
        assert client.sent[3].startswith(b"retry: ")
        assert not client.more
        assert (await backplane.health()).connections == 0
        assert (backplane.statistics()["slow_streams"], backplane.statistics()["streams_closed"]) == (1, 1)
    assert "is too slow: ending it" in caplog.text


async def test_slow_client_that_never_reads(caplog: pytest.LogCaptureFixture) -> None:
    """A client that does not read at all is given up, with what waits for it."""
    async with Backplane("memory://") as backplane:
        client = Client()
        client.send_gate.close()
        streaming = asyncio.create_task(client.gets(stream_of(backplane, "a", max_messages=2)))
        await asyncio.wait_for(client.blocked.wait(), WAIT_SECONDS)
        for number in range(5):
            await backplane.publish("a", str(number))
        await streaming
        assert client.sent == []
        assert list(running_of(backplane).hub.channels) == []
        assert (backplane.statistics()["slow_streams"], backplane.statistics()["streams_closed"]) == (1, 1)
    assert "is too slow: ending it" in caplog.text


async def test_policy() -> None:
    """With a policy that drops, a slow client's stream goes on."""
    async with Backplane("memory://") as backplane:
        client = Client()
        client.send_gate.close()
        response = stream_of(backplane, "a", max_messages=2, when_full="drop_oldest")
        streaming = asyncio.create_task(client.gets(response))
        await asyncio.wait_for(client.blocked.wait(), WAIT_SECONDS)
        for number in range(5):
            await backplane.publish("a", str(number))
        async with backplane.subscribe("b") as barrier:
            await backplane.publish("b", "")
            await anext(aiter(barrier))
        client.send_gate.open()
        await backplane.drain()
        await streaming
        assert client.sent[1:3] == [b"data: 3\n\n", b"data: 4\n\n"]


async def test_client_that_goes_while_it_does_not_read() -> None:
    """A client that goes in the middle of a send ends the handler at once."""
    async with Backplane("memory://") as backplane:
        client = Client()
        client.send_gate.close()
        streaming = asyncio.create_task(client.gets(stream_of(backplane, "a")))
        await asyncio.wait_for(client.blocked.wait(), WAIT_SECONDS)
        client.gone.set()
        await streaming
        assert client.sent == []


async def test_cancelled_handler() -> None:
    """A handler that the server cancels leaves nothing behind."""
    async with Backplane("memory://") as backplane:
        client = Client()
        streaming = asyncio.create_task(client.gets(stream_of(backplane, "a")))
        await asyncio.wait_for(client.blocked.wait(), WAIT_SECONDS)
        streaming.cancel()
        with pytest.raises(asyncio.CancelledError):
            await streaming
        assert (await backplane.health()).connections == 0
        assert list(running_of(backplane).hub.channels) == []


@pytest.mark.parametrize(
    ("channels", "options"),
    [
        ([], {}),
        (["a"], {"heartbeat_seconds": 0}),
        (["a"], {"heartbeat_seconds": float("inf")}),
        (["a"], {"retry_seconds": -1}),
        (["a"], {"retry_seconds": float("nan")}),
    ],
)
async def test_wrong_options(channels: list[str], options: dict[str, Any]) -> None:
    """A stream of nothing, and times that are none, are refused."""
    async with Backplane("memory://") as backplane:
        with pytest.raises(ConfigurationError):
            stream_of(backplane, *channels, **options)


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
        caught: list[tuple[Exception, ...]] = []
        try:
            await client.gets(stream_of(backplane, "a"))
        except* OSError as raised:
            caught.append(raised.exceptions)
        assert caught == [(error,)]
        assert backplane.statistics()["streams_closed"] == 1
