"""`backplane.concurrency.affinity`: uses outside the event loop are refused; forks: tests/integration."""

from __future__ import annotations

import asyncio
import inspect
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from pydantic import BaseModel
from starlette.requests import Request

from backplane import (
    Backlog,
    Backplane,
    ClosedError,
    Connection,
    LifecycleError,
    Subscription,
    WrongLoopError,
)
from backplane.concurrency.affinity import LoopAffinity, current_process, refuse_in_event_loop
from backplane.connection.driver import ConnectionDriver
from backplane.fanout.outbox import Outbox
from backplane.typed_channel import TypedChannel
from tests.unit.sockets import FakeSocket

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

pytestmark = pytest.mark.anyio

CURES = ("await", "backplane.sync.publish", "SyncBackplane")


class Note(BaseModel):
    """A message."""

    text: str


@dataclass
class World:
    """A started backplane and what belongs to it."""

    backplane: Backplane
    connection: Connection
    subscription: Subscription
    notes: TypedChannel[Note]


@pytest.fixture
async def world() -> AsyncGenerator[World]:
    """A backplane that runs in the event loop of the test."""
    async with Backplane("memory://") as backplane, backplane.subscribe("a") as subscription:
        running = backplane._runtime  # pyright: ignore[reportPrivateUsage]
        assert running is not None
        driver = ConnectionDriver(FakeSocket(), running.hub, Outbox(Backlog()))
        yield World(backplane, driver.connection, subscription, backplane.channel("notes", Note))
        await driver.closing.abandon()


async def enter(context: Any) -> None:
    """Enter a block."""
    async with context:
        pytest.fail("the block was entered")


async def step(iterator: Any) -> None:
    """Take one item."""
    await anext(iterator)


async def nothing() -> None:
    """Do nothing."""


def websocket() -> Any:
    """Return a client that must not be used."""
    return object()


# By the class, what a user calls: each with a call of it.
USES: dict[type, dict[str, Callable[[World], Any]]] = {
    Backplane: {
        "publish": lambda world: world.backplane.publish("a", "x"),
        "subscribe": lambda world: enter(world.backplane.subscribe("a")),
        "connect": lambda world: enter(world.backplane.connect(websocket(), "a")),
        "hand_over": lambda world: world.backplane.hand_over(websocket(), "a"),
        "wait_for_state": lambda world: world.backplane.wait_for_state("degraded"),
        "history": lambda world: world.backplane.history("k"),
        "present": lambda world: world.backplane.present("a"),
        "watch": lambda world: enter(world.backplane.watch("a")),
        "overviews": lambda world: enter(world.backplane.overviews()),
        "list_channels": lambda world: world.backplane.list_channels(),
        "list_connections": lambda world: world.backplane.list_connections(),
        "workers": lambda world: world.backplane.workers(),
        "recent_events": lambda world: world.backplane.recent_events(),
        "explain": lambda world: world.backplane.explain(channel="a"),
        "survey": lambda world: world.backplane.survey("load"),
        "disconnect": lambda world: world.backplane.disconnect(user="u"),
        "leave": lambda world: world.backplane.leave(user="u", channel="a"),
        "join": lambda world: world.backplane.join(user="u", channel="a"),
        "send_to": lambda world: world.backplane.send_to(user="u", data="x"),
        "count_connections": lambda world: world.backplane.count_connections(user="u"),
        "health": lambda world: world.backplane.health(),
        "start": lambda world: world.backplane.start(),
        "drain": lambda world: world.backplane.drain(),
        "stop": lambda world: world.backplane.stop(),
        "lifespan": lambda world: enter(world.backplane.lifespan(object())),
    },
    Connection: {
        "join": lambda world: world.connection.join("a"),
        "leave": lambda world: world.connection.leave("a"),
        "join_pattern": lambda world: world.connection.join_pattern("a*"),
        "leave_pattern": lambda world: world.connection.leave_pattern("a*"),
        "send": lambda world: world.connection.send("x"),
        "close": lambda world: world.connection.close(),
        "receive": lambda world: world.connection.receive(),
        "iter": lambda world: step(world.connection.iter(Note)),
        "spawn": lambda world: world.connection.spawn(nothing()),
        "update_presence": lambda world: world.connection.update_presence("a"),
        "expire_at": lambda world: world.connection.expire_at(1.0),
        "position": lambda world: world.connection.position("a"),
        "__anext__": lambda world: anext(world.connection),
    },
    Subscription: {
        "join": lambda world: world.subscription.join("b"),
        "leave": lambda world: world.subscription.leave("a"),
        "join_pattern": lambda world: world.subscription.join_pattern("a*"),
        "leave_pattern": lambda world: world.subscription.leave_pattern("a*"),
        "__anext__": lambda world: anext(world.subscription),
    },
    TypedChannel: {
        "publish": lambda world: world.notes.publish(Note(text="x")),
        "subscribe": lambda world: enter(world.notes.subscribe()),
    },
}

# Names that only read, that configure, and that the hub, the sender and the timer call in the event loop.
SAFE: dict[type, set[str]] = {
    Backplane: {
        "authorize",
        "authorize_pattern",
        "channel",
        "has_presence",
        "keeps",
        "limits",
        "on_slow",
        "on_state",
        "on_survey",
        "publish_in",
        "sse",
        "state",
        "statistics",
        "sync",
        "url",
    },
    Connection: {"channels", "context", "id", "is_over", "kind", "patterns", "resumed", "state", "user"},
    Subscription: {
        "channels",
        "context",
        "dropped",
        "id",
        "is_over",
        "kind",
        "patterns",
        "position",
        "resumed",
        "token",
        "user",
    },
    TypedChannel: {"encode", "name", "publish_in"},
}
INTERNAL: dict[type, set[str]] = {
    Subscription: {
        "client_key",
        "discard",
        "end",
        "gap",
        "joined",
        "leave_now",
        "log_begin",
        "log_end",
        "named",
        "note_invalid",
        "offer",
        "offer_missed",
        "outbox",
        "withheld",
    }
}

EVERY_USE = pytest.mark.parametrize(
    "use",
    [pytest.param(use, id=f"{kind.__name__}.{name}") for kind, uses in USES.items() for name, use in uses.items()],
)


@pytest.mark.parametrize("kind", USES, ids=lambda kind: kind.__name__)
def test_every_public_name_is_known(kind: type) -> None:
    """Each public name is listed as guarded or as safe in any thread, so that a new one has to be decided on."""
    names = {name for name, _ in inspect.getmembers(kind) if not name.startswith("_")}
    assert names - INTERNAL.get(kind, set()) == (USES[kind].keys() | SAFE[kind]) - {"__anext__"}


async def awaited(use: Callable[[World], Any], world: World) -> None:
    """Use something in an event loop."""
    result = use(world)
    if inspect.isawaitable(result):
        await result


@EVERY_USE
async def test_use_from_another_event_loop(use: Callable[[World], Any], world: World) -> None:
    """`asyncio.run` in another thread, as in a `def` endpoint, is refused at once, and the backplane goes on."""
    with pytest.raises(LifecycleError) as refused:
        await asyncio.to_thread(asyncio.run, awaited(use, world))
    if "started already" not in str(refused.value):
        assert isinstance(refused.value, WrongLoopError)
        assert [cure for cure in CURES if cure not in str(refused.value)] == []
    await world.backplane.publish("a", "still there")
    received = await asyncio.wait_for(anext(world.subscription), 5)
    assert getattr(received, "data", None) == "still there"
    assert world.backplane.state == "live"


# Those that are called without `await`.
AT_ONCE: dict[str, Callable[[World], Any]] = {
    "connect": lambda world: world.backplane.connect(websocket(), "a"),
    "spawn": lambda world: world.connection.spawn(nothing()),
    "expire_at": lambda world: world.connection.expire_at(1.0),
    "position": lambda world: world.connection.position("a"),
    "anext": lambda world: anext(world.connection),
}


@pytest.mark.parametrize("use", AT_ONCE.values(), ids=AT_ONCE)
async def test_use_from_a_thread_without_an_event_loop(use: Callable[[World], Any], world: World) -> None:
    """A method that is not awaited is refused in a thread without an event loop."""
    with pytest.raises(WrongLoopError, match="a thread without an event loop"):
        await asyncio.to_thread(use, world)


async def test_use_from_another_event_loop_of_the_same_thread() -> None:
    """Of two event loops that take turns in one thread only its own may use a backplane."""

    def take_turns() -> None:
        first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
        backplane = Backplane("memory://")
        try:
            first.run_until_complete(backplane.start())
            with pytest.raises(WrongLoopError):
                second.run_until_complete(backplane.publish("a", "x"))
            first.run_until_complete(backplane.publish("a", "x"))
            first.run_until_complete(backplane.stop())
        finally:
            first.close()
            second.close()

    await asyncio.to_thread(take_turns)


async def test_an_event_loop_that_moves_to_another_thread() -> None:
    """A backplane may be used in its event loop, in whichever thread that runs."""
    loop = asyncio.new_event_loop()
    backplane = Backplane("memory://")
    for work in (backplane.start, lambda: backplane.publish("a", "x"), backplane.stop):
        await asyncio.to_thread(lambda work=work: loop.run_until_complete(work()))  # type: ignore[misc]
    loop.close()
    assert backplane.state == "closed"


@pytest.mark.parametrize("way", ["run_coroutine_threadsafe", "from_thread"])
async def test_legitimate_ways_from_a_thread(way: str, world: World) -> None:
    """A publish that a thread runs in the right event loop is accepted."""
    loop = asyncio.get_running_loop()

    def publish() -> None:
        if way == "from_thread":
            anyio.from_thread.run(world.backplane.publish, "a", "x")
        else:
            asyncio.run_coroutine_threadsafe(world.backplane.publish("a", "x"), loop).result(5)

    await anyio.to_thread.run_sync(publish)
    assert getattr(await asyncio.wait_for(anext(world.subscription), 5), "data", None) == "x"


async def test_event_stream_made_in_a_thread(world: World) -> None:
    """A `def` endpoint may make an event stream; it is sent in the worker's event loop, and refused in any other."""
    sent: list[Any] = []
    gone = asyncio.Event()

    async def send(event: Any) -> None:
        sent.append(event)
        gone.set()

    async def receive() -> dict[str, str]:
        await gone.wait()
        return {"type": "http.disconnect"}

    scope: dict[str, Any] = {"type": "http", "method": "GET", "path": "/", "headers": [], "client": None}
    response = await asyncio.to_thread(world.backplane.sse, Request(scope), "a")
    with pytest.raises(WrongLoopError):
        await asyncio.to_thread(asyncio.run, response(scope, receive, send))
    assert sent == []
    await asyncio.wait_for(response(scope, receive, send), 5)
    assert sent[0]["status"] == 200


async def test_reading_from_a_thread(world: World) -> None:
    """Properties can be read in any thread."""

    def read() -> list[object]:
        backplane, connection = world.backplane, world.connection
        return [
            backplane.state,
            backplane.url,
            repr(backplane),
            backplane.statistics(),
            connection.id,
            repr(connection),
        ]

    assert (await asyncio.to_thread(read))[:2] == ["live", "memory://"]


async def test_an_adapter_that_reports_from_a_thread(world: World) -> None:
    """A report from another thread raises there."""
    running = world.backplane._runtime  # pyright: ignore[reportPrivateUsage]
    assert running is not None
    sink: Any = running.supervisor.status.session  # pyright: ignore[reportPrivateUsage]
    for report in (
        lambda: sink.deliver("a", b"x"),
        lambda: sink.gap(["a"], "x"),
        lambda: sink.revoked(["a"], "x"),
        lambda: sink.lost(RuntimeError("x")),
    ):
        with pytest.raises(WrongLoopError):
            await asyncio.to_thread(report)
    sink.deliver("a", b"in its event loop")
    assert getattr(await asyncio.wait_for(anext(world.subscription), 5), "data", None) == "in its event loop"


# --- an event loop that ended -----------------------------------------------------------------------------------------


async def test_an_event_loop_that_ended_without_stop(caplog: pytest.LogCaptureFixture) -> None:
    """The backplane is closed, logs the reason, and can be started again."""
    backplane = Backplane("memory://")
    await asyncio.to_thread(asyncio.run, backplane.start())
    assert backplane.state == "closed"
    assert repr(backplane) == "<Backplane memory:// closed>"
    assert (await backplane.health()).state == "closed"
    with pytest.raises(ClosedError, match="has ended"):
        await backplane.publish("a", "x")
    async with backplane, backplane.subscribe("a") as messages:
        await backplane.publish("a", "again")
        assert getattr(await anext(messages), "data", None) == "again"
    assert "has ended without `stop`" in caplog.text


async def test_stop_after_the_end_of_the_event_loop() -> None:
    """Stopping a backplane whose event loop has ended changes nothing, and raises nothing."""
    backplane = Backplane("memory://")
    await asyncio.to_thread(asyncio.run, backplane.start())
    await backplane.stop()
    await backplane.drain()
    with pytest.raises(ClosedError):
        await backplane.publish("a", "x")


# --- the parts --------------------------------------------------------------------------------------------------------


async def test_refusing_in_an_event_loop() -> None:
    """A call that waits is refused where it would block an event loop, and only there."""
    with pytest.raises(WrongLoopError, match=r"await backplane\.publish"):
        refuse_in_event_loop()
    await asyncio.to_thread(refuse_in_event_loop)


async def test_affinity_of_a_loop() -> None:
    """The check passes in its own event loop alone."""
    affinity = LoopAffinity()
    affinity.check()
    assert (affinity.is_alive, affinity.has_ended, affinity.is_inherited) == (True, False, False)
    raised: list[BaseException] = []

    def check() -> None:
        try:
            affinity.check()
        except WrongLoopError as error:
            raised.append(error)

    thread = threading.Thread(target=check)
    thread.start()
    await asyncio.to_thread(thread.join)
    assert len(raised) == 1


def test_start_without_an_event_loop_of_asyncio() -> None:
    """A start under trio, which awaits the same coroutine without asyncio, raises the reason."""
    starting = Backplane("memory://").start()
    with pytest.raises(LifecycleError, match="asyncio"):
        starting.send(None)


def test_one_object_for_one_process() -> None:
    """The process is the same object until a fork."""
    assert current_process() is current_process()
