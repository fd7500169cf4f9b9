"""`backplane.connection.close_sequence`: how connections end, in which order, with which code and which count."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from starlette.websockets import WebSocketDisconnect

from backplane.connection.ending import Ending
from backplane.connection.policy import ConnectionPolicy
from backplane.connection.sender import SocketGoneError
from backplane.errors import (
    BrokerUnavailableError,
    JoinRefusedError,
    PublishOutcomeUnknownError,
)
from backplane.journal.journal import Journal
from backplane.message import ALL, Gap
from tests.unit.connection.world import (
    RELOAD,
    World,
    bounded,
    finish,
    first_received_from,
    lane_of,
    no_new_task,
    received_from,
    stall,
    what_happened,
)
from tests.unit.doubles import run_passes, until_idle
from tests.unit.sockets import FakeSocket, driver_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from backplane.connection.connection import Connection

pytestmark = pytest.mark.anyio


# --- a gap -----------------------------------------------------------------------------------------------------------


async def test_gap_closes(world: World) -> None:
    """A client that may have missed something is asked to reconnect, and receives everything until then."""
    connection, socket = world.connection()
    await connection.join("a")
    world.hub.gap(ALL, "overrun")
    world.deliver("a", "after")
    assert await bounded(asyncio.create_task(received_from(connection))) == []
    await finish(connection)
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


async def test_gap_does_not_wait_for_a_client_that_reads_nothing(world: World) -> None:
    """What waits has a second at most; then the client is closed without it."""
    connection, socket = world.connection(policy=ConnectionPolicy(close_seconds=0.01))
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
    assert await first_received_from(connection) == "hello"


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
        driver_of(connection).retire(1012, "restart")
    await until_idle()
    world.deliver("a", "3")
    await until_idle()
    assert socket.closing == 0
    socket.send_gate.open()
    await socket.until(lambda: socket.closed != [])
    assert (socket.sent, socket.closed) == (["1", "2", "3"], [RELOAD if ending == "gap" else (1012, "restart")])


async def test_end_of_the_handler_before_its_turn_keeps_the_code_of_the_gap(world: World) -> None:
    """A handler that ends between the gap and the close does not hide the gap from its client."""
    connection, socket = world.connection(reload_delay=60)
    await connection.join("a")
    world.hub.gap(ALL, "overrun")
    async with no_new_task():
        await finish(connection)
    assert [code for code, _ in socket.closed] == [4000]


async def test_handler_that_raises_before_its_turn_closes_with_its_own_code(world: World) -> None:
    """An error of the handler decides the close code, gap or not."""
    connection, socket = world.connection(reload_delay=60)
    await connection.join("a")
    world.hub.gap(ALL, "overrun")
    await driver_of(connection).closing.finish(Ending(1011, is_fault=True))
    assert [code for code, _ in socket.closed] == [1011]


async def test_several_gaps_close_once(world: World) -> None:
    """A client of many channels is closed once."""
    connection, socket = world.connection()
    for channel in "abc":
        await connection.join(channel)
    world.hub.gap(ALL, "overrun")
    world.hub.gap(["a"], "again")
    driver_of(connection).gap(Gap(channel="b", reason="and again"))
    await socket.until(lambda: socket.closed != [])
    driver_of(connection).gap(Gap(channel="c", reason="late"))
    await finish(connection)
    assert socket.closed == [RELOAD]


async def test_gap_before_the_handshake(world: World) -> None:
    """A gap between the join and the end of the handshake closes the client once it is accepted."""
    connection, socket = world.connection(opened=False)
    await connection.join("a")
    world.hub.gap(ALL, "overrun")
    await until_idle()
    assert socket.closing == 0
    driver_of(connection).accepted()
    await socket.until(lambda: socket.closed != [])
    assert socket.closed == [RELOAD]


async def test_restart_overtakes_a_reload(world: World) -> None:
    """A worker that drains does not wait for a client's turn to reload."""
    connection, socket = world.connection(reload_delay=60)
    await connection.join("a")
    world.hub.gap(ALL, "overrun")
    driver_of(connection).retire(1012, "restart")
    await socket.until(lambda: socket.closed != [])
    await finish(connection)
    assert socket.closed == [(1012, "restart")]


async def test_end_of_the_handler_keeps_the_code_of_a_restart(world: World) -> None:
    """A handler that ends while its client is being closed for a restart does not change the code."""
    connection, socket = world.connection()
    await connection.join("a")
    socket.send_gate.close()
    world.deliver("a", "1")
    await socket.until(lambda: socket.sending == 1)
    driver_of(connection).retire(1012, "restart")
    await until_idle()
    finishing = asyncio.create_task(finish(connection))
    await until_idle()
    socket.send_gate.open()
    await bounded(finishing)
    assert [code for code, _ in socket.closed] == [1012]


async def test_end_of_the_handler_right_after_a_restart_keeps_its_code(world: World) -> None:
    """A handler that ends in the same moment in which its worker drains does not change the code either."""
    connection, socket = world.connection()
    driver_of(connection).retire(1012, "restart")
    await finish(connection)
    assert [code for code, _ in socket.closed] == [1012]


async def test_join_under_way_at_a_gap(world: World) -> None:
    """A join that the broker confirms after the gap holds until the close."""
    connection, socket = world.connection(reload_delay=60)
    await connection.join("a")
    world.adapter.subscribe_gate.close()
    joining = asyncio.create_task(connection.join("b"))
    await until_idle()
    world.hub.gap(["a"], "overrun")
    world.adapter.subscribe_gate.open()
    await bounded(joining)
    world.deliver("b", "1")
    await socket.receives("1")
    await finish(connection)
    assert (list(world.hub.channels), [code for code, _ in socket.closed]) == ([], [4000])


async def test_slow_client_before_its_turn(world: World) -> None:
    """A client that reads too slowly after a gap is closed for that, and not a second time when its turn comes."""
    policy = ConnectionPolicy(reload_delay=lambda: 60)
    connection, socket = world.connection(policy=policy, max_messages=2)
    await connection.join("a")
    world.hub.gap(ALL, "overrun")
    await stall(world, socket, *"1234")
    await finish(connection)
    assert (socket.closed, what_happened(policy)) == ([(1013, "too slow")], {"closed_slow": 1})


@pytest.mark.parametrize("how", ["leaves", "closed"])
async def test_an_end_before_the_turn_leaves_nothing(world: World, how: str) -> None:
    """A client that leaves, or is closed, before its turn is kept by no timer."""
    policy = ConnectionPolicy(reload_delay=lambda: 60)
    connection, _ = world.connection(policy=policy)
    await connection.join("a")
    world.hub.gap(ALL, "overrun")
    assert policy.turns._timer is not None  # pyright: ignore[reportPrivateUsage]
    if how == "leaves":
        driver_of(connection).disconnected()
    else:
        await connection.close(1000, "bye")
    assert policy.turns._timer is None  # pyright: ignore[reportPrivateUsage]


# --- a handler that the failure of the broker ended ------------------------------------------------------------------

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
    finishing = asyncio.create_task(finish(connection, AWAY))
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
        driver_of(connection).retire(*LATER)
    assert socket.closed == [LATER]


async def test_client_leaves_before_its_turn(world: World) -> None:
    """A client that leaves before its turn ends the wait."""
    async with failing(world) as (_, socket, _, policy):
        socket.receiver.put_nowait(None)
    assert (socket.closing, list(world.hub.channels)) == (0, [])
    assert what_happened(policy) == {"closed_by_client": 1}


@pytest.mark.parametrize("error", [RuntimeError("already disconnected"), SocketGoneError()], ids=["fault", "gone"])
async def test_socket_that_receives_nothing_more_before_its_turn(handler_world: World, error: Exception) -> None:
    """A socket whose end the handler has received by itself ends the wait, and is no error."""
    async with failing(handler_world) as (_, socket, _, policy):
        socket.receiver.put_nowait(error)
    assert (socket.closing, what_happened(policy)) == (0, {"closed_by_client": 1})


async def test_gap_before_the_turn(world: World) -> None:
    """A gap while a client waits for its turn gives it no second one, and costs it no message."""
    async with failing(world) as (connection, socket, finishing, _):
        world.hub.gap(ALL, "overrun")
        world.hub.gap(ALL, "again")
        world.deliver("a", "after")
        await socket.receives("after")
        assert not finishing.done()
        driver_of(connection).retire(*LATER)
    assert socket.closed == [LATER]


@pytest.mark.parametrize("ending", ["drain", "stop"])
async def test_worker_ends_before_the_turn(world: World, ending: str) -> None:
    """A worker that ends does not wait for the turn of a client."""
    async with failing(world) as (connection, socket, _, _):
        if ending == "drain":
            driver_of(connection).retire(1012, "restart")
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
    finishing = asyncio.create_task(finish(connection, AWAY))
    await until_idle()
    assert not finishing.done()
    driver_of(connection).retire(*RELOAD)
    await bounded(finishing)
    assert socket.closed == [RELOAD]


async def test_cancelled_before_the_turn(world: World) -> None:
    """A handler that is cancelled while it waits for its turn leaves no task, and its client gets no close frame."""
    policy = ConnectionPolicy(reload_delay=lambda: 60)
    connection, socket = world.connection(policy=policy)
    await connection.join("a")
    async with no_new_task():
        finishing = asyncio.create_task(finish(connection, AWAY))
        await until_idle()
        finishing.cancel()
        await asyncio.wait([finishing])
    assert (finishing.cancelled(), socket.closing, list(world.hub.channels)) == (True, 0, [])
    assert what_happened(policy) == {"closed_cancelled": 1}


async def test_task_that_outlives_the_handler(handler_world: World) -> None:
    """A task that still receives when its handler ends by a failure of the broker keeps no client from its close."""
    connection, socket = handler_world.connection()
    receiving = asyncio.create_task(connection.receive())
    await until_idle()
    await bounded(asyncio.create_task(finish(connection, AWAY)))
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
    assert await bounded(asyncio.create_task(received_from(connection))) == []
    await finish(connection)
    assert socket.closed == [closed]
    assert [bool(record.exc_info) for record in caplog.records if record.levelno >= logging.ERROR] == (
        [True] if closed[0] == 1011 else []
    )


async def test_many_clients_write_few_lines(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A gap and a failure of the broker write their number; slow clients the first one too."""
    caplog.set_level(logging.INFO)
    policy = ConnectionPolicy(reload_delay=lambda: 60, journal=Journal(burst=1))
    connections = [world.connection(policy=policy, max_messages=1) for _ in range(30)]
    for connection, _ in connections:
        await connection.join("a")
    world.hub.gap(ALL, "overrun")
    finishing = [asyncio.create_task(finish(connection, AWAY)) for connection, _ in connections]
    await until_idle()
    for _, socket in connections:
        socket.send_gate.close()
    await stall(world, connections[0][1], *"1234")
    for task in finishing:
        await bounded(task)
    policy.journal.flush()
    first = connections[0][0].id
    last = connections[-1][0].id
    gap = "messages may be missing on 1 channels, such as 'a', of 30 subscribers: overrun"
    assert sorted(text for text in caplog.messages if text != gap) == sorted(
        [
            f"30 within 10 s, the last one: closing connection {last}, to reload: overrun",
            f"30 within 10 s, the last one: connection {last} ends, the broker failed: {AWAY}",
            f"connection {first} is too slow for channel 'a': closing it",
            f"29 more within 10 s, the last one: connection {last} is too slow for channel 'a': closing it",
        ]
    )


# --- close frames and the end of the handler -------------------------------------------------------------------------


async def test_close_of_a_client_that_reads_nothing_is_bounded(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A client that does not read does not read the close frame either: the attempt is given up."""
    caplog.set_level(logging.DEBUG, "backplane.connection")
    connection, socket = world.connection(max_messages=1, policy=ConnectionPolicy(close_seconds=0.05))
    await connection.join("a")
    socket.send_gate.close()
    socket.close_gate.close()
    world.deliver("a", "1")
    await socket.until(lambda: socket.sending == 1)
    world.deliver("a", "2", "3")
    await socket.until(lambda: socket.closing == 1)
    async with no_new_task():
        await bounded(asyncio.create_task(finish(connection)))
    assert socket.closed == []
    assert f"connection {connection.id} does not read its close frame" in caplog.messages
    assert socket.lane is None or socket.lane.closed


async def test_close_before_the_handshake(world: World) -> None:
    """What was never opened has no close frame."""
    connection, socket = world.connection(opened=False)
    await connection.close()
    await finish(connection)
    assert socket.closing == 0


async def test_handshake_that_ends_after_the_close_is_closed(world: World) -> None:
    """A close that comes while the handshake is being finished reaches the client once it is."""
    connection, socket = world.connection(opened=False)
    driver_of(connection).closing.close(1012, "the server restarts")
    driver_of(connection).accepted()
    await finish(connection)
    assert socket.closed == [(1012, "the server restarts")]


async def test_finish_flushes(world: World) -> None:
    """The handler's end sends what waits, then closes."""
    connection, socket = world.connection()
    await connection.join("a")
    world.deliver("a", "1", "2")
    await run_passes(1)
    async with no_new_task():
        await finish(connection)
    assert (socket.sent, socket.closed) == (["1", "2"], [(1000, "normal closure")])


async def test_finish_of_a_client_that_reads_nothing_is_bounded(world: World) -> None:
    """The handler's end does not wait for ever: a flush and a close of bounded time each."""
    connection, socket = world.connection(policy=ConnectionPolicy(close_seconds=0.05))
    await connection.join("a")
    socket.send_gate.close()
    socket.close_gate.close()
    world.deliver("a", "1", "2")
    async with no_new_task():
        await bounded(asyncio.create_task(finish(connection)))
    assert (list(world.hub.channels), socket.sent) == ([], [])


async def test_finish_cancelled_leaves_nothing(world: World) -> None:
    """A handler cancelled while its end is being flushed leaves neither a subscriber in the hub nor a task."""
    connection, socket = world.connection()
    await connection.join("a")
    socket.send_gate.close()
    socket.close_gate.close()
    before = asyncio.all_tasks()
    world.deliver("a", "1")
    await socket.until(lambda: socket.sending == 1)
    finishing = asyncio.create_task(finish(connection))
    await until_idle()
    finishing.cancel()
    await asyncio.wait([finishing])
    await until_idle()
    left = (list(world.hub.channels), asyncio.all_tasks() - before)
    await driver_of(connection).closing.abandon()
    assert left == ([], set())


async def test_abandon_leaves_nothing(world: World) -> None:
    """A cancelled handler leaves no task and no subscriber, and sends no close frame."""
    connection, socket = world.connection()
    await connection.join("a")
    async with no_new_task():
        socket.send_gate.close()
        world.deliver("a", "1")
        await socket.until(lambda: socket.sending == 1)
        await driver_of(connection).closing.abandon()
    assert (list(world.hub.channels), socket.sent, socket.closing) == ([], [], 0)


async def test_abandon_ends_a_close_under_way(world: World) -> None:
    """A handler cancelled while a close frame is being sent cancels that too."""
    connection, socket = world.connection()
    socket.close_gate.close()
    async with no_new_task():
        driver_of(connection).closing.close(1013, "too slow")
        await socket.until(lambda: socket.closing == 1)
        await driver_of(connection).closing.abandon()
    assert socket.closed == []


async def test_unexpected_error_while_closing(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """What a server raises for a close frame is logged once; the client is counted, and cut where there is a way."""
    policy = ConnectionPolicy()
    connection, socket = world.connection(policy=policy)
    socket.close_error = KeyError("a fault")
    await connection.close()
    await finish(connection)
    assert [record.name for record in caplog.records] == ["backplane.connection.close_sequence"]
    assert (connection.is_over, what_happened(policy)) == (True, {"closed_normal": 1})
    assert socket.lane is None or socket.lane.closed


# --- states --------------------------------------------------------------------------------------------------------


async def test_states_until_a_close(world: World) -> None:
    """A connection is joining until its handshake is done, closing while its close frame is sent, then closed."""
    connection, socket = world.connection(opened=False)
    states = [connection.state]
    driver_of(connection).accepted()
    states.append(connection.state)
    socket.close_gate.close()
    closing = asyncio.create_task(connection.close())
    await socket.until(lambda: socket.closing == 1)
    states.append(connection.state)
    socket.close_gate.open()
    await bounded(closing)
    assert [*states, connection.state] == ["joining", "open", "closing", "closed"]


async def test_state_draining(world: World) -> None:
    """A connection that waits for its turn, or for what is flushed, is draining, and is not over."""
    connection, socket = world.connection(reload_delay=60)
    await connection.join("a")
    world.hub.gap(ALL, "overrun")
    waiting = (connection.state, connection.is_over)
    await stall(world, socket, "1", "2")
    driver_of(connection).retire(1012, "restart")
    await until_idle()
    flushing = (connection.state, connection.is_over)
    socket.send_gate.open()
    await finish(connection)
    assert (waiting, flushing) == (("draining", False), ("draining", False))
    assert (connection.state, connection.is_over) == ("closed", True)


@pytest.mark.parametrize("before", ["nothing", "gap", "close"])
async def test_state_of_a_client_that_is_gone(world: World, before: str) -> None:
    """A connection whose client is gone is closed at once; where its close frame is being sent, once that ends."""
    connection, socket = world.connection(reload_delay=60)
    await connection.join("a")
    if before == "gap":
        world.hub.gap(ALL, "overrun")
    elif before == "close":
        socket.close_gate.close()
        driver_of(connection).closing.close(1012, "restart")
        await socket.until(lambda: socket.closing == 1)
    driver_of(connection).disconnected()
    assert connection.state == ("closing" if before == "close" else "closed")
    socket.close_gate.open()
    await finish(connection)
    assert connection.state == "closed"


async def test_state_after_the_transport_closed(lane_world: World) -> None:
    """A connection whose transport is gone is closing for as long as messages of the client are left to receive."""
    connection, socket = lane_world.connection()
    socket.receiver.put_nowait("last")
    lane_of(socket).end()
    assert (connection.state, connection.is_over, await connection.receive()) == ("closing", True, "last")
    socket.receiver.put_nowait(None)
    assert (await connection.receive(), connection.state) == (None, "closed")


async def test_drain_after_the_transport_closed(lane_world: World) -> None:
    """A worker that drains ends a connection whose transport is gone, which is over and stays so meanwhile."""
    connection, socket = lane_world.connection()
    lane_of(socket).end()
    receiving = asyncio.create_task(connection.receive())
    await until_idle()
    driver_of(connection).retire(1012, "restart")
    assert (connection.state, connection.is_over) == ("closing", True)
    assert await bounded(receiving) is None


async def test_state_after_an_abort(world: World) -> None:
    """A connection whose handler is cancelled is closed, also where its close frame was being sent."""
    for closing in (False, True):
        connection, socket = world.connection()
        socket.close_gate.close()
        if closing:
            driver_of(connection).closing.close(1012, "restart")
            await socket.until(lambda: socket.closing == 1)  # noqa: B023
        await driver_of(connection).closing.abandon()
        assert (connection.state, socket.closed) == ("closed", [])


async def test_state_after_a_task_that_closes_nothing(world: World) -> None:
    """A task that ends ordinarily before the handshake is done leaves the connection joining, and it opens after it."""
    connection, socket = world.connection(opened=False)

    async def work() -> None:
        raise WebSocketDisconnect(1000)

    await asyncio.wait([connection.spawn(work())])
    joining = connection.state
    driver_of(connection).accepted()
    assert (joining, connection.state) == ("joining", "open")
    connection.expire_at(time.time())
    assert await bounded(asyncio.create_task(received_from(connection))) == []
    await finish(connection)
    assert socket.closed == [(4001, "expired")]


async def test_first_end_decides(world: World) -> None:
    """Of two ends the first one decides: the code, the reason, and the one count."""
    policy = ConnectionPolicy()
    connection, socket = world.connection(policy=policy)
    sequence = driver_of(connection).closing
    sequence.close(4001, "")
    sequence.close(1012, "restart")
    sequence.close_after_flush(1013, "later")
    sequence.disconnected()
    sequence.transport_closed()
    await finish(connection)
    sequence.transport_closed()
    assert (socket.closed, what_happened(policy)) == ([(4001, "expired")], {"closed_expired": 1})
    assert connection.state == "closed"


async def test_disconnect_in_the_handshake_sends_no_close_frame(world: World) -> None:
    """A client that drains and leaves before it is accepted gets no close frame once it is, and is counted."""
    policy = ConnectionPolicy(reload_delay=lambda: 60)
    connection, socket = world.connection(opened=False, policy=policy)
    await connection.join("a")
    world.hub.gap(ALL, "overrun")
    driver_of(connection).disconnected()
    assert driver_of(connection).closed_with is None
    driver_of(connection).accepted()
    await finish(connection)
    assert (socket.closing, connection.state) == (0, "closed")
    assert what_happened(policy) == {"closed_by_client": 1}
