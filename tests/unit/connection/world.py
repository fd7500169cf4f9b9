"""Connections over controlled sockets and a controlled broker, for the tests of this folder."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import pytest

from backplane.connection.driver import ConnectionDriver
from backplane.connection.policy import ConnectionPolicy
from backplane.fanout.backlog import Backlog, FullPolicy
from backplane.fanout.outbox import Outbox
from tests.unit import kit
from tests.unit.doubles import counted, until_idle
from tests.unit.keeping_hub import KeepingHub
from tests.unit.kit import WAIT_SECONDS
from tests.unit.sockets import ClientLane, FakeSocket, driver_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from backplane.connection.connection import Connection
    from backplane.connection.policy import OnGap
    from backplane.fanout.subscriber_options import SubscriberOptions


RELOAD = (4000, "messages may have been missed: reload")


class Clients:
    """Where clients that were handed over are removed at their end."""

    def __init__(self) -> None:
        self.handed_over = 0
        self.removed: list[ConnectionDriver] = []

    def unregister(self, client: ConnectionDriver, when_gone: Callable[[Callable[[], None]], None]) -> None:
        """Keep it."""
        when_gone(lambda: self.removed.append(client))


class Received:
    """What a client that was handed over has sent."""

    def __init__(self) -> None:
        self.messages: list[str | bytes] = []
        self.arrived = asyncio.Event()
        self.ended = asyncio.Event()

    def on_message(self, _: Connection, message: str | bytes) -> None:
        """Keep it."""
        self.messages.append(message)
        self.arrived.set()

    def on_close(self, _: Connection) -> None:
        """Note the end."""
        self.ended.set()


_RECEIVED: dict[str, Received] = {}


class World(kit.World):
    """A hub over a controlled broker, and the connections on it."""

    def __init__(self, *, lane: bool = False, is_handed_over: bool = False) -> None:
        broker_subscriptions, _ = kit.new_hub()
        self.keeping_hub = KeepingHub(broker_subscriptions)
        super().__init__(broker_subscriptions, self.keeping_hub)
        self.lane = lane
        self.is_handed_over = is_handed_over
        self._connections: list[Connection] = []

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
        options: SubscriberOptions | None = None,
    ) -> tuple[Connection, FakeSocket]:
        """Return a connection and its socket."""
        socket = socket or FakeSocket(lane=self.lane)
        outbox = Outbox(Backlog(max_messages=max_messages, when_full=when_full))
        policy = policy or ConnectionPolicy(on_gap=on_gap, reload_delay=lambda: reload_delay)
        driver = ConnectionDriver(socket, self.hub, outbox, policy, context=context, options=options)
        connection = driver.connection
        self._connections.append(connection)
        if opened:
            driver_of(connection).accepted()
            if self.is_handed_over:
                received = _RECEIVED[connection.id] = Received()
                driver_of(connection).hand_over(
                    socket, Clients(), on_open=None, on_message=received.on_message, on_close=received.on_close
                )
        return connection, socket

    async def end(self) -> None:
        """End every connection, whatever has become of it."""
        for connection in self._connections:
            await driver_of(connection).closing.abandon()
        self.hub.close()
        await until_idle()


@asynccontextmanager
async def hub_of(*, lane: bool, is_handed_over: bool = False) -> AsyncGenerator[World]:
    """Run a hub whose broker is up; connections that a test leaves open are ended after it."""
    made = World(lane=lane, is_handed_over=is_handed_over)
    async with made.linked():
        yield made
        await made.end()


@asynccontextmanager
async def no_new_task() -> AsyncGenerator[None]:
    """Fail where a task is left after the block."""
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


async def finish(connection: Connection, error: Exception | None = None) -> None:
    """End the handler of the connection, by `error` where there is one."""
    end = driver_of(connection).ending(error)
    assert end is not None
    await driver_of(connection).closing.finish(end)


async def received_from(connection: Connection) -> list[str | bytes]:
    """Return all that is received from the client until the end."""
    if (received := _RECEIVED.get(connection.id)) is None:
        return [message async for message in connection]
    async with asyncio.timeout(WAIT_SECONDS):
        await received.ended.wait()
    return received.messages


async def first_received_from(connection: Connection) -> str | bytes | None:
    """Return the first message of the client."""
    if (received := _RECEIVED.get(connection.id)) is None:
        message: str | bytes | None = await bounded(asyncio.create_task(connection.receive()))
        return message
    async with asyncio.timeout(WAIT_SECONDS):
        await received.arrived.wait()
    return received.messages[0]


def break_server(socket: FakeSocket, fault: Exception) -> None:
    """Let the server raise for each message from now on."""
    socket.error = fault
    if socket.lane is not None:
        socket.lane.on_write = Mock(side_effect=fault)


def what_happened(policy: ConnectionPolicy) -> dict[str, int]:
    """Return what was counted beside the handshakes and the messages."""
    return {name: count for name, count in counted(policy.statistics).items() if name not in _OF_EACH}


_OF_EACH = {
    "connections_opened",
    "connections_on_lane",
    "connections_of_sdks",
    "sent",
    "client_messages",
    "client_bytes",
    "overrun",
    "discarded",
}


async def stall(world: World, socket: FakeSocket, *payloads: str) -> None:
    """Let the client read nothing, and what comes then wait."""
    socket.send_gate.close()
    begun = socket.sending
    world.deliver("a", "first")
    await socket.until(lambda: socket.sending == begun + 1)
    world.deliver("a", *payloads)
    await until_idle()


def lane_of(socket: FakeSocket) -> ClientLane:
    """Return the lane of a client that has one."""
    assert socket.lane is not None
    socket.lane.last_received_at = asyncio.get_running_loop().time()
    return socket.lane


def scheduled(policy: ConnectionPolicy) -> list[object]:
    """Return the connections that the scheduler of timers has."""
    buckets = policy.keepalive._buckets.values()  # pyright: ignore[reportPrivateUsage]
    return [client for bucket in buckets for client in bucket]
