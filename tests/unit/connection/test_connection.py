"""`backplane.connection.connection`: the verbs of an application, over controlled sockets."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal, assert_type

import pytest
from pydantic import BaseModel, TypeAdapter

from backplane import Backlog, Backplane
from backplane.connection.driver import ConnectionDriver
from backplane.connection.limits import Limits
from backplane.connection.policy import ConnectionPolicy
from backplane.errors import (
    ClosedError,
    ConfigurationError,
    InvalidChannelError,
    InvalidDataError,
    InvalidMessageError,
    JoinRefusedError,
    TooManyChannelsError,
)
from backplane.fanout.outbox import Outbox
from backplane.journal.journal import Journal
from backplane.message import ALL
from tests.unit.connection.world import (
    RELOAD,
    World,
    bounded,
    finish,
    no_new_task,
    received_from,
    scheduled,
    what_happened,
)
from tests.unit.doubles import Gate, until_idle
from tests.unit.kit import WAIT_SECONDS
from tests.unit.sockets import FakeSocket, driver_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from backplane.connection.connection import Connection
    from backplane.connection.policy import Authorize

pytestmark = pytest.mark.anyio


# --- messages --------------------------------------------------------------------------------------------------------


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


async def test_order_after_a_stall(world: World) -> None:
    """What is published while the client does not read waits in order, after the message that is being sent."""
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
    driver_of(connection).accepted()
    world.deliver("a", "late")
    await socket.receives("early", "late")


async def test_repr_names_state_and_channels(world: World) -> None:
    """The repr shows its id, its state and its channels."""
    connection, _ = world.connection(opened=False)
    assert repr(connection) == f"<Connection {connection.id} joining channels=[]>"
    await connection.join("a")
    driver_of(connection).accepted()
    assert repr(connection) == f"<Connection {connection.id} open channels=['a']>"
    await connection.close()
    assert repr(connection) == f"<Connection {connection.id} closed channels=[]>"


# --- channels --------------------------------------------------------------------------------------------------------


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
    world.deliver("a", "not received")
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
    assert world.adapter.calls == []


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
    await finish(connection)
    assert (joined, [type(error) for error in joins if error]) == (2, [TooManyChannelsError] * 3)


def allow_now(connection: Connection, channel: str) -> bool:
    """Allow the channel that stands in the context."""
    return bool(connection.context == channel)


async def allow_later(connection: Connection, channel: str) -> bool:
    """Allow the channel that stands in the context, after a while."""
    await asyncio.sleep(0)
    return bool(connection.context == channel)


@pytest.mark.parametrize("authorize", [allow_now, allow_later], ids=["sync", "async"])
async def test_authorize(world: World, authorize: Authorize) -> None:
    """The application decides about every join; a refusal raises, is counted, and never reaches the broker."""
    policy = ConnectionPolicy(authorize=authorize)
    connection, socket = world.connection(policy=policy, context="mine")
    with pytest.raises(JoinRefusedError, match=r"^this client may not join channel 'theirs'$"):
        await connection.join("theirs")
    await connection.join("mine")
    assert [verb for verb in world.adapter.calls if "theirs" in verb[1]] == []
    world.deliver("mine", "1")
    await socket.receives("1")
    assert (list(connection.channels), what_happened(policy)) == (["mine"], {"refused_joins": 1})


@asynccontextmanager
async def patterned(
    policy: ConnectionPolicy, **options: Any
) -> AsyncGenerator[tuple[Backplane, Connection, FakeSocket]]:
    """Return a connection over an adapter with patterns, and what publishes to it."""
    async with Backplane("memory://") as backplane, backplane.subscribe("other"):
        running = backplane._runtime  # pyright: ignore[reportPrivateUsage]
        assert running is not None
        socket = FakeSocket()
        driver = ConnectionDriver(socket, running.hub, Outbox(Backlog()), policy, **options)
        driver.accepted()
        yield backplane, driver.connection, socket
        await driver.closing.abandon()


@pytest.mark.parametrize("authorize", [allow_now, allow_later], ids=["sync", "async"])
async def test_authorize_pattern(authorize: Authorize) -> None:
    """The application decides about every pattern, apart from channels; what it allows is received once."""
    policy = ConnectionPolicy(authorize=refuse_all, authorize_pattern=authorize)
    async with patterned(policy, context="a.*") as (backplane, connection, socket):
        with pytest.raises(JoinRefusedError, match=r"^this client may not join pattern '\*'$"):
            await connection.join_pattern("*")
        await connection.join_pattern("a.*")
        await connection.join_pattern("a.*")
        await backplane.publish("a.x", "1")
        await backplane.publish("b", "2")
        await backplane.publish("a.*", "3")
        await socket.receives("1", "3")
        assert (list(connection.channels), list(connection.patterns)) == ([], ["a.*"])
        await connection.leave_pattern("a.*")
        await connection.leave_pattern("a.*")
        assert (list(connection.patterns), what_happened(policy)) == ([], {"refused_joins": 1})


async def test_no_pattern_without_authorize_pattern() -> None:
    """No client joins a pattern by default, whatever `authorize` allows; the error names what decides."""
    policy = ConnectionPolicy(authorize=allow_all)
    async with patterned(policy) as (_, connection, _):
        with pytest.raises(JoinRefusedError, match="authorize_pattern"):
            await connection.join_pattern("a.*")
        assert what_happened(policy) == {"refused_joins": 1}


async def test_join_of_a_pattern_is_a_plain_name() -> None:
    """`join` takes a `*` as itself, also where patterns are permitted."""
    async with patterned(ConnectionPolicy(authorize_pattern=allow_all)) as (backplane, connection, socket):
        await connection.join("a.*")
        await backplane.publish("a.x", "1")
        await backplane.publish("a.*", "2")
        await socket.receives("2")
        assert (list(connection.channels), list(connection.patterns)) == (["a.*"], [])


@pytest.mark.parametrize("pattern", ["a.x", "", "$backplane/*", "*" * 300])
async def test_what_is_no_pattern(pattern: str) -> None:
    """Without a `*` it is a channel, and reserved channels are out of reach."""

    def authorize(_: Connection, name: str) -> bool:
        pytest.fail(f"asked about {name!r}")

    async with patterned(ConnectionPolicy(authorize_pattern=authorize)) as (_, connection, _):
        with pytest.raises(InvalidChannelError):
            await connection.join_pattern(pattern)


async def test_a_pattern_counts_as_a_channel() -> None:
    """Channels and patterns together are limited, those of joins under way too."""
    policy = ConnectionPolicy(limits=Limits(max_channels=2), authorize_pattern=allow_all_later)
    async with patterned(policy) as (_, connection, _):
        await connection.join("a")
        joins = [connection.join_pattern(pattern) for pattern in ("a*", "b*", "c*")]
        errors = [type(error) for error in await asyncio.gather(*joins, return_exceptions=True) if error]
        assert (errors, len(connection.patterns)) == ([TooManyChannelsError] * 2, 1)
        with pytest.raises(TooManyChannelsError):
            await connection.join("b")


async def test_a_connection_that_ends_is_in_no_pattern() -> None:
    """Its end leaves every pattern, one whose join is under way too; afterwards none can be joined."""
    gate, asked = Gate(), asyncio.Event()

    async def authorize(*_: object) -> bool:
        asked.set()
        await gate.passage()
        return True

    async with patterned(ConnectionPolicy(authorize_pattern=authorize)) as (backplane, connection, _):
        await connection.join_pattern("a*")
        asked.clear()
        gate.close()
        joining = asyncio.create_task(connection.join_pattern("b*"))
        await asked.wait()
        await connection.close()
        gate.open()
        with pytest.raises(ClosedError):
            await bounded(joining)
        with pytest.raises(ClosedError):
            await connection.join_pattern("c*")
        running = backplane._runtime  # pyright: ignore[reportPrivateUsage]
        assert running is not None
        assert (running.hub.patterns.subscribed, list(connection.patterns)) == ({}, [])


async def test_a_gap_of_a_pattern_closes_as_any_other() -> None:
    """After a loss the client is asked to come back, and to reload."""
    policy = ConnectionPolicy(authorize_pattern=allow_all, reload_delay=lambda: 0.0)
    async with patterned(policy) as (backplane, connection, socket):
        await connection.join_pattern("a*")
        running = backplane._runtime  # pyright: ignore[reportPrivateUsage]
        assert running is not None
        running.hub.gap(ALL, "lost some")
        await socket.until(lambda: socket.closed != [])
        assert socket.closed == [RELOAD]


def allow_all(_: Connection, __: str) -> bool:
    """Allow everything."""
    return True


async def allow_all_later(*_: object) -> bool:
    """Allow everything, after a while."""
    await asyncio.sleep(0)
    return True


async def test_context_can_be_replaced(world: World) -> None:
    """The application may replace the context, as after a new token; `authorize` is asked with the new one."""
    connection, _ = world.connection(policy=ConnectionPolicy(authorize=allow_now), context="old")
    connection.context = "new"
    await connection.join("new")
    with pytest.raises(JoinRefusedError):
        await connection.join("old")
    assert (connection.context, connection.kind, list(connection.channels)) == ("new", "connection", ["new"])


async def test_authorize_that_raises(world: World) -> None:
    """What it raises goes to the caller of the join, and nothing is joined."""

    def fail(_: Connection, channel: str) -> bool:
        raise KeyError(channel)

    connection, _ = world.connection(policy=ConnectionPolicy(authorize=fail))
    with pytest.raises(KeyError, match="a"):
        await connection.join("a")
    assert (list(connection.channels), world.adapter.calls) == ([], [])


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
    assert world.adapter.calls == []


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
    assert (list(connection.channels), world.adapter.calls) == ([], [])


async def test_join_after_the_end_does_not_ask() -> None:
    """A join after the end raises `ClosedError`; `authorize` is not asked, and no refusal is counted."""
    world = World()
    async with world.linked():
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
    policy = ConnectionPolicy(authorize=authorize, limits=Limits(max_channels=1), journal=Journal(burst=1))
    connection, _ = world.connection(policy=policy)
    if authorize is None:
        await connection.join("first")
    for _ in range(20):
        with pytest.raises((JoinRefusedError, TooManyChannelsError)):
            await connection.join("a")
    policy.journal.flush()
    first, rest = caplog.messages
    assert first.startswith(words.format(id=connection.id))
    assert rest == f"19 more within 10 s, the last one: {first}"


# --- send ------------------------------------------------------------------------------------------------------------


async def test_send_waits_for_what_waits(world: World) -> None:
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
    await finish(connection)
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


async def test_many_sends_let_other_tasks_run(world: World) -> None:
    """A loop of sends that never suspends by itself lets other tasks run now and then."""
    connection, socket = world.connection()
    turns: list[int] = []
    asyncio.get_running_loop().call_soon(lambda: turns.append(len(socket.sent)))
    for number in range(100):
        await connection.send(str(number))
    assert (len(turns), len(socket.sent)) == (1, 100)
    assert turns[0] < 100


async def test_send_after_the_end(world: World) -> None:
    """A connection that is over takes nothing more; a handler that ignores the error still gives others a turn."""
    connection, socket = world.connection()
    await connection.close()
    turns: list[int] = []
    asyncio.get_running_loop().call_soon(turns.append, 1)
    with pytest.raises(ClosedError):
        await connection.send("too late")
    assert turns == [1]
    assert (socket.sent, socket.closed) == ([], [(1000, "normal closure")])


# --- ends ------------------------------------------------------------------------------------------------------------


async def test_client_sends_and_leaves(world: World) -> None:
    """Iterating yields what the client sends, text and binary, empty too, and ends with it."""
    connection, socket = world.connection()
    await connection.join("a")
    for sent in ("text", b"\xff", "", b"", None):
        socket.receiver.put_nowait(sent)
    assert await bounded(asyncio.create_task(received_from(connection))) == ["text", b"\xff", "", b""]
    assert list(world.hub.channels) == []
    await finish(connection)
    assert socket.closing == 0


async def test_close_ends_the_iteration(world: World) -> None:
    """A close wakes the handler, reaches the client once, and leaves the hub."""
    connection, socket = world.connection()
    await connection.join("a")
    iterating = asyncio.create_task(received_from(connection))
    await until_idle()
    async with no_new_task():
        await connection.close(4000, "enough")
        assert await bounded(iterating) == []
        await connection.close(4001, "again")
        await finish(connection)
    assert socket.closed == [(4000, "enough")]
    assert list(world.hub.channels) == []


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


async def test_expiry(world: World) -> None:
    """A permission that runs out closes with 4001, also when it had run out before the handshake was done."""
    for opened in (True, False):
        policy = ConnectionPolicy()
        connection, socket = world.connection(policy=policy, opened=opened)
        connection.expire_at(time.time() + (0.01 if opened else -10))
        if not opened:
            driver_of(connection).accepted()
        assert await bounded(asyncio.create_task(received_from(connection))) == []
        await finish(connection)
        assert (socket.closed, what_happened(policy)) == ([(4001, "expired")], {"closed_expired": 1})


async def test_permission_in_the_handshake(world: World) -> None:
    """A permission that `authorize` sets is not timed before the handshake is done, also after a gap: nothing waits."""
    policy = ConnectionPolicy(reload_delay=lambda: 60)
    connection, _ = world.connection(policy=policy, opened=False)
    await connection.join("a")
    world.hub.gap(ALL, "overrun")
    connection.expire_at(time.time() + 3_600)
    assert (connection.state, scheduled(policy)) == ("draining", [])
    driver_of(connection).accepted()
    assert scheduled(policy) == [driver_of(connection)]


async def test_renewed_permission(world: World) -> None:
    """A new token puts the end off, and none at all takes it away; it is shorter if the new one is."""
    policy = ConnectionPolicy(limits=Limits(heartbeat_seconds=None))
    connection, socket = world.connection(policy=policy)
    connection.expire_at(time.time() + 0.01)
    connection.expire_at(time.time() + 3_600)
    assert driver_of(connection).timers.due - asyncio.get_running_loop().time() > 3_000
    connection.expire_at(None)
    assert (driver_of(connection).timers.due, scheduled(policy)) == (float("inf"), [])
    connection.expire_at(time.time() + 3_600)
    connection.expire_at(time.time())
    await socket.until(lambda: socket.closed != [])
    assert [code for code, _ in socket.closed] == [4001]
    connection.expire_at(time.time() + 10)
    assert scheduled(policy) == []


# --- tasks beside the handler ----------------------------------------------------------------------------------------


async def test_spawn(world: World) -> None:
    """A task beside the handler runs, returns, and is forgotten; a second one too."""
    connection, socket = world.connection()

    async def greet(name: str) -> str:
        await connection.send(f"hello {name}")
        return name

    assert await bounded(connection.spawn(greet("you"))) == "you"
    task = connection.spawn(greet("me"), name="greeter")
    assert (task.get_name(), await bounded(task)) == ("greeter", "me")
    await finish(connection)
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
        await finish(connection)
    else:
        await driver_of(connection).closing.abandon()
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

    iterating = asyncio.create_task(received_from(connection))
    connection.spawn(work())
    assert await bounded(iterating) == []
    await finish(connection)
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
    done, _ = await asyncio.wait([task], timeout=WAIT_SECONDS)
    await finish(connection)
    assert done


# --- messages of the client, as a model ------------------------------------------------------------------------------


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


async def test_receive(handler_world: World) -> None:
    """The next message comes as it is, or as a model or an error that ends nothing; the end is `None`, and stays so."""
    connection, socket = handler_world.connection()
    for sent in ("text", b"\xff", '{"id":"x"}', '{"id":42}', None):
        socket.receiver.put_nowait(sent)
    assert [await connection.receive(), await connection.receive()] == ["text", b"\xff"]
    with pytest.raises(InvalidMessageError):
        await connection.receive(Order)
    assert await connection.receive(Order) == Order(id=42)
    assert [await connection.receive(Order), await connection.receive()] == [None, None]


async def test_iter_answers(handler_world: World) -> None:
    """By default what does not validate is answered with what is wrong, counted, and skipped."""
    policy = ConnectionPolicy()
    connection, socket = handler_world.connection(policy=policy)
    for sent in ('{"id":1}', '{"id":"x"}', '{"id":2}', None):
        socket.receiver.put_nowait(sent)
    assert [order.id async for order in connection.iter(Order)] == [1, 2]
    assert (len(socket.sent), what_happened(policy)) == (1, {"invalid_messages": 1, "closed_by_client": 1})
    assert '"id"' in str(socket.sent[0])


async def test_iter_closes(handler_world: World) -> None:
    """With `on_invalid="close"` the first message that does not validate closes with 1007."""
    policy = ConnectionPolicy()
    connection, socket = handler_world.connection(policy=policy)
    for sent in ('{"id":1}', '{"id":"x"}', '{"id":2}'):
        socket.receiver.put_nowait(sent)
    assert [order.id async for order in connection.iter(Order, on_invalid="close")] == [1]
    await finish(connection)
    assert (socket.closed, socket.sent) == ([(1007, "invalid message")], [])
    assert what_happened(policy) == {"invalid_messages": 1, "closed_invalid_data": 1}


async def test_invalid_messages_are_counted_and_logged(handler_world: World, caplog: pytest.LogCaptureFixture) -> None:
    """What does not validate is counted where it is received one by one, too, and logged without its content."""
    caplog.set_level(logging.INFO)
    policy = ConnectionPolicy(journal=Journal(burst=1))
    connection, socket = handler_world.connection(policy=policy)
    for _ in range(3):
        socket.receiver.put_nowait('{"id":"secret"}')
        with pytest.raises(InvalidMessageError):
            await connection.receive(Order)
    policy.journal.flush()
    assert what_happened(policy) == {"invalid_messages": 3}
    assert (len(caplog.messages), "secret" in caplog.text) == (2, False)
