"""`backplane.connection`: one client, from its joins to its close, over a socket that does what a test says."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import asynccontextmanager
from contextvars import ContextVar, copy_context
from typing import TYPE_CHECKING, Any, Literal, assert_type
from unittest.mock import Mock

import pytest
from pydantic import BaseModel, TypeAdapter

from backplane.connection.connection import Connection
from backplane.connection.limits import Limits
from backplane.connection.policy import ConnectionPolicy, SlowConsumer
from backplane.connection.sender import SocketGoneError
from backplane.errors import (
    BrokerUnavailableError,
    ClosedError,
    ConfigurationError,
    InvalidChannelError,
    InvalidDataError,
    InvalidMessageError,
    JoinRefusedError,
    PublishOutcomeUnknownError,
    TooManyChannelsError,
)
from backplane.fanout.broker_subscriptions import BrokerSubscriptions
from backplane.fanout.hub import Hub
from backplane.fanout.outbox import FullPolicy, Outbox
from backplane.message import ALL, Gap
from tests.unit.doubles import ControlledBroadcaster, Gate, counted, following, run_passes, until_idle
from tests.unit.sockets import ClientLane, FakeSocket

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from backplane.connection.policy import Authorize, OnGap

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 5.0


class World:
    """A hub over a controlled broker, and the connections on it."""

    def __init__(self, *, lane: bool = False) -> None:
        self.lane = lane
        self._connections: list[Connection] = []
        self.broker = ControlledBroadcaster()
        self.broker_subscriptions = BrokerSubscriptions(linger_seconds=60, timeout_seconds=60)
        self.hub = Hub(self.broker_subscriptions)

    def connection(
        self,
        socket: FakeSocket | None = None,
        *,
        opened: bool = True,
        when_full: FullPolicy = "close",
        max_messages: int = 1024,
        on_gap: OnGap = "close",
        reload_delay: float = 0.0,
        policy: ConnectionPolicy | None = None,
        context: object = None,
    ) -> tuple[Connection, FakeSocket]:
        """Return a connection and its socket."""
        socket = socket or FakeSocket(lane=self.lane)
        outbox = Outbox(max_bytes=1024 * 1024, max_messages=max_messages, when_full=when_full)
        policy = policy or ConnectionPolicy(on_gap=on_gap, reload_delay=lambda: reload_delay)
        connection = Connection(socket, self.hub, outbox, policy, context=context)
        self._connections.append(connection)
        if opened:
            connection.opened()
        return connection, socket

    def deliver(self, channel: str, *payloads: str) -> None:
        """Let the broker deliver texts, all in one pass of the event loop."""
        for payload in payloads:
            self.hub.deliver(channel, payload.encode())

    async def end(self) -> None:
        """End every connection, whatever has become of it."""
        for connection in self._connections:
            await connection.abandon()
        self.hub.close()
        await until_idle()


@asynccontextmanager
async def hub_of(*, lane: bool) -> AsyncGenerator[World]:
    """Run a hub whose broker is up; what a test leaves open is ended behind it."""
    made = World(lane=lane)
    async with following(made.broker_subscriptions, made.broker):
        yield made
        await made.end()


@pytest.fixture(params=[False, True], ids=["plain", "lane"])
async def world(request: pytest.FixtureRequest) -> AsyncGenerator[World]:
    """A hub whose broker is up, and clients by ASGI or on the direct lane."""
    async with hub_of(lane=request.param) as made:
        yield made


@pytest.fixture
async def plain_world() -> AsyncGenerator[World]:
    """The same with clients by ASGI alone, for what only a `send` can do: raise."""
    async with hub_of(lane=False) as made:
        yield made


@pytest.fixture
async def lane_world() -> AsyncGenerator[World]:
    """The same with clients on the direct lane alone."""
    async with hub_of(lane=True) as made:
        yield made


@asynccontextmanager
async def no_new_task() -> AsyncGenerator[None]:
    """Fail when the block leaves a task behind."""
    before = asyncio.all_tasks()
    yield
    await until_idle()
    assert asyncio.all_tasks() - before == set()


async def bounded(task: asyncio.Task[Any], seconds: float = WAIT_SECONDS) -> Any:
    """Return the task's result, or fail within `seconds`."""
    done, _ = await asyncio.wait([task], timeout=seconds)
    if not done:
        task.cancel()
        await asyncio.wait([task])
        pytest.fail("did not end in time")
    return task.result()


async def said_by(connection: Connection) -> list[str | bytes]:
    """Return all the client says until the end."""
    return [message async for message in connection]


def break_server(socket: FakeSocket, fault: Exception) -> None:
    """Let the server raise for each message from now on."""
    socket.error = fault
    if socket.lane is not None:
        socket.lane.on_write = Mock(side_effect=fault)


# --- messages ------------------------------------------------------------------------------------------------------


async def test_messages_in_order(world: World) -> None:
    """The client receives what was published to its channel, in order, across passes of the event loop too."""
    connection, socket = world.connection()
    await connection.join("a")
    world.deliver("a", "1", "2")
    await until_idle()
    world.deliver("a", "3")
    await socket.receives("1", "2", "3")


async def test_binary_stays_binary(world: World) -> None:
    """What is not text is sent as bytes."""
    connection, socket = world.connection()
    await connection.join("a")
    world.hub.deliver("a", b"\xff\x00")
    await socket.receives(b"\xff\x00")


async def test_order_behind_a_stall(world: World) -> None:
    """What comes while the client does not read waits its turn, the present message included."""
    connection, socket = world.connection()
    await connection.join("a")
    socket.send_gate.close()
    world.deliver("a", "1")
    await socket.until(lambda: socket.sending == 1)
    world.deliver("a", "2", "3")
    await until_idle()
    assert socket.sent == []
    socket.send_gate.open()
    await socket.receives("1", "2", "3")


async def test_nothing_is_sent_before_the_handshake(world: World) -> None:
    """A message between the join and the end of the handshake waits, and is then the first."""
    connection, socket = world.connection(opened=False)
    await connection.join("a")
    world.deliver("a", "early")
    await until_idle()
    assert socket.sending == 0
    connection.opened()
    world.deliver("a", "late")
    await socket.receives("early", "late")


RELOAD = (4000, "messages may have been missed: reload")


def what_happened(policy: ConnectionPolicy) -> dict[str, int]:
    """Return what was counted beside the handshakes."""
    happened = counted(policy.statistics)
    happened.pop("connections_opened", None)
    return happened


def fail_on_gap(_: Gap) -> None:
    """Fail."""
    raise RuntimeError("a fault")


def lose_for_words(_: Gap) -> object:
    """Return what cannot be sent."""
    return object()


async def test_gap_closes(world: World) -> None:
    """A client that may have missed something is asked to reconnect, and receives everything until then."""
    connection, socket = world.connection()
    await connection.join("a")
    world.hub.gap(ALL, "overrun")
    world.deliver("a", "after")
    assert await bounded(asyncio.create_task(said_by(connection))) == []
    await connection.finish(1000)
    assert (socket.sent, socket.closed, list(world.hub.channels)) == (["after"], [RELOAD], [])


async def test_what_waits_at_the_gap_is_still_sent(world: World) -> None:
    """Messages from before the gap reach the client before the close."""
    connection, socket = world.connection()
    await connection.join("a")
    socket.send_gate.close()
    world.deliver("a", "1")
    await socket.until(lambda: socket.sending == 1)
    world.deliver("a", "2")
    await until_idle()
    world.hub.gap(ALL, "overrun")
    await until_idle()
    assert socket.closing == 0
    socket.send_gate.open()
    await socket.until(lambda: socket.closed != [])
    assert (socket.sent, socket.closed) == (["1", "2"], [RELOAD])


async def test_gap_does_not_wait_for_a_client_that_reads_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits has a second at most; then the client is closed without it."""
    monkeypatch.setattr("backplane.connection.close_sequence._CLOSE_SECONDS", 0.01)
    connection, socket = world.connection()
    await connection.join("a")
    socket.send_gate.close()
    world.deliver("a", "1")
    await socket.until(lambda: socket.sending == 1)
    world.hub.gap(ALL, "overrun")
    await socket.until(lambda: socket.closed != [])
    assert (socket.sent, socket.closed) == ([], [RELOAD])


async def test_gap_closes_when_it_is_this_clients_turn(world: World) -> None:
    """Until its turn a client receives what is published, is received, can join, and costs no task."""
    connection, socket = world.connection(reload_delay=60)
    await connection.join("a")
    async with no_new_task():
        world.hub.gap(ALL, "overrun")
        world.deliver("a", "1")
        await connection.join("b")
        world.deliver("b", "2")
        await connection.leave("a")
        world.deliver("a", "left")
        world.deliver("b", "3")
        await until_idle()
    assert (socket.closing, socket.sent, list(world.hub.channels)) == (0, ["1", "2", "3"], ["b"])
    socket.receiver.put_nowait("hello")
    assert await bounded(asyncio.create_task(connection.receive())) == "hello"


@pytest.mark.parametrize("ending", ["gap", "drain"])
async def test_what_is_published_until_the_close_is_sent(world: World, ending: str) -> None:
    """What is published while the close waits for a client that reads slowly still reaches it, before the close."""
    connection, socket = world.connection()
    await connection.join("a")
    socket.send_gate.close()
    world.deliver("a", "1")
    await socket.until(lambda: socket.sending == 1)
    world.deliver("a", "2")
    await until_idle()
    if ending == "gap":
        world.hub.gap(ALL, "overrun")
    else:
        connection.retire(1012, "restart")
    await until_idle()
    world.deliver("a", "3")
    await until_idle()
    assert socket.closing == 0
    socket.send_gate.open()
    await socket.until(lambda: socket.closed != [])
    assert (socket.sent, socket.closed) == (["1", "2", "3"], [RELOAD if ending == "gap" else (1012, "restart")])


async def test_end_of_the_handler_before_its_turn_still_tells(world: World) -> None:
    """A handler that ends between the gap and the close does not hide the gap from its client."""
    connection, socket = world.connection(reload_delay=60)
    await connection.join("a")
    world.hub.gap(ALL, "overrun")
    async with no_new_task():
        await connection.finish(1000)
    assert [code for code, _ in socket.closed] == [4000]


async def test_handler_that_raises_before_its_turn_closes_with_its_own_code(world: World) -> None:
    """An error of the handler is what its client is told, gap or not."""
    connection, socket = world.connection(reload_delay=60)
    await connection.join("a")
    world.hub.gap(ALL, "overrun")
    await connection.finish(1011)
    assert [code for code, _ in socket.closed] == [1011]


async def test_several_gaps_close_once(world: World) -> None:
    """A client of many channels is told once."""
    connection, socket = world.connection()
    for channel in "abc":
        await connection.join(channel)
    world.hub.gap(ALL, "overrun")
    world.hub.gap(["a"], "again")
    connection.gap(Gap(channel="b", reason="and again"))
    await socket.until(lambda: socket.closed != [])
    connection.gap(Gap(channel="c", reason="late"))
    await connection.finish(1000)
    assert socket.closed == [RELOAD]


async def test_gap_before_the_handshake(world: World) -> None:
    """A gap between the join and the end of the handshake closes as soon as the client is there to be told."""
    connection, socket = world.connection(opened=False)
    await connection.join("a")
    world.hub.gap(ALL, "overrun")
    await until_idle()
    assert socket.closing == 0
    connection.opened()
    await socket.until(lambda: socket.closed != [])
    assert socket.closed == [RELOAD]


async def test_on_gap_is_sent_in_its_place(world: World) -> None:
    """What the application says of a gap stands between the messages before and after it; the client stays."""
    connection, socket = world.connection(on_gap=lambda gap: {"missed": gap.channel, "why": gap.reason})
    await connection.join("a")
    world.deliver("a", "before")
    world.hub.gap(ALL, "overrun")
    world.deliver("a", "after")
    await socket.receives("before", '{"missed":"a","why":"overrun"}', "after")
    assert (socket.closed, list(connection.channels)) == ([], ["a"])


async def test_on_gap_may_say_nothing(world: World) -> None:
    """`None` sends nothing and closes nothing."""
    told: list[Gap] = []
    connection, socket = world.connection(on_gap=told.append)
    await connection.join("a")
    world.hub.gap(ALL, "overrun")
    world.deliver("a", "after")
    await socket.receives("after")
    assert (told, socket.closed) == ([Gap(channel="a", reason="overrun")], [])


@pytest.mark.parametrize("on_gap", [fail_on_gap, lose_for_words], ids=["raises", "returns no data"])
async def test_on_gap_that_fails_closes(world: World, on_gap: OnGap, caplog: pytest.LogCaptureFixture) -> None:
    """An application that cannot say what was missed has its client reload, and is told in the log."""
    connection, socket = world.connection(on_gap=on_gap)
    await connection.join("a")
    world.hub.gap(ALL, "overrun")
    await socket.until(lambda: socket.closed != [])
    assert socket.closed == [RELOAD]
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == [
        f"on_gap failed for channel 'a': closing connection {connection.id}"
    ]


async def test_restart_overtakes_a_reload(world: World) -> None:
    """A worker that drains does not wait for a client's turn to reload."""
    connection, socket = world.connection(reload_delay=60)
    await connection.join("a")
    world.hub.gap(ALL, "overrun")
    connection.retire(1012, "restart")
    await socket.until(lambda: socket.closed != [])
    await connection.finish(1000)
    assert socket.closed == [(1012, "restart")]


async def test_end_of_the_handler_keeps_the_code_of_a_restart(world: World) -> None:
    """A handler that ends while its client is being told of a restart does not make a gap of it."""
    connection, socket = world.connection()
    await connection.join("a")
    socket.send_gate.close()
    world.deliver("a", "1")
    await socket.until(lambda: socket.sending == 1)
    connection.retire(1012, "restart")
    await until_idle()
    finishing = asyncio.create_task(connection.finish(1000))
    await until_idle()
    socket.send_gate.open()
    await bounded(finishing)
    assert [code for code, _ in socket.closed] == [1012]


async def test_end_of_the_handler_right_behind_a_restart_keeps_its_code(world: World) -> None:
    """A handler that ends in the same moment in which its worker drains makes no gap of it either."""
    connection, socket = world.connection()
    connection.retire(1012, "restart")
    await connection.finish(1000)
    assert [code for code, _ in socket.closed] == [1012]


async def test_join_under_way_at_a_gap(world: World) -> None:
    """A join that the broker confirms after the gap holds until the close."""
    connection, socket = world.connection(reload_delay=60)
    await connection.join("a")
    world.broker.subscribe_gate.close()
    joining = asyncio.create_task(connection.join("b"))
    await until_idle()
    world.hub.gap(["a"], "overrun")
    world.broker.subscribe_gate.open()
    await bounded(joining)
    world.deliver("b", "1")
    await socket.receives("1")
    await connection.finish(1000)
    assert (list(world.hub.channels), [code for code, _ in socket.closed]) == ([], [4000])


async def test_slow_client_before_its_turn(world: World) -> None:
    """A client that reads too slowly after a gap is closed for that, and not a second time when its turn comes."""
    policy = ConnectionPolicy(reload_delay=lambda: 60)
    connection, socket = world.connection(policy=policy, max_messages=2)
    await connection.join("a")
    world.hub.gap(ALL, "overrun")
    await stall(world, socket, *"1234")
    await connection.finish(1000)
    assert (socket.closed, what_happened(policy)) == ([(1013, "too slow")], {"closed_slow": 1})


# --- a handler that the broker's failure ended ---------------------------------------------------------------------

AWAY = BrokerUnavailableError("away; not published")
LATER = (1013, "the broker is not available: try again later")


@asynccontextmanager
async def failing(
    world: World, *, reload_delay: float = 60, max_messages: int = 1024
) -> AsyncGenerator[tuple[Connection, FakeSocket, asyncio.Task[None], ConnectionPolicy]]:
    """A connection of channel `a` whose handler was ended by the broker, and which waits for its turn."""
    policy = ConnectionPolicy(reload_delay=lambda: reload_delay)
    connection, socket = world.connection(policy=policy, max_messages=max_messages)
    await connection.join("a")
    finishing = asyncio.create_task(connection.finish(1013, AWAY))
    await until_idle()
    yield connection, socket, finishing, policy
    await bounded(finishing)


async def test_broker_failure_closes_in_turn(world: World) -> None:
    """A client whose handler the broker ended is closed with 1013 when it is its turn."""
    async with failing(world, reload_delay=0) as (_, socket, finishing, policy):
        await bounded(finishing)
        assert socket.closed == [LATER]
    assert what_happened(policy) == {"closed_try_again_later": 1}


async def test_client_receives_until_its_turn(world: World) -> None:
    """Until its turn the client receives what is published, and what it sends is dropped."""
    async with failing(world) as (connection, socket, finishing, _):
        for sent in ("1", b"2", "3"):
            socket.receiver.put_nowait(sent)
        world.deliver("a", "4", "5")
        await socket.receives("4", "5")
        assert (finishing.done(), socket.closing, socket.receiver.qsize()) == (False, 0, 0)
        connection.retire(*LATER)
    assert socket.closed == [LATER]


async def test_client_leaves_before_its_turn(world: World) -> None:
    """A client that leaves before its turn ends the wait."""
    async with failing(world) as (_, socket, _, policy):
        socket.receiver.put_nowait(None)
    assert (socket.closing, list(world.hub.channels)) == (0, [])
    assert what_happened(policy) == {"closed_by_client": 1}


async def test_socket_that_receives_nothing_more_before_its_turn(world: World) -> None:
    """A socket whose end the handler has received by itself ends the wait, and is no error."""
    async with failing(world) as (_, socket, _, policy):
        socket.receiver.put_nowait(RuntimeError("already disconnected"))
    assert (socket.closing, what_happened(policy)) == (0, {"closed_by_client": 1})


async def test_gap_before_the_turn(world: World) -> None:
    """A gap while a client waits for its turn gives it no second one, and costs it no message."""
    async with failing(world) as (connection, socket, finishing, _):
        world.hub.gap(ALL, "overrun")
        world.hub.gap(ALL, "again")
        world.deliver("a", "after")
        await socket.receives("after")
        assert not finishing.done()
        connection.retire(*LATER)
    assert socket.closed == [LATER]


@pytest.mark.parametrize("ending", ["drain", "stop"])
async def test_worker_ends_before_the_turn(world: World, ending: str) -> None:
    """A worker that ends does not wait for the turn of a client."""
    async with failing(world) as (connection, socket, _, _):
        if ending == "drain":
            connection.retire(1012, "restart")
        else:
            await connection.close(1012, "restart")
    assert socket.closed == [(1012, "restart")]


async def test_slow_client_in_the_wait(world: World) -> None:
    """A client that reads too slowly while it waits for its turn is closed for that."""
    async with failing(world, max_messages=2) as (_, socket, _, policy):
        await stall(world, socket, *"1234")
    assert (socket.closed, what_happened(policy)) == ([(1013, "too slow")], {"closed_slow": 1})


async def test_broker_failure_after_a_gap(world: World) -> None:
    """A client that waits to be asked to reload is asked that in its turn, also where its handler then fails."""
    connection, socket = world.connection(reload_delay=60)
    await connection.join("a")
    world.hub.gap(ALL, "overrun")
    finishing = asyncio.create_task(connection.finish(1013, AWAY))
    await until_idle()
    assert not finishing.done()
    connection.retire(*RELOAD)
    await bounded(finishing)
    assert socket.closed == [RELOAD]


async def test_cancelled_before_the_turn(world: World) -> None:
    """A handler that is cancelled while it waits for its turn leaves nothing, and its client learns nothing."""
    policy = ConnectionPolicy(reload_delay=lambda: 60)
    connection, socket = world.connection(policy=policy)
    await connection.join("a")
    async with no_new_task():
        finishing = asyncio.create_task(connection.finish(1013, AWAY))
        await until_idle()
        finishing.cancel()
        await asyncio.wait([finishing])
    assert (finishing.cancelled(), socket.closing, list(world.hub.channels)) == (True, 0, [])
    assert what_happened(policy) == {"closed_cancelled": 1}


async def test_task_that_a_handler_leaves_behind(world: World) -> None:
    """A task that still receives when its handler ends by a failure of the broker keeps no client from its close."""
    connection, socket = world.connection()
    receiving = asyncio.create_task(connection.receive())
    await until_idle()
    await bounded(asyncio.create_task(connection.finish(1013, AWAY)))
    assert [code for code, _ in socket.closed] == [1013]
    assert await bounded(receiving) is None


@pytest.mark.parametrize(
    ("error", "closed"),
    [
        (AWAY, LATER),
        (PublishOutcomeUnknownError("no answer"), LATER),
        (ExceptionGroup("of a task group", [AWAY, AWAY]), LATER),
        (JoinRefusedError("not this one"), (4503, "not this one")),
        (KeyError("a fault"), (1011, "internal error")),
    ],
    ids=["away", "unknown", "group", "refused join", "fault"],
)
async def test_task_that_fails(
    world: World, error: Exception, closed: tuple[int, str], caplog: pytest.LogCaptureFixture
) -> None:
    """A task beside the handler ends its client as the handler would: a traceback for a fault alone."""
    connection, socket = world.connection()
    await connection.join("a")

    async def work() -> None:
        raise error

    connection.spawn(work())
    assert await bounded(asyncio.create_task(said_by(connection))) == []
    await connection.finish(1000)
    assert socket.closed == [closed]
    assert [bool(record.exc_info) for record in caplog.records if record.levelno >= logging.ERROR] == (
        [True] if closed[0] == 1011 else []
    )


async def test_many_clients_write_few_lines(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A gap, a failure of the broker, and slow clients write one line for the first of many, and one for the rest."""
    caplog.set_level(logging.INFO)
    policy = ConnectionPolicy(reload_delay=lambda: 60)
    connections = [world.connection(policy=policy, max_messages=1) for _ in range(30)]
    for connection, _ in connections:
        await connection.join("a")
    world.hub.gap(ALL, "overrun")
    finishing = [asyncio.create_task(connection.finish(1013, AWAY)) for connection, _ in connections]
    await until_idle()
    for _, socket in connections:
        socket.send_gate.close()
    await stall(world, connections[0][1], *"1234")
    for task in finishing:
        await bounded(task)
    policy.bursts.flush()
    first = connections[0][0].id
    last = connections[-1][0].id
    assert sorted(caplog.messages) == sorted(
        [
            f"closing connection {first}, to reload: overrun",
            f"29 more within 10 s, the last one: closing connection {last}, to reload: overrun",
            f"connection {first} ends, the broker failed: {AWAY}",
            f"29 more within 10 s, the last one: connection {last} ends, the broker failed: {AWAY}",
            f"connection {first} is too slow for channel 'a': closing it",
            f"29 more within 10 s, the last one: connection {last} is too slow for channel 'a': closing it",
        ]
    )


# --- channels ------------------------------------------------------------------------------------------------------


async def test_what_waits_at_the_leave_is_still_sent(world: World) -> None:
    """A leave stops what comes, not what came before, nor what comes of other channels."""
    connection, socket = world.connection()
    await connection.join("a")
    socket.send_gate.close()
    world.deliver("a", "1")
    await socket.until(lambda: socket.sending == 1)
    world.deliver("a", "2")
    await until_idle()
    await connection.leave("a")
    await connection.join("b")
    world.deliver("a", "unheard")
    world.deliver("b", "3")
    socket.send_gate.open()
    await socket.receives("1", "2", "3")


async def test_join_of_an_illegal_name(world: World) -> None:
    """A name that is not legal reaches neither the application nor the broker."""

    def authorize(_: Connection, channel: str) -> bool:
        pytest.fail(f"asked about {channel!r}")

    connection, _ = world.connection(policy=ConnectionPolicy(authorize=authorize))
    with pytest.raises(InvalidChannelError):
        await connection.join("$backplane/probe")
    assert world.broker.calls == []


# --- a client that does not read -----------------------------------------------------------------------------------


async def test_slow_client_is_closed(world: World) -> None:
    """With the policy `close` the bound ends the client with 1013: iteration ends and the hub is left."""
    connection, socket = world.connection(max_messages=2)
    await connection.join("a")
    iterating = asyncio.create_task(said_by(connection))
    socket.send_gate.close()
    world.deliver("a", "1")
    await socket.until(lambda: socket.sending == 1)
    world.deliver("a", "2", "3", "4")
    assert await bounded(iterating) == []
    await socket.until(lambda: bool(socket.closed))
    assert socket.closed == [(1013, "too slow")]
    assert (list(connection.channels), list(world.hub.channels), socket.sent) == ([], [], [])
    async with no_new_task():
        await connection.finish(1000)
    assert socket.closed == [(1013, "too slow")]


async def test_slow_client_leaves_the_others_alone(world: World) -> None:
    """The others get every message while one stalls and is closed."""
    slow, stalled = world.connection(max_messages=2)
    quick, socket = world.connection(max_messages=1000)
    await slow.join("a")
    await quick.join("a")
    stalled.send_gate.close()
    texts = [str(number) for number in range(100)]
    world.deliver("a", *texts)
    await socket.receives(*texts)
    assert list(quick.channels) == ["a"]


async def test_close_of_a_client_that_reads_nothing_is_bounded(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Who does not read does not read the close frame either: the attempt is given up."""
    monkeypatch.setattr("backplane.connection.close_sequence._CLOSE_SECONDS", 0.05)
    caplog.set_level(logging.DEBUG, "backplane.connection.connection")
    connection, socket = world.connection(max_messages=1)
    await connection.join("a")
    socket.send_gate.close()
    socket.close_gate.close()
    world.deliver("a", "1")
    await socket.until(lambda: socket.sending == 1)
    world.deliver("a", "2", "3")
    await socket.until(lambda: socket.closing == 1)
    async with no_new_task():
        await bounded(asyncio.create_task(connection.finish(1000)))
    assert socket.closed == []
    assert f"connection {connection.id} does not read its close frame" in caplog.messages
    assert socket.lane is None or socket.lane.closed


@pytest.mark.parametrize(
    ("when_full", "expected"),
    [
        ("drop_oldest", ["1", "4", "5"]),
        ("drop_newest", ["1", "2", "3"]),
        ("latest", ["1", "5"]),
    ],
)
async def test_drop_policies(world: World, when_full: FullPolicy, expected: list[str]) -> None:
    """A client that stalls under a dropping policy loses what the policy says, and stays connected."""
    connection, socket = world.connection(when_full=when_full, max_messages=2)
    await connection.join("a")
    socket.send_gate.close()
    world.deliver("a", "1")
    await socket.until(lambda: socket.sending == 1)
    world.deliver("a", "2", "3", "4", "5")
    await until_idle()
    socket.send_gate.open()
    await socket.receives(*expected)
    await until_idle()
    assert (socket.sent, socket.closing, list(connection.channels)) == (expected, 0, ["a"])


# --- send ----------------------------------------------------------------------------------------------------------


async def test_send_waits_behind_what_waits(world: World) -> None:
    """A direct message takes its turn, and the call returns when the server has taken it."""
    connection, socket = world.connection()
    await connection.join("a")
    socket.send_gate.close()
    world.deliver("a", "1")
    await socket.until(lambda: socket.sending == 1)
    sending = asyncio.create_task(connection.send("2"))
    await until_idle()
    assert not sending.done()
    socket.send_gate.open()
    await bounded(sending)
    assert socket.sent == ["1", "2"]


class Order(BaseModel):
    """A pydantic model."""

    id: int


@pytest.mark.parametrize(
    ("data", "expected"),
    [("", ""), (b"\x00\xff", b"\x00\xff"), (memoryview(b"\xff"), b"\xff"), (Order(id=42), '{"id":42}'), (None, "null")],
    ids=["text", "bytes", "memoryview", "model", "None"],
)
async def test_send_takes_what_publish_takes(world: World, data: object, expected: str | bytes) -> None:
    """Text goes as text, bytes as binary, anything else as JSON text; what is none of these raises in the caller."""
    connection, socket = world.connection()
    with pytest.raises(InvalidDataError):
        await connection.send({"x": object()})
    await connection.send(data)
    assert socket.sent == [expected]
    assert type(socket.sent[0]) is type(expected)


async def test_send_over_the_bound_closes(world: World) -> None:
    """The bound counts for direct messages too; the call raises `ClosedError`, as at any end."""
    connection, socket = world.connection(max_messages=1)
    socket.send_gate.close()
    sending = [asyncio.create_task(connection.send(str(number))) for number in range(3)]
    with pytest.raises(ClosedError):
        await bounded(sending[2])
    await asyncio.wait(sending)
    assert {type(task.exception()) for task in sending} <= {ClosedError, type(None)}  # a lane takes the first at once
    await connection.finish(1000)
    assert socket.closed == [(1013, "too slow")]


async def test_latest_does_not_replace_direct_messages(world: World) -> None:
    """The policy `latest` replaces a waiting message of a channel, never one sent to this client alone."""
    connection, socket = world.connection(when_full="latest")
    await connection.join("a")
    socket.send_gate.close()
    sending = [asyncio.create_task(connection.send(str(number))) for number in range(3)]
    await until_idle()
    world.deliver("a", "old", "new")
    await until_idle()
    socket.send_gate.open()
    for task in sending:
        await bounded(task)
    await socket.receives("0", "1", "2", "new")


async def test_send_after_the_end(world: World) -> None:
    """A connection that is over takes nothing more; a handler that ignores the error still gives others a turn."""
    connection, socket = world.connection()
    await connection.close()
    turns: list[int] = []
    asyncio.get_running_loop().call_soon(turns.append, 1)
    with pytest.raises(ClosedError):
        await connection.send("too late")
    assert turns == [1]
    assert (socket.sent, socket.closed) == ([], [(1000, "normal")])


# --- ends ----------------------------------------------------------------------------------------------------------


async def test_client_says_and_leaves(world: World) -> None:
    """Iterating yields what the client says, text and binary, empty too, and ends with it."""
    connection, socket = world.connection()
    await connection.join("a")
    for said in ("text", b"\xff", "", b"", None):
        socket.receiver.put_nowait(said)
    assert await bounded(asyncio.create_task(said_by(connection))) == ["text", b"\xff", "", b""]
    assert list(world.hub.channels) == []
    await connection.finish(1000)
    assert socket.closing == 0


async def test_close_ends_the_iteration(world: World) -> None:
    """A close wakes the handler, reaches the client once, and leaves the hub."""
    connection, socket = world.connection()
    await connection.join("a")
    iterating = asyncio.create_task(said_by(connection))
    await until_idle()
    async with no_new_task():
        await connection.close(4000, "enough")
        assert await bounded(iterating) == []
        await connection.close(4001, "again")
        await connection.finish(1000)
    assert socket.closed == [(4000, "enough")]
    assert list(world.hub.channels) == []


async def test_close_before_the_handshake(world: World) -> None:
    """What was never opened has no close frame."""
    connection, socket = world.connection(opened=False)
    await connection.close()
    await connection.finish(1000)
    assert socket.closing == 0


async def test_handshake_that_ends_after_the_close_is_closed(world: World) -> None:
    """A close that comes while the handshake is being finished reaches the client once it is."""
    connection, socket = world.connection(opened=False)
    connection.end(1012, "the server restarts")
    connection.opened()
    await connection.finish(1000)
    assert socket.closed == [(1012, "the server restarts")]


async def test_finish_flushes(world: World) -> None:
    """The handler's end sends what waits, then closes."""
    connection, socket = world.connection()
    await connection.join("a")
    world.deliver("a", "1", "2")
    await run_passes(1)
    async with no_new_task():
        await connection.finish(1000)
    assert (socket.sent, socket.closed) == (["1", "2"], [(1000, "normal")])


async def test_finish_of_a_client_that_reads_nothing_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The handler's end does not wait for ever: a flush and a close of bounded time each."""
    monkeypatch.setattr("backplane.connection.close_sequence._CLOSE_SECONDS", 0.05)
    connection, socket = world.connection()
    await connection.join("a")
    socket.send_gate.close()
    socket.close_gate.close()
    world.deliver("a", "1", "2")
    async with no_new_task():
        await bounded(asyncio.create_task(connection.finish(1000)))
    assert (list(world.hub.channels), socket.sent) == ([], [])


async def test_finish_cancelled_leaves_nothing(world: World) -> None:
    """A handler cancelled while its end is being flushed leaves neither a member in the hub nor a task."""
    connection, socket = world.connection()
    await connection.join("a")
    socket.send_gate.close()
    socket.close_gate.close()
    before = asyncio.all_tasks()
    world.deliver("a", "1")
    await socket.until(lambda: socket.sending == 1)
    finishing = asyncio.create_task(connection.finish(1000))
    await until_idle()
    finishing.cancel()
    await asyncio.wait([finishing])
    await until_idle()
    left = (list(world.hub.channels), asyncio.all_tasks() - before)
    await connection.abandon()
    assert left == ([], set())


async def test_abandon_leaves_nothing(world: World) -> None:
    """A cancelled handler leaves no task and no member, and says nothing to the client."""
    connection, socket = world.connection()
    await connection.join("a")
    async with no_new_task():
        socket.send_gate.close()
        world.deliver("a", "1")
        await socket.until(lambda: socket.sending == 1)
        await connection.abandon()
    assert (list(world.hub.channels), socket.sent, socket.closing) == ([], [], 0)


async def test_abandon_ends_a_close_under_way(world: World) -> None:
    """A handler cancelled while a close frame waits takes that along."""
    connection, socket = world.connection()
    socket.close_gate.close()
    async with no_new_task():
        connection.end(1013, "too slow")
        await socket.until(lambda: socket.closing == 1)
        await connection.abandon()
    assert socket.closed == []


async def test_client_that_is_gone_while_sending(plain_world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A client that went away is an ordinary end: nothing is logged, and no close frame is tried."""
    policy = ConnectionPolicy()
    connection, socket = plain_world.connection(policy=policy)
    await connection.join("a")
    iterating = asyncio.create_task(said_by(connection))
    await until_idle()
    socket.error = SocketGoneError()
    async with no_new_task():
        plain_world.deliver("a", "1", "2")
        assert await bounded(iterating) == []
        await connection.finish(1000)
    assert (socket.sending, socket.closing, list(plain_world.hub.channels), caplog.records) == (1, 0, [], [])
    assert what_happened(policy) == {"closed_by_client": 1}


@pytest.mark.parametrize("act", ["publish", "send"])
async def test_server_that_fails_to_send(world: World, act: str, caplog: pytest.LogCaptureFixture) -> None:
    """What a server raises for a message ends the client, counted and with one line of the log; others live on."""
    fault = KeyError("a fault")
    policy = ConnectionPolicy()
    connection, socket = world.connection(policy=policy)
    other, its_socket = world.connection()
    await connection.join("a")
    await other.join("a")
    iterating = asyncio.create_task(said_by(connection))
    await until_idle()
    break_server(socket, fault)
    if act == "send":
        with pytest.raises(ClosedError):
            await connection.send("1")
    world.deliver("a", "1")
    world.deliver("a", "2")
    await its_socket.receives("1", "2")
    assert await bounded(iterating) == []
    await connection.finish(1000)
    assert (connection.is_over, socket.closed, what_happened(policy)) == (
        True,
        [(1011, "internal error")],
        {"closed_internal_error": 1},
    )
    assert [record.exc_info and record.exc_info[1] for record in caplog.records] == [fault]


async def test_server_that_fails_when_a_client_reads_again(lane_world: World, caplog: pytest.LogCaptureFixture) -> None:
    """So does what it raises for what waited until its transport took more; the server itself does not notice."""
    connection, socket = lane_world.connection()
    await connection.join("a")
    lane = socket.lane
    assert lane is not None
    lane.pause()
    lane_world.deliver("a", "1")
    await until_idle()
    break_server(socket, KeyError("a fault"))
    lane.resume()
    await connection.finish(1000)
    assert socket.closed == [(1011, "internal error")]
    assert caplog.messages == [f"connection {connection.id} failed: closing it"]


async def test_server_that_fails_to_ping(lane_world: World, caplog: pytest.LogCaptureFixture) -> None:
    """What a server raises for a ping ends that client, and all others are still asked for a sign."""
    policy = ConnectionPolicy(limits=Limits(heartbeat_seconds=0.05))
    connections = [lane_world.connection(policy=policy) for _ in range(2)]
    lanes = [socket.lane for _, socket in connections]
    assert lanes[0] is not None
    assert lanes[1] is not None
    pinged = asyncio.Event()
    lanes[0].ping = Mock(side_effect=KeyError("a fault"))  # type: ignore[method-assign]
    lanes[1].ping = pinged.set  # type: ignore[method-assign]
    await asyncio.wait_for(pinged.wait(), WAIT_SECONDS)
    await connections[0][1].until(lambda: connections[0][1].closed != [])
    assert [connection.is_over for connection, _ in connections] == [True, False]
    assert [record.message for record in caplog.records] == [f"connection {connections[0][0].id} failed: closing it"]


@pytest.mark.parametrize(
    ("code", "reason"), [(1005, ""), (1006, ""), (999, ""), (5000, ""), (True, ""), ("1000", ""), (4001, b"bytes")]
)
async def test_close_with_what_no_frame_carries(world: World, code: Any, reason: Any) -> None:
    """Nothing ends by a close with a code or a reason that cannot be sent: it receives, and can be closed."""
    policy = ConnectionPolicy()
    connection, socket = world.connection(policy=policy)
    await connection.join("a")
    with pytest.raises(ConfigurationError):
        await connection.close(code, reason)
    assert what_happened(policy) == {}
    world.deliver("a", "1")
    await socket.receives("1")
    await connection.close(4001, "é" * 100)
    assert (socket.closed, what_happened(policy)) == ([(4001, "é" * 60 + "…")], {"closed_expired": 1})


user: ContextVar[str] = ContextVar("user", default="nobody")


async def test_whatever_runs_for_a_client_has_its_variables(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Functions of the application, log lines, the close and a `send` see the client's variables, not the publisher's.

    As the handler had them at `connect`.
    """
    seen: list[tuple[str, str]] = []

    def see(what: str) -> str:
        seen.append((what, user.get()))
        return what

    class Log(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            return bool(see("log"))

    class Socket(FakeSocket):
        async def send(self, data: str | bytes) -> None:
            see("send")
            await super().send(data)

        async def close(self, code: int, reason: str) -> None:
            see("close")
            await super().close(code, reason)

    policy = ConnectionPolicy(on_gap=lambda _: see("on_gap"), on_slow=lambda _: see("on_slow"))
    socket = Socket(lane=world.lane)

    def connect() -> Connection:
        user.set("alice")
        return world.connection(socket, max_messages=2, policy=policy)[0]

    connection = copy_context().run(connect)
    await connection.join("a")
    await connection.join("b", latest_by=lambda _: see("latest_by"))
    user.set("mallory")
    log = Log()
    logging.getLogger("backplane.connection.connection").addFilter(log)
    try:
        world.deliver("a", "1")
        world.hub.gap(["a"], "lost")
        socket.send_gate.close()
        world.deliver("b", "2")
        await until_idle()
        world.deliver("b", "3")
        await until_idle()
        world.deliver("a", "4", "5", "6", "7")
        await socket.until(lambda: ("close", "alice") in seen)
    finally:
        logging.getLogger("backplane.connection.connection").removeFilter(log)
    sends = {"send"} if socket.lane is None else set[str]()
    assert {what for what, _ in seen} == {"on_gap", "on_slow", "latest_by", "log", "close"} | sends
    assert {whose for _, whose in seen} == {"alice"}


async def test_unexpected_error_while_closing(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """What a server raises for a close frame is logged once; the client is counted, and cut where there is a way."""
    policy = ConnectionPolicy()
    connection, socket = world.connection(policy=policy)
    socket.close_error = KeyError("a fault")
    await connection.close()
    await connection.finish(1000)
    assert [record.name for record in caplog.records] == ["backplane.connection.connection"]
    assert (connection.is_over, what_happened(policy)) == (True, {"closed_normal": 1})
    assert socket.lane is None or socket.lane.closed


async def test_no_task_while_nothing_waits(plain_world: World) -> None:
    """An open connection at rest has no task of its own: one exists only while something is being sent."""
    before = asyncio.all_tasks()
    connection, socket = plain_world.connection()
    await connection.join("a")
    assert asyncio.all_tasks() == before
    socket.send_gate.close()
    plain_world.deliver("a", "1")
    await socket.until(lambda: socket.sending == 1)
    assert len(asyncio.all_tasks() - before) == 1
    socket.send_gate.open()
    await socket.receives("1")
    await until_idle()
    assert asyncio.all_tasks() == before
    await connection.finish(1000)
    await until_idle()
    assert asyncio.all_tasks() == before


async def test_repr_names_state_and_channels(world: World) -> None:
    """The repr says who it is, how it is, and what it hears."""
    connection, _ = world.connection(opened=False)
    assert repr(connection) == f"<Connection {connection.id} joining channels=[]>"
    await connection.join("a")
    connection.opened()
    assert repr(connection) == f"<Connection {connection.id} open channels=['a']>"
    await connection.close()
    assert repr(connection) == f"<Connection {connection.id} ended channels=[]>"


# --- limits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "closed", "count"),
    [
        (Limits(max_message_bytes=4), (1009, "at most 4 bytes"), "closed_too_big"),
        (Limits(max_messages_per_second=0.001), (4029, "too many messages"), "closed_too_many_messages"),
    ],
    ids=["size", "rate"],
)
async def test_client_that_says_too_much(
    world: World, limits: Limits, closed: tuple[int, str], count: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A message over a limit ends the connection with the limit's code, unseen, is counted, and told in the log."""
    caplog.set_level(logging.INFO, "backplane.connection.connection")
    policy = ConnectionPolicy(limits=limits)
    connection, socket = world.connection(policy=policy)
    for said in ("1234", "12345", "never"):
        socket.receiver.put_nowait(said)
    assert await bounded(asyncio.create_task(said_by(connection))) == ["1234"]
    await connection.finish(1000)
    assert (socket.closed, what_happened(policy)) == ([closed], {count: 1})
    assert caplog.messages == [f"closing connection {connection.id}: {closed[1]}"]


@pytest.mark.parametrize("most_bytes", [4, None])
async def test_limit_reaches_the_lane(most_bytes: int | None) -> None:
    """The server learns the largest message before the handshake is accepted, so that it need not hold a larger one."""
    async with hub_of(lane=True) as world:
        _, socket = world.connection(opened=False, policy=ConnectionPolicy(limits=Limits(max_message_bytes=most_bytes)))
        assert socket.lane is not None
        assert socket.lane.max_message_bytes == most_bytes


async def test_too_many_channels(world: World) -> None:
    """One channel too many raises and is not joined; joining again, and another after a leave, are allowed."""
    policy = ConnectionPolicy(limits=Limits(max_channels=2))
    connection, _ = world.connection(policy=policy)
    for channel in ("a", "b", "a"):
        await connection.join(channel)
    with pytest.raises(TooManyChannelsError, match=r"^a client may join 2 channels"):
        await connection.join("c")
    assert (list(connection.channels), what_happened(policy)) == (["a", "b"], {"refused_channels": 1})
    await connection.leave("a")
    await connection.join("c")
    assert list(world.hub.channels) == ["b", "c"]


async def test_too_many_channels_at_once(world: World) -> None:
    """Joins under way count: many at once do not get around the limit."""
    connection, _ = world.connection(policy=ConnectionPolicy(limits=Limits(max_channels=2)))
    joins = await asyncio.gather(*(connection.join(channel) for channel in "abcde"), return_exceptions=True)
    joined = len(connection.channels)
    await connection.finish(1000)
    assert (joined, [type(error) for error in joins if error]) == (2, [TooManyChannelsError] * 3)


@pytest.mark.parametrize(
    ("limits", "code", "count"),
    [
        (Limits(idle_timeout_seconds=0.01), 4508, "closed_idle"),
        (Limits(max_age_seconds=0.01), 4010, "closed_max_age"),
    ],
    ids=["idle", "age"],
)
async def test_time_that_runs_out(world: World, limits: Limits, code: int, count: str) -> None:
    """A client that has been silent, or there, for too long is closed, its handler ends, and the watch forgets it."""
    policy = ConnectionPolicy(limits=limits)
    connection, socket = world.connection(policy=policy)
    assert await bounded(asyncio.create_task(said_by(connection))) == []
    await connection.finish(1000)
    assert ([sent for sent, _ in socket.closed], what_happened(policy)) == ([code], {count: 1})
    assert watched(policy) == []


def watched(policy: ConnectionPolicy) -> list[object]:
    """Return whom the watch keeps."""
    buckets = policy.keepalive._buckets.values()  # pyright: ignore[reportPrivateUsage]
    return [client for bucket in buckets for client in bucket]


async def test_expiry(world: World) -> None:
    """A permission that runs out closes with 4001, also when it had run out before the handshake was done."""
    for opened in (True, False):
        policy = ConnectionPolicy()
        connection, socket = world.connection(policy=policy, opened=opened)
        connection.expire_at(time.time() + (0.01 if opened else -10))
        if not opened:
            connection.opened()
        assert await bounded(asyncio.create_task(said_by(connection))) == []
        await connection.finish(1000)
        assert (socket.closed, what_happened(policy)) == ([(4001, "expired")], {"closed_expired": 1})


async def test_renewed_permission(world: World) -> None:
    """A new token puts the end off, and none at all takes it away; it is shorter if the new one is."""
    policy = ConnectionPolicy(limits=Limits(heartbeat_seconds=None))
    connection, socket = world.connection(policy=policy)
    connection.expire_at(time.time() + 0.01)
    connection.expire_at(time.time() + 3_600)
    assert connection.timers.due - asyncio.get_running_loop().time() > 3_000
    connection.expire_at(None)
    assert (connection.timers.due, watched(policy)) == (float("inf"), [])
    connection.expire_at(time.time() + 3_600)
    connection.expire_at(time.time())
    await socket.until(lambda: socket.closed != [])
    assert [code for code, _ in socket.closed] == [4001]
    connection.expire_at(time.time() + 10)
    assert watched(policy) == []


# --- heartbeats: the times are given, no time goes by --------------------------------------------------------------


def beat(connection: Connection, after: float) -> None:
    """Look after the connection so many seconds after its beginning."""
    connection.check_timers(connection.timers.opened_at + after)


def lane_of(socket: FakeSocket) -> ClientLane:
    """Return the lane of a client that has one."""
    assert socket.lane is not None
    socket.lane.last_received_at = asyncio.get_running_loop().time()
    return socket.lane


HEARTBEAT = Limits(heartbeat_seconds=10)


async def test_silent_client_is_pinged_then_cut(lane_world: World) -> None:
    """A client on the lane that is not heard of is pinged, and cut when it has not answered by the next heartbeat."""
    policy = ConnectionPolicy(limits=HEARTBEAT)
    connection, socket = lane_world.connection(policy=policy)
    lane = lane_of(socket)
    beat(connection, 10)
    assert (lane.pings, lane.aborted) == (1, False)
    beat(connection, 20)
    assert (lane.pings, lane.aborted, what_happened(policy)) == (1, True, {"closed_silent": 1})
    assert await bounded(asyncio.create_task(said_by(connection))) == []


async def test_client_that_answers_or_is_not_read_stays(lane_world: World) -> None:
    """Whoever answers stays, and so does whom the server does not read, where a ping only finds a lost transport."""
    connection, socket = lane_world.connection(policy=ConnectionPolicy(limits=HEARTBEAT))
    lane, begin = lane_of(socket), connection.timers.opened_at
    beat(connection, 10)
    lane.last_received_at = begin + 11
    beat(connection, 20)
    lane.reading = False
    beat(connection, 30)
    lane.reading = True
    beat(connection, 40)
    assert (lane.pings, lane.aborted) == (4, False)
    beat(connection, 50)
    assert lane.aborted


async def test_heartbeat_message(plain_world: World) -> None:
    """Without a lane the application's message is sent, and a client that says nothing to it is closed with 4011."""
    policy = ConnectionPolicy(limits=Limits(heartbeat_seconds=10, heartbeat_message={"type": "ping"}))
    connection, socket = plain_world.connection(policy=policy)
    iterating = asyncio.create_task(said_by(connection))
    await until_idle()
    beat(connection, 10)
    assert socket.sent == ['{"type":"ping"}']
    connection.timers.last_received_at = connection.timers.opened_at + 11
    beat(connection, 20)
    assert len(socket.sent) == 2
    beat(connection, 30)
    assert (await bounded(iterating), what_happened(policy)) == ([], {"closed_silent": 1})
    await connection.finish(1000)
    assert socket.closed == [(4011, "no answer to heartbeats")]


@pytest.mark.parametrize("why", ["no message", "no handler that receives"])
async def test_no_heartbeat(plain_world: World, why: str) -> None:
    """Without a lane nothing is asked without a message to ask with, or while nobody would see the answer."""
    message = None if why == "no message" else "ping"
    connection, socket = plain_world.connection(
        policy=ConnectionPolicy(limits=Limits(heartbeat_seconds=10, heartbeat_message=message))
    )
    iterating = asyncio.create_task(said_by(connection)) if why == "no message" else None
    await until_idle()
    for heartbeat in range(1, 6):
        beat(connection, 10 * heartbeat)
    assert (socket.sent, socket.closing) == ([], 0)
    await connection.close()
    if iterating is not None:
        await bounded(iterating)


async def test_watch_forgets_a_client_that_is_given_up(lane_world: World) -> None:
    """A client that was given up is not looked after again: neither kept nor counted a second time."""
    policy = ConnectionPolicy(limits=HEARTBEAT)
    connection, socket = lane_world.connection(policy=policy)
    lane_of(socket)
    beat(connection, 10)
    beat(connection, 20)
    policy.keepalive.put(connection)  # what the watch does behind each look
    left = watched(policy)
    policy.keepalive.remove(connection)
    await connection.finish(1000)
    assert left == []


async def test_watch_forgets_a_client_that_is_gone_at_the_handshake(plain_world: World) -> None:
    """A client whose first message fails is not kept by the watch."""
    policy = ConnectionPolicy()
    connection, socket = plain_world.connection(policy=policy, opened=False)
    await connection.join("a")
    plain_world.deliver("a", "1")
    await until_idle()
    socket.error = SocketGoneError()
    connection.opened()
    await connection.finish(1000)
    left = watched(policy)
    policy.keepalive.remove(connection)
    assert left == []


async def test_watch_keeps_nobody_behind_the_end(world: World) -> None:
    """However a connection ends, the watch has forgotten it, and holds no timer."""
    policy = ConnectionPolicy()
    for ending in ("finish", "close", "abandon", "client", "retire"):
        connection, socket = world.connection(policy=policy)
        assert watched(policy) == [connection]
        if ending == "close":
            await connection.close()
        elif ending == "abandon":
            await connection.abandon()
        elif ending == "client":
            socket.receiver.put_nowait(None)
            assert await said_by(connection) == []
        elif ending == "retire":
            connection.retire(1012, "")
        await connection.finish(1000)
        assert watched(policy) == []
    assert policy.keepalive._timer is None  # pyright: ignore[reportPrivateUsage]


async def test_lane_that_ends(lane_world: World) -> None:
    """When the lane ends nothing more is written, what the client had said is still received, and then it ends."""
    connection, socket = lane_world.connection()
    await connection.join("a")
    socket.receiver.put_nowait("last words")
    lane_of(socket).end()
    lane_world.deliver("a", "unheard")
    with pytest.raises(ClosedError):
        await connection.send("unheard")
    socket.receiver.put_nowait(None)
    assert await bounded(asyncio.create_task(said_by(connection))) == ["last words"]
    with pytest.raises(ClosedError):
        await connection.join("b")
    await connection.finish(1000)
    assert (socket.sent, list(lane_world.hub.channels)) == ([], [])


@pytest.mark.parametrize(
    ("code", "count"), [(1009, "closed_too_big"), (1012, "closed_by_client"), (None, "closed_by_client")]
)
async def test_message_that_the_server_refuses_is_counted_as_too_big(
    lane_world: World, code: int | None, count: str
) -> None:
    """Where the server refuses it before it is assembled, it is counted as where the connection does; else its end."""
    policy = ConnectionPolicy()
    connection, socket = lane_world.connection(policy=policy)
    lane_of(socket).close_code = code
    lane_of(socket).end()
    socket.receiver.put_nowait(None)
    assert await said_by(connection) == []
    assert counted(policy.statistics) == {"connections_opened": 1, count: 1}


# --- what the application says -------------------------------------------------------------------------------------


def allow_now(connection: Connection, channel: str) -> bool:
    """Allow the channel that stands in the context."""
    return bool(connection.context == channel)


async def allow_later(connection: Connection, channel: str) -> bool:
    """Allow the channel that stands in the context, after a while."""
    await asyncio.sleep(0)
    return bool(connection.context == channel)


@pytest.mark.parametrize("authorize", [allow_now, allow_later], ids=["sync", "async"])
async def test_authorize(world: World, authorize: Authorize) -> None:
    """The application decides about every join; a no raises, is counted, and never reaches the broker."""
    policy = ConnectionPolicy(authorize=authorize)
    connection, socket = world.connection(policy=policy, context="mine")
    with pytest.raises(JoinRefusedError, match=r"^this client may not join channel 'theirs'$"):
        await connection.join("theirs")
    await connection.join("mine")
    assert [verb for verb in world.broker.calls if "theirs" in verb[1]] == []
    world.deliver("mine", "heard")
    await socket.receives("heard")
    assert (list(connection.channels), what_happened(policy)) == (["mine"], {"refused_joins": 1})


async def test_authorize_that_raises(world: World) -> None:
    """What it raises goes to whoever joins, and nothing is joined."""

    def fail(_: Connection, channel: str) -> bool:
        raise KeyError(channel)

    connection, _ = world.connection(policy=ConnectionPolicy(authorize=fail))
    with pytest.raises(KeyError, match="a"):
        await connection.join("a")
    assert (list(connection.channels), world.broker.calls) == ([], [])


async def test_end_while_authorizing(world: World) -> None:
    """A connection that ends while the application decides joins nothing."""
    gate, asked = Gate(), asyncio.Event()
    gate.close()

    async def slow(*_: object) -> bool:
        asked.set()
        await gate.passage()
        return True

    connection, _ = world.connection(policy=ConnectionPolicy(authorize=slow))
    joining = asyncio.create_task(connection.join("a"))
    await asked.wait()
    await connection.close()
    gate.open()
    with pytest.raises(ClosedError):
        await bounded(joining)
    assert world.broker.calls == []


async def test_policy_of_a_join(world: World) -> None:
    """A channel may be joined with a policy and a key of its own; a leave forgets them."""
    connection, socket = world.connection(max_messages=3)
    await connection.join("ticks", latest_by=lambda message: message.data[0])
    await connection.join("orders")
    socket.send_gate.close()
    world.deliver("orders", "0")
    await socket.until(lambda: socket.sending == 1)
    world.deliver("ticks", "x1", "y1", "x2", "y2", "x3")
    world.deliver("orders", "1")
    await until_idle()
    socket.send_gate.open()
    await socket.receives("0", "y2", "x3", "1")
    await connection.leave("ticks")
    await connection.join("ticks")
    socket.send_gate.close()
    world.deliver("ticks", "0")
    await until_idle()
    world.deliver("ticks", "x1", "x2", "x3", "x4")
    await socket.until(lambda: bool(socket.closed))
    assert socket.closed == [(1013, "too slow")]


async def test_policy_that_makes_no_sense(world: World) -> None:
    """A wrong policy is refused before anything is joined."""
    connection, _ = world.connection()
    policy: Any = "drop"
    with pytest.raises(ConfigurationError):
        await connection.join("a", when_full=policy)
    with pytest.raises(ConfigurationError):
        await connection.join("a", when_full="close", latest_by=str)
    assert (list(connection.channels), world.broker.calls) == ([], [])


async def stall(world: World, socket: FakeSocket, *payloads: str) -> None:
    """Let the client read nothing, and what comes then wait."""
    socket.send_gate.close()
    begun = socket.sending
    world.deliver("a", "first")
    await socket.until(lambda: socket.sending == begun + 1)
    world.deliver("a", *payloads)
    await until_idle()


async def test_slow_client_is_told_of_once_a_stretch(world: World) -> None:
    """The application hears of a slow client at the first drop of each stretch, and again when it is slow anew."""
    slow: list[SlowConsumer] = []
    policy = ConnectionPolicy(on_slow=slow.append)
    connection, socket = world.connection(when_full="drop_oldest", max_messages=2, policy=policy)
    await connection.join("a")
    for stretch in (1, 2, 3):
        await stall(world, socket, "1", "22", "333", "4", "5")
        assert len(slow) == stretch
        socket.send_gate.open()
        await socket.until(lambda: len(socket.sent) == 3 * stretch)  # noqa: B023
        await until_idle()
    assert slow[0] == SlowConsumer(
        connection=connection, channel="a", action="dropped_oldest", waiting_messages=1, waiting_bytes=2
    )
    assert what_happened(policy) == {"dropped_oldest": 9}


async def test_slow_client_that_is_closed(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The application hears of the client that is closed for it, with what waited; what it raises changes nothing."""
    slow: list[SlowConsumer] = []

    def fail(told: SlowConsumer) -> None:
        slow.append(told)
        raise RuntimeError("a fault")

    policy = ConnectionPolicy(on_slow=fail)
    connection, socket = world.connection(max_messages=2, policy=policy)
    await connection.join("a")
    await stall(world, socket, "1", "22", "333", "4")
    await socket.until(lambda: bool(socket.closed))
    assert slow == [
        SlowConsumer(connection=connection, channel="a", action="closed", waiting_messages=2, waiting_bytes=3)
    ]
    assert (socket.closed, what_happened(policy)) == ([(1013, "too slow")], {"closed_slow": 1})
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR] == [
        f"on_slow failed for connection {connection.id}"
    ]


async def test_replaced_messages_are_no_slowness(world: World) -> None:
    """With `latest`, a replaced message is counted and is not told of."""
    slow: list[SlowConsumer] = []
    policy = ConnectionPolicy(on_slow=slow.append)
    connection, socket = world.connection(when_full="latest", policy=policy)
    await connection.join("a")
    await stall(world, socket, "1", "2", "3")
    socket.send_gate.open()
    await socket.receives("first", "3")
    assert (slow, what_happened(policy)) == ([], {"replaced": 2})


async def test_on_slow_may_end_the_connection(world: World) -> None:
    """An application that ends its slow clients itself does so with its own code, told once."""
    slow: list[SlowConsumer] = []

    def end(told: SlowConsumer) -> None:
        slow.append(told)
        told.connection.end(4999, "go away")

    connection, socket = world.connection(when_full="drop_oldest", max_messages=1, policy=ConnectionPolicy(on_slow=end))
    await connection.join("a")
    await stall(world, socket, "1", "2", "3", "4")
    await connection.finish(1000)
    assert (len(slow), socket.closed) == (1, [(4999, "go away")])


# --- tasks beside the handler --------------------------------------------------------------------------------------


async def test_spawn(world: World) -> None:
    """A task beside the handler runs, returns, and is forgotten; a second one too."""
    connection, socket = world.connection()

    async def greet(name: str) -> str:
        await connection.send(f"hello {name}")
        return name

    assert await bounded(connection.spawn(greet("you"))) == "you"
    task = connection.spawn(greet("me"), name="greeter")
    assert (task.get_name(), await bounded(task)) == ("greeter", "me")
    await connection.finish(1000)
    assert (socket.sent, [code for code, _ in socket.closed]) == (["hello you", "hello me"], [1000])


@pytest.mark.parametrize("ending", ["finish", "abandon"])
async def test_spawned_task_at_the_end(world: World, ending: str) -> None:
    """At the end of the handler every task is cancelled and awaited, what it sends at its end included."""
    connection, socket = world.connection()
    steps: list[str] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            steps.append("cleaned up")
            await connection.send("bye")

    tasks = [connection.spawn(work()) for _ in range(3)]
    await until_idle()
    if ending == "finish":
        await connection.finish(1000)
    else:
        await connection.abandon()
    assert [task.cancelled() for task in tasks] == [ending == "finish"] * 3  # else `send` raises `ClosedError`
    assert steps == ["cleaned up"] * 3
    assert (socket.sent, [code for code, _ in socket.closed]) == (
        (["bye"] * 3, [1000]) if ending == "finish" else ([], [])
    )


async def test_spawned_task_that_fails(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """An error of a task is logged with its traceback, ends the handler's iteration, and closes with 1011."""
    connection, socket = world.connection()

    async def work() -> None:
        await asyncio.sleep(0)
        raise KeyError("a fault")

    iterating = asyncio.create_task(said_by(connection))
    connection.spawn(work())
    assert await bounded(iterating) == []
    await connection.finish(1000)
    assert [code for code, _ in socket.closed] == [1011]
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.getMessage() == f"a task of connection {connection.id} failed: closing it"
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], KeyError)


async def test_spawn_after_the_end(world: World) -> None:
    """After the end nothing is begun, and the coroutine is closed without a warning."""
    connection, _ = world.connection()
    await connection.close()
    with pytest.raises(ClosedError):
        connection.spawn(until_idle())


async def test_handler_that_waits_for_its_task(world: World) -> None:
    """A handler that only waits for a task of its connection comes to its end when the connection does."""
    connection, _ = world.connection()
    task = connection.spawn(asyncio.Event().wait())
    await connection.close()
    done, _ = await asyncio.wait([task], timeout=0.1)
    await connection.finish(1000)
    assert done


# --- what the client says, as a model ------------------------------------------------------------------------------


async def test_union_of_models(plain_world: World) -> None:
    """A union is as good as a class; type checkers know what a class and a `TypeAdapter` give, and take any union."""
    connection, socket = plain_world.connection()
    for text in ('{"id": 1}', '"quit"', '{"id": 2}', '{"id": 3}', "[4]", None):
        socket.receiver.put_nowait(text)
    assert_type(await connection.receive(Order | Literal["quit"]), Any)
    assert assert_type(await connection.receive(Order | Literal["quit"]), Any) == "quit"
    assert assert_type(await connection.receive(Order), Order | None) == Order(id=2)
    assert assert_type(await connection.receive(TypeAdapter(Order)), Order | None) == Order(id=3)
    received: list[Any] = []
    async for message in connection.iter(Order | list[int]):
        assert_type(message, Any)
        received.append(message)
    async for order in connection.iter(Order):
        assert_type(order, Order)
    assert received == [[4]]


async def test_receive(world: World) -> None:
    """The next message comes as it is, or as a model or an error that ends nothing; the end is `None`, and stays so."""
    connection, socket = world.connection()
    for said in ("text", b"\xff", '{"id":"x"}', '{"id":42}', None):
        socket.receiver.put_nowait(said)
    assert [await connection.receive(), await connection.receive()] == ["text", b"\xff"]
    with pytest.raises(InvalidMessageError):
        await connection.receive(Order)
    assert await connection.receive(Order) == Order(id=42)
    assert [await connection.receive(Order), await connection.receive()] == [None, None]


async def test_iter_answers(world: World) -> None:
    """By default what does not validate is answered with what is wrong, counted, and skipped."""
    policy = ConnectionPolicy()
    connection, socket = world.connection(policy=policy)
    for said in ('{"id":1}', '{"id":"x"}', '{"id":2}', None):
        socket.receiver.put_nowait(said)
    assert [order.id async for order in connection.iter(Order)] == [1, 2]
    assert (len(socket.sent), what_happened(policy)) == (1, {"invalid_messages": 1, "closed_by_client": 1})
    assert '"id"' in str(socket.sent[0])


async def test_iter_closes(world: World) -> None:
    """Where the application says so, the first one that does not validate closes with 1007."""
    policy = ConnectionPolicy()
    connection, socket = world.connection(policy=policy)
    for said in ('{"id":1}', '{"id":"x"}', '{"id":2}'):
        socket.receiver.put_nowait(said)
    assert [order.id async for order in connection.iter(Order, on_invalid="close")] == [1]
    await connection.finish(1000)
    assert (socket.closed, socket.sent) == ([(1007, "invalid message")], [])
    assert what_happened(policy) == {"invalid_messages": 1, "closed_invalid_data": 1}


async def test_join_after_the_end_asks_nobody() -> None:
    """A connection that has ended is told so, and the application is not asked about it, nor a refusal counted."""
    world = World()
    async with following(world.broker_subscriptions, world.broker):
        policy = ConnectionPolicy(authorize=lambda _, __: False)
        connection, _ = world.connection(policy=policy)
        await connection.close()
        try:
            with pytest.raises(ClosedError):
                await connection.join("a")
            assert what_happened(policy) == {"closed_normal": 1}
        finally:
            await world.end()


def refuse_all(_: Connection, __: str) -> bool:
    """Allow nothing."""
    return False


@pytest.mark.parametrize(
    ("authorize", "words"),
    [
        (refuse_all, "authorize refused 'a' to connection {id}"),
        (None, "connection {id}: a client may join 1 channels: "),
    ],
    ids=["authorize", "max_channels"],
)
async def test_refused_joins_are_logged(
    world: World, authorize: Authorize | None, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A client that tries again and again what it may not is in the log by one line, and by number in a second one."""
    policy = ConnectionPolicy(authorize=authorize, limits=Limits(max_channels=1))
    connection, _ = world.connection(policy=policy)
    if authorize is None:
        await connection.join("first")
    for _ in range(20):
        with pytest.raises((JoinRefusedError, TooManyChannelsError)):
            await connection.join("a")
    policy.bursts.flush()
    first, rest = caplog.messages
    assert first.startswith(words.format(id=connection.id))
    assert rest == f"19 more within 10 s, the last one: {first}"


async def test_invalid_messages_are_counted_and_logged(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """What does not validate is counted where it is received one by one, too, and logged without its content."""
    caplog.set_level(logging.INFO)
    policy = ConnectionPolicy()
    connection, socket = world.connection(policy=policy)
    for _ in range(3):
        socket.receiver.put_nowait('{"id":"secret"}')
        with pytest.raises(InvalidMessageError):
            await connection.receive(Order)
    policy.bursts.flush()
    assert what_happened(policy) == {"invalid_messages": 3}
    assert (len(caplog.messages), "secret" in caplog.text) == (2, False)
