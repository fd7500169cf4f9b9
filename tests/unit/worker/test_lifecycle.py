"""`backplane.worker.lifecycle`: starts, stops and event loops that end; `test_affinity.py` has forks."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING
from weakref import ref

import anyio
import pytest

from backplane import (
    Backplane,
    BrokerAuthenticationError,
    ClosedError,
    Gap,
    History,
    LifecycleError,
    Message,
    NotStartedError,
    Presence,
)
from backplane.adapters.memory import MemoryBroadcaster
from tests.unit.asgi_client import WAIT_SECONDS, Client, data_of
from tests.unit.doubles import Gate, until_idle

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from backplane.broadcaster import Sink


pytestmark = pytest.mark.anyio


async def publish(backplane: Backplane) -> None:
    """Publish something."""
    await backplane.publish("a", "x")


async def subscribe(backplane: Backplane) -> None:
    """Subscribe to something."""
    async with backplane.subscribe("a"):
        pytest.fail("the block was entered")


async def connect(backplane: Backplane) -> None:
    """Connect a client."""
    async with backplane.connect(Client().websocket, "a"):
        pytest.fail("the block was entered")


async def wait_for_state(backplane: Backplane) -> None:
    """Wait for a state."""
    await backplane.wait_for_state("live")


USES = pytest.mark.parametrize("use", [publish, subscribe, connect, wait_for_state])


@USES
async def test_use_before_the_start(use: Callable[[Backplane], Awaitable[None]]) -> None:
    """A use before the start raises an error that states how to start."""
    backplane = Backplane("memory://")
    with pytest.raises(NotStartedError, match=r"lifespan=backplane\.lifespan .* or use `async with backplane:`"):
        await use(backplane)


async def test_use_before_the_start_in_a_test() -> None:
    """The commonest reason in a test, a client that does not run the lifespan, is named."""
    with pytest.raises(NotStartedError, match=r"with TestClient\(app\)"):
        await Backplane("memory://").publish("a", "x")


@USES
async def test_use_after_the_stop(use: Callable[[Backplane], Awaitable[None]]) -> None:
    """A use after the stop raises an error that states that it was stopped."""
    async with Backplane("memory://") as backplane:
        pass
    with pytest.raises(ClosedError, match="has been stopped"):
        await use(backplane)


def test_start_in_an_event_loop_that_is_not_asyncios() -> None:
    """Under trio the error of a start states what is wrong; without any event loop of asyncio it is the same."""
    starting = Backplane("memory://").start()
    with pytest.raises(LifecycleError, match="needs asyncio"):
        starting.send(None)


async def test_start_twice() -> None:
    """A second start is refused, and the first goes on."""
    async with Backplane("memory://") as backplane:
        with pytest.raises(LifecycleError, match="started already"):
            await backplane.start()
        async with backplane.subscribe("a") as messages:
            await backplane.publish("a", "still here")
            assert await data_of(messages, 1) == ["still here"]


async def test_start_while_starting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start beside another one that is under way is refused."""
    gate = Gate()
    gate.close()
    start = MemoryBroadcaster.start

    async def slow_start(self: MemoryBroadcaster, sink: Sink) -> None:
        await gate.passage()
        await start(self, sink)

    monkeypatch.setattr(MemoryBroadcaster, "start", slow_start)
    backplane = Backplane("memory://")
    starting = asyncio.create_task(backplane.start())
    await until_idle()
    assert backplane.state == "starting"
    with pytest.raises(LifecycleError, match="started already"):
        await backplane.start()
    gate.open()
    await starting
    await backplane.stop()


async def test_start_that_fails_can_be_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed start leaves it not started."""
    backplane = Backplane("memory://")

    async def fail(*_: object) -> None:
        raise BrokerAuthenticationError("wrong password", adapter="memory")

    with monkeypatch.context() as patch:
        patch.setattr(MemoryBroadcaster, "start", fail)
        with pytest.raises(BrokerAuthenticationError, match="memory: wrong password"):
            await backplane.start()
    with pytest.raises(NotStartedError):
        await backplane.publish("a", "x")
    async with backplane:
        assert backplane.state == "live"


def test_start_again_in_another_event_loop() -> None:
    """After its end it may be started again, in another event loop too."""
    backplane = Backplane("memory://")

    async def run() -> list[str | bytes]:
        async with backplane, backplane.subscribe("a") as messages:
            await backplane.publish("a", "x")
            return await data_of(messages, 1)

    assert [asyncio.run(run()) for _ in range(3)] == [["x"]] * 3


async def test_stop_twice() -> None:
    """Stopping again, or before the start, changes nothing."""
    backplane = Backplane("memory://")
    await backplane.stop()
    async with backplane:
        await backplane.stop()
    await backplane.stop()
    assert backplane.state == "closed"


async def test_stop_ends_connections_and_subscriptions() -> None:
    """At the stop every client is closed with 1012 and every iteration ends."""
    backplane = Backplane("memory://")
    await backplane.start()
    clients = [Client() for _ in range(3)]

    async def handle(client: Client) -> list[str | bytes]:
        async with backplane.connect(client.websocket, "a") as connection:
            return [message async for message in connection]

    async def consume() -> list[Message | Gap]:
        async with backplane.subscribe("a") as messages:
            return [message async for message in messages]

    handling = [asyncio.create_task(handle(client)) for client in clients]
    consuming = asyncio.create_task(consume())
    for client in clients:
        assert (await client.sent.get())["type"] == "websocket.accept"
    await until_idle()
    await backplane.stop()
    assert [await client.receives() for client in clients] == [1012] * 3
    assert await asyncio.wait_for(asyncio.gather(*handling), WAIT_SECONDS) == [[]] * 3
    assert await asyncio.wait_for(consuming, WAIT_SECONDS) == []


async def test_stop_while_a_client_is_being_accepted() -> None:
    """A client whose handshake is not finished at the stop is closed with a code to reconnect too."""
    backplane = Backplane("memory://")
    await backplane.start()
    client = Client()
    client.accept_gate.close()

    async def handle() -> None:
        async with backplane.connect(client.websocket, "a") as connection:
            async for _ in connection:
                pytest.fail("the client sent nothing")

    handling = asyncio.create_task(handle())
    await client.accepting.wait()
    await backplane.stop()
    client.accept_gate.open()
    await asyncio.wait([handling], timeout=WAIT_SECONDS)
    events = [client.sent.get_nowait() for _ in range(client.sent.qsize())]
    assert [(event["type"], event.get("code")) for event in events] == [
        ("websocket.accept", None),
        ("websocket.close", 1012),
    ]


async def test_stop_within_a_cancelled_scope(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block left by an anyio timeout leaves no task and no link: there every await of the stop is cancelled again."""
    stops: list[MemoryBroadcaster] = []
    stop = MemoryBroadcaster.stop

    async def counted_stop(self: MemoryBroadcaster) -> None:
        stops.append(self)
        await stop(self)

    monkeypatch.setattr(MemoryBroadcaster, "stop", counted_stop)
    before = asyncio.all_tasks()
    backplane = Backplane("memory://")
    with anyio.CancelScope() as scope:
        async with backplane:
            scope.cancel()
            await anyio.lowlevel.checkpoint()
    await until_idle()
    assert asyncio.all_tasks() - before == set()
    assert len(stops) == 1


async def test_stop_cancelled_can_be_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop that was cancelled half way is finished by the next one: the adapter is stopped."""
    stops: list[str] = []
    gate = Gate()
    gate.close()

    async def slow_stop(_: MemoryBroadcaster) -> None:
        stops.append("begun")
        await gate.passage()
        stops.append("done")

    monkeypatch.setattr(MemoryBroadcaster, "stop", slow_stop)
    backplane = Backplane("memory://")
    await backplane.start()
    stopping = asyncio.create_task(backplane.stop())
    await until_idle()
    stopping.cancel()
    await asyncio.wait([stopping])
    gate.open()
    await backplane.stop()
    await until_idle()
    assert "done" in stops


async def test_start_while_stopping() -> None:
    """A start waits for the stop that is under way, whose link would otherwise be closed under the new one."""
    backplane = Backplane("memory://")
    await backplane.start()
    stopping = asyncio.create_task(backplane.stop())
    await asyncio.sleep(0)
    await backplane.start()
    await stopping
    async with backplane.subscribe("a") as messages:
        await backplane.publish("a", "x")
        assert await data_of(messages, 1) == ["x"]
    assert (await backplane.health()).generation == 1
    assert backplane.statistics().gaps == 0
    await backplane.stop()


def test_start_after_an_event_loop_that_ended_in_the_middle_of_the_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was half stopped there is discarded: another adapter is opened."""
    started: set[int] = set()
    start = MemoryBroadcaster.start

    async def counted_start(self: MemoryBroadcaster, sink: Sink) -> None:
        started.add(id(self))
        await start(self, sink)

    async def endless_stop(_: MemoryBroadcaster) -> None:
        await asyncio.Event().wait()

    async def stop_and_leave() -> None:
        await backplane.start()
        stopping = asyncio.create_task(backplane.stop())
        await until_idle()
        stopping.cancel()

    monkeypatch.setattr(MemoryBroadcaster, "start", counted_start)
    backplane = Backplane("memory://")
    with monkeypatch.context() as patch:
        patch.setattr(MemoryBroadcaster, "stop", endless_stop)
        asyncio.run(stop_and_leave())
    asyncio.run(backplane.start())
    assert len(started) == 2


def test_event_loop_is_freed(ipc_url: str) -> None:
    """The event loop of a `Backplane` that was used and stopped is freed: a script may run many."""

    async def use() -> None:
        async with (
            Backplane(ipc_url, history={"a": History()}, presence={"a": Presence()}) as backplane,
            backplane.subscribe("a") as subscription,
        ):
            await backplane.publish("a", "x")
            await anext(aiter(subscription))

    with asyncio.Runner() as runner:
        runner.run(use())
        loop = ref(runner.get_loop())
    del runner
    gc.collect()
    assert loop() is None
