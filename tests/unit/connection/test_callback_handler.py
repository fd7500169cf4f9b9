"""Clients that were handed over: what their callbacks are called with, and how they end."""

from __future__ import annotations

import asyncio
import gc
import logging
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from weakref import ref

import pytest
from starlette.exceptions import WebSocketException

from backplane import BrokerUnavailableError, Connection, JoinRefusedError, LifecycleError, Limits
from backplane.connection.policy import ConnectionPolicy
from backplane.message import ALL
from tests.unit.connection.world import (
    Clients,
    World,
    break_server,
    finish,
    hub_of,
    lane_of,
    no_new_task,
    what_happened,
)
from tests.unit.doubles import until_idle
from tests.unit.kit import WAIT_SECONDS
from tests.unit.sockets import driver_of

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.anyio

AWAY = BrokerUnavailableError("away", adapter="redis")
VARIABLE: ContextVar[str] = ContextVar("VARIABLE", default="of the loop")


class Client:
    """A client that was handed over, with callbacks that record their calls.

    Attributes:
        calls: What was called, in order: `open`, each message, `close`.
        gate: Holds `on_message`, if it is set to an event.
        on_message: What is called for a message beside the record, if anything.
    """

    def __init__(self, world: World, *, policy: ConnectionPolicy | None = None, callbacks: bool = True) -> None:
        self.calls: list[str | bytes] = []
        self.gate: asyncio.Event | None = None
        self.on_message: Callable[[Connection, str | bytes], Any] | None = None
        self.on_open: Callable[[Connection], Any] | None = None
        self.on_close: Callable[[Connection], Any] | None = None
        self.clients = Clients()
        self.policy = policy or ConnectionPolicy()
        self._changed = asyncio.Event()
        self.connection, self.socket = world.connection(policy=self.policy, opened=False)
        self.driver = driver_of(self.connection)
        self.driver.accepted()
        self.has_callbacks = callbacks

    def hand_over(self) -> bool:
        """Hand it over."""
        return self.driver.hand_over(
            self.socket,
            self.clients,
            on_open=self._open if self.has_callbacks else None,
            on_message=self._message if self.has_callbacks else None,
            on_close=self._close if self.has_callbacks else None,
        )

    def send(self, *messages: str) -> None:
        """Send from the client."""
        for message in messages:
            self.socket.receiver.put_nowait(message)

    def leave(self) -> None:
        """Leave."""
        self.socket.receiver.put_nowait(None)

    async def until(self, *calls: str) -> None:
        """Wait until exactly these calls were made."""
        async with asyncio.timeout(WAIT_SECONDS):
            while self.calls != list(calls):
                assert len(self.calls) <= len(calls), self.calls
                self._changed.clear()
                await self._changed.wait()

    async def _open(self, connection: Connection) -> None:
        self._record("open")
        if self.on_open is not None:
            await self.on_open(connection)

    async def _message(self, connection: Connection, message: str | bytes) -> None:
        self._record(message)
        if self.gate is not None:
            await self.gate.wait()
        if self.on_message is not None:
            await self.on_message(connection, message)

    async def _close(self, connection: Connection) -> None:
        assert connection.state == "closed"
        self._record("close")
        if self.on_close is not None:
            await self.on_close(connection)

    def _record(self, call: str | bytes) -> None:
        self.calls.append(call)
        self._changed.set()


def callback_tasks() -> list[asyncio.Task[Any]]:
    """Return the tasks in which callbacks run."""
    return [task for task in asyncio.all_tasks() if task.get_name().startswith("backplane-callbacks")]


@pytest.fixture
async def client(lane_world: World) -> Client:
    """A client that is accepted and not handed over yet."""
    return Client(lane_world)


async def test_messages_in_order(client: Client) -> None:
    """The callbacks are called one after the other, in order, and no task is left between them."""
    async with no_new_task():
        assert client.hand_over()
        assert client.clients.handed_over == 1
        client.send("1", "2")
        await client.until("open", "1", "2")
    async with no_new_task():
        client.send("3")
        await client.until("open", "1", "2", "3")
    client.leave()
    await client.until("open", "1", "2", "3", "close")
    await until_idle()
    assert (client.clients.removed, client.clients.handed_over) == ([client.driver], 0)
    assert what_happened(client.policy) == {"closed_by_client": 1}


async def test_a_message_waits_for_the_one_before(client: Client) -> None:
    """While a message is handled the next one waits."""
    client.hand_over()
    client.gate = asyncio.Event()
    client.send("1", "2")
    await client.until("open", "1")
    client.gate.set()
    await client.until("open", "1", "2")


async def test_what_was_sent_before_the_end_is_handled(client: Client) -> None:
    """A client that sends and leaves at once has its messages handled before `on_close` is called."""
    client.hand_over()
    client.send("1", "2")
    client.leave()
    await client.until("open", "1", "2", "close")


async def test_plain_functions(lane_world: World) -> None:
    """The callbacks can be plain functions."""
    calls: list[object] = []
    connection, socket = lane_world.connection()
    driver_of(connection).hand_over(
        socket,
        Clients(),
        on_open=lambda _: calls.append("open"),
        on_message=lambda _, message: calls.append(message),
        on_close=lambda _: calls.append("close"),
    )
    socket.receiver.put_nowait("1")
    await until_idle()
    socket.receiver.put_nowait(None)
    await until_idle()
    assert calls == ["open", "1", "close"]


async def test_without_callbacks(lane_world: World) -> None:
    """What the client sends is dropped, within its limits, without a task."""
    client = Client(
        lane_world, policy=ConnectionPolicy(limits=Limits(max_messages_per_second=1, max_burst=2)), callbacks=False
    )
    async with no_new_task():
        client.hand_over()
        client.send("1", "2")
    client.send("3")
    await until_idle()
    assert client.socket.closed == [(4029, "too many messages")]
    assert client.clients.removed == [client.driver]


async def test_callbacks_run_in_the_context_of_the_client(lane_world: World) -> None:
    """They have the variables of the handler, as they were when the client connected."""
    seen: list[str] = []
    VARIABLE.set("of the handler")
    client = Client(lane_world)
    VARIABLE.set("of another")

    async def note(*_: object) -> None:
        seen.append(VARIABLE.get())

    client.on_message = note
    client.hand_over()
    client.send("1")
    await client.until("open", "1")
    await until_idle()
    assert seen == ["of the handler"]


@pytest.mark.parametrize("when", ["open", "message"])
@pytest.mark.parametrize(
    ("error", "closed", "is_logged"),
    [
        (KeyError("a fault"), (1011, "internal error"), True),
        (JoinRefusedError("not this one"), (4503, "not this one"), False),
        (WebSocketException(4600, "away"), (4600, "away"), False),
        (
            BrokerUnavailableError("away", adapter="redis"),
            (1013, "the broker is not available: try again later"),
            False,
        ),
    ],
    ids=["fault", "refused join", "of the framework", "broker"],
)
async def test_a_callback_that_raises(
    client: Client,
    error: Exception,
    closed: tuple[int, str],
    is_logged: bool,
    when: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It closes the client as an error of a handler does, with a traceback for a fault alone; the rest is dropped."""

    async def fail(*_: object) -> None:
        raise error

    if when == "open":
        client.on_open = fail
    else:
        client.on_message = fail
    client.hand_over()
    client.send("1", "2")
    await client.until(*(["open", "close"] if when == "open" else ["open", "1", "close"]))
    assert client.socket.closed == [closed]
    await until_idle()
    assert client.clients.removed == [client.driver]
    assert ("a callback of connection" in caplog.text) is is_logged


async def test_what_arrives_before_the_turn_is_dropped(lane_world: World) -> None:
    """After a failure of the broker the client waits for its turn; what it sends is dropped, its end is noticed."""
    client = Client(lane_world, policy=ConnectionPolicy(reload_delay=lambda: 60.0))

    async def fail(*_: object) -> None:
        raise AWAY

    client.on_message = fail
    client.hand_over()
    client.send("1", "2")
    await client.until("open", "1")
    await until_idle()
    client.send("3")
    await until_idle()
    assert client.connection.state == "draining"
    client.leave()
    await client.until("open", "1", "close")
    assert client.socket.closed == []


async def test_a_client_that_has_left_before_the_turn(lane_world: World) -> None:
    """A client that left while its last message was handled waits for no turn."""
    client = Client(lane_world, policy=ConnectionPolicy(reload_delay=lambda: 60.0))
    client.gate = asyncio.Event()

    async def fail(*_: object) -> None:
        raise AWAY

    client.on_message = fail
    client.hand_over()
    client.send("1")
    await client.until("open", "1")
    client.leave()
    client.gate.set()
    await client.until("open", "1", "close")


async def test_close_from_a_callback(client: Client) -> None:
    """A callback can close its connection: what waits is not handled, and the client gets the code."""
    client.on_message = lambda connection, _: connection.close(4700, "enough")
    client.hand_over()
    client.send("1", "2")
    await client.until("open", "1", "close")
    assert client.socket.closed == [(4700, "enough")]


async def test_close_from_elsewhere(client: Client) -> None:
    """A connection that is idle is closed from anywhere, and its end is finished."""
    client.hand_over()
    await client.until("open")
    await until_idle()
    await client.connection.close(4700, "enough")
    await client.until("open", "close")
    assert client.socket.closed == [(4700, "enough")]


async def test_verbs_from_elsewhere(lane_world: World) -> None:
    """It joins, is sent to, and leaves, without a handler."""
    client = Client(lane_world)
    client.hand_over()
    await client.connection.join("a")
    lane_world.deliver("a", "published")
    await until_idle()
    await client.connection.send("sent")
    await client.socket.receives("published", "sent")
    await client.connection.leave("a")
    assert list(client.connection.channels) == []


async def test_nothing_is_received_by_hand(client: Client) -> None:
    """The messages go to the callback: receiving raises, and states so."""
    client.hand_over()
    with pytest.raises(LifecycleError, match="passed to on_message"):
        await client.connection.receive()
    with pytest.raises(LifecycleError, match="passed to on_message"):
        await anext(client.connection)


async def test_a_callback_that_stays_is_cancelled(lane_world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A callback that does not end with its connection is cancelled after the grace, and `on_close` is called."""
    caplog.set_level(logging.INFO)
    client = Client(lane_world, policy=ConnectionPolicy(handler_grace_seconds=0.01))
    client.gate = asyncio.Event()
    client.hand_over()
    client.send("1")
    await client.until("open", "1")
    client.leave()
    await client.until("open", "1", "close")
    assert what_happened(client.policy) == {"closed_by_client": 1, "cancelled_handlers": 1}
    assert "cancelled after 0.01 s" in caplog.text


async def test_a_callback_that_begins_after_the_end_is_cancelled(lane_world: World) -> None:
    """So is one that begins when its client has left already: its message came together with the close frame."""
    client = Client(lane_world, policy=ConnectionPolicy(handler_grace_seconds=0.01))
    client.gate = asyncio.Event()
    client.hand_over()
    client.send("1")
    client.leave()
    await client.until("open", "1", "close")
    assert what_happened(client.policy) == {"closed_by_client": 1, "cancelled_handlers": 1}


async def test_a_callback_that_stays_at_the_end_of_the_worker(lane_world: World) -> None:
    """A worker that ends closes the client at once, and has its callback cancelled after the grace."""
    client = Client(lane_world, policy=ConnectionPolicy(handler_grace_seconds=0.01))
    client.gate = asyncio.Event()
    client.hand_over()
    client.send("1", "2")
    await client.until("open", "1")
    client.driver.retire(1012, "restart")
    await client.until("open", "1", "close")
    assert client.socket.closed == [(1012, "restart")]
    await until_idle()
    assert client.clients.removed == [client.driver]


async def test_on_close_that_stays_is_cancelled(lane_world: World, caplog: pytest.LogCaptureFixture) -> None:
    """An `on_close` that does not end is cancelled after the grace, and the client is removed."""
    caplog.set_level(logging.INFO)
    client = Client(lane_world, policy=ConnectionPolicy(handler_grace_seconds=0.01))
    cancelled = asyncio.Event()

    async def stay(_: Connection) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    client.on_close = stay
    client.hand_over()
    client.leave()
    await asyncio.wait_for(cancelled.wait(), WAIT_SECONDS)
    await until_idle()
    assert client.clients.removed == [client.driver]
    assert what_happened(client.policy) == {"closed_by_client": 1, "cancelled_handlers": 1}
    assert "on_close" not in caplog.text


async def test_a_task_that_is_cancelled_in_on_close(client: Client) -> None:
    """A cancellation from elsewhere is none of the grace: it goes on, and the client is removed."""
    client.on_close = lambda _: asyncio.Event().wait()
    client.hand_over()
    client.leave()
    await client.until("open", "close")
    (task,) = callback_tasks()
    task.cancel()
    await asyncio.wait([task])
    assert (task.cancelled(), client.clients.removed) == (True, [client.driver])


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()], ids=["SystemExit", "KeyboardInterrupt"])
def test_an_exit_from_a_callback(error: BaseException) -> None:
    """A callback that ends the process does so: asyncio raises it from the event loop, as from a handler."""

    async def leave(*_: object) -> None:
        raise error

    async def run() -> None:
        async with hub_of(lane=True) as world:
            client = Client(world)
            client.on_message = leave
            client.hand_over()
            client.send("1")
            await asyncio.wait_for(asyncio.Event().wait(), 3)

    with pytest.raises(type(error)):
        asyncio.run(run())


async def test_a_task_that_is_cancelled(client: Client) -> None:
    """A cancellation from elsewhere, as at the end of the event loop, ends the connection without a close frame."""
    client.gate = asyncio.Event()
    client.hand_over()
    client.send("1")
    await client.until("open", "1")
    (task,) = callback_tasks()
    task.cancel()
    await client.until("open", "1", "close")
    await asyncio.wait([task])
    assert task.cancelled()
    assert (client.socket.closed, lane_of(client.socket).closed) == ([], True)
    assert client.clients.removed == [client.driver]
    assert what_happened(client.policy) == {"closed_cancelled": 1}


async def test_on_close_that_raises(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """What it raises is logged, and the client is removed all the same."""

    async def fail(_: Connection) -> None:
        raise KeyError("a fault")

    client.on_close = fail
    client.hand_over()
    client.leave()
    await client.until("open", "close")
    await until_idle()
    assert client.clients.removed == [client.driver]
    assert f"on_close of connection {client.connection.id} failed" in caplog.text


async def test_limits(lane_world: World) -> None:
    """The first message over a limit is not handled, and closes the client."""
    client = Client(lane_world, policy=ConnectionPolicy(limits=Limits(max_message_bytes=3)))
    client.hand_over()
    client.send("1", "four")
    await client.until("open", "1", "close")
    assert [code for code, _ in client.socket.closed] == [1009]


async def test_a_connection_that_is_over(client: Client) -> None:
    """What has ended is not handed over: its handler goes on."""
    await finish(client.connection)
    assert not client.hand_over()


async def test_a_server_that_cannot(client: Client, plain_world: World) -> None:
    """Without a lane, or for a client that has sent something, the handler goes on."""
    assert not Client(plain_world).hand_over()
    lane_of(client.socket).is_read_from = True
    assert not client.hand_over()


async def test_a_sender_that_fails(client: Client) -> None:
    """A server that fails to write closes the client with 1011."""
    client.hand_over()
    await client.until("open")
    break_server(client.socket, RuntimeError("a fault"))
    client.driver.send("x")
    await client.until("open", "close")
    assert [code for code, _ in client.socket.closed] == [1011]


@pytest.mark.parametrize("ending", ["close", "drain", "gap"])
async def test_an_end_that_begins_before_the_hand_over(lane_world: World, ending: str) -> None:
    """A client that is closed between the handshake and the hand-over is not handed over; one that drains is."""
    client = Client(lane_world, policy=ConnectionPolicy(reload_delay=lambda: 0.0))
    await client.connection.join("a")
    client.socket.send_gate.close()
    lane_world.deliver("a", "1")
    await client.socket.until(lambda: client.socket.sending == 1)
    lane_world.deliver("a", "2")
    await until_idle()
    if ending == "close":
        client.driver.closing.close(4000, "enough")
    elif ending == "drain":
        client.driver.retire(1012, "restart")
    else:
        lane_world.hub.gap(ALL, "overrun")
    assert client.hand_over() is (ending != "close")
    client.socket.send_gate.open()
    if ending == "close":
        await finish(client.connection)
        assert (client.socket.sent, client.socket.closed) == (["1"], [(4000, "enough")])
    else:
        await client.until("open", "close")
        code = 1012 if ending == "drain" else 4000
        assert (client.socket.sent, [closed for closed, _ in client.socket.closed]) == (["1", "2"], [code])


async def test_a_transport_that_is_paused_at_the_hand_over(lane_world: World) -> None:
    """What waits is written once the client reads again."""
    client = Client(lane_world)
    await client.connection.join("a")
    client.socket.send_gate.close()
    lane_world.deliver("a", "1")
    await client.socket.until(lambda: client.socket.sending == 1)
    lane_world.deliver("a", "2")
    await until_idle()
    assert client.hand_over()
    lane_world.deliver("a", "3")
    await until_idle()
    client.socket.send_gate.open()
    await client.socket.receives("1", "2", "3")


async def test_the_end_of_a_client_that_reads_nothing(lane_world: World) -> None:
    """A close of a client that does not read is given up, the lane is closed, and the client removed."""
    client = Client(lane_world, policy=ConnectionPolicy(close_seconds=0.01))
    client.hand_over()
    client.socket.close_gate.close()
    await client.until("open")
    await client.connection.close(4000, "enough")
    await client.until("open", "close")
    await until_idle()
    assert (lane_of(client.socket).closed, client.socket.closed) == (True, [])
    assert client.clients.removed == [client.driver]


async def test_an_ended_connection_is_freed(lane_world: World) -> None:
    """What belongs to a client is freed at its end, without a garbage collection; what it became can still be read.

    So it is where the client had a task beside its callbacks.
    """

    class Owned:
        """What belongs to the client."""

    class Registry:
        """A registry that keeps nothing."""

        handed_over = 0

        def unregister(self, *_: object) -> None:
            """Keep nothing."""

    owned = Owned()
    freed = ref(owned)
    connection, socket = lane_world.connection(context=owned)
    driver_of(connection).hand_over(socket, Registry(), on_open=None, on_message=None, on_close=None)
    await connection.join("a")
    await connection.spawn(asyncio.sleep(0))
    lane_world._connections.clear()  # pyright: ignore[reportPrivateUsage]
    gc.disable()
    try:
        socket.receiver.put_nowait(None)
        await until_idle()
        assert (connection.state, connection.is_over, list(connection.channels)) == ("closed", True, [])
        await connection.close()
        del connection, socket, owned
        assert freed() is None
    finally:
        gc.enable()
