"""Pure ASGI middlewares around `send`: each runs in a task, with the Context of the client that it sends to."""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs
from weakref import WeakKeyDictionary

import anyio
import anyio.lowlevel
import anyio.to_thread
import httpx
import pytest
import uvicorn
from httpx_ws import AsyncWebSocketSession, aconnect_ws
from httpx_ws.transport import ASGIWebSocketTransport
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware  # pyright: ignore[reportMissingTypeStubs]
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import get_current_span
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from uvicorn.server import ServerState
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from backplane import Backplane, Limits

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send
    from starlette.websockets import WebSocket

pytestmark = pytest.mark.anyio

WAIT_SECONDS: Final = 60.0
# More than a transport buffers before a send waits.
LARGE: Final = "x" * 300_000

user: ContextVar[str] = ContextVar("user", default="")
sending: ContextVar[str | None] = ContextVar("sending", default=None)


@pytest.fixture
def anyio_backend() -> str:
    """One event loop: tasks are the same on the other."""
    return "asyncio"


# --- middlewares ---------------------------------------------------------------------------------------------------


async def in_time(send: Send, message: Message) -> None:
    """Within a timeout of asyncio."""
    async with asyncio.timeout(WAIT_SECONDS):
        await send(message)


async def waited_for(send: Send, message: Message) -> None:
    """Within a timeout that may use a task of its own."""
    await asyncio.wait_for(send(message), WAIT_SECONDS)


async def in_time_of_anyio(send: Send, message: Message) -> None:
    """Within a timeout of anyio."""
    with anyio.fail_after(WAIT_SECONDS):
        await send(message)


async def shielded(send: Send, message: Message) -> None:
    """Shielded from a cancellation, with a checkpoint before and after."""
    with anyio.CancelScope(shield=True):
        await anyio.lowlevel.checkpoint()
        await send(message)
        await anyio.lowlevel.checkpoint()


async def after_an_expired_scope(send: Send, message: Message) -> None:
    """After work that is cancelled by a timeout."""
    with anyio.move_on_after(0) as scope:
        await anyio.sleep(WAIT_SECONDS)
    assert scope.cancelled_caught
    await send(message)


async def in_a_task_group(send: Send, message: Message) -> None:
    """In a task of a group of asyncio."""
    async with asyncio.TaskGroup() as group:
        group.create_task(send(message))  # type: ignore[arg-type]


async def in_a_task_group_of_anyio(send: Send, message: Message) -> None:
    """In a task of a group of anyio."""
    async with anyio.create_task_group() as group:
        group.start_soon(send, message)  # type: ignore[arg-type]


async def after_a_thread(send: Send, message: Message) -> None:
    """After work in a thread, which sees the client's variables."""
    assert await anyio.to_thread.run_sync(user.get) == user.get()
    await send(message)


async def with_variables(send: Send, message: Message) -> None:
    """With a variable that is set during the send, and must not be set before."""
    assert sending.get() is None
    token = sending.set("one")
    try:
        await send(message)
    finally:
        sending.reset(token)


sessions: WeakKeyDictionary[asyncio.Task[Any], str] = WeakKeyDictionary()


async def with_a_session(send: Send, message: Message) -> None:
    """With a session of the current task, like SQLAlchemy's `async_scoped_session`, ended with the task."""
    task = asyncio.current_task()
    assert task is not None
    assert sessions.setdefault(task, user.get()) == user.get()
    task.add_done_callback(sessions.pop)
    await send(message)


class Locked:
    """One send at a time for all clients."""

    def __init__(self) -> None:
        self._locks = asyncio.Lock(), anyio.Lock()

    async def __call__(self, send: Send, message: Message) -> None:
        """Send with the locks held."""
        lock, other = self._locks
        async with lock, other:
            await asyncio.sleep(0)
            await send(message)


class Renewed:
    """After a renewal, such as of a token, that concurrent sends share."""

    def __init__(self) -> None:
        self._renewing: asyncio.Task[None] | None = None

    async def __call__(self, send: Send, message: Message) -> None:
        """Send after the renewal."""
        if self._renewing is None:
            self._renewing = asyncio.create_task(asyncio.sleep(0.01))
        await self._renewing
        self._renewing = None
        await send(message)


MIDDLEWARES: Final[dict[str, Callable[[], Callable[[Send, Message], Awaitable[None]]]]] = {
    "asyncio.timeout": lambda: in_time,
    "asyncio.wait_for": lambda: waited_for,
    "anyio.fail_after": lambda: in_time_of_anyio,
    "anyio.CancelScope": lambda: shielded,
    "anyio.move_on_after": lambda: after_an_expired_scope,
    "asyncio.TaskGroup": lambda: in_a_task_group,
    "anyio.create_task_group": lambda: in_a_task_group_of_anyio,
    "anyio.to_thread": lambda: after_a_thread,
    "ContextVar": lambda: with_variables,
    "session of a task": lambda: with_a_session,
    "locks": Locked,
    "shared renewal": Renewed,
}


def wrapped(app: ASGIApp, around_send: Callable[[Send, Message], Awaitable[None]]) -> ASGIApp:
    """Return a pure ASGI middleware."""

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_around(message: Message) -> None:
            await around_send(send, message)

        await app(scope, receive, send_around)

    return middleware


# --- the application and its clients -------------------------------------------------------------------------------


class ChatApp:
    """A chat room in a middleware, between one that names the client and one that records its sends.

    Attributes:
        seen: For each message sent, its client, and the client whose variables the innermost `send` has.
        traces: For each client the traces in which messages were sent to it, its handshake included.
        app: The application.
    """

    def __init__(self, backplane: Backplane, middleware: Callable[[ASGIApp], ASGIApp]) -> None:
        self._backplane = backplane
        self.seen: list[tuple[str, str]] = []
        self.traces: dict[str, set[int]] = {}
        self.app = self._recorded(middleware(self._identified(Starlette(routes=[WebSocketRoute("/", self._handle)]))))

    async def _handle(self, websocket: WebSocket) -> None:
        async with self._backplane.connect(websocket, "room") as connection:
            async for message in connection:
                await self._backplane.publish("room", message)

    def _identified(self, app: ASGIApp) -> ASGIApp:
        async def identify(scope: Scope, receive: Receive, send: Send) -> None:
            user.set(name(scope))
            await app(scope, receive, send)

        return identify

    def _recorded(self, app: ASGIApp) -> ASGIApp:
        async def record(scope: Scope, receive: Receive, send: Send) -> None:
            async def send_recorded(message: Message) -> None:
                assert asyncio.current_task() is not None
                self.traces.setdefault(name(scope), set()).add(get_current_span().get_span_context().trace_id)
                if message["type"] == "websocket.send":
                    self.seen.append((name(scope), user.get()))
                await send(message)

            await app(scope, receive, send_recorded)

        return record


def name(scope: Scope) -> str:
    """Return the name that the client sends."""
    query: bytes = scope["query_string"]
    return parse_qs(query.decode())["user"][0]


@asynccontextmanager
async def clients(app: ASGIApp, *names: str) -> AsyncGenerator[list[ClientConnection]]:
    """Serve an application by Uvicorn's own protocol on real sockets in this event loop; yield its clients."""
    config = uvicorn.Config(app, ws="websockets-sansio", log_config=None, lifespan="off")
    config.load()
    loop, state = asyncio.get_running_loop(), ServerState()
    protocol: Any = config.ws_protocol_class
    async with AsyncExitStack() as stack:
        opened: list[ClientConnection] = []
        for user_name in names:
            server_side, client_side = socket.socketpair()
            server_side.setblocking(False)
            client_side.setblocking(False)
            accepted = partial(protocol, config=config, server_state=state, app_state={})
            await loop.connect_accepted_socket(accepted, sock=server_side)
            opened.append(await stack.enter_async_context(connect(f"ws://test/?user={user_name}", sock=client_side)))
        yield opened
    async with asyncio.timeout(WAIT_SECONDS):
        while state.tasks:
            await asyncio.wait(state.tasks)


@pytest.fixture
async def backplane() -> AsyncIterator[Backplane]:
    """A started backplane."""
    async with Backplane("memory://", limits=Limits(max_message_bytes=2 * len(LARGE))) as started:
        yield started


@pytest.mark.parametrize("made", MIDDLEWARES.values(), ids=MIDDLEWARES)
async def test_middleware(
    made: Callable[[], Callable[[Send, Message], Awaitable[None]]],
    backplane: Backplane,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Every message passes, small ones and those that wait, with the variables of its client."""
    around = made()
    chat = ChatApp(backplane, lambda app: wrapped(app, around))
    async with clients(chat.app, "alice", "mallory") as (alice, mallory):
        await backplane.publish("room", "of no client")
        assert [await alice.recv(), await mallory.recv()] == ["of no client"] * 2
        for number in range(6):
            sent = f"{number}{LARGE if number % 2 else ''}"
            await mallory.send(sent)
            assert await mallory.recv() == sent
        async with asyncio.timeout(WAIT_SECONDS):
            assert [(await alice.recv())[0] for _ in range(6)] == list("012345")
    assert {client for client, _ in chat.seen} == {"alice", "mallory"}
    assert [pair for pair in chat.seen if pair[0] != pair[1]] == []
    assert [record.getMessage() for record in caplog.records if record.levelname in {"WARNING", "ERROR"}] == []
    assert backplane.statistics().closed_internal_error == 0


async def test_opentelemetry(backplane: Backplane, caplog: pytest.LogCaptureFixture) -> None:
    """With OpenTelemetry's middleware every send is in the trace of its own client, whichever client published."""
    chat = ChatApp(backplane, partial(OpenTelemetryMiddleware, tracer_provider=TracerProvider()))
    async with clients(chat.app, "alice", "mallory") as (alice, mallory):
        for sent in ("one", LARGE, LARGE, "two"):
            await mallory.send(sent)
            assert await mallory.recv() == sent
        assert [await alice.recv() for _ in range(4)] == ["one", LARGE, LARGE, "two"]
    of_alice, of_mallory = chat.traces["alice"], chat.traces["mallory"]
    assert (len(of_alice), len(of_mallory), of_alice & of_mallory) == (1, 1, set())
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []  # "failed to detach"
    assert [pair for pair in chat.seen if pair[0] != pair[1]] == []


async def test_client_of_httpx_ws(backplane: Backplane) -> None:
    """The test client of httpx-ws, whose `send` is a stream of anyio, receives messages."""
    chat = ChatApp(backplane, lambda app: app)
    alice: AsyncWebSocketSession
    mallory: AsyncWebSocketSession
    async with (
        ASGIWebSocketTransport(app=chat.app) as transport,
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        aconnect_ws("http://test/?user=alice", client) as alice,
        aconnect_ws("http://test/?user=mallory", client) as mallory,
    ):
        for sent in ("one", "two"):
            await mallory.send_text(sent)
            assert [await mallory.receive_text(WAIT_SECONDS), await alice.receive_text(WAIT_SECONDS)] == [sent] * 2
    assert [pair for pair in chat.seen if pair[0] != pair[1]] == []


async def test_middleware_that_fails(backplane: Backplane, caplog: pytest.LogCaptureFixture) -> None:
    """A middleware that fails on a broadcast is reported for the first clients, and each is closed with 1011."""

    async def fail(send: Send, message: Message) -> None:
        if message["type"] == "websocket.send":
            raise RuntimeError("no metrics today")
        await send(message)

    chat = ChatApp(backplane, lambda app: wrapped(app, fail))
    async with clients(chat.app, "alice", "mallory") as (alice, mallory):
        await backplane.publish("room", "x")
        for client in (alice, mallory):
            with pytest.raises(ConnectionClosed) as closed:
                await client.recv()
            assert closed.value.rcvd is not None
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1011, "internal error")
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert [error.partition("failed")[1:] for error in errors] == [("failed", ": closing it")] * 2
    assert backplane.statistics().closed_internal_error == 2
