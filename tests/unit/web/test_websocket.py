"""`backplane.web.websocket`, `Backplane.connect`: a WebSocket through Starlette and by hand-written ASGI."""

from __future__ import annotations

import asyncio
import errno
import time
from contextlib import contextmanager, suppress
from contextvars import Context, ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import Mock, call
from weakref import ref

import pytest
from fastapi import FastAPI
from starlette.exceptions import WebSocketException
from starlette.requests import Request  # noqa: TC002  # FastAPI reads it
from starlette.responses import Response  # noqa: TC002
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from backplane import (
    Backlog,
    Backplane,
    BrokerUnavailableError,
    ClosedError,
    Connection,
    InvalidChannelError,
    InvalidPositionError,
    LifecycleError,
    Settings,
    SubscribeError,
)
from backplane.adapters.memory import MemoryBroadcaster
from backplane.connection.limits import Limits
from backplane.connection.receiver import _warn_of_bypass  # pyright: ignore[reportPrivateUsage]
from backplane.errors import JoinRefusedError, OriginRefusedError, TooManyChannelsError, TooManyConnectionsError
from backplane.statistics import Statistics
from backplane.web.websocket import HandedOverSocket
from tests.unit.doubles import Gate, until_idle
from tests.unit.server.session import Session, collections_off
from tests.unit.sockets import driver_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Generator

    from starlette.types import Message as Event

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 60.0
user: ContextVar[str] = ContextVar("user", default="no user")
# Long enough that a busy machine gets to what precedes the expiry.
EXPIRY_SECONDS = 1.0
DENIAL_EXTENSION: dict[str, Any] = {"websocket.http.response": {}}


class Client:
    """A client as a server shows it to the application: hand-written `receive` and `send`.

    Attributes:
        sent: What the application sent, as ASGI events.
        accept_gate: Holds `websocket.accept`, as a slow handshake would.
        errors: What `send` raises, by the type of the event.
    """

    def __init__(self, extensions: dict[str, Any] | None = None) -> None:
        self._receiver: asyncio.Queue[Event] = asyncio.Queue()
        self._changed = asyncio.Event()
        self._asked = False
        self.sent: list[Event] = []
        self.accept_gate = Gate()
        self.accepting = asyncio.Event()
        self.errors: dict[str, Exception] = {}
        scope: dict[str, Any] = {"type": "websocket", "path": "/", "headers": [], "extensions": extensions or {}}
        self.websocket = WebSocket(scope, self._receive, self._send)
        self.does({"type": "websocket.connect"})

    @property
    def sent_types(self) -> list[str]:
        """What was sent, by its type without the prefix."""
        return [event["type"].removeprefix("websocket.") for event in self.sent]

    def does(self, *events: Event) -> None:
        """Let the client do something."""
        for event in events:
            self._receiver.put_nowait(event)

    def sends(self, *texts: str) -> None:
        """Let the client send texts."""
        self.does(*({"type": "websocket.receive", "text": text} for text in texts))

    def goes(self) -> None:
        """Let the client go away."""
        self.does({"type": "websocket.disconnect", "code": 1001})

    async def gets(self, count: int) -> list[Event]:
        """Return what was sent once it is `count` events."""
        async with asyncio.timeout(WAIT_SECONDS):
            while len(self.sent) < count:
                self._changed.clear()
                await self._changed.wait()
        return self.sent

    async def _receive(self) -> Event:
        self._asked = True
        return await self._receiver.get()

    async def _send(self, event: Event) -> None:
        assert self._asked, "ASGI: the application receives the connect event before it answers"
        if event["type"] == "websocket.accept":
            self.accepting.set()
            await self.accept_gate.passage()
        if event["type"] in self.errors:
            raise self.errors[event["type"]]
        self.sent.append(event)
        self._changed.set()


async def ended(task: asyncio.Task[Any]) -> Any:
    """Return the result of a handler that is about to end."""
    return await asyncio.wait_for(task, WAIT_SECONDS)


async def echo(backplane: Backplane, client: Client, *channels: str) -> list[str | bytes]:
    """Publish what the client sends to the first channel, and return it."""
    received: list[str | bytes] = []
    async with backplane.connect(client.websocket, *channels) as connection:
        async for message in connection:
            received.append(message)
            await backplane.publish(channels[0], message)
    return received


@contextmanager
def served(handler: Callable[[WebSocket, Backplane], Any], url: str = "memory://") -> Generator[TestClient]:
    """Serve one WebSocket route through FastAPI."""
    backplane = Backplane(url)
    app = FastAPI(lifespan=backplane.lifespan)

    async def route(websocket: WebSocket) -> None:
        await handler(websocket, backplane)

    app.add_api_websocket_route("/", route)
    with TestClient(app) as client:
        yield client


# --- the handshake -------------------------------------------------------------------------------------------------


def test_accept_with_subprotocol_and_headers() -> None:
    """The handshake carries the subprotocol and the headers that the handler chose."""

    async def handle(websocket: WebSocket, backplane: Backplane) -> None:
        async with backplane.connect(websocket, "a", subprotocol="chat.v2", headers=[(b"x-worker", b"7")]):
            pass

    with (
        served(handle) as client,
        client.websocket_connect("/", subprotocols=["chat.v1", "chat.v2"]) as session,
    ):
        assert session.accepted_subprotocol == "chat.v2"
        assert session.extra_headers == [(b"x-worker", b"7")]


async def test_accept_without_more() -> None:
    """By default it is accepted with neither."""
    client = Client()
    async with Backplane("memory://") as backplane, backplane.connect(client.websocket):
        assert client.sent == [{"type": "websocket.accept", "subprotocol": None, "headers": []}]


async def test_joined_before_accepted() -> None:
    """A message published between the join and the accept is the first the client gets, after its handshake."""
    client = Client()
    client.accept_gate.close()
    async with Backplane("memory://") as backplane:
        handling = asyncio.create_task(echo(backplane, client, "a"))
        await asyncio.wait_for(client.accepting.wait(), WAIT_SECONDS)
        await backplane.publish("a", "early")
        await until_idle()
        assert client.sent == []
        client.accept_gate.open()
        await client.gets(2)
        assert client.sent[1] == {"type": "websocket.send", "text": "early"}
        client.goes()
        await ended(handling)
    assert client.sent_types == ["accept", "send"]


def test_refused_name_through_starlette() -> None:
    """A name that is not legal answers the handshake with 400 and the reason."""
    raised: list[Exception] = []

    async def handle(websocket: WebSocket, backplane: Backplane) -> None:
        try:
            async with backplane.connect(websocket, "x" * 256):
                pytest.fail("the block was entered")
        except WebSocketException as error:
            raised.append(error)
            raise

    with served(handle) as client, pytest.raises(WebSocketDenialResponse) as caught, client.websocket_connect("/"):
        pytest.fail("the client was accepted")
    assert caught.value.status_code == 400
    assert "at most 255 bytes" in caught.value.text
    assert [str(error.__cause__) for error in raised] == [caught.value.text]
    assert [type(error.__cause__) for error in raised] == [InvalidChannelError]


@pytest.mark.parametrize("first", [[], ["a"]], ids=["alone", "after a legal one"])
async def test_refused_name(first: list[str]) -> None:
    """A name that is not legal answers 400 with the reason, raises in the handler, and leaves nothing joined."""
    client = Client(DENIAL_EXTENSION)
    async with Backplane("memory://") as backplane:
        error, status, words = await refusal(backplane, client, *first, "")
        assert (type(error), status, words) == (InvalidChannelError, 400, "a channel name cannot be empty")
        await backplane.publish("a", "not received")
        await until_idle()
    assert len(client.sent) == 2


async def test_negative_rewind() -> None:
    """A negative number, which can come from the client's URL, answers 400 with the reason."""
    client = Client(DENIAL_EXTENSION)
    async with Backplane("memory://") as backplane:
        error, status, words = await refusal(backplane, client, "a", rewind=-1)
    assert (type(error), status, words) == (InvalidPositionError, 400, "rewind must be 0 or more, not -1")


async def test_channel_the_broker_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A channel the broker refuses answers 403, without the broker's words; the handler does not begin."""

    async def refuse(_: MemoryBroadcaster, channels: Collection[str]) -> None:
        raise SubscribeError(dict.fromkeys(channels, "ACL of user bob"))

    monkeypatch.setattr(MemoryBroadcaster, "subscribe", refuse)
    client = Client(DENIAL_EXTENSION)
    async with Backplane("memory://") as backplane:
        error, status, _ = await refusal(backplane, client, "secret")
        assert isinstance(error, SubscribeError)
        assert (status, "ACL of user bob" in str(error)) == (403, True)
    assert client.sent[1]["body"] == b"this channel is not allowed"


async def test_broker_that_does_not_confirm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that does not confirm in time answers 503 with when to try again; the handler does not begin."""
    gate = Gate()
    gate.close()

    async def hang(*_: object) -> None:
        await gate.passage()

    monkeypatch.setattr(MemoryBroadcaster, "subscribe", hang)
    client = Client(DENIAL_EXTENSION)
    async with Backplane("memory://", settings=Settings(subscribe_timeout_seconds=0.05)) as backplane:
        error, status, _ = await refusal(backplane, client, "a")
        assert (type(error), status) == (BrokerUnavailableError, 503)
    assert b"retry-after" in dict(client.sent[0]["headers"])
    assert client.sent[1]["body"] == b"not available, try again later"


async def test_passing_state_of_the_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that is busy for longer than a join waits answers 503, from which clients come back, and not 403."""

    async def busy(_: MemoryBroadcaster, channels: Collection[str]) -> None:
        raise SubscribeError({}, unconfirmed=dict.fromkeys(channels, "BUSY a script runs"))

    monkeypatch.setattr(MemoryBroadcaster, "subscribe", busy)
    client = Client(DENIAL_EXTENSION)
    async with Backplane("memory://", settings=Settings(subscribe_timeout_seconds=0.2)) as backplane:
        with pytest.raises(WebSocketException, match="BUSY a script runs") as raised:
            await echo(backplane, client, "a")
    assert isinstance(raised.value.__cause__, BrokerUnavailableError)
    assert client.sent[0]["status"] == 503


async def test_stop_while_joining(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that is still joining at the stop is answered 503: it may come back to another worker."""
    asked = asyncio.Event()
    gate = Gate()
    gate.close()

    async def hang(*_: object) -> None:
        asked.set()
        await gate.passage()

    monkeypatch.setattr(MemoryBroadcaster, "subscribe", hang)
    client = Client(DENIAL_EXTENSION)
    async with Backplane("memory://") as backplane:
        handling = asyncio.create_task(echo(backplane, client, "a"))
        await asyncio.wait_for(asked.wait(), WAIT_SECONDS)
    with pytest.raises(WebSocketException) as caught:
        await ended(handling)
    assert isinstance(caught.value.__cause__, ClosedError | BrokerUnavailableError)
    assert client.sent[0]["status"] == 503


async def test_server_without_the_denial_extension() -> None:
    """There the handshake is closed instead, which the server answers with 403."""
    client = Client()
    async with Backplane("memory://") as backplane:
        with pytest.raises(WebSocketException, match="cannot be empty"):
            await echo(backplane, client, "")
    assert client.sent == [{"type": "websocket.close", "code": 1008, "reason": ""}]


@pytest.mark.parametrize("extensions", [{}, DENIAL_EXTENSION], ids=["close", "denial"])
async def test_refusal_of_a_client_that_is_gone(extensions: dict[str, Any]) -> None:
    """That the refusal does not reach the client changes nothing for the handler: it sees why it was refused."""
    client = Client(extensions)
    client.errors = dict.fromkeys(("websocket.close", "websocket.http.response.start"), OSError("gone"))
    async with Backplane("memory://") as backplane:
        with pytest.raises(WebSocketException, match="cannot be empty"):
            await echo(backplane, client, "")


async def test_accept_that_fails_leaves_nothing() -> None:
    """An error of the server in the handshake goes on, and nothing stays joined."""
    client = Client(DENIAL_EXTENSION)
    client.errors["websocket.accept"] = RuntimeError("the server's own")
    async with Backplane("memory://") as backplane:
        with pytest.raises(RuntimeError, match="the server's own"):
            await echo(backplane, client, "a")
        await backplane.publish("a", "not received")
        await until_idle()
    assert client.sent == []


async def test_accepted_already() -> None:
    """A socket that the handler has accepted is refused with the cure, and stays as it is."""
    client = Client()
    await client.websocket.accept()
    async with Backplane("memory://") as backplane:
        with pytest.raises(LifecycleError, match=r"connect\(\) accepts it, remove `await websocket\.accept\(\)`"):
            await echo(backplane, client, "a")
    assert client.sent_types == ["accept"]


@pytest.mark.parametrize("closed_by", ["the application", "the client", "a refusal"])
async def test_closed_already(closed_by: str) -> None:
    """A socket that is closed is refused."""
    client = Client(DENIAL_EXTENSION)
    async with Backplane("memory://") as backplane:
        if closed_by == "a refusal":
            with pytest.raises(WebSocketException, match="cannot be empty"):
                await echo(backplane, client, "")
        elif closed_by == "the application":
            await client.websocket.accept()
            await client.websocket.close()
        else:
            await client.websocket.accept()
            client.goes()
            await client.websocket.receive()
        sent = len(client.sent)
        with pytest.raises(ClosedError, match="closed already"):
            await echo(backplane, client, "a")
    assert len(client.sent) == sent


# --- a handler that receives past the connection -------------------------------------------------------------------


async def past_the_connection(backplane: Backplane, client: Client, **options: Any) -> list[str]:
    """Receive as a handler does that was written without the backplane; return what it received."""
    received: list[str] = []
    async with backplane.connect(client.websocket, "a", **options) as connection:
        driver_of(connection).timers.last_received_at = 0.0
        with suppress(WebSocketDisconnect):
            async for text in client.websocket.iter_text():
                received.append(text)
                assert driver_of(connection).timers.last_received_at > 0.0
        async for _ in connection:
            pytest.fail("received after the end")
    return received


async def test_receiving_past_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    """What is received past the connection is activity of its client, whose end ends it; logged once per process."""
    _warn_of_bypass.cache_clear()
    async with Backplane("memory://") as backplane:
        for _ in range(2):
            client = Client()
            client.sends("1", "2")
            client.goes()
            assert await ended(asyncio.create_task(past_the_connection(backplane, client))) == ["1", "2"]
        assert backplane.statistics().closed_by_client == 2
    lines = [record.getMessage() for record in caplog.records if record.name == "backplane.connection.receiver"]
    assert [line.partition(": ")[2] for line in lines] == [
        "use `async for message in connection` or `await connection.receive()` in its place"
    ]


@pytest.mark.parametrize(
    ("limits", "code"),
    [(Limits(max_message_bytes=10), 1009), (Limits(max_messages_per_second=1, max_burst=1), 4029)],
    ids=["size", "rate"],
)
async def test_limits_past_the_connection(limits: Limits, code: int) -> None:
    """The message over a limit does not reach a handler that receives past the connection, and ends it."""
    client = Client()
    async with Backplane("memory://") as backplane:
        handling = asyncio.create_task(past_the_connection(backplane, client, limits=limits))
        await client.gets(1)
        client.sends("small", "and this is over both")
        assert await ended(handling) == ["small"]
    assert client.sent[-1]["code"] == code


async def test_end_past_the_connection() -> None:
    """A handler that waits past the connection is woken at its end: the worker's, here."""
    client = Client()
    async with Backplane("memory://") as backplane:
        handling = asyncio.create_task(past_the_connection(backplane, client))
        await client.gets(1)
        await until_idle()
    assert await ended(handling) == []
    assert (client.sent_types, client.sent[-1]["code"]) == (["accept", "close"], 1012)


@pytest.mark.parametrize("ends", ["client", "worker"])
async def test_ignored_end_past_the_connection(ends: str) -> None:
    """A handler that ignores the end, which `receive` returns, gets Starlette's error: it could never wait again."""
    client = Client()
    received: list[str] = []

    async def ignore(backplane: Backplane) -> None:
        async with backplane.connect(client.websocket, "a"):
            received.append((await client.websocket.receive())["type"])
            received.append((await client.websocket.receive())["type"])

    async with Backplane("memory://") as backplane:
        handling = asyncio.create_task(ignore(backplane))
        await client.gets(1)
        await until_idle()
        if ends == "client":
            client.goes()
            await asyncio.wait([handling])
    await ended(handling)
    assert received == ["websocket.disconnect"]


# --- both ways -----------------------------------------------------------------------------------------------------


def test_both_ways_through_starlette() -> None:
    """Text and binary, empty too, go from one client over the backplane to all."""

    async def handle(websocket: WebSocket, backplane: Backplane) -> None:
        async with backplane.connect(websocket, "room") as connection:
            async for message in connection:
                await backplane.publish("room", message)

    with (
        served(handle) as client,
        client.websocket_connect("/") as one,
        client.websocket_connect("/") as other,
    ):
        for text in ("hello", "", "é😀"):
            one.send_text(text)
            assert (one.receive_text(), other.receive_text()) == (text, text)
        for data in (b"\x00\xff", b""):
            other.send_bytes(data)
            assert (one.receive_bytes(), other.receive_bytes()) == (data, data)


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ({"text": "x"}, "x"),
        ({"text": "x", "bytes": None}, "x"),
        ({"text": ""}, ""),
        ({"text": "", "bytes": None}, ""),
        ({"bytes": b"x"}, b"x"),
        ({"bytes": b"x", "text": None}, b"x"),
        ({"bytes": b""}, b""),
        ({"bytes": b"", "text": None}, b""),
    ],
    ids=str,
)
async def test_every_shape_of_a_received_event(event: dict[str, Any], expected: str | bytes) -> None:
    """A server may leave the other key out or set it to `None`; an empty message is a message."""
    client = Client()
    client.does({"type": "websocket.receive", **event})
    client.goes()
    async with Backplane("memory://") as backplane:
        received = await echo(backplane, client, "a")
    assert received == [expected]
    assert type(received[0]) is type(expected)


@pytest.mark.parametrize("data", ["", b"", "x", b"\xff"], ids=repr)
async def test_every_shape_of_a_sent_event(data: str | bytes) -> None:
    """Text is sent as text and binary as binary, empty too."""
    client = Client()
    async with Backplane("memory://") as backplane, backplane.connect(client.websocket) as connection:
        await connection.send(data)
    key = "text" if isinstance(data, str) else "bytes"
    assert client.sent[1] == {"type": "websocket.send", key: data}


# --- ends ----------------------------------------------------------------------------------------------------------


async def test_handler_returns() -> None:
    """The end of the handler sends what waits and closes with 1000."""
    client = Client()
    async with Backplane("memory://") as backplane:
        async with backplane.connect(client.websocket, "a"):
            await backplane.publish("a", "last")
        await backplane.publish("a", "not received")
        await until_idle()
    assert client.sent_types == ["accept", "send", "close"]
    assert client.sent[2] == {"type": "websocket.close", "code": 1000, "reason": "normal closure"}


def test_handler_returns_through_starlette() -> None:
    """The client sees the close of a handler that returned."""

    async def handle(websocket: WebSocket, backplane: Backplane) -> None:
        async with backplane.connect(websocket, "a") as connection:
            await connection.send("bye")

    with served(handle) as client, client.websocket_connect("/") as session:
        assert session.receive_text() == "bye"
        with pytest.raises(WebSocketDisconnect) as caught:
            session.receive_text()
    assert caught.value.code == 1000


async def test_handler_raises() -> None:
    """A handler that raises closes with 1011, without the reason for the client, and its exception goes on as it is."""
    client, error = Client(DENIAL_EXTENSION), KeyError("mine")

    async def handle(backplane: Backplane) -> None:
        async with backplane.connect(client.websocket, "a"):
            raise error

    async with Backplane("memory://") as backplane:
        with pytest.raises(KeyError) as caught:
            await handle(backplane)
    assert caught.value is error
    assert client.sent_types == ["accept", "close"]
    assert client.sent[1] == {"type": "websocket.close", "code": 1011, "reason": "internal error"}


async def test_client_disconnects() -> None:
    """A client that goes away ends the iteration; nothing more is sent to it, a close neither."""
    client = Client()
    client.sends("1", "2")
    client.goes()
    async with Backplane("memory://") as backplane:
        assert await echo(backplane, client, "a") == ["1", "2"]
        await backplane.publish("a", "not received")
        await until_idle()
    assert "close" not in client.sent_types


def test_client_disconnects_through_starlette() -> None:
    """The handler of a client that goes away comes to its end."""
    ends: list[str] = []

    async def handle(websocket: WebSocket, backplane: Backplane) -> None:
        async with backplane.connect(websocket, "a") as connection:
            async for _ in connection:
                pytest.fail("the client sent nothing")
            ends.append(repr(connection).split()[2])

    with served(handle) as client:
        with client.websocket_connect("/") as session:
            session.close(1001)
            # The session cancels a handler that has not ended when its block does.
            session.portal.call(until_idle)
        assert ends == ["closed"]


async def after_a_send_that_fails(error: Exception) -> tuple[Client, dict[str, int]]:
    """Publish to a client whose send raises `error`; return it, and the counts, once its iteration has ended."""
    client = Client()
    async with Backplane("memory://") as backplane:
        handling = asyncio.create_task(echo(backplane, client, "a"))
        await client.gets(1)
        await until_idle()
        client.errors["websocket.send"] = error
        await backplane.publish("a", "x")
        assert await ended(handling) == []
        return client, backplane.statistics().as_dict()


@pytest.mark.parametrize(
    "error",
    [
        OSError("the server's own"),
        ConnectionResetError(errno.ECONNRESET, "reset"),
        RuntimeError("Unexpected ASGI message 'websocket.send', after sending 'websocket.close'."),
        ValueError("Unexpected message type, websocket.send given the state ASGIWebsocketState.CLOSED"),
        RuntimeError("Attempt to send on a closed protocol"),
        WebSocketDisconnect(1006),
        ExceptionGroup("a task group of a middleware", [OSError("the server's own")]),
    ],
    ids=["os", "system", "uvicorn", "hypercorn", "daphne", "gone", "group"],
)
async def test_client_gone_while_sending(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """A send to a client that is gone is an ordinary end, whatever the server raises: the iteration ends, no log."""
    await after_a_send_that_fails(error)
    assert [record.getMessage() for record in caplog.records if record.name != "backplane.broker.link_state"] == []


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("a middleware's own"),
        TimeoutError(),
        ConnectionRefusedError(errno.ECONNREFUSED, "the middleware's collector"),
        ExceptionGroup("a task group", [OSError("the server's own"), KeyError("a fault")]),
    ],
    ids=["runtime", "timeout", "os", "group"],
)
async def test_fault_while_sending(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """A send that fails while the client is there is a fault: closed with 1011, one log line, counted."""
    client, statistics = await after_a_send_that_fails(error)
    assert (client.sent_types, client.sent[-1]["code"]) == (["accept", "close"], 1011)
    lines = [record for record in caplog.records if record.name != "backplane.broker.link_state"]
    assert [line.levelname for line in lines] == ["ERROR"]
    assert lines[0].getMessage().endswith("failed: closing it")
    assert lines[0].exc_info is not None
    assert (statistics["closed_internal_error"], statistics["closed_by_client"]) == (1, 0)


async def test_state_of_a_client_that_is_gone() -> None:
    """A send that finds the client gone leaves the WebSocket as Starlette's own send does: nothing more is sent."""
    client, _ = await after_a_send_that_fails(OSError("the server's own"))
    assert client.websocket.application_state is WebSocketState.DISCONNECTED
    with pytest.raises(RuntimeError):
        await client.websocket.send_text("x")


class LoudWebSocket(WebSocket):
    """A WebSocket of an application, which changes what is sent."""

    async def send(self, message: Event) -> None:
        """Send in upper case."""
        if "text" in message:
            message["text"] = message["text"].upper()
        await WebSocket.send(self, message)


async def sent_of(client: Client) -> Event:
    """Return what the client is sent for a published `x`."""
    async with Backplane("memory://") as backplane, backplane.connect(client.websocket, "a"):
        await backplane.publish("a", "x")
        return (await client.gets(2))[1]


@pytest.mark.parametrize("how", ["class", "object"])
async def test_send_of_the_application(how: str) -> None:
    """A `send` that the application has put in place of Starlette's is called."""
    client = Client()
    if how == "class":
        scope, send = client.websocket.scope, client._send  # pyright: ignore[reportPrivateUsage]
        client.websocket = LoudWebSocket(scope, client._receive, send)  # pyright: ignore[reportPrivateUsage]
    else:
        client.websocket.send = partial(LoudWebSocket.send, client.websocket)  # type: ignore[method-assign, arg-type]
    assert (await sent_of(client))["text"] == "X"


@pytest.mark.parametrize("is_coroutine_function", [True, False])
async def test_any_send_runs_in_the_task_of_the_client(*, is_coroutine_function: bool) -> None:
    """All of a `send` runs in a task and in the client's Context, also of a function that returns an awaitable."""
    client = Client()
    send, seen = client._send, set[tuple[str, bool]]()  # pyright: ignore[reportPrivateUsage]

    def wrapped(event: Event) -> Coroutine[Any, Any, None]:
        if event["type"] == "websocket.send":
            seen.add((user.get(), asyncio.current_task() is not None))
        return send(event)

    async def wrapped_too(event: Event) -> None:
        await wrapped(event)

    client.websocket._send = wrapped_too if is_coroutine_function else wrapped  # pyright: ignore[reportPrivateUsage]
    token = user.set("alice")
    async with Backplane("memory://") as backplane, backplane.connect(client.websocket, "a"):
        user.reset(token)
        asyncio.get_running_loop().call_soon(asyncio.ensure_future, backplane.publish("a", "x"), context=Context())
        await client.gets(2)
    assert seen == {("alice", True)}


async def test_client_gone_at_the_close() -> None:
    """A close that does not reach the client is an ordinary end too."""
    client = Client()
    client.errors["websocket.close"] = OSError("broken pipe")
    async with Backplane("memory://") as backplane, backplane.connect(client.websocket, "a") as connection:
        await connection.close()
    assert client.sent_types == ["accept"]


async def test_close_by_the_handler() -> None:
    """The code and reason of the handler reach the client, and its later end adds nothing."""
    client = Client()
    async with Backplane("memory://") as backplane, backplane.connect(client.websocket, "a") as connection:
        await connection.close(4001, "kicked")
        assert [message async for message in connection] == []
        await connection.send("too late")
    assert client.sent_types == ["accept", "close"]
    assert client.sent[1] == {"type": "websocket.close", "code": 4001, "reason": "kicked"}


async def test_close_from_elsewhere_ends_the_handler() -> None:
    """A close by another task wakes the handler that iterates."""
    client = Client()
    entered: list[Connection] = []

    async def handle(backplane: Backplane) -> None:
        async with backplane.connect(client.websocket, "a") as connection:
            entered.append(connection)
            async for _ in connection:
                pytest.fail("the client sent nothing")

    async with Backplane("memory://") as backplane:
        handling = asyncio.create_task(handle(backplane))
        await client.gets(1)
        await until_idle()
        await entered[0].close(4001, "kicked")
        await ended(handling)
    assert [event.get("code") for event in client.sent] == [None, 4001]


async def test_closed_past_the_connection() -> None:
    """A handler that closes the raw socket has its iteration end all the same."""
    client = Client()
    async with Backplane("memory://") as backplane, backplane.connect(client.websocket, "a") as connection:
        await client.websocket.close(4002)
        assert [message async for message in connection] == []
    assert client.sent_types == ["accept", "close"]


# --- refusals and options ------------------------------------------------------------------------------------------


def browser(origin: str | None, host: str = "shop.example", *, extensions: dict[str, Any] | None = None) -> Client:
    """Return a client on a page of `origin`, which wants to reach `host`."""
    client = Client(DENIAL_EXTENSION if extensions is None else extensions)
    headers = [(b"host", host.encode()), *([] if origin is None else [(b"origin", origin.encode())])]
    client.websocket.scope["headers"] = headers
    client.websocket.scope["client"] = ("192.0.2.1", 4711)
    return client


async def refusal(backplane: Backplane, client: Client, *channels: str, **options: Any) -> tuple[Exception, int, str]:
    """Return why a client is refused, and the answer to its handshake."""
    with pytest.raises(WebSocketException) as caught:
        async with backplane.connect(client.websocket, *channels, **options):
            pytest.fail("the block was entered")
    cause = caught.value.__cause__
    assert isinstance(cause, Exception)
    start, body = client.sent
    return cause, start["status"], body["body"].decode()


async def is_admitted(backplane: Backplane, client: Client, **options: Any) -> bool:
    """Return whether a client is accepted."""
    async with backplane.connect(client.websocket, **options):
        return client.sent_types == ["accept"]


async def test_page_of_another_site() -> None:
    """A page of another site is refused with 403 and words, before anything is joined, and counted."""
    async with Backplane("memory://") as backplane:
        error, status, words = await refusal(backplane, browser("https://evil.example"), "a")
        assert (type(error), status, words) == (OriginRefusedError, 403, str(error))
        assert "evil.example" in words
        assert (await backplane.health()).connections == 0
        assert backplane.statistics().refused_origins == 1
        assert await is_admitted(backplane, browser("https://shop.example"))
        assert await is_admitted(backplane, browser(None))


@pytest.mark.parametrize(
    ("allowed", "origin", "admitted"),
    [
        (["https://app.example"], "https://app.example", True),
        (["https://app.example"], "https://shop.example", False),
        ("*", "https://evil.example", True),
    ],
    ids=["named", "own host not named", "all"],
)
async def test_allowed_origins(allowed: Any, origin: str, admitted: bool) -> None:
    """The application names the sites whose pages may connect, in place of its own host."""
    async with Backplane("memory://", allowed_origins=allowed) as backplane:
        if admitted:
            assert await is_admitted(backplane, browser(origin))
        else:
            error, status, _ = await refusal(backplane, browser(origin))
            assert (type(error), status) == (OriginRefusedError, 403)


async def test_allowed_hosts() -> None:
    """The application names this host, so that a page whose own name leads here is refused."""
    async with Backplane("memory://", allowed_hosts=["localhost"]) as backplane:
        error, status, words = await refusal(backplane, browser("https://shop.example"))
        assert (type(error), status) == (OriginRefusedError, 403)
        assert "none of allowed_hosts" in words
    async with Backplane("memory://", allowed_hosts=["shop.example"]) as backplane:
        assert await is_admitted(backplane, browser("https://shop.example"))


def test_refusal_through_the_framework(caplog: pytest.LogCaptureFixture) -> None:
    """The framework treats a refusal as an ordinary end: the client reads the reason, and no traceback is logged."""

    async def handle(websocket: WebSocket, backplane: Backplane) -> None:
        async with backplane.connect(websocket, "a"):
            pytest.fail("the block was entered")

    with (
        served(handle) as client,
        pytest.raises(WebSocketDenialResponse) as caught,
        client.websocket_connect("/", headers={"origin": "https://evil.example"}),
    ):
        pytest.fail("the client was accepted")
    assert (caught.value.status_code, "evil.example" in caught.value.text) == (403, True)
    assert [record for record in caplog.records if record.exc_info] == []


async def test_too_many_connections() -> None:
    """One client more than allowed is refused with 429 and when to try again; one that leaves makes room."""
    async with Backplane("memory://", settings=Settings(max_connections=1)) as backplane:
        async with backplane.connect(browser(None).websocket):
            client = browser(None)
            error, status, words = await refusal(backplane, client)
            assert (type(error), status, "try again later" in words) == (TooManyConnectionsError, 429, True)
            assert 2 <= int(dict(client.sent[0]["headers"])[b"retry-after"]) <= 8
            assert (await backplane.health()).connections == 1
        assert await is_admitted(backplane, browser(None))
        assert backplane.statistics().refused_connections == 1


async def test_too_many_connections_of_one_client() -> None:
    """Connections are counted by the client's address, or by the key that the application gives."""
    async with Backplane("memory://", limits=Limits(max_connections_per_client=1)) as backplane:
        async with (
            backplane.connect(browser(None).websocket),
            backplane.connect(browser(None).websocket, client_key="alice"),
            backplane.connect(browser(None).websocket, client_key="bob"),
        ):
            for options in ({}, {"client_key": "alice"}):
                error, status, words = await refusal(backplane, browser(None), **options)
                assert (type(error), status, words) == (
                    TooManyConnectionsError,
                    429,
                    "a client may have 1 connections",
                )
            elsewhere = browser(None)
            elsewhere.websocket.scope["client"] = ("192.0.2.2", 4711)
            assert await is_admitted(backplane, elsewhere)
        assert await is_admitted(backplane, browser(None))
        assert await is_admitted(backplane, browser(None), client_key="alice")


async def test_connections_of_one_client_by_the_limits_of_the_call() -> None:
    """Limits of one connection replace those of the backplane, the number of connections of its key too."""
    async with Backplane("memory://", limits=Limits(max_connections_per_client=1)) as backplane:
        two = Limits(max_connections_per_client=2)
        async with (
            backplane.connect(browser(None).websocket, client_key="alice"),
            backplane.connect(browser(None).websocket, client_key="alice", limits=two),
        ):
            for limits, most in ((None, 1), (two, 2)):
                error, status, words = await refusal(backplane, browser(None), client_key="alice", limits=limits)
                assert (type(error), status) == (TooManyConnectionsError, 429)
                assert words == f"a client may have {most} connections"
            assert await is_admitted(backplane, browser(None), client_key="alice", limits=Limits())


@pytest.mark.parametrize(
    ("channels", "expected"),
    [(["a", "b"], TooManyChannelsError), (["secret"], JoinRefusedError)],
    ids=["too many", "not authorized"],
)
async def test_refused_join_at_the_handshake(channels: list[str], expected: type[Exception]) -> None:
    """A client that is to join more channels than allowed, or one it may not receive, is refused with 403."""
    backplane = Backplane("memory://", limits=Limits(max_channels=1))
    backplane.authorize(lambda _, channel: channel != "secret")
    async with backplane:
        error, status, words = await refusal(backplane, browser(None), *channels)
        assert (type(error), status, words) == (expected, 403, str(error))


async def test_authorize_sees_the_context() -> None:
    """The application's own object stands on the connection when it is asked, and in the handler."""
    user, asked = object(), list[tuple[object, str]]()
    backplane = Backplane("memory://")

    @backplane.authorize
    async def may_join(connection: Connection, channel: str) -> bool:
        asked.append((connection.context, channel))
        await asyncio.sleep(0)
        return True

    async with backplane:
        async with backplane.connect(browser(None).websocket, "a", "b", context=user) as connection:
            assert connection.context is user
        assert asked == [(user, "a"), (user, "b")]
        async with backplane.connect(browser(None).websocket) as connection:
            assert connection.context is None


async def test_permission_that_runs_out() -> None:
    """A client whose permission runs out is closed with 4001, and counted."""
    client = browser(None)
    async with Backplane("memory://") as backplane:
        async with backplane.connect(client.websocket, "a", expires_at=time.time() + EXPIRY_SECONDS) as connection:
            assert [message async for message in connection] == []
        assert client.sent[1] == {"type": "websocket.close", "code": 4001, "reason": "expired"}
        assert backplane.statistics().closed_expired == 1


async def test_limits_of_one_client() -> None:
    """The limits of the call go before those of the backplane."""
    async with Backplane("memory://", limits=Limits(max_message_bytes=1)) as backplane:
        for limits, code in ((None, 1009), (Limits(max_message_bytes=2), 1000)):
            client = browser(None)
            client.sends("12")
            async with backplane.connect(client.websocket, limits=limits) as connection:
                assert await connection.receive() == (None if limits is None else "12")
            assert client.sent[-1]["code"] == code


async def test_slow_clients_are_notified_and_counted() -> None:
    """`on_slow` is called for the client that is closed for being too slow, and it is counted."""
    slow: list[tuple[Connection, str]] = []
    client = browser(None)
    held = asyncio.Event()
    send = client.websocket.send

    async def stall(event: Event) -> None:
        if event["type"] == "websocket.send":
            await held.wait()
        await send(event)

    client.websocket.send = stall  # type: ignore[method-assign,assignment]
    backplane = Backplane("memory://")
    backplane.on_slow(lambda consumer: slow.append((consumer.connection, consumer.action)))
    async with backplane:
        async with backplane.connect(client.websocket, "a", backlog=Backlog(max_messages=1)) as connection:
            for text in "123":
                await backplane.publish("a", text)
            assert [message async for message in connection] == []
        assert slow == [(connection, "closed")]
        assert backplane.statistics().closed_slow == 1
    assert backplane.statistics() == Statistics()


def test_stream_and_typed_channel() -> None:
    """What a typed channel publishes reaches a WebSocket and an event stream of the same backplane."""
    backplane = Backplane("memory://", settings=Settings(max_connections=1))
    numbers = backplane.channel("numbers:{id}", int)
    app = FastAPI(lifespan=backplane.lifespan)

    @app.get("/stream")
    async def stream(request: Request) -> Response:
        return backplane.sse(request, "numbers:1")

    @app.websocket("/")
    async def socket(websocket: WebSocket) -> None:
        async with backplane.connect(websocket, "numbers:1"):
            await numbers.publish(42, id=1)
            await asyncio.Event().wait()

    with TestClient(app) as client, client.websocket_connect("/") as session:
        assert session.receive_text() == "42"
        refused = client.get("/stream")  # the place is taken: streams count as well
        assert (refused.status_code, int(refused.headers["retry-after"]) in range(2, 9)) == (429, True)


# --- handed over -----------------------------------------------------------------------------------------------------


def test_nothing_of_the_framework_is_left() -> None:
    """After a hand-over neither the WebSocket, the scope, the handler nor the protocol is kept, in no cycle either."""
    kept: list[ref[object]] = []
    connections: list[Connection] = []
    app = FastAPI()

    class Owned:
        """What belongs to the scope."""

    async def run() -> None:
        async with Backplane("memory://") as backplane:
            session = Session(hand_over=True, application=app)

            @app.websocket("/")
            async def handle(websocket: WebSocket) -> None:
                websocket.state.owned = Owned()
                kept.extend([ref(websocket), ref(websocket.state.owned)])
                tasks.append(ref(cast("object", asyncio.current_task())))
                await backplane.hand_over(websocket, "a", on_open=connections.append)
                for use in (websocket.receive_text(), websocket.send_text("too late"), websocket.close()):
                    with pytest.raises(RuntimeError):
                        await use
                session.accepted.set()

            tasks: list[ref[object]] = []
            await session.open()
            kept.append(ref(session.first))
            del session.first
            assert [reference() for reference in kept + tasks] == [None] * 4
            await backplane.publish("a", "1")
            assert connections[0].state == "open"
            await session.settle()
            assert session.transport.written == [b"\x81\x011"]
            await connections[0].close(4700, "enough")
            await session.settle()
            assert session.transport.written[1:] == [b"\x88\x08\x12\x5cenough"]
            await session.end()
            assert connections[0].is_over

    with collections_off():
        asyncio.run(run())


async def test_errors_of_a_client_that_was_handed_over() -> None:
    """What its transport raises for a client that is gone is no fault; a middleware has no part in it any more."""
    lane = Mock()
    socket = HandedOverSocket(lane)
    assert socket.is_gone(ConnectionResetError(errno.ECONNRESET, "reset"))
    assert not socket.is_gone(OSError(errno.ENOENT, "no file"))
    assert not socket.is_gone(RuntimeError("a fault"))
    ending = socket.ending(WebSocketException(4600, "away"))
    assert ending is not None
    assert (ending.code, socket.ending(KeyError())) == (4600, None)
    await socket.close(4000, "bye")
    assert lane.close_with.mock_calls == [call(4000, "bye")]
