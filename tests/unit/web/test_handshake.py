"""`backplane.web.handshake`: one client from its handshake to the end of its handler."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import anyio
import pytest

from backplane.connection.connection import Connection
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
from backplane.fanout.outbox import Outbox
from backplane.settings import Settings
from backplane.web.handshake import ConnectionScope
from backplane.web.origin import OriginRule
from backplane.worker.runtime import Runtime
from tests.unit.doubles import ControlledBroadcaster, counted, following, until_idle
from tests.unit.sockets import FakeServerSocket

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 5.0


class Door:
    """A running backplane over a controlled broker, into which clients are let.

    Attributes:
        connection: The one that was made last.
    """

    def __init__(self) -> None:
        self.broker = ControlledBroadcaster()
        self.running = Runtime(self.broker, Settings(max_connections_per_client=1))
        self.connection: Connection | None = None
        self.policy = ConnectionPolicy(
            authorize=lambda _, channel: channel != "secret",
            limits=Limits(max_channels=2, heartbeat_seconds=None),
            statistics=self.running.statistics,
            bursts=self.running.bursts,
            keepalive=self.running.keepalive,
        )

    def admission(
        self,
        socket: FakeServerSocket,
        *channels: str,
        client_key: str | None = None,
        subprotocol: str | None = None,
        headers: list[tuple[bytes, bytes]] | None = None,
        after_accept: bool = False,
        expires_at: float | None = None,
    ) -> ConnectionScope:
        """Return what lets this client in."""
        outbox = Outbox(max_bytes=1_000, max_messages=10)
        self.connection = Connection(socket, self.running.hub, outbox, self.policy)
        self.connection.expire_at(expires_at)
        return ConnectionScope(
            self.running,
            socket,
            self.connection,
            origins=OriginRule(),
            channels=channels,
            client_key=client_key,
            subprotocol=subprotocol,
            headers=headers,
            after_accept=after_accept,
        )

    async def handle(self, socket: FakeServerSocket, *channels: str) -> None:
        """Let a client in, and return when it has left, within a bounded time."""
        async with asyncio.timeout(WAIT_SECONDS), self.admission(socket, *channels) as connection:
            async for _ in connection:
                pytest.fail("the client said nothing")

    def assert_nothing_left(self) -> None:
        """Assert that no client is there, that nothing is joined, and that the watch keeps nobody."""
        assert (list(self.running.connections), list(self.running.hub.channels)) == ([], [])
        assert self.running.keepalive._timer is None  # pyright: ignore[reportPrivateUsage]


@pytest.fixture
async def door() -> AsyncGenerator[Door]:
    """A door that everyone has left in the end."""
    made = Door()
    async with following(made.running.broker_subscriptions, made.broker):
        yield made
        made.assert_nothing_left()
    made.running.hub.close()


@asynccontextmanager
async def entered(door: Door, socket: FakeServerSocket, *channels: str) -> AsyncGenerator[asyncio.Task[None]]:
    """Let a client in, whose handler waits for what it says."""
    handling = asyncio.create_task(door.handle(socket, *channels))
    await socket.until(lambda: socket.accepted != [])
    await until_idle()
    yield handling
    await asyncio.wait([handling])


# --- the handshake -------------------------------------------------------------------------------------------------


async def test_joined_before_accepted(door: Door) -> None:
    """The handshake waits for the broker to confirm every channel; the first message waits for the handshake."""
    socket = FakeServerSocket()
    door.broker.subscribe_gate.close()
    socket.accept_gate.close()
    handling = asyncio.create_task(door.handle(socket, "a", "b"))
    await door.broker.until(lambda: door.broker.calls != [])
    await until_idle()
    assert socket.accepting == 0
    door.broker.subscribe_gate.open()
    await socket.until(lambda: socket.accepting == 1)
    assert set(door.running.hub.channels) == {"a", "b"}
    door.running.hub.deliver("a", b"early")
    await until_idle()
    assert socket.sent == []
    socket.accept_gate.open()
    await socket.receives("early")
    socket.receiver.put_nowait(None)
    await handling


async def test_accepted_with(door: Door) -> None:
    """The handler gets the connection, once the client is accepted with what the handler chose."""
    socket, headers = FakeServerSocket(), [(b"x-worker", b"7")]
    async with door.admission(socket, subprotocol="chat.v2", headers=headers) as connection:
        assert connection is door.connection
        assert list(door.running.connections) == [connection]
        assert socket.accepted == [("chat.v2", headers)]


async def test_page_of_another_site(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    """A page of another site is refused before it takes a place or joins, counted, and told in the log."""
    socket = FakeServerSocket()
    socket.origin = "https://evil.example"
    with pytest.raises(OriginRefusedError, match=r"evil\.example") as caught:
        await door.handle(socket, "a")
    assert (socket.refusals, socket.accepting, door.broker.calls) == ([caught.value], 0, [])
    assert counted(door.running.statistics) == {"connections_refused": 1, "refused_origins": 1}
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
async def test_refused_join(door: Door, channels: list[str], error: type[Exception]) -> None:
    """A client that may not join one of its channels is refused for that, and what it had joined is left."""
    socket = FakeServerSocket()
    door.broker.refusals["theirs"] = "not permitted"
    with pytest.raises(error) as caught:
        await door.handle(socket, *channels)
    assert (socket.refusals, socket.accepting, socket.closing) == ([caught.value], 0, 0)


async def test_broker_that_is_away_at_the_handshake(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    """Clients refused because the broker is away are counted, wait for no turn, and fill no log."""
    door.running.broker_subscriptions.close()
    for _ in range(3):
        socket = FakeServerSocket()
        with pytest.raises(BrokerUnavailableError):
            await asyncio.wait_for(door.handle(socket, "a"), WAIT_SECONDS)
        assert (len(socket.refusals), socket.accepting, socket.closing) == (1, 0, 0)
    door.running.bursts.flush()
    assert counted(door.running.statistics) == {"connections_refused": 3}
    assert caplog.messages == [
        "refused a WebSocket: the backplane was stopped",
        "2 more within 10 s, the last one: refused a WebSocket: the backplane was stopped",
    ]


async def test_broker_that_fails_in_a_task_group_of_the_block(door: Door) -> None:
    """A publish that fails in a task group of the handler is what it is in the handler itself."""
    socket = FakeServerSocket()

    async def publish() -> None:
        raise BrokerUnavailableError("away; not published")

    async with door.admission(socket, "a") as connection, asyncio.TaskGroup() as tasks:
        tasks.create_task(publish())
        async for _ in connection:
            pytest.fail("the client sent nothing")
    assert [code for code, _ in socket.closed] == [1013]


async def test_broker_that_fails_in_a_task_group_of_anyio(door: Door) -> None:
    """So it is in the task groups of anyio, whose errors are groups of groups."""
    socket = FakeServerSocket()

    async def publish() -> None:
        async with anyio.create_task_group() as inner:
            inner.start_soon(fail)

    async def fail() -> None:
        raise BrokerUnavailableError("away; not published")

    async with door.admission(socket, "a") as connection, anyio.create_task_group() as tasks:
        tasks.start_soon(publish)
        async for _ in connection:
            pytest.fail("the client sent nothing")
    assert [code for code, _ in socket.closed] == [1013]


async def test_permission_that_has_run_out(door: Door) -> None:
    """A client whose permission has run out is refused before anything is joined for it, or accepted."""
    socket = FakeServerSocket()
    with pytest.raises(PermissionExpiredError):
        await block(door.admission(socket, "a", expires_at=time.time() - 1), None)
    assert (socket.accepting, door.broker.calls) == (0, [])
    assert counted(door.running.statistics) == {"connections_refused": 1}


async def test_permission_that_runs_out_while_it_is_joined(door: Door) -> None:
    """It is refused too if that happens while it is joined; `authorize` may set when."""
    socket = FakeServerSocket()

    def authorize(connection: Connection, _: str) -> bool:
        connection.expire_at(time.time() - 1)
        return True

    door.policy = replace(door.policy, authorize=authorize)
    with pytest.raises(PermissionExpiredError):
        await door.handle(socket, "a")
    assert (len(socket.refusals), socket.accepting) == (1, 0)


async def never_answer(connection: Connection, channel: str) -> bool:
    """Think for ever."""
    await asyncio.Event().wait()
    return connection.id != channel


async def test_authorize_that_does_not_answer(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    """A client waits for `authorize` no longer than its time, is refused as by a passing state, and logged once."""
    door.policy = replace(door.policy, authorize=never_answer, authorize_timeout_seconds=0.01)
    for _ in range(2):
        socket = FakeServerSocket()
        with pytest.raises(AuthorizeTimeoutError):
            await door.handle(socket, "a")
        assert (len(socket.refusals), socket.accepting) == (1, 0)
    assert caplog.messages == ["authorize did not answer for 'a' within 0.01 s"]


async def test_timeout_of_authorize_itself(door: Door) -> None:
    """A `TimeoutError` of the application is a fault of it, and goes on as it is."""

    async def authorize(*_: object) -> bool:
        raise TimeoutError("the database")

    door.policy = replace(door.policy, authorize=authorize)
    with pytest.raises(TimeoutError, match="the database"):
        await door.handle(FakeServerSocket(), "a")


async def test_client_that_leaves_while_it_is_joined(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that leaves before it is accepted gives back its place and its joins at once."""
    monkeypatch.setattr("backplane.web.handshake._QUICK_SECONDS", 0)
    socket = FakeServerSocket()
    door.broker.subscribe_gate.close()
    handling = asyncio.create_task(door.handle(socket, "a"))
    await door.broker.until(lambda: door.broker.calls != [])
    socket.receiver.put_nowait(None)
    with pytest.raises(ClosedError, match="left before it was let in"):
        await asyncio.wait_for(handling, WAIT_SECONDS)
    assert socket.accepting == 0
    door.broker.subscribe_gate.open()


@pytest.mark.parametrize("failing", [False, True], ids=["stays", "cannot be watched"])
async def test_client_that_stays_while_it_is_joined(door: Door, monkeypatch: pytest.MonkeyPatch, failing: bool) -> None:
    """One that stays, or whose leaving the server cannot report, is accepted, and what it sends then is received."""
    monkeypatch.setattr("backplane.web.handshake._QUICK_SECONDS", 0)
    socket = FakeServerSocket()
    door.broker.subscribe_gate.close()
    if failing:
        socket.receiver.put_nowait(RuntimeError("the server's own"))

    async def handle() -> str | bytes | None:
        async with door.admission(socket, "a") as connection:
            return await connection.receive()
        return None

    handling = asyncio.create_task(handle())
    await door.broker.until(lambda: door.broker.calls != [])
    await until_idle()
    door.broker.subscribe_gate.open()
    await socket.until(lambda: socket.accepted != [])
    socket.receiver.put_nowait("first")
    assert await asyncio.wait_for(handling, WAIT_SECONDS) == "first"


async def test_refused_after_accept(door: Door) -> None:
    """For the asking a refused client is accepted and closed; by HTTP where too many are at it, or by its origin."""
    door.running.draining = True
    socket = FakeServerSocket()
    with pytest.raises(ClosedError):
        await block(door.admission(socket, subprotocol="chat.v2", headers=[(b"x", b"y")], after_accept=True), None)
    assert (socket.accepted, [code for code, _ in socket.closed]) == ([("chat.v2", None)], [1012])
    foreign = FakeServerSocket()
    foreign.origin = "https://evil.example"
    with pytest.raises(OriginRefusedError):
        await block(door.admission(foreign, after_accept=True), None)
    while door.running.reserve_refusal():
        pass
    late = FakeServerSocket()
    with pytest.raises(ClosedError):
        await block(door.admission(late, after_accept=True), None)
    assert (foreign.accepting, late.accepting, len(late.refusals)) == (0, 0, 1)


async def test_client_of_a_worker_that_drains(door: Door) -> None:
    """A worker that drains takes nobody."""
    socket = FakeServerSocket()
    door.running.draining = True
    with pytest.raises(ClosedError, match="connect again") as caught:
        await door.handle(socket, "a")
    assert (socket.refusals, socket.accepting, door.broker.calls) == ([caught.value], 0, [])


@pytest.mark.parametrize("client_key", [None, "alice"])
async def test_whose_connection_it_is(door: Door, client_key: str | None) -> None:
    """A client is counted by the key it was given, else by its address; a refused one takes nobody's place."""
    one, same, other = (FakeServerSocket() for _ in range(3))
    if client_key is None:
        other.address_key = bytes([192, 0, 2, 2])
    async with door.admission(one, client_key=client_key):
        with pytest.raises(TooManyConnectionsError) as caught:
            async with door.admission(same, client_key=client_key):
                pytest.fail("the block was entered")
        assert (same.refusals, same.accepting) == ([caught.value], 0)
        async with door.admission(other, client_key=client_key and "bob"):
            assert len(door.running.connections) == 2
    async with door.admission(FakeServerSocket(), client_key=client_key):
        pass


async def test_accept_that_fails(door: Door) -> None:
    """An error of the server in the handshake goes on as it is; it is no refusal, and leaves nothing."""
    socket = FakeServerSocket()
    socket.accept_error = RuntimeError("the server's own")
    with pytest.raises(RuntimeError) as caught:
        await door.handle(socket, "a")
    assert caught.value is socket.accept_error
    assert (socket.refusals, socket.closing) == ([], 0)


@pytest.mark.parametrize("at", ["join", "accept"])
async def test_cancelled_in_the_handshake(door: Door, at: str) -> None:
    """A handler that is cancelled before its client is there leaves nothing joined, and no task."""
    socket = FakeServerSocket()
    (door.broker.subscribe_gate if at == "join" else socket.accept_gate).close()
    handling = asyncio.create_task(door.handle(socket, "a"))
    if at == "join":
        await door.broker.until(lambda: door.broker.calls != [])
    else:
        await socket.until(lambda: socket.accepting == 1)
    handling.cancel()
    await asyncio.wait([handling])
    door.broker.subscribe_gate.open()
    assert (handling.cancelled(), socket.accepted, socket.closing) == (True, [], 0)


async def test_client_that_is_closed_in_the_handshake(door: Door) -> None:
    """A client that is closed while it is being accepted has a handler that ends, and is told when it is there."""
    socket = FakeServerSocket()
    socket.accept_gate.close()
    handling = asyncio.create_task(door.handle(socket, "a"))
    await socket.until(lambda: socket.accepting == 1)
    for connection in list(door.running.connections):
        await connection.close(1012, "restart")
    socket.accept_gate.open()
    await handling
    assert socket.closed == [(1012, "restart")]


async def test_client_that_is_closed_while_it_is_joined(door: Door) -> None:
    """It is refused with the code and the words of that close, for `authorize` may close it and allow the join."""

    async def authorize(connection: Connection, _: str) -> bool:
        await connection.close(4503, "banned")
        return True

    door.policy = replace(door.policy, authorize=authorize)
    socket = FakeServerSocket()
    with pytest.raises(JoinRefusedError, match="banned"):
        await block(door.admission(socket, "a", after_accept=True), None)
    assert socket.closed == [(4503, "banned")]


# --- the end of the block ------------------------------------------------------------------------------------------


async def block(admission: ConnectionScope, error: BaseException | None) -> None:
    """Enter, then raise or return."""
    async with admission:
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
async def test_end(door: Door, error: BaseException | None, code: int | None, raised: bool) -> None:
    """How the block ends says with which code the client is closed, if at all, and whether the handler raises."""
    socket = FakeServerSocket()
    caught: BaseException | None = None
    try:
        await block(door.admission(socket, "a"), error)
    except BaseException as left:
        caught = left
    assert caught is (error if raised else None)
    assert ([closed for closed, _ in socket.closed], socket.refusals) == ([] if code is None else [code], [])
    door.assert_nothing_left()


async def test_refused_join_in_the_block(door: Door) -> None:
    """A join that is refused may end the handler: the client is told by the code; or be handled, and it stays."""
    socket = FakeServerSocket()
    async with door.admission(socket) as connection:
        with pytest.raises(InvalidChannelError):
            await connection.join("")
        with pytest.raises(JoinRefusedError):
            await connection.join("secret")
        assert socket.closing == 0
        await connection.join("secret")
    assert socket.closed == [(4503, "this client may not join channel 'secret'")]


@pytest.mark.parametrize("ending", ["client", "worker"])
async def test_use_behind_the_end(door: Door, ending: str) -> None:
    """A handler that finds its connection over ends as if it had returned: the client is gone, or is told of that."""
    socket = FakeServerSocket()
    async with door.admission(socket, "a") as connection:
        if ending == "client":
            connection.client_left()
        else:
            connection.retire(1012, "restart")
            await until_idle()
        await connection.join("b")
        pytest.fail("joined behind the end")
    assert socket.closed == ([] if ending == "client" else [(1012, "restart")])


async def test_client_leaves(door: Door) -> None:
    """A client that goes away ends its handler, and nothing is said to it."""
    socket = FakeServerSocket()
    async with entered(door, socket, "a"):
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

    async def __call__(self, admission: ConnectionScope) -> None:
        """Handle a client."""
        async with admission:
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
async def test_client_leaves_a_handler_that_waits_for_something_else(door: Door, lane: bool, swallows: int) -> None:
    """It is cancelled after the grace, again if it swallows that, which is an ordinary end and is counted."""
    door.policy = replace(door.policy, handler_grace_seconds=0.01)
    socket, waiting = FakeServerSocket(lane=lane), Waiting(swallows=swallows)
    handling = asyncio.create_task(waiting(door.admission(socket, "a")))
    await socket.until(lambda: socket.accepted != [])
    await until_idle()
    if socket.lane is not None:
        socket.lane.end()
    else:
        socket.receiver.put_nowait(None)
        assert door.connection is not None
        door.connection.check_timers(0)
    await asyncio.wait_for(handling, WAIT_SECONDS)
    assert (waiting.cancelled, handling.cancelling(), socket.closing) == (swallows + 1, 0, 0)
    counts = door.running.statistics
    assert (counts.cancelled_handlers, counts.closed_by_client, counts.closed_normal) == (1, 1, 0)
    door.assert_nothing_left()


@pytest.mark.parametrize(("reading", "reads_ahead"), [(True, 0), (False, 1)])
async def test_lane_is_read_ahead_only_where_its_server_waits_for_that(
    door: Door, reading: bool, reads_ahead: int
) -> None:
    """The server notices the end by itself while it reads: an idle connection costs no task there."""
    socket = FakeServerSocket(lane=True)
    assert socket.lane is not None
    socket.lane.reading = reading
    async with door.admission(socket, "a") as connection:
        connection.check_timers(0)
        assert socket.reading_ahead == reads_ahead


async def test_client_whose_messages_nobody_receives_is_not_idle(door: Door) -> None:
    """What is received for a handler that does not is activity of its client."""
    socket = FakeServerSocket()
    async with door.admission(socket, "a") as connection:
        connection.check_timers(0)
        connection.timers.last_received_at = 0.0
        socket.receiver.put_nowait("here")
        await until_idle()
        assert connection.timers.last_received_at > 0.0


async def test_handler_that_receives_is_left_alone(door: Door) -> None:
    """Nobody receives beside it."""
    socket = FakeServerSocket()
    async with entered(door, socket, "a"):
        await until_idle()
        assert door.connection is not None
        door.connection.check_timers(0)
        socket.receiver.put_nowait(None)
    assert socket.reading_ahead == 0


async def test_cancelled_by_somebody_else_after_the_end(door: Door) -> None:
    """A cancellation from outside is never swallowed, also where the handler is cancelled for its connection's end."""
    door.policy = replace(door.policy, handler_grace_seconds=0.01)
    socket, waiting = FakeServerSocket(), Waiting(swallows=1)
    handling = asyncio.create_task(waiting(door.admission(socket, "a")))
    await socket.until(lambda: socket.accepted != [])
    await until_idle()
    assert door.connection is not None
    door.connection.client_left()
    async with asyncio.timeout(WAIT_SECONDS):
        while not waiting.cancelled:
            await asyncio.sleep(0)
    handling.cancel()
    await asyncio.wait([handling])
    assert handling.cancelled()


async def test_timeout_around_the_block_is_its_own(door: Door) -> None:
    """A handler that is cancelled for its connection's end does not end a timeout around the block, nor one inside."""
    door.policy = replace(door.policy, handler_grace_seconds=0.01)
    socket = FakeServerSocket()
    steps: list[str] = []
    async with asyncio.timeout(WAIT_SECONDS):
        async with door.admission(socket, "a") as connection, asyncio.timeout(WAIT_SECONDS):
            connection.client_left()
            await asyncio.Event().wait()
        steps.append("after the block")
        await asyncio.sleep(0)
    assert steps == ["after the block"]


async def test_handler_that_ends_in_time_is_not_cancelled(door: Door) -> None:
    """What a handler does in its block after its client left, it may finish within the grace."""
    socket = FakeServerSocket()
    async with entered(door, socket, "a") as handling:
        socket.receiver.put_nowait(None)
    assert (handling.cancelling(), door.running.statistics.cancelled_handlers) == (0, 0)


async def test_end_in_the_handshake_of_a_handler_that_waits(door: Door) -> None:
    """Where `authorize` never answers and the connection ends, the handler is cancelled, and the client refused."""
    asked = asyncio.Event()

    async def authorize(_: Connection, __: str) -> bool:
        asked.set()
        return await asyncio.Future[bool]()

    door.policy = replace(door.policy, handler_grace_seconds=0.01, authorize=authorize)
    socket = FakeServerSocket()
    handling = asyncio.create_task(door.handle(socket, "a"))
    await asyncio.wait_for(asked.wait(), WAIT_SECONDS)
    assert door.connection is not None
    door.connection.end(1012, "restart")
    with pytest.raises(ClosedError):
        await asyncio.wait_for(handling, WAIT_SECONDS)
    assert ([type(refused) for refused in socket.refusals], handling.cancelling()) == ([ClosedError], 0)


async def test_what_waits_at_the_end_is_sent(door: Door) -> None:
    """The end of the handler sends what waits before it closes."""
    socket = FakeServerSocket()
    async with door.admission(socket, "a"):
        socket.send_gate.close()
        door.running.hub.deliver("a", b"1")
        door.running.hub.deliver("a", b"2")
        await socket.until(lambda: socket.sending == 1)
        asyncio.get_running_loop().call_soon(socket.send_gate.open)
    assert (socket.sent, socket.closed) == (["1", "2"], [(1000, "normal")])


async def test_cancelled_in_the_block(door: Door) -> None:
    """A cancelled handler says nothing more to the client, and leaves no task."""
    socket = FakeServerSocket()
    async with entered(door, socket, "a") as handling:
        handling.cancel()
    assert (handling.cancelled(), socket.closing) == (True, 0)


async def test_cancelled_at_the_end_of_the_block(door: Door) -> None:
    """A handler that is cancelled while its client is being closed is cancelled, forgotten, and leaves no task."""
    socket = FakeServerSocket()
    socket.close_gate.close()
    async with entered(door, socket, "a") as handling:
        assert door.connection is not None
        door.connection.end(1000, "")
        await socket.until(lambda: socket.closing == 1)
        handling.cancel()
    assert (handling.cancelled(), socket.closed) == (True, [])


async def test_task_of_the_connection_at_the_end(door: Door) -> None:
    """What runs beside the handler has ended when the block has, and only then is the client forgotten."""
    socket, seen = FakeServerSocket(), list[int]()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            seen.append(len(door.running.connections))

    async with door.admission(socket) as connection:
        connection.spawn(work())
        await until_idle()
    assert seen == [1]


async def test_task_of_the_connection_that_swallows_its_cancellation(door: Door) -> None:
    """It is cancelled again after the grace: the client is closed and forgotten all the same."""
    door.policy = replace(door.policy, handler_grace_seconds=0.01)
    socket = FakeServerSocket()

    async def work() -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await asyncio.Event().wait()

    async with asyncio.timeout(WAIT_SECONDS), door.admission(socket) as connection:
        connection.spawn(work())
        await until_idle()
    assert socket.closed == [(1000, "normal")]
