"""`backplane.connection.driver`: one client between the hub, its socket, its timers and its limits."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import suppress
from contextvars import ContextVar, copy_context
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import pytest

from backplane.connection.envelope import json_envelope
from backplane.connection.limits import Limits
from backplane.connection.policy import ConnectionPolicy, SlowConsumer
from backplane.connection.sender import SocketGoneError
from backplane.errors import ClosedError, ConfigurationError, InvalidPositionError, JoinRefusedError
from backplane.fanout.batch import Batch
from backplane.fanout.subscriber_options import SubscriberOptions
from backplane.message import ALL, Gap, Joined, Message
from tests.unit.connection.world import (
    RELOAD,
    World,
    bounded,
    break_server,
    finish,
    hub_of,
    lane_of,
    no_new_task,
    received_from,
    scheduled,
    stall,
    what_happened,
)
from tests.unit.doubles import until_idle
from tests.unit.kit import WAIT_SECONDS
from tests.unit.sockets import FakeSocket, driver_of

if TYPE_CHECKING:
    from backplane.connection.connection import Connection
    from backplane.connection.policy import OnGap
    from backplane.fanout.backlog import FullPolicy

pytestmark = pytest.mark.anyio


# --- gaps ------------------------------------------------------------------------------------------------------------


def fail_on_gap(_: Gap) -> None:
    """Fail."""
    raise RuntimeError("a fault")


def answer_with_no_data(_: Gap) -> object:
    """Return what cannot be sent."""
    return object()


async def test_on_gap_is_sent_in_its_place(world: World) -> None:
    """The message that `on_gap` returns is sent between those before and after the gap; the client stays."""
    connection, socket = world.connection(on_gap=lambda gap: {"missed": gap.channel, "why": gap.reason})
    await connection.join("a")
    world.deliver("a", "before")
    world.hub.gap(ALL, "overrun")
    world.deliver("a", "after")
    await socket.receives("before", '{"missed":"a","why":"overrun"}', "after")
    assert (socket.closed, list(connection.channels)) == ([], ["a"])


async def test_gap_of_a_client_that_is_about_to_be_closed(world: World) -> None:
    """It is notified in its place: it comes back with the position of what it received last, after the gap too."""
    options = SubscriberOptions(envelope=lambda item: f"{type(item).__name__}")
    connection, socket = world.connection(on_gap=lambda gap: f"gap {gap.reason}", reload_delay=60.0, options=options)
    await connection.join("a")
    driver_of(connection).closing.close_in_turn(1013, "the broker failed")
    world.hub.gap(["a"], "overrun")
    world.deliver("a", "1")
    await until_idle()
    assert socket.sent == ["Joined", "Gap", "gap overrun", "Message"]
    assert connection.state == "draining"


async def test_gap_of_a_client_that_reloads_already(world: World) -> None:
    """The first reason for its close counts."""
    connection, socket = world.connection(reload_delay=60.0)
    await connection.join("a")
    driver_of(connection).closing.close_in_turn(1013, "the broker failed")
    world.hub.gap(["a"], "overrun")
    driver_of(connection).closing.turn_has_come()
    await until_idle()
    assert socket.closed == [(1013, "the broker failed")]


async def test_on_gap_may_send_nothing(world: World) -> None:
    """`None` sends nothing and closes nothing."""
    gaps: list[Gap] = []
    connection, socket = world.connection(on_gap=gaps.append)
    await connection.join("a")
    world.hub.gap(ALL, "overrun")
    world.deliver("a", "after")
    await socket.receives("after")
    assert (gaps, socket.closed) == ([Gap(channel="a", reason="overrun")], [])


@pytest.mark.parametrize("on_gap", [fail_on_gap, answer_with_no_data], ids=["raises", "returns no data"])
async def test_on_gap_that_fails_closes(world: World, on_gap: OnGap, caplog: pytest.LogCaptureFixture) -> None:
    """Where `on_gap` fails the client is asked to reload, and the error is logged."""
    connection, socket = world.connection(on_gap=on_gap)
    await connection.join("a")
    world.hub.gap(ALL, "overrun")
    await socket.until(lambda: socket.closed != [])
    assert socket.closed == [RELOAD]
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == [
        f"on_gap failed for channel 'a': closing connection {connection.id}"
    ]


async def test_beginning_and_end_in_the_log(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """At DEBUG a connection has a line at its beginning and one at its end, which is kept with code and reason."""
    caplog.set_level(logging.DEBUG)
    policy = ConnectionPolicy()
    connection, socket = world.connection(policy=policy)
    await connection.close(4001, "done")
    await socket.until(lambda: socket.closed != [])
    lines = [vars(record) for record in caplog.records]
    assert [(line["backplane.event"], line["backplane.connection"]) for line in lines] == [
        ("client.accepted", connection.id),
        ("client.ended", connection.id),
    ]
    (entry,) = policy.journal.recent("ended")
    fields = entry["fields"]
    assert (fields["by"], fields["code"], fields["reason"], fields["kind"]) == ("worker", 4001, "done", "connection")


# --- a client that does not read -------------------------------------------------------------------------------------


async def test_slow_client_is_closed(world: World) -> None:
    """With the policy `close` the bound ends the client with 1013: iteration ends and the hub is left."""
    connection, socket = world.connection(max_messages=2)
    await connection.join("a")
    iterating = asyncio.create_task(received_from(connection))
    socket.send_gate.close()
    world.deliver("a", "1")
    await socket.until(lambda: socket.sending == 1)
    world.deliver("a", "2", "3", "4")
    assert await bounded(iterating) == []
    await socket.until(lambda: bool(socket.closed))
    assert socket.closed == [(1013, "too slow")]
    assert (list(connection.channels), list(world.hub.channels), socket.sent) == ([], [], [])
    async with no_new_task():
        await finish(connection)
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


@pytest.mark.parametrize(
    ("when_full", "expected"),
    [
        ("drop_oldest", ["1", "4", "5"]),
        ("drop_newest", ["1", "2", "3"]),
        ("latest", ["1", "5"]),
    ],
)
async def test_drop_policies(world: World, when_full: FullPolicy, expected: list[str]) -> None:
    """A client that stalls under a policy that drops loses what that policy drops, and stays connected."""
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


async def test_on_slow_once_for_each_stretch(world: World) -> None:
    """`on_slow` is called at the first drop of each stretch in which a client is too slow."""
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
    """`on_slow` is called for a client that is closed as too slow, with what waited; what it raises changes nothing."""
    slow: list[SlowConsumer] = []

    def fail(consumer: SlowConsumer) -> None:
        slow.append(consumer)
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
    """With `latest`, a replaced message is counted and `on_slow` is not called."""
    slow: list[SlowConsumer] = []
    policy = ConnectionPolicy(on_slow=slow.append)
    connection, socket = world.connection(when_full="latest", policy=policy)
    await connection.join("a")
    await stall(world, socket, "1", "2", "3")
    socket.send_gate.open()
    await socket.receives("first", "3")
    assert (slow, what_happened(policy)) == ([], {"replaced": 2})


async def test_on_slow_may_end_the_connection(world: World) -> None:
    """An application that closes its slow clients itself does so with its own code; `on_slow` is called once."""
    slow: list[SlowConsumer] = []

    def end(consumer: SlowConsumer) -> None:
        slow.append(consumer)
        driver_of(consumer.connection).closing.close(4999, "go away")

    connection, socket = world.connection(when_full="drop_oldest", max_messages=1, policy=ConnectionPolicy(on_slow=end))
    await connection.join("a")
    await stall(world, socket, "1", "2", "3", "4")
    await finish(connection)
    assert (len(slow), socket.closed) == (1, [(4999, "go away")])


# --- sends that fail -------------------------------------------------------------------------------------------------


async def test_client_that_is_gone_while_sending(plain_world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A client that went away is an ordinary end: nothing is logged, and no close frame is tried."""
    policy = ConnectionPolicy()
    connection, socket = plain_world.connection(policy=policy)
    await connection.join("a")
    iterating = asyncio.create_task(received_from(connection))
    await until_idle()
    socket.error = SocketGoneError()
    async with no_new_task():
        plain_world.deliver("a", "1", "2")
        assert await bounded(iterating) == []
        await finish(connection)
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
    iterating = asyncio.create_task(received_from(connection))
    await until_idle()
    break_server(socket, fault)
    if act == "send":
        with pytest.raises(ClosedError):
            await connection.send("1")
    world.deliver("a", "1")
    world.deliver("a", "2")
    await its_socket.receives("1", "2")
    assert await bounded(iterating) == []
    await finish(connection)
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
    await finish(connection)
    assert socket.closed == [(1011, "internal error")]
    assert caplog.messages == [f"connection {connection.id} failed: closing it"]


# --- what runs for a client ------------------------------------------------------------------------------------------

user: ContextVar[str] = ContextVar("user", default="none")


async def test_what_runs_for_a_client_has_its_variables(world: World, caplog: pytest.LogCaptureFixture) -> None:
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
    logging.getLogger("backplane.connection.driver").addFilter(log)
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
        logging.getLogger("backplane.connection.driver").removeFilter(log)
    sends = {"send"} if socket.lane is None else set[str]()
    assert {what for what, _ in seen} == {"on_gap", "on_slow", "latest_by", "log", "close"} | sends
    assert {whose for _, whose in seen} == {"alice"}


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
    await finish(connection)
    await until_idle()
    assert asyncio.all_tasks() == before


# --- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "closed", "count"),
    [
        (Limits(max_message_bytes=4), (1009, "at most 4 bytes"), "closed_too_big"),
        (Limits(max_messages_per_second=0.001), (4029, "too many messages"), "closed_too_many_messages"),
    ],
    ids=["size", "rate"],
)
async def test_client_that_sends_too_much(
    world: World, limits: Limits, closed: tuple[int, str], count: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A message over a limit is not received, and closes the connection with the limit's code, counted and logged."""
    caplog.set_level(logging.INFO, "backplane.connection.driver")
    policy = ConnectionPolicy(limits=limits)
    connection, socket = world.connection(policy=policy)
    for sent in ("1234", "12345", "never"):
        socket.receiver.put_nowait(sent)
    assert await bounded(asyncio.create_task(received_from(connection))) == ["1234"]
    await finish(connection)
    assert (socket.closed, what_happened(policy)) == ([closed], {count: 1})
    assert caplog.messages == [f"closing connection {connection.id}: {closed[1]}"]


@pytest.mark.parametrize("most_bytes", [4, None])
async def test_limit_reaches_the_lane(most_bytes: int | None) -> None:
    """The server learns the largest message before the handshake is accepted, so that it need not hold a larger one."""
    async with hub_of(lane=True) as world:
        _, socket = world.connection(opened=False, policy=ConnectionPolicy(limits=Limits(max_message_bytes=most_bytes)))
        assert socket.lane is not None
        assert socket.lane.max_message_bytes == most_bytes


@pytest.mark.parametrize(
    ("limits", "code", "count"),
    [
        (Limits(idle_timeout_seconds=0.01), 4508, "closed_idle"),
        (Limits(max_age_seconds=0.01), 4010, "closed_max_age"),
    ],
    ids=["idle", "age"],
)
async def test_time_that_runs_out(world: World, limits: Limits, code: int, count: str) -> None:
    """A client that was idle, or connected, for too long is closed, its handler ends, and its timers are removed."""
    policy = ConnectionPolicy(limits=limits)
    connection, socket = world.connection(policy=policy)
    assert await bounded(asyncio.create_task(received_from(connection))) == []
    await finish(connection)
    assert ([sent for sent, _ in socket.closed], what_happened(policy)) == ([code], {count: 1})
    assert scheduled(policy) == []


# --- heartbeats ------------------------------------------------------------------------------------------------------


async def test_server_that_fails_to_ping(lane_world: World, caplog: pytest.LogCaptureFixture) -> None:
    """What a server raises for a ping ends that client, and all others are still pinged."""
    policy = ConnectionPolicy(limits=Limits(heartbeat_seconds=0.05))
    connections = [lane_world.connection(policy=policy) for _ in range(2)]
    lanes = [socket.lane for _, socket in connections]
    assert lanes[0] is not None
    assert lanes[1] is not None
    pinged = asyncio.Event()
    lane = lanes[1]

    def answer() -> None:
        lane.last_received_at = asyncio.get_running_loop().time()
        pinged.set()

    lanes[0].ping = Mock(side_effect=KeyError("a fault"))  # type: ignore[method-assign]
    lane.ping = answer  # type: ignore[method-assign]
    await asyncio.wait_for(pinged.wait(), WAIT_SECONDS)
    await connections[0][1].until(lambda: connections[0][1].closed != [])
    assert [connection.is_over for connection, _ in connections] == [True, False]
    assert [record.message for record in caplog.records] == [f"connection {connections[0][0].id} failed: closing it"]


def beat(connection: Connection, after: float) -> None:
    """Check the timers of the connection so many seconds after it was opened."""
    driver_of(connection).check_timers(driver_of(connection).timers.opened_at + after)


HEARTBEAT = Limits(heartbeat_seconds=10)


async def test_silent_client_is_pinged_then_cut(lane_world: World) -> None:
    """A client on the lane that sends nothing is pinged, and cut when it has not answered by the next heartbeat."""
    policy = ConnectionPolicy(limits=HEARTBEAT)
    connection, socket = lane_world.connection(policy=policy)
    lane = lane_of(socket)
    beat(connection, 10)
    assert (lane.pings, lane.aborted) == (1, False)
    beat(connection, 20)
    assert (lane.pings, lane.aborted, what_happened(policy)) == (1, True, {"closed_silent": 1})
    assert await bounded(asyncio.create_task(received_from(connection))) == []


async def test_client_that_answers_or_is_not_read_stays(lane_world: World) -> None:
    """A client that answers stays, and so does one that the server does not read, which is pinged all the same."""
    connection, socket = lane_world.connection(policy=ConnectionPolicy(limits=HEARTBEAT))
    lane, begin = lane_of(socket), driver_of(connection).timers.opened_at
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


async def test_client_that_sends_is_not_pinged(lane_world: World) -> None:
    """A client that has sent within half an interval needs no ping."""
    connection, socket = lane_world.connection(policy=ConnectionPolicy(limits=HEARTBEAT))
    lane = lane_of(socket)
    lane.last_received_at = driver_of(connection).timers.opened_at + 9
    beat(connection, 10)
    assert (lane.pings, lane.aborted) == (0, False)


async def test_slow_client_that_reads_is_not_silent(world: World) -> None:
    """A ping waits after what was given back: a client that reads, however slowly, is there; one that stops is not."""
    policy = ConnectionPolicy(limits=Limits(heartbeat_seconds=10, heartbeat_message="ping"))
    for number in range(20):
        world.keeping_hub.keep("kept", str(number))
    connection, socket = world.connection(policy=policy)
    iterating = asyncio.create_task(received_from(connection))
    await until_idle()
    await connection.join("kept")
    socket.send_gate.close()
    world.keeping_hub.keep("kept", "waits")
    await until_idle()
    for heartbeat in range(1, 5):
        beat(connection, 10 * heartbeat)
        socket.send_gate.open()
        await until_idle()
        socket.send_gate.close()
        world.keeping_hub.keep("kept", "more")
        await until_idle()
    assert not connection.is_over
    beat(connection, 50)
    beat(connection, 60)
    assert connection.is_over
    socket.send_gate.open()
    await bounded(iterating)


async def test_heartbeat_message(plain_world: World) -> None:
    """Without a lane the application's message is sent, and a client that does not answer is closed with 4011."""
    policy = ConnectionPolicy(limits=Limits(heartbeat_seconds=10, heartbeat_message={"type": "ping"}))
    connection, socket = plain_world.connection(policy=policy)
    iterating = asyncio.create_task(received_from(connection))
    await until_idle()
    beat(connection, 10)
    assert socket.sent == ['{"type":"ping"}']
    driver_of(connection).timers.last_received_at = driver_of(connection).timers.opened_at + 11
    beat(connection, 20)
    assert len(socket.sent) == 2
    beat(connection, 30)
    assert (await bounded(iterating), what_happened(policy)) == ([], {"closed_silent": 1})
    await finish(connection)
    assert socket.closed == [(4011, "no answer to heartbeats")]


@pytest.mark.parametrize("why", ["no message", "no handler that receives"])
async def test_no_heartbeat(plain_world: World, why: str) -> None:
    """Without a lane no heartbeat is sent without a message for it, or while the handler does not receive."""
    message = None if why == "no message" else "ping"
    connection, socket = plain_world.connection(
        policy=ConnectionPolicy(limits=Limits(heartbeat_seconds=10, heartbeat_message=message))
    )
    iterating = asyncio.create_task(received_from(connection)) if why == "no message" else None
    await until_idle()
    for heartbeat in range(1, 6):
        beat(connection, 10 * heartbeat)
    assert (socket.sent, socket.closing) == ([], 0)
    await connection.close()
    if iterating is not None:
        await bounded(iterating)


async def test_no_timer_of_a_client_that_is_given_up(lane_world: World) -> None:
    """A client that was given up is not checked again, nor counted a second time."""
    policy = ConnectionPolicy(limits=HEARTBEAT)
    connection, socket = lane_world.connection(policy=policy)
    lane_of(socket)
    beat(connection, 10)
    beat(connection, 20)
    policy.keepalive.put(driver_of(connection))  # what the scheduler does after each check
    left = scheduled(policy)
    policy.keepalive.remove(driver_of(connection))
    await finish(connection)
    assert left == []


async def test_no_timer_of_a_client_that_is_gone_at_the_handshake(plain_world: World) -> None:
    """The timers of a client whose first message fails are not scheduled."""
    policy = ConnectionPolicy()
    connection, socket = plain_world.connection(policy=policy, opened=False)
    await connection.join("a")
    plain_world.deliver("a", "1")
    await until_idle()
    socket.error = SocketGoneError()
    driver_of(connection).accepted()
    await finish(connection)
    left = scheduled(policy)
    policy.keepalive.remove(driver_of(connection))
    assert left == []


async def test_no_timer_after_the_end(world: World) -> None:
    """However a connection ends, its timers are removed, and with the last one the timer of the event loop."""
    policy = ConnectionPolicy()
    for ending in ("finish", "close", "abandon", "client", "retire"):
        connection, socket = world.connection(policy=policy)
        assert scheduled(policy) == [driver_of(connection)]
        if ending == "close":
            await connection.close()
        elif ending == "abandon":
            await driver_of(connection).closing.abandon()
        elif ending == "client":
            socket.receiver.put_nowait(None)
            assert await received_from(connection) == []
        elif ending == "retire":
            driver_of(connection).retire(1012, "")
        await finish(connection)
        assert scheduled(policy) == []
    assert policy.keepalive._timer is None  # pyright: ignore[reportPrivateUsage]


async def test_lane_that_ends(lane_world: World) -> None:
    """When the lane ends nothing more is written, what the client had sent is still received, and then it ends."""
    connection, socket = lane_world.connection()
    await connection.join("a")
    socket.receiver.put_nowait("last words")
    lane_of(socket).end()
    lane_world.deliver("a", "not received")
    with pytest.raises(ClosedError):
        await connection.send("not received")
    socket.receiver.put_nowait(None)
    assert await bounded(asyncio.create_task(received_from(connection))) == ["last words"]
    with pytest.raises(ClosedError):
        await connection.join("b")
    await finish(connection)
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
    assert await received_from(connection) == []
    assert what_happened(policy) == {count: 1}


# --- a handler that does not receive -------------------------------------------------------------------------------


async def test_client_is_read_ahead_once(plain_world: World) -> None:
    """A client whose handler does not receive is received by one task, whatever the number of checks."""
    connection, socket = plain_world.connection()
    driver_of(connection).handler_entered()
    before = asyncio.all_tasks()
    beat(connection, 1)
    beat(connection, 2)
    assert (socket.reading_ahead, len(asyncio.all_tasks() - before)) == (2, 1)
    assert not driver_of(connection).handler_left(None)
    await finish(connection)


async def test_handler_that_cannot_be_cancelled(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A handler whose task its server cannot cancel stays after the end of its connection, which is logged."""
    policy = ConnectionPolicy(handler_grace_seconds=0.001)
    connection, _ = world.connection(policy=policy)
    with monkeypatch.context() as patch:
        patch.setattr("backplane.connection.handler.asyncio.current_task", lambda: None)
        driver_of(connection).handler_entered()
    driver_of(connection).disconnected()
    async with asyncio.timeout(WAIT_SECONDS):
        while not caplog.messages:
            await asyncio.sleep(0.001)
    assert caplog.messages == [
        f"the handler of connection {connection.id} did not end with it within 0.001 s, and its server cannot cancel it"
    ]
    assert (driver_of(connection).handler_left(None), policy.statistics.cancelled_handlers) == (False, 0)


# --- history: what a join gives back, positions, envelopes -----------------------------------------------------------


def in_json(socket: FakeSocket) -> list[dict[str, Any]]:
    """Return what an enveloped client was sent."""
    return [json.loads(sent) for sent in socket.sent]


async def test_join_that_resumes(world: World) -> None:
    """A client that passes a position gets what was published after it, in order, once, and then what is published."""
    hub = world.keeping_hub
    seen = [hub.keep("kept", str(number)) for number in range(5)]
    connection, socket = world.connection()
    await connection.join("kept", since=str(seen[2]))
    hub.keep("kept", "live")
    await socket.receives("3", "4", "live")
    assert (connection.resumed, connection.position("kept")) == (True, hub.position("kept"))


@pytest.mark.parametrize("since", [None, ""])
async def test_first_visit(world: World, since: str | None) -> None:
    """Without a position a client gets the last messages that it asks for, and has not resumed."""
    for number in range(5):
        world.keeping_hub.keep("kept", str(number))
    connection, socket = world.connection()
    await connection.join("kept", since=since, rewind=2)
    await socket.receives("3", "4")
    assert not connection.resumed


async def test_since_by_channel(world: World) -> None:
    """A mapping has the position of each channel; a join of another channel is a first visit."""
    hub = world.keeping_hub
    position = hub.keep("kept:a", "seen")
    hub.keep("kept:a", "missed")
    hub.keep("kept:b", "old")
    connection, socket = world.connection()
    for channel in ("kept:a", "kept:b"):
        await connection.join(channel, since={"kept:a": str(position)})
    await socket.receives("missed")
    assert [since for _, since, _ in hub.joins] == [str(position), None]


@pytest.mark.parametrize("since", ["garbage", "x" * 10_000, "\0\r\n"])
async def test_join_that_cannot_resume_closes_no_client(world: World, since: str) -> None:
    """With the policy `close` a position that is not found closes no client: the client gets the rewind, and stays."""
    world.keeping_hub.keep("kept", "old")
    connection, socket = world.connection(on_gap="close")
    await connection.join("kept", since=since, rewind=1)
    await socket.receives("old")
    assert (connection.resumed, connection.state, socket.closed) == (False, "open", [])


async def test_join_that_cannot_resume_calls_on_gap(world: World) -> None:
    """A function gets the gap, with the position from which on the client receives; its answer precedes the rewind."""
    gaps: list[Gap] = []

    def on_gap(gap: Gap) -> str:
        gaps.append(gap)
        return "reload"

    before = world.keeping_hub.keep("kept", "old")
    world.keeping_hub.keep("kept", "newer")
    connection, socket = world.connection(on_gap=on_gap)
    await connection.join("kept", since="gone", rewind=1)
    await socket.receives("reload", "newer")
    assert [(gap.channel, gap.position) for gap in gaps] == [("kept", before)]


def keep_silent(_: Gap) -> None:
    """Send nothing."""


async def test_on_gap_that_sends_nothing_or_fails_at_a_join(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """At a join neither closes the client; the failure is logged."""
    for on_gap in (keep_silent, fail_on_gap):
        connection, socket = world.connection(on_gap=on_gap)
        await connection.join("kept", since="gone")
        assert (connection.state, socket.closed, socket.sent) == ("open", [], [])
    assert "on_gap failed for channel 'kept' at a join" in caplog.text


async def test_position_on_a_channel_without_a_history(world: World) -> None:
    """Where nothing is kept `since` is a gap with that reason, and there is no position."""
    gaps: list[Gap] = []
    connection, _ = world.connection(on_gap=gaps.append)
    await connection.join("a", since="anything")
    assert gaps == [Gap(channel="a", reason="the channel keeps no history")]
    assert (connection.resumed, connection.position("a"), connection.position("not joined")) == (False, None, None)


async def test_join_with_options_of_another_type(world: World) -> None:
    """A type that no client can cause raises, and joins nothing."""
    connection, _ = world.connection()
    with pytest.raises(ConfigurationError, match="since"):
        await connection.join("kept", since=7)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="rewind"):
        await connection.join("kept", rewind="1")  # type: ignore[arg-type]
    with pytest.raises(InvalidPositionError, match="rewind"):
        await connection.join("kept", rewind=-1)
    assert not connection.channels


async def test_second_join_gives_nothing_back(world: World) -> None:
    """A channel that is joined already changes nothing, also where two joins of it run at once."""
    hub = world.keeping_hub
    position = hub.keep("kept", "seen")
    hub.keep("kept", "missed")
    connection, socket = world.connection(options=SubscriberOptions(envelope=json_envelope))
    await asyncio.gather(*(connection.join("kept", since=str(position)) for _ in range(3)))
    await asyncio.gather(*(connection.join("a") for _ in range(3)))
    assert [sent.get("event", sent.get("text")) for sent in in_json(socket)] == ["joined", "missed", "joined"]


async def test_joins_of_a_handshake_begin_where_the_client_was(world: World) -> None:
    """What waits until the handshake is done is sent then, in order."""
    hub = world.keeping_hub
    position = hub.keep("kept", "seen")
    hub.keep("kept", "missed")
    connection, socket = world.connection(opened=False, options=SubscriberOptions(since={"kept": str(position)}))
    await driver_of(connection).join_at_handshake("kept")
    hub.keep("kept", "live")
    await until_idle()
    assert socket.sent == []
    driver_of(connection).accepted()
    await socket.receives("missed", "live")


async def test_joins_of_a_handshake_of_a_first_client(world: World) -> None:
    """A client without options joins as ever."""
    connection, _ = world.connection(opened=False)
    await driver_of(connection).join_at_handshake("kept")
    assert world.keeping_hub.joins == [("kept", None, 0)]


def refuse(_: Connection, __: str) -> bool:
    """Refuse every client."""
    return False


async def test_authorize_is_asked_before_anything_is_given_back(world: World) -> None:
    """A position grants nothing: a refused join gives nothing back."""
    world.keeping_hub.keep("kept", "secret")
    connection, socket = world.connection(policy=ConnectionPolicy(authorize=refuse))
    with pytest.raises(JoinRefusedError):
        await connection.join("kept", since="anything", rewind=5)
    assert (socket.sent, world.keeping_hub.joins) == ([], [])


async def test_excluded_messages_are_not_given_back(world: World) -> None:
    """What excludes this connection, or the one that the client had before, is left out, missed and live."""
    hub, previous = world.keeping_hub, b"previous"
    connection, socket = world.connection(options=SubscriberOptions(previous=previous))
    hub.keep("kept", "own of before", previous)
    hub.keep("kept", "of another")
    hub.keep("kept", "own", driver_of(connection).token)
    await connection.join("kept", rewind=5)
    hub.keep("kept", "late own of before", previous)
    hub.keep("kept", "live")
    await socket.receives("of another", "live")
    assert connection.position("kept") == hub.position("kept")


async def test_nothing_is_left_of_what_is_given_back(world: World) -> None:
    """Where all that was missed excludes the client, nothing is sent."""
    world.keeping_hub.keep("kept", "own of before", b"previous")
    connection, socket = world.connection(options=SubscriberOptions(previous=b"previous"))
    await connection.join("kept", rewind=5)
    world.keeping_hub.keep("kept", "live")
    await socket.receives("live")


async def test_frame_after_a_position_follows_everything_up_to_it(world: World) -> None:
    """What the application sends after it has read a position comes after all messages up to that one."""
    hub = world.keeping_hub
    connection, socket = world.connection()
    await connection.join("kept")
    socket.send_gate.close()
    numbers = [str(number) for number in range(20)]
    for number in numbers:
        hub.keep("kept", number)  # received, not offered yet
    position = connection.position("kept")
    sending = asyncio.create_task(connection.send(f"at {position}"))
    await asyncio.sleep(0)
    hub.keep("kept", "after")
    await until_idle()
    socket.send_gate.open()
    await bounded(sending)
    await socket.receives(*numbers, f"at {position}", "after")
    assert position != hub.position("kept")


@pytest.mark.parametrize("opened", [True, False])
async def test_more_than_the_backlog_is_given_back(world: World, opened: bool) -> None:
    """However much a client missed, it is not slow: it would be closed again and again. Live messages wait after it."""
    hub = world.keeping_hub
    numbers = [str(number) for number in range(50)]
    for number in numbers:
        hub.keep("kept", number)
    connection, socket = world.connection(max_messages=4, opened=opened)
    socket.send_gate.close()
    await connection.join("kept", rewind=50)
    hub.keep("kept", "live")
    await until_idle()
    if not opened:
        driver_of(connection).accepted()
    hub.keep("kept", "more")
    await until_idle()
    socket.send_gate.open()
    await socket.receives(*numbers, "live", "more")
    socket.send_gate.close()
    for again in numbers[:10]:  # the bounds are as before
        hub.keep("kept", again)
        await until_idle()
    assert connection.is_over


async def test_joins_and_leaves_do_not_raise_the_bounds_without_end(world: World) -> None:
    """A client that reads nothing and comes back to a channel again and again is closed."""
    for number in range(50):
        world.keeping_hub.keep("kept", str(number))
    connection, socket = world.connection(max_messages=4)
    socket.send_gate.close()
    await connection.join("kept", rewind=50)
    joins = 0
    with suppress(ClosedError):
        while joins < 10:
            await connection.leave("kept")
            await connection.join("kept", rewind=50)
            joins += 1
    assert (joins < 3, connection.is_over) == (True, True)


async def test_end_while_a_join_gives_back(world: World) -> None:
    """A join of a connection that ends with what is given back raises, and leaves nothing joined."""

    def fail(_: object) -> str:
        raise RuntimeError("a fault")

    world.keeping_hub.keep("kept", "old")
    connection, socket = world.connection(options=SubscriberOptions(envelope=fail))
    with pytest.raises(ClosedError):
        await connection.join("kept", rewind=1)
    await socket.until(lambda: bool(socket.closed))
    assert (socket.closed[0][0], list(world.hub.channels)) == (1011, [])


async def test_envelope(world: World) -> None:
    """A client with an envelope gets each message in it, and its joins; what the application sends has none."""
    hub = world.keeping_hub
    begin, seen = hub.position("kept"), hub.keep("kept", "seen")
    newest = hub.keep("kept", {"id": 7})
    connection, socket = world.connection(options=SubscriberOptions(envelope=json_envelope))
    await connection.join("kept", since=str(seen))
    await connection.join("a")
    await connection.send("own")
    world.deliver("a", "plain")
    await socket.until(lambda: len(socket.sent) == 5)
    assert socket.sent.pop(3) == "own"
    assert in_json(socket) == [
        {"channel": "kept", "event": "joined", "position": str(seen), "resumed": True},
        {"channel": "kept", "position": str(newest), "data": {"id": 7}},
        {"channel": "a", "event": "joined", "resumed": False},
        {"channel": "a", "text": "plain"},
    ]
    assert begin != seen


async def test_envelope_of_a_gap_at_a_join(world: World) -> None:
    """It follows the notice of the join, before what is given back."""
    before = world.keeping_hub.keep("kept", "old")
    newest = world.keeping_hub.keep("kept", "newer")
    connection, socket = world.connection(options=SubscriberOptions(envelope=json_envelope))
    await connection.join("kept", since="gone", rewind=1)
    assert in_json(socket) == [
        {"channel": "kept", "event": "joined", "position": str(before), "resumed": False},
        {"channel": "kept", "event": "gap", "position": str(before)},
        {"channel": "kept", "position": str(newest), "text": "newer"},
    ]
    assert connection.state == "open"


def ask_to_reload(_: Gap) -> str:
    """Return what the application sends at a gap."""
    return "reload"


@pytest.mark.parametrize(("on_gap", "sent", "state"), [("close", 1, "closed"), (ask_to_reload, 2, "open")])
async def test_envelope_of_a_gap(world: World, on_gap: OnGap, sent: int, state: str) -> None:
    """A gap is sent in the envelope, and then `on_gap` applies."""
    connection, socket = world.connection(on_gap=on_gap, options=SubscriberOptions(envelope=json_envelope))
    await connection.join("a")
    socket.sent.clear()
    world.hub.gap(["a"], "overrun")
    await socket.until(lambda: connection.state == state and len(socket.sent) == sent)
    assert socket.sent == ['{"channel":"a","event":"gap"}', "reload"][:sent]


async def test_envelope_that_leaves_out(world: World) -> None:
    """`None` sends nothing; other data is sent as `send` would."""

    def only_messages(item: Message | Gap | Joined) -> object:
        return {"n": item.data} if isinstance(item, Message) and item.data != "left out" else None

    connection, socket = world.connection(options=SubscriberOptions(envelope=only_messages))
    await connection.join("a")
    world.deliver("a", "left out", "1")
    await socket.receives('{"n":"1"}')


async def test_envelope_is_called_once_per_message(world: World) -> None:
    """For all clients that have the same function together, those that a message excludes or not."""
    calls: list[str] = []

    def envelope(item: Message | Gap | Joined) -> str:
        calls.append(item.data if isinstance(item, Message) else "")  # type: ignore[arg-type]
        return f"<{calls[-1]}>"

    made = [world.connection(options=SubscriberOptions(envelope=envelope)) for _ in range(3)]
    for connection, socket in made:
        await connection.join("kept")
        socket.sent.clear()
    calls.clear()
    world.keeping_hub.keep("kept", "1", driver_of(made[0][0]).token)
    world.keeping_hub.keep("kept", "2")
    await made[2][1].receives("<1>", "<2>")
    assert (made[0][1].sent, calls) == (["<2>"], ["1", "2"])


async def test_latest_by_gets_the_message_as_it_was_published(world: World) -> None:
    """The key of a message does not depend on the envelope."""
    keys: list[object] = []
    connection, socket = world.connection(options=SubscriberOptions(envelope=json_envelope))
    await connection.join("kept", latest_by=lambda message: keys.append(message.data))
    socket.send_gate.close()
    for number in range(4):
        world.keeping_hub.keep("kept", str(number))
        await until_idle()
    assert keys == ["1", "2", "3"]


async def test_join_after_the_end(world: World) -> None:
    """A notice that comes after the end is dropped."""
    connection, socket = world.connection(options=SubscriberOptions(envelope=json_envelope))
    await connection.close()
    driver_of(connection).joined(Joined(channel="a"))
    driver_of(connection).offer_missed(Batch(Message(channel="a", data="missed")))
    assert socket.sent == []


async def test_server_that_fails_at_what_is_given_back(world: World) -> None:
    """A failure of the server closes the client, as at any message."""
    world.keeping_hub.keep("kept", "old")
    connection, socket = world.connection()
    break_server(socket, RuntimeError("a fault of the server"))
    with pytest.raises(ClosedError):
        await connection.join("kept", rewind=1)
    await socket.until(lambda: connection.state == "closed")


async def test_heartbeats_come_at_their_interval(lane_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client is pinged once in each interval, however often its timers are checked in between."""
    policy = ConnectionPolicy(limits=Limits(heartbeat_seconds=100))
    connection, socket = lane_world.connection(policy=policy)
    driver, lane = driver_of(connection), lane_of(socket)
    begin = driver.timers.heartbeat_at
    lane.last_received_at = begin - 100
    for later in range(0, 400, 10):
        driver.check_timers(begin + later)
        assert driver.timers.due <= driver.timers.heartbeat_at
        lane.last_received_at = begin + later - later % 100 if later % 100 < 90 else lane.last_received_at
    assert lane.pings == 4
