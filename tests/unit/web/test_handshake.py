"""`backplane.web.handshake`: one client from its handshake to the end of its handler."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import anyio
import pytest

from backplane.connection.driver import ConnectionDriver
from backplane.connection.limits import Limits
from backplane.connection.policy import ConnectionPolicy
from backplane.errors import (
    AuthorizeTimeoutError,
    BrokerUnavailableError,
    ClosedError,
    InvalidChannelError,
    JoinRefusedError,
    OriginRefusedError,
    PermissionExpiredError,
    PublishError,
    PublishOutcomeUnknownError,
    SubscribeError,
    TooManyChannelsError,
    TooManyConnectionsError,
)
from backplane.fanout.backlog import Backlog
from backplane.fanout.outbox import Outbox
from backplane.web.handshake import ConnectionScope
from backplane.web.origin import OriginRule
from tests.unit.doubles import counted, until_idle
from tests.unit.kit import WAIT_SECONDS, RuntimeWorld
from tests.unit.sockets import FakeServerSocket, driver_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from backplane.connection.connection import Connection

pytestmark = pytest.mark.anyio


class Worker(RuntimeWorld):
    """A started backplane over a controlled broker, with the clients of a test.

    Attributes:
        driver: The connection that was made last.
        way: How `handle` serves a client: by a handler with `connect`, by callbacks in a handler, or handed over.
    """

    def __init__(self, way: str = "connect") -> None:
        super().__init__()
        self.way = way
        self.driver: ConnectionDriver | None = None
        self.watch_after_seconds = 0.5
        self.policy = ConnectionPolicy(
            authorize=lambda _, channel: channel != "secret",
            limits=Limits(max_channels=2, heartbeat_seconds=None, max_connections_per_client=1),
            statistics=self.runtime.statistics,
            journal=self.runtime.journal,
            keepalive=self.runtime.keepalive,
        )

    def scope(
        self,
        socket: FakeServerSocket,
        *channels: str,
        client_key: str | None = None,
        subprotocol: str | None = None,
        headers: list[tuple[bytes, bytes]] | None = None,
        after_accept: bool = False,
        expires_at: float | None = None,
    ) -> ConnectionScope:
        """Return the scope of this client's connection."""
        outbox = Outbox(Backlog(max_bytes=1_000, max_messages=10))
        self.driver = ConnectionDriver(socket, self.runtime.hub, outbox, self.policy)
        self.driver.connection.expire_at(expires_at)
        return ConnectionScope(
            self.runtime,
            socket,
            self.driver,
            origins=OriginRule(),
            channels=channels,
            client_key=client_key,
            subprotocol=subprotocol,
            headers=headers,
            after_accept=after_accept,
            max_per_client=self.policy.limits.max_connections_per_client,
            watch_after_seconds=self.watch_after_seconds,
        )

    def socket(self) -> FakeServerSocket:
        """Return a client, which can be handed over where that is the way."""
        return FakeServerSocket(lane=self.way == "handed over")

    async def handle(self, socket: FakeServerSocket, *channels: str) -> None:
        """Handle a client until it has left, within a bounded time."""
        scope, ended = self.scope(socket, *channels), asyncio.Event()

        def fail(*_: object) -> None:
            pytest.fail("the client sent nothing")

        async with asyncio.timeout(WAIT_SECONDS):
            if self.way != "connect":
                await scope.serve(on_open=None, on_message=fail, on_close=lambda _: ended.set())
                await ended.wait()
                return await until_idle()
            async with scope as connection:
                async for _ in connection:
                    fail()

    def assert_nothing_left(self) -> None:
        """Assert that no client is registered, that nothing is joined, and that no timer is set."""
        assert (list(self.runtime.clients.connected), list(self.runtime.hub.channels)) == ([], [])
        assert self.runtime.keepalive._timer is None  # pyright: ignore[reportPrivateUsage]


@pytest.fixture
async def worker() -> AsyncGenerator[Worker]:
    """A worker that has no client any more in the end."""
    made = Worker()
    async with made.linked():
        yield made
        made.assert_nothing_left()


@pytest.fixture(params=["connect", "callbacks", "handed over"])
async def each_worker(request: pytest.FixtureRequest) -> AsyncGenerator[Worker]:
    """The same, for each way in which it handles a client."""
    made = Worker(request.param)
    async with made.linked():
        yield made
        made.assert_nothing_left()


@asynccontextmanager
async def entered(worker: Worker, socket: FakeServerSocket, *channels: str) -> AsyncGenerator[asyncio.Task[None]]:
    """Handle a client, whose handler waits for messages."""
    handling = asyncio.create_task(worker.handle(socket, *channels))
    await socket.until(lambda: socket.accepted != [])
    await until_idle()
    yield handling
    await asyncio.wait([handling])


# --- the handshake -------------------------------------------------------------------------------------------------


async def test_joined_before_accepted(each_worker: Worker) -> None:
    """The handshake waits for the broker to confirm every channel; the first message waits for the handshake."""
    socket = each_worker.socket()
    each_worker.adapter.subscribe_gate.close()
    socket.accept_gate.close()
    handling = asyncio.create_task(each_worker.handle(socket, "a", "b"))
    await each_worker.adapter.until(lambda: each_worker.adapter.calls != [])
    await until_idle()
    assert socket.accepting == 0
    each_worker.adapter.subscribe_gate.open()
    await socket.until(lambda: socket.accepting == 1)
    assert set(each_worker.runtime.hub.channels) == {"a", "b"}
    each_worker.runtime.hub.deliver("a", b"early")
    await until_idle()
    assert socket.sent == []
    socket.accept_gate.open()
    await socket.receives("early")
    socket.receiver.put_nowait(None)
    await handling


async def test_accepted_with(worker: Worker) -> None:
    """The handler gets the connection, once the client is accepted with what the handler chose."""
    socket, headers = FakeServerSocket(), [(b"x-worker", b"7")]
    async with worker.scope(socket, subprotocol="chat.v2", headers=headers) as connection:
        assert worker.driver is not None
        assert connection is worker.driver.connection
        assert list(worker.runtime.clients.connected) == [worker.driver]
        assert socket.accepted == [("chat.v2", headers)]


async def test_page_of_another_site(each_worker: Worker, caplog: pytest.LogCaptureFixture) -> None:
    """A page of another site is refused before it takes a place or joins, counted, and logged."""
    socket = each_worker.socket()
    socket.origin = "https://evil.example"
    with pytest.raises(OriginRefusedError, match=r"evil\.example") as caught:
        await each_worker.handle(socket, "a")
    assert (socket.refusals, socket.accepting, each_worker.adapter.calls) == ([caught.value], 0, [])
    assert counted(each_worker.runtime.statistics) == {"connections_refused": 1, "refused_origins": 1}
    assert caplog.messages == [f"refused a WebSocket: {caught.value}"]


@pytest.mark.parametrize(
    ("channels", "error"),
    [
        (["a", ""], InvalidChannelError),
        (["a", "secret"], JoinRefusedError),
        (["a", "b", "c"], TooManyChannelsError),
        (["a", "theirs"], SubscribeError),
    ],
    ids=["illegal", "not authorized", "too many", "refused by the broker"],
)
async def test_refused_join(each_worker: Worker, channels: list[str], error: type[Exception]) -> None:
    """A client that may not join one of its channels is refused for that, and what it had joined is left."""
    socket = each_worker.socket()
    each_worker.adapter.refusals["theirs"] = "not permitted"
    with pytest.raises(error) as caught:
        await each_worker.handle(socket, *channels)
    assert (socket.refusals, socket.accepting, socket.closing) == ([caught.value], 0, 0)


async def test_broker_that_is_away_at_the_handshake(each_worker: Worker, caplog: pytest.LogCaptureFixture) -> None:
    """Clients refused because the broker is away are counted, wait for no turn, and write few lines to the log."""
    each_worker.runtime.broker_subscriptions.close()
    for _ in range(3):
        socket = each_worker.socket()
        with pytest.raises(BrokerUnavailableError):
            await asyncio.wait_for(each_worker.handle(socket, "a"), WAIT_SECONDS)
        assert (len(socket.refusals), socket.accepting, socket.closing) == (1, 0, 0)
    each_worker.runtime.journal.flush()
    assert counted(each_worker.runtime.statistics) == {"connections_refused": 3}
    words = "3 within 10 s, the last one: refused a WebSocket: the backplane was stopped"
    assert caplog.messages == [words]


async def test_broker_that_fails_in_a_task_group_of_the_block(worker: Worker) -> None:
    """A publish that fails in a task group of the handler ends it as one in the handler itself."""
    socket = FakeServerSocket()

    async def publish() -> None:
        raise BrokerUnavailableError("away; not published")

    async with worker.scope(socket, "a") as connection, asyncio.TaskGroup() as tasks:
        tasks.create_task(publish())
        async for _ in connection:
            pytest.fail("the client sent nothing")
    assert [code for code, _ in socket.closed] == [1013]


async def test_broker_that_fails_in_a_task_group_of_anyio(worker: Worker) -> None:
    """So does one in the task groups of anyio, whose errors are groups of groups."""
    socket = FakeServerSocket()

    async def publish() -> None:
        async with anyio.create_task_group() as inner:
            inner.start_soon(fail)

    async def fail() -> None:
        raise BrokerUnavailableError("away; not published")

    async with worker.scope(socket, "a") as connection, anyio.create_task_group() as tasks:
        tasks.start_soon(publish)
        async for _ in connection:
            pytest.fail("the client sent nothing")
    assert [code for code, _ in socket.closed] == [1013]


async def test_permission_that_has_run_out(worker: Worker) -> None:
    """A client whose permission has run out is refused before anything is joined for it, or accepted."""
    socket = FakeServerSocket()
    with pytest.raises(PermissionExpiredError):
        await block(worker.scope(socket, "a", expires_at=time.time() - 1), None)
    assert (socket.accepting, worker.adapter.calls) == (0, [])
    assert counted(worker.runtime.statistics) == {"connections_refused": 1}


async def test_permission_that_runs_out_while_it_is_joined(each_worker: Worker) -> None:
    """It is refused too if that happens while it is joined; `authorize` may set when."""
    socket = each_worker.socket()

    def authorize(connection: Connection, _: str) -> bool:
        connection.expire_at(time.time() - 1)
        return True

    each_worker.policy = replace(each_worker.policy, authorize=authorize)
    with pytest.raises(PermissionExpiredError):
        await each_worker.handle(socket, "a")
    assert (len(socket.refusals), socket.accepting) == (1, 0)


async def never_answer(connection: Connection, channel: str) -> bool:
    """Wait for ever."""
    await asyncio.Event().wait()
    return connection.id != channel


async def test_authorize_that_does_not_answer(each_worker: Worker, caplog: pytest.LogCaptureFixture) -> None:
    """A client waits for `authorize` no longer than its timeout, is refused for the moment, and logged."""
    each_worker.policy = replace(each_worker.policy, authorize=never_answer, authorize_timeout_seconds=0.01)
    for _ in range(2):
        socket = each_worker.socket()
        with pytest.raises(AuthorizeTimeoutError):
            await each_worker.handle(socket, "a")
        assert (len(socket.refusals), socket.accepting) == (1, 0)
    assert caplog.messages == ["authorize did not answer for 'a' within 0.01 s"] * 2


async def test_timeout_of_authorize_itself(each_worker: Worker) -> None:
    """A `TimeoutError` of the application is a fault of it, and goes on as it is."""

    async def authorize(*_: object) -> bool:
        raise TimeoutError("the database")

    each_worker.policy = replace(each_worker.policy, authorize=authorize)
    with pytest.raises(TimeoutError, match="the database"):
        await each_worker.handle(each_worker.socket(), "a")


async def test_client_that_leaves_while_it_is_joined(each_worker: Worker) -> None:
    """A client that leaves before it is accepted gives back its place and its joins at once."""
    each_worker.watch_after_seconds = 0
    socket = each_worker.socket()
    each_worker.adapter.subscribe_gate.close()
    handling = asyncio.create_task(each_worker.handle(socket, "a"))
    await each_worker.adapter.until(lambda: each_worker.adapter.calls != [])
    socket.receiver.put_nowait(None)
    with pytest.raises(ClosedError, match="left before it was accepted"):
        await asyncio.wait_for(handling, WAIT_SECONDS)
    assert socket.accepting == 0
    each_worker.adapter.subscribe_gate.open()


@pytest.mark.parametrize("failing", [False, True], ids=["stays", "cannot be watched"])
async def test_client_that_stays_while_it_is_joined(worker: Worker, failing: bool) -> None:
    """One that stays, or whose leaving the server cannot report, is accepted, and what it sends then is received."""
    worker.watch_after_seconds = 0
    socket = FakeServerSocket()
    worker.adapter.subscribe_gate.close()
    if failing:
        socket.receiver.put_nowait(RuntimeError("the server's own"))

    async def handle() -> str | bytes | None:
        async with worker.scope(socket, "a") as connection:
            return await connection.receive()
        return None

    handling = asyncio.create_task(handle())
    await worker.adapter.until(lambda: worker.adapter.calls != [])
    await until_idle()
    worker.adapter.subscribe_gate.open()
    await socket.until(lambda: socket.accepted != [])
    socket.receiver.put_nowait("first")
    assert await asyncio.wait_for(handling, WAIT_SECONDS) == "first"


async def test_refused_after_accept(worker: Worker) -> None:
    """With `after_accept` a refused client is accepted and closed, but for too many at a time or a foreign origin."""
    worker.runtime.clients.is_draining = True
    socket = FakeServerSocket()
    with pytest.raises(ClosedError):
        await block(worker.scope(socket, subprotocol="chat.v2", headers=[(b"x", b"y")], after_accept=True), None)
    assert (socket.accepted, [code for code, _ in socket.closed]) == ([("chat.v2", None)], [1012])
    foreign = FakeServerSocket()
    foreign.origin = "https://evil.example"
    with pytest.raises(OriginRefusedError):
        await block(worker.scope(foreign, after_accept=True), None)
    while worker.runtime.clients.reserve_refusal():
        pass
    late = FakeServerSocket()
    with pytest.raises(ClosedError):
        await block(worker.scope(late, after_accept=True), None)
    assert (foreign.accepting, late.accepting, len(late.refusals)) == (0, 0, 1)


async def test_client_of_a_worker_that_drains(each_worker: Worker) -> None:
    """A worker that drains refuses every client."""
    socket = each_worker.socket()
    each_worker.runtime.clients.is_draining = True
    with pytest.raises(ClosedError, match="connect again") as caught:
        await each_worker.handle(socket, "a")
    assert (socket.refusals, socket.accepting, each_worker.adapter.calls) == ([caught.value], 0, [])


@pytest.mark.parametrize("client_key", [None, "alice"])
async def test_whose_connection_it_is(worker: Worker, client_key: str | None) -> None:
    """A client is counted by the key it was given, else by its address; a refused one is not counted."""
    one, same, other = (FakeServerSocket() for _ in range(3))
    if client_key is None:
        other.address_key = bytes([192, 0, 2, 2])
    async with worker.scope(one, client_key=client_key):
        with pytest.raises(TooManyConnectionsError) as caught:
            async with worker.scope(same, client_key=client_key):
                pytest.fail("the block was entered")
        assert (same.refusals, same.accepting) == ([caught.value], 0)
        async with worker.scope(other, client_key=client_key and "bob"):
            assert len(worker.runtime.clients.connected) == 2
    async with worker.scope(FakeServerSocket(), client_key=client_key):
        pass


async def test_accept_that_fails(each_worker: Worker) -> None:
    """An error of the server in the handshake goes on as it is; it is no refusal, and nothing is left of the client."""
    socket = each_worker.socket()
    socket.accept_error = RuntimeError("the server's own")
    with pytest.raises(RuntimeError) as caught:
        await each_worker.handle(socket, "a")
    assert caught.value is socket.accept_error
    assert (socket.refusals, socket.closing) == ([], 0)


@pytest.mark.parametrize("at", ["join", "accept"])
async def test_cancelled_in_the_handshake(each_worker: Worker, at: str) -> None:
    """A handler that is cancelled before its client is accepted leaves nothing joined, and no task."""
    socket = each_worker.socket()
    (each_worker.adapter.subscribe_gate if at == "join" else socket.accept_gate).close()
    handling = asyncio.create_task(each_worker.handle(socket, "a"))
    if at == "join":
        await each_worker.adapter.until(lambda: each_worker.adapter.calls != [])
    else:
        await socket.until(lambda: socket.accepting == 1)
    handling.cancel()
    await asyncio.wait([handling])
    each_worker.adapter.subscribe_gate.open()
    assert (handling.cancelled(), socket.accepted, socket.closing) == (True, [], 0)


async def test_client_that_is_closed_in_the_handshake(each_worker: Worker) -> None:
    """The handler of a client that is closed while it is being accepted ends, and the client gets the close frame."""
    socket = each_worker.socket()
    socket.accept_gate.close()
    handling = asyncio.create_task(each_worker.handle(socket, "a"))
    await socket.until(lambda: socket.accepting == 1)
    for connection in list(each_worker.runtime.clients.connected):
        await connection.close(1012, "restart")
    socket.accept_gate.open()
    await handling
    assert socket.closed == [(1012, "restart")]


async def test_client_that_is_closed_while_it_is_joined(worker: Worker) -> None:
    """It is refused with the code and the reason of that close: `authorize` may close it and allow the join."""

    async def authorize(connection: Connection, _: str) -> bool:
        await connection.close(4503, "banned")
        return True

    worker.policy = replace(worker.policy, authorize=authorize)
    socket = FakeServerSocket()
    with pytest.raises(JoinRefusedError, match="banned"):
        await block(worker.scope(socket, "a", after_accept=True), None)
    assert socket.closed == [(4503, "banned")]


# --- the end of the block ------------------------------------------------------------------------------------------


async def block(scope: ConnectionScope, error: BaseException | None) -> None:
    """Enter, then raise or return."""
    async with scope:
        if error is not None:
            raise error


@pytest.mark.parametrize(
    ("error", "code", "raised"),
    [
        (None, 1000, False),
        (JoinRefusedError("not this one"), 4503, False),
        (TooManyChannelsError("not so many"), 4513, False),
        (ClosedError("of a subscription"), 1011, True),
        (KeyError("mine"), 1011, True),
        (PublishError("refused"), 1013, False),
        (BrokerUnavailableError("away"), 1013, False),
        (PublishOutcomeUnknownError("no answer"), 1013, False),
        (SubscribeError({}, unconfirmed={"b": "busy"}), 1013, False),
        (SubscribeError({"b": "not permitted"}), 4503, False),
        (OriginRefusedError("of something else"), 1011, True),
        (ExceptionGroup("several", [JoinRefusedError("not this one")]), 4503, False),
        (ExceptionGroup("several", [BrokerUnavailableError("away"), KeyError("mine")]), 1011, True),
        (asyncio.CancelledError(), None, True),
        (KeyboardInterrupt(), None, True),
    ],
    ids=repr,
)
async def test_end(worker: Worker, error: BaseException | None, code: int | None, raised: bool) -> None:
    """The end of the block decides with which code the client is closed, if at all, and whether the handler raises."""
    socket = FakeServerSocket()
    caught: BaseException | None = None
    try:
        await block(worker.scope(socket, "a"), error)
    except BaseException as left:
        caught = left
    assert caught is (error if raised else None)
    assert ([closed for closed, _ in socket.closed], socket.refusals) == ([] if code is None else [code], [])
    worker.assert_nothing_left()


ENDS = [
    (None, None),
    (JoinRefusedError("not this one"), 4503),
    (TooManyChannelsError("not so many"), 4513),
    (ClosedError("of a subscription"), 1011),
    (KeyError("mine"), 1011),
    (BrokerUnavailableError("away"), 1013),
    (SubscribeError({"b": "not permitted"}), 4503),
    (ExceptionGroup("several", [BrokerUnavailableError("away"), KeyError("mine")]), 1011),
    (asyncio.CancelledError(), None),
]


@pytest.mark.parametrize("when", ["open", "message"])
@pytest.mark.parametrize(("error", "code"), ENDS, ids=[repr(error) for error, _ in ENDS])
@pytest.mark.parametrize("way", ["callbacks", "handed over"])
async def test_end_of_callbacks(way: str, error: BaseException | None, code: int | None, when: str) -> None:
    """What a callback raises closes the client as what a handler raises; without an error it stays until it leaves."""
    worker, calls = Worker(way), list[str]()

    def called(*_: object) -> None:
        calls.append("called")
        if error is not None:
            raise error

    socket, ended = worker.socket(), asyncio.Event()
    scope = worker.scope(socket, "a")
    async with worker.linked():
        serving = asyncio.create_task(
            scope.serve(
                on_open=called if when == "open" else None,
                on_message=called if when == "message" else None,
                on_close=lambda _: ended.set(),
            )
        )
        await socket.until(lambda: socket.accepted != [])
        await until_idle()
        if when == "message":
            socket.receiver.put_nowait("1")
        if error is None:
            socket.receiver.put_nowait(None)
        await asyncio.wait_for(ended.wait(), WAIT_SECONDS)
        await asyncio.wait([serving])
        await until_idle()
        raises = way == "callbacks" and isinstance(error, KeyError | ExceptionGroup | ClosedError)
        assert (None if serving.cancelled() else serving.exception()) is (error if raises else None)
        assert ([closed for closed, _ in socket.closed], calls) == ([] if code is None else [code], ["called"])
        worker.assert_nothing_left()


async def test_a_client_that_was_handed_over_counts(worker: Worker) -> None:
    """It is connected, and counts for the limits, until its end, without a task while it is idle."""
    socket, same = FakeServerSocket(lane=True), FakeServerSocket(lane=True)
    before = asyncio.all_tasks()
    await worker.scope(socket, "a").serve(on_open=None, on_message=None, on_close=None)
    await until_idle()
    assert asyncio.all_tasks() == before
    assert list(worker.runtime.clients.connected) == [worker.driver]
    with pytest.raises(TooManyConnectionsError):
        await worker.scope(same, "a").serve(on_open=None, on_message=None, on_close=None)
    worker.deliver("a", "1")
    await socket.receives("1")
    socket.receiver.put_nowait(None)
    await until_idle()
    await worker.scope(FakeServerSocket(lane=True)).serve(on_open=None, on_message=None, on_close=None)
    await worker.runtime.clients.close_all()
    await until_idle()


async def test_refused_join_in_the_block(worker: Worker) -> None:
    """A join that is refused may end the handler: the client gets its code; or be handled, and the client stays."""
    socket = FakeServerSocket()
    async with worker.scope(socket) as connection:
        with pytest.raises(InvalidChannelError):
            await connection.join("")
        with pytest.raises(JoinRefusedError):
            await connection.join("secret")
        assert socket.closing == 0
        await connection.join("secret")
    assert socket.closed == [(4503, "this client may not join channel 'secret'")]


@pytest.mark.parametrize("ending", ["client", "worker"])
async def test_use_after_the_end(worker: Worker, ending: str) -> None:
    """A handler that finds its connection over ends as if it had returned: the client is gone, or closed already."""
    socket = FakeServerSocket()
    async with worker.scope(socket, "a") as connection:
        if ending == "client":
            driver_of(connection).disconnected()
        else:
            driver_of(connection).retire(1012, "restart")
            await until_idle()
        await connection.join("b")
        pytest.fail("joined after the end")
    assert socket.closed == ([] if ending == "client" else [(1012, "restart")])


async def test_client_leaves(each_worker: Worker) -> None:
    """A client that leaves ends its handler, and no close frame is sent."""
    socket = each_worker.socket()
    async with entered(each_worker, socket, "a"):
        socket.receiver.put_nowait(None)
    assert socket.closing == 0


class Waiting:
    """A handler that never receives: it waits in one way or the other, and keeps how it ended.

    Attributes:
        cancelled: Whether a `CancelledError` reached it.
        swallows: How many of them it swallows.
        waits: What it waits for.
    """

    def __init__(self, *, swallows: int = 0) -> None:
        self.cancelled = 0
        self.swallows = swallows
        self.waits = asyncio.Event()

    async def __call__(self, scope: ConnectionScope) -> None:
        """Handle a client."""
        async with scope:
            while True:
                try:
                    await self.waits.wait()
                except asyncio.CancelledError:
                    self.cancelled += 1
                    if self.cancelled > self.swallows:
                        raise
                else:
                    return


@pytest.mark.parametrize("swallows", [0, 1])
@pytest.mark.parametrize("lane", [False, True], ids=["plain", "lane"])
async def test_client_leaves_a_handler_that_waits_for_something_else(worker: Worker, lane: bool, swallows: int) -> None:
    """It is cancelled after the grace, again if it swallows that, which is an ordinary end and is counted."""
    worker.policy = replace(worker.policy, handler_grace_seconds=0.01)
    socket, waiting = FakeServerSocket(lane=lane), Waiting(swallows=swallows)
    handling = asyncio.create_task(waiting(worker.scope(socket, "a")))
    await socket.until(lambda: socket.accepted != [])
    await until_idle()
    if socket.lane is not None:
        socket.lane.end()
    else:
        socket.receiver.put_nowait(None)
        assert worker.driver is not None
        worker.driver.check_timers(0)
    await asyncio.wait_for(handling, WAIT_SECONDS)
    assert (waiting.cancelled, handling.cancelling(), socket.closing) == (swallows + 1, 0, 0)
    counts = worker.runtime.statistics.snapshot()
    assert (counts.cancelled_handlers, counts.closed_by_client, counts.closed_normal) == (1, 1, 0)
    worker.assert_nothing_left()


@pytest.mark.parametrize(("reading", "reads_ahead"), [(True, 0), (False, 1)])
async def test_lane_is_read_ahead_only_where_its_server_waits_for_that(
    worker: Worker, reading: bool, reads_ahead: int
) -> None:
    """The server notices the end by itself while it reads: an idle connection costs no task there."""
    socket = FakeServerSocket(lane=True)
    assert socket.lane is not None
    socket.lane.reading = reading
    async with worker.scope(socket, "a") as connection:
        driver_of(connection).check_timers(0)
        assert socket.reading_ahead == reads_ahead


async def test_client_whose_handler_does_not_receive_is_not_idle(worker: Worker) -> None:
    """What is received for a handler that does not is activity of its client."""
    socket = FakeServerSocket()
    async with worker.scope(socket, "a") as connection:
        driver_of(connection).check_timers(0)
        driver_of(connection).timers.last_received_at = 0.0
        socket.receiver.put_nowait("here")
        await until_idle()
        assert driver_of(connection).timers.last_received_at > 0.0


async def test_handler_that_receives_is_left_alone(worker: Worker) -> None:
    """Nothing else receives while it does."""
    socket = FakeServerSocket()
    async with entered(worker, socket, "a"):
        await until_idle()
        assert worker.driver is not None
        worker.driver.check_timers(0)
        socket.receiver.put_nowait(None)
    assert socket.reading_ahead == 0


async def test_cancelled_from_outside_after_the_end(worker: Worker) -> None:
    """A cancellation from outside is never swallowed, also where the handler is cancelled for its connection's end."""
    worker.policy = replace(worker.policy, handler_grace_seconds=0.01)
    socket, waiting = FakeServerSocket(), Waiting(swallows=1)
    handling = asyncio.create_task(waiting(worker.scope(socket, "a")))
    await socket.until(lambda: socket.accepted != [])
    await until_idle()
    assert worker.driver is not None
    worker.driver.disconnected()
    async with asyncio.timeout(WAIT_SECONDS):
        while not waiting.cancelled:
            await asyncio.sleep(0)
    handling.cancel()
    await asyncio.wait([handling])
    assert handling.cancelled()


async def test_timeout_around_the_block_is_its_own(worker: Worker) -> None:
    """A handler that is cancelled for its connection's end does not end a timeout around the block, nor one inside."""
    worker.policy = replace(worker.policy, handler_grace_seconds=0.01)
    socket = FakeServerSocket()
    steps: list[str] = []
    async with asyncio.timeout(WAIT_SECONDS):
        async with worker.scope(socket, "a") as connection, asyncio.timeout(WAIT_SECONDS):
            driver_of(connection).disconnected()
            await asyncio.Event().wait()
        steps.append("after the block")
        await asyncio.sleep(0)
    assert steps == ["after the block"]


async def test_handler_that_ends_in_time_is_not_cancelled(worker: Worker) -> None:
    """What a handler does in its block after its client left, it may finish within the grace."""
    socket = FakeServerSocket()
    async with entered(worker, socket, "a") as handling:
        socket.receiver.put_nowait(None)
    assert (handling.cancelling(), worker.runtime.statistics.cancelled_handlers) == (0, 0)


async def test_end_in_the_handshake_of_a_handler_that_waits(each_worker: Worker) -> None:
    """Where `authorize` never answers and the connection ends, the handler is cancelled, and the client refused."""
    asked = asyncio.Event()

    async def authorize(_: Connection, __: str) -> bool:
        asked.set()
        return await asyncio.Future[bool]()

    each_worker.policy = replace(each_worker.policy, handler_grace_seconds=0.01, authorize=authorize)
    socket = each_worker.socket()
    handling = asyncio.create_task(each_worker.handle(socket, "a"))
    await asyncio.wait_for(asked.wait(), WAIT_SECONDS)
    assert each_worker.driver is not None
    each_worker.driver.closing.close(1012, "restart")
    with pytest.raises(ClosedError):
        await asyncio.wait_for(handling, WAIT_SECONDS)
    assert ([type(refused) for refused in socket.refusals], handling.cancelling()) == ([ClosedError], 0)


async def test_what_waits_at_the_end_is_sent(worker: Worker) -> None:
    """The end of the handler sends what waits before it closes."""
    socket = FakeServerSocket()
    async with worker.scope(socket, "a"):
        socket.send_gate.close()
        worker.runtime.hub.deliver("a", b"1")
        worker.runtime.hub.deliver("a", b"2")
        await socket.until(lambda: socket.sending == 1)
        asyncio.get_running_loop().call_soon(socket.send_gate.open)
    assert (socket.sent, socket.closed) == (["1", "2"], [(1000, "normal closure")])


async def test_cancelled_in_the_block(worker: Worker) -> None:
    """A cancelled handler sends no close frame, and leaves no task."""
    socket = FakeServerSocket()
    async with entered(worker, socket, "a") as handling:
        handling.cancel()
    assert (handling.cancelled(), socket.closing) == (True, 0)


async def test_cancelled_at_the_end_of_the_block(worker: Worker) -> None:
    """A handler that is cancelled while its client is being closed is cancelled, forgotten, and leaves no task."""
    socket = FakeServerSocket()
    socket.close_gate.close()
    async with entered(worker, socket, "a") as handling:
        assert worker.driver is not None
        worker.driver.closing.close(1000, "")
        await socket.until(lambda: socket.closing == 1)
        handling.cancel()
    assert (handling.cancelled(), socket.closed) == (True, [])


async def test_task_of_the_connection_at_the_end(worker: Worker) -> None:
    """What runs beside the handler has ended when the block has, and only then is the client forgotten."""
    socket, seen = FakeServerSocket(), list[int]()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            seen.append(len(worker.runtime.clients.connected))

    async with worker.scope(socket) as connection:
        connection.spawn(work())
        await until_idle()
    assert seen == [1]


async def test_task_of_the_connection_that_swallows_its_cancellation(worker: Worker) -> None:
    """It is cancelled again after the grace: the client is closed and forgotten all the same."""
    worker.policy = replace(worker.policy, handler_grace_seconds=0.01)
    socket = FakeServerSocket()

    async def work() -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await asyncio.Event().wait()

    async with asyncio.timeout(WAIT_SECONDS), worker.scope(socket) as connection:
        connection.spawn(work())
        await until_idle()
    assert socket.closed == [(1000, "normal closure")]
