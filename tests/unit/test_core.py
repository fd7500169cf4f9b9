"""`backplane.core`: what an application sees of `Backplane`, on `memory://`."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import anyio
import pytest
from pydantic import BaseModel
from starlette.exceptions import WebSocketException
from starlette.websockets import WebSocket

from backplane import (
    Backplane,
    BrokerAuthenticationError,
    BrokerError,
    BrokerUnavailableError,
    ClosedError,
    ConfigurationError,
    Connection,
    Gap,
    InvalidChannelError,
    InvalidDataError,
    LifecycleError,
    Limits,
    Message,
    NotStartedError,
    PayloadTooLargeError,
    PublishError,
    PublishOutcomeUnknownError,
    Settings,
    StateChange,
    Subscription,
)
from backplane.adapters.memory import MemoryBroadcaster
from backplane.sync import SyncBackplane
from tests.unit.doubles import Gate, until_idle

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from starlette.types import Message as Event

    from backplane.broadcaster import Sink

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 5.0


class Client:
    """A WebSocket client as a server would show it to the application.

    Attributes:
        incoming: What the client does, as ASGI events; the handshake stands in it already.
        sent: What the application sent, as ASGI events.
        accept_gate: Holds the application's `accept`.
    """

    def __init__(self) -> None:
        self.receiver: asyncio.Queue[Event] = asyncio.Queue()
        self.receiver.put_nowait({"type": "websocket.connect"})
        self.sent: asyncio.Queue[Event] = asyncio.Queue()
        self.accept_gate = Gate()
        self.accepting = asyncio.Event()
        scope: dict[str, Any] = {"type": "websocket", "path": "/", "headers": [], "extensions": {}}
        self.websocket = WebSocket(scope, self.receiver.get, self._send)

    async def hears(self) -> str | int:
        """Return the next text, or the code of the close."""
        async with asyncio.timeout(WAIT_SECONDS):
            event = await self.sent.get()
            if event["type"] == "websocket.accept":
                event = await self.sent.get()
        heard: str | int = event["code"] if event["type"] == "websocket.close" else event["text"]
        return heard

    async def _send(self, event: Event) -> None:
        if event["type"] == "websocket.accept":
            self.accepting.set()
            await self.accept_gate.passage()
        self.sent.put_nowait(event)


async def data_of(messages: Subscription, count: int) -> list[str | bytes]:
    """Return the data of the next `count` messages."""
    data: list[str | bytes] = []
    async with asyncio.timeout(WAIT_SECONDS):
        while len(data) < count:
            message = await anext(messages)
            assert not isinstance(message, Gap)
            data.append(message.data)
    return data


# --- life ----------------------------------------------------------------------------------------------------------


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
    """What is not started says so, and how to start it."""
    backplane = Backplane("memory://")
    with pytest.raises(NotStartedError, match=r"lifespan=backplane\.lifespan .* or use `async with backplane:`"):
        await use(backplane)


async def test_use_before_the_start_in_a_test() -> None:
    """The commonest reason in a test, a client that does not run the lifespan, is named."""
    with pytest.raises(NotStartedError, match=r"with TestClient\(app\)"):
        await Backplane("memory://").publish("a", "x")


@pytest.mark.parametrize("given", ["nothing", "argument", "environment", "lifespan"])
async def test_warning_of_the_default_url(
    given: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A script that nobody gave a URL is warned with the name of the variable; a web application is not."""
    if given == "environment":
        monkeypatch.setenv("BACKPLANE_URL", "memory://")
    backplane = Backplane("memory://" if given == "argument" else None)
    async with backplane.lifespan(object()) if given == "lifespan" else backplane:
        await backplane.publish("a", "x")
    assert ("BACKPLANE_URL" in caplog.text) is (given == "nothing")


@USES
async def test_use_after_the_stop(use: Callable[[Backplane], Awaitable[None]]) -> None:
    """What was stopped says so."""
    async with Backplane("memory://") as backplane:
        pass
    with pytest.raises(ClosedError, match="has been stopped"):
        await use(backplane)


async def test_state() -> None:
    """The state is closed, live, closed."""
    backplane = Backplane("memory://")
    states: list[str] = [backplane.state]
    async with backplane as entered:
        assert entered is backplane
        states.append(backplane.state)
    assert [*states, backplane.state] == ["closed", "live", "closed"]


def test_start_in_an_event_loop_that_is_not_asyncios() -> None:
    """Under trio a start says what is wrong; without any event loop of asyncio's it is the same."""
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
    assert [await client.hears() for client in clients] == [1012] * 3
    assert await asyncio.wait_for(asyncio.gather(*handling), WAIT_SECONDS) == [[]] * 3
    assert await asyncio.wait_for(consuming, WAIT_SECONDS) == []


async def test_stop_while_a_client_is_being_accepted() -> None:
    """A client whose handshake is under way at the stop is told to come back as well."""
    backplane = Backplane("memory://")
    await backplane.start()
    client = Client()
    client.accept_gate.close()

    async def handle() -> None:
        async with backplane.connect(client.websocket, "a") as connection:
            async for _ in connection:
                pytest.fail("the client said nothing")

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


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"settings": {"start": "lazy"}}, r"settings must be a Settings\(...\), not {'start'"),
        ({"settings": Limits()}, r"settings must be a Settings\(...\), not Limits"),
        ({"limits": Settings()}, r"limits must be a Limits\(...\), not Settings"),
        ({"on_gap": "clsoe"}, "on_gap must be 'close' or a function, not 'clsoe'"),
    ],
    ids=["settings of a dict", "limits for settings", "settings for limits", "on_gap"],
)
def test_arguments_of_no_use(given: dict[str, Any], words: str) -> None:
    """What would fail at the first client, or at the first gap, is refused when the Backplane is made."""
    with pytest.raises(ConfigurationError, match=words):
        Backplane("memory://", **given)


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
    assert backplane.statistics()["gaps"] == 0
    await backplane.stop()


def test_start_after_an_event_loop_that_ended_in_the_middle_of_the_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was half stopped there is left behind: another adapter is opened."""
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


# --- drain, state and health ---------------------------------------------------------------------------------------


async def ends(handling: Iterable[asyncio.Task[Any]]) -> None:
    """Wait until every handler has ended."""
    _, pending = await asyncio.wait(list(handling), timeout=WAIT_SECONDS)
    assert pending == set()


async def listen(backplane: Backplane, client: Client) -> None:
    """Be the handler of a client that says nothing."""
    async with backplane.connect(client.websocket, "a") as connection:
        async for _ in connection:
            pytest.fail("the client said nothing")


async def accepted(backplane: Backplane, count: int) -> tuple[list[Client], list[asyncio.Task[None]]]:
    """Return so many clients whose handshake is done, with their handlers."""
    clients = [Client() for _ in range(count)]
    handling = [asyncio.create_task(listen(backplane, client)) for client in clients]
    for client in clients:
        assert (await asyncio.wait_for(client.sent.get(), WAIT_SECONDS))["type"] == "websocket.accept"
    return clients, handling


BRIEF = Settings(drain_seconds=0.05)


async def test_drain_closes_every_client() -> None:
    """Every client is closed with 1012 and its handler has ended when the drain returns, and so has what subscribes.

    Publishing goes on.
    """
    async with Backplane("memory://", settings=BRIEF) as backplane, backplane.subscribe("a") as messages:
        clients, handling = await accepted(backplane, 20)
        await asyncio.wait_for(backplane.drain(), WAIT_SECONDS)
        await ends(handling)
        assert [await client.hears() for client in clients] == [1012] * 20
        health = await backplane.health()
        assert (health.draining, health.ready, health.live, health.connections) == (True, False, True, 0)
        await backplane.publish("a", "still there")
        assert [message async for message in messages] == []
        with pytest.raises(ClosedError):
            await backplane.wait_for_state("degraded")


async def test_drain_spreads_the_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of many clients is drawn its own moment within the whole of `drain_seconds`."""
    bounds: list[float] = []

    def uniform(_: float, high: float) -> float:
        bounds.append(high)
        return 0.0

    async with Backplane("memory://", settings=Settings(drain_seconds=3)) as backplane:
        _, handling = await accepted(backplane, 100)
        monkeypatch.setattr("backplane.worker.runtime.random.uniform", uniform)
        await asyncio.wait_for(backplane.drain(), WAIT_SECONDS)
        await ends(handling)
    assert bounds == [3] * 100


async def test_drain_takes_no_new_clients() -> None:
    """From the beginning of the drain on a client is refused, so that it goes to another worker."""
    async with Backplane("memory://") as backplane:
        await backplane.drain()
        client = Client()
        with pytest.raises(WebSocketException, match="about to end") as refused:
            async with backplane.connect(client.websocket, "a"):
                pytest.fail("the block was entered")
        assert isinstance(refused.value.__cause__, ClosedError)
        assert await client.hears() == 1008  # 503 where the server can say it
        assert (await backplane.health()).connections == 0


async def test_drain_is_bounded_by_a_handler_that_hangs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A handler that does not end with its client does not keep the server from ending."""
    monkeypatch.setattr("backplane.worker.runtime._CLOSE_SECONDS", 0.05)
    settings = Settings(drain_seconds=0.05, handler_grace_seconds=0.01)
    async with Backplane("memory://", settings=settings) as backplane:
        client, may_end = Client(), asyncio.Event()

        async def hang() -> None:
            async with backplane.connect(client.websocket, "a"):
                while not may_end.is_set():
                    with suppress(asyncio.CancelledError):
                        await may_end.wait()

        handling = asyncio.create_task(hang())
        await client.accepting.wait()
        await asyncio.wait_for(backplane.drain(), WAIT_SECONDS)
        assert await client.hears() == 1012
        assert "1 handlers did not end with their connection" in caplog.messages
        may_end.set()
        await ends([handling])


async def test_drain_twice_and_before_the_start() -> None:
    """Two drains at once close each client once; one before the start or after the stop changes nothing."""
    backplane = Backplane("memory://", settings=BRIEF)
    await backplane.drain()
    async with backplane:
        clients, handling = await accepted(backplane, 5)
        await asyncio.wait_for(asyncio.gather(backplane.drain(), backplane.drain()), WAIT_SECONDS)
        await ends(handling)
        assert [await client.hears() for client in clients] == [1012] * 5
        assert [client.sent.qsize() for client in clients] == [0] * 5
    await backplane.drain()
    async with backplane:
        assert (await backplane.health()).ready


async def test_stop_in_the_middle_of_a_drain() -> None:
    """A stop does not wait for the rest of the drain: everyone is closed now, once."""
    backplane = Backplane("memory://", settings=Settings(drain_seconds=3_000))
    await backplane.start()
    clients, handling = await accepted(backplane, 3)
    draining = asyncio.create_task(backplane.drain())
    await until_idle()
    await asyncio.wait_for(backplane.stop(), WAIT_SECONDS)
    await ends([draining, *handling])
    assert [await client.hears() for client in clients] == [1012] * 3
    assert [client.sent.qsize() for client in clients] == [0] * 3


async def test_on_state_hears_every_change(caplog: pytest.LogCaptureFixture) -> None:
    """Each callback hears each change, though one before it raises; a life later too."""
    backplane = Backplane("memory://")
    changes: list[tuple[str, str]] = []

    @backplane.on_state
    def fail(_: StateChange) -> None:
        raise RuntimeError("a fault")

    @backplane.on_state
    def keep(change: StateChange) -> None:
        changes.append((change.old, change.new))

    for _ in range(2):
        async with backplane:
            pass
    assert changes == [("starting", "live"), ("live", "closed")] * 2
    assert caplog.messages.count("a callback of on_state failed") == 4


async def test_health_over_a_life() -> None:
    """Health can be asked at any time, and counts what is there."""
    backplane = Backplane("memory://")
    before = await backplane.health()
    assert (before.live, before.ready, before.state) == (True, False, "closed")
    async with backplane, backplane.subscribe("a", "b"):
        _, handling = await accepted(backplane, 2)
        health = await backplane.health()
        assert (health.live, health.ready, health.state, health.generation) == (True, True, "live", 1)
        assert (health.channels, health.connections, health.subscriptions, health.gaps) == (2, 2, 1, 0)
    await ends(handling)
    assert await backplane.health() == before


async def test_health_while_the_broker_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """With `start="lazy"` a worker comes up without its broker: alive, not ready; `outage="buffer"` keeps and sends."""
    away, start = [True], MemoryBroadcaster.start

    async def moody_start(self: MemoryBroadcaster, sink: Sink) -> None:
        if away[0]:
            raise BrokerUnavailableError("not yet")
        await start(self, sink)

    monkeypatch.setattr(MemoryBroadcaster, "start", moody_start)
    settings = Settings(start="lazy", outage="buffer", max_backoff_seconds=0.01)
    async with Backplane("memory://", settings=settings) as backplane:
        health = await backplane.health()
        assert (health.live, health.ready, health.state) == (True, False, "degraded")
        joining = asyncio.create_task(first_two(backplane))
        await until_idle()
        await backplane.publish("other", "kept")
        await backplane.publish("other", "kept too")
        assert (await backplane.health()).buffered == 2
        away[0] = False
        await asyncio.wait_for(backplane.wait_for_state("live"), WAIT_SECONDS)
        assert await asyncio.wait_for(joining, WAIT_SECONDS) == ["1", "2"]
        assert ((await backplane.health()).ready, (await backplane.health()).buffered) == (True, 0)


async def first_two(backplane: Backplane) -> list[str | bytes]:
    """Subscribe, publish two messages, and return what came."""
    async with backplane.subscribe("a") as messages:
        await backplane.publish("a", "1")
        await backplane.publish("a", "2")
        return await data_of(messages, 2)


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (None, "published"),
        (BrokerUnavailableError("away"), "publishes_unavailable"),
        (PublishOutcomeUnknownError("no answer"), "publishes_unknown"),
        (PublishError("no permission"), "publishes_refused"),
    ],
    ids=["published", "unavailable", "unknown", "refused"],
)
async def test_publishes_are_counted(
    error: BrokerError | None, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each call of `publish` is counted by its outcome; those the broker refuses write few lines to the log."""

    async def publish(*_: object) -> None:
        if error is not None:
            raise error

    monkeypatch.setattr(MemoryBroadcaster, "publish", publish)
    async with Backplane("memory://") as backplane:
        for _ in range(3):
            with suppress(BrokerError):
                await backplane.publish("a", "x")
        counted = backplane.statistics()
        outcomes = ("published", "publishes_unavailable", "publishes_unknown", "publishes_refused")
        assert {outcome: counted[outcome] for outcome in outcomes} == {**dict.fromkeys(outcomes, 0), name: 3}
    refused = [text for text in caplog.messages if "refused a message" in text]
    assert len(refused) == (2 if name == "publishes_refused" else 0)


async def test_buffer_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `outage="buffer"` keeps is counted as published and as waiting."""

    async def publish(*_: object) -> None:
        raise BrokerUnavailableError("away")

    monkeypatch.setattr(MemoryBroadcaster, "publish", publish)
    settings = Settings(outage="buffer", publish_timeout_seconds=0.01)
    async with Backplane("memory://", settings=settings) as backplane:
        for _ in range(3):
            await backplane.publish("a", "x")
        counted = backplane.statistics()
        assert (counted["published"], counted["buffered"], counted["buffer_dropped"]) == (3, 3, 0)


async def test_connections_are_counted() -> None:
    """Of the connections that were opened, each is there or stands in exactly one of the counts of ends."""
    async with Backplane("memory://", settings=BRIEF) as backplane:
        clients, handling = await accepted(backplane, 5)
        for client in clients[:2]:
            client.receiver.put_nowait({"type": "websocket.disconnect", "code": 1001})
        await ends(handling[:2])
        handling[2].cancel()
        await asyncio.wait([handling[2]])
        counted = backplane.statistics()
        assert (counted["connections_opened"], (await backplane.health()).connections) == (5, 2)
        await backplane.drain()
        await ends(handling[3:])
        counted = backplane.statistics()
    closed = {name: count for name, count in counted.items() if name.startswith("closed_") and count}
    assert closed == {"closed_by_client": 2, "closed_cancelled": 1, "closed_service_restart": 2}


async def test_health_counts_gaps() -> None:
    """A gap that was told is counted once per channel, with its time and its reason."""
    async with Backplane("memory://") as backplane, backplane.subscribe("a", "b") as messages:
        backplane._require_runtime().hub.gap(["a", "b"], "overrun")  # pyright: ignore[reportPrivateUsage]
        assert [type(await anext(messages)) for _ in range(2)] == [Gap, Gap]
        health = await backplane.health()
        assert (health.gaps, health.last_gap_reason) == (2, "overrun")
        assert health.last_gap_seconds_ago is not None
        assert health.last_gap_seconds_ago >= 0


async def test_start_that_is_strict_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `lazy` a start without the broker raises, and the backplane is not started."""

    async def start(_: MemoryBroadcaster, __: Sink) -> None:
        raise BrokerAuthenticationError("wrong password")

    monkeypatch.setattr(MemoryBroadcaster, "start", start)
    backplane = Backplane("memory://")
    with pytest.raises(BrokerAuthenticationError):
        await backplane.start()
    assert (await backplane.health()).state == "closed"


async def test_stop_waits_for_publishes_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was given to the broker before the stop is answered before the link closes."""
    gate, publishing_begun, publish = Gate(), asyncio.Event(), MemoryBroadcaster.publish
    gate.close()

    async def slow_publish(self: MemoryBroadcaster, channel: str, payload: bytes) -> None:
        publishing_begun.set()
        await gate.passage()
        await publish(self, channel, payload)

    monkeypatch.setattr(MemoryBroadcaster, "publish", slow_publish)
    backplane = Backplane("memory://")
    await backplane.start()
    publishing = asyncio.create_task(backplane.publish("a", "last words"))
    await publishing_begun.wait()
    stopping = asyncio.create_task(backplane.stop())
    await until_idle()
    assert (publishing.done(), stopping.done()) == (False, False)
    gate.open()
    await ends([publishing, stopping])
    assert publishing.exception() is None


async def test_wait_for_state() -> None:
    """It returns at once in the state that is, and otherwise waits."""
    async with Backplane("memory://") as backplane:
        await asyncio.wait_for(backplane.wait_for_state("live"), WAIT_SECONDS)
        waiting = asyncio.create_task(backplane.wait_for_state("degraded"))
        await until_idle()
        assert not waiting.done()
        waiting.cancel()


async def test_wait_for_the_stop() -> None:
    """The stop is a state like the others to those who wait for it."""
    backplane = Backplane("memory://")
    await backplane.start()
    waiting = asyncio.create_task(backplane.wait_for_state("closed"))
    await until_idle()
    await backplane.stop()
    await asyncio.wait_for(waiting, WAIT_SECONDS)


async def test_wait_for_a_state_that_cannot_come() -> None:
    """Who waits for another state at the stop is told that it was stopped, and does not wait for ever."""
    backplane = Backplane("memory://")
    await backplane.start()
    waiting = asyncio.create_task(backplane.wait_for_state("degraded"))
    await until_idle()
    await backplane.stop()
    done, _ = await asyncio.wait([waiting], timeout=1)
    waiting.cancel()
    assert done
    assert isinstance(waiting.exception(), ClosedError)


async def test_lifespan_yields_itself() -> None:
    """The lifespan runs it, and hands it to the application as state."""
    backplane = Backplane("memory://")
    async with backplane.lifespan(object()) as state:
        assert (state, backplane.state) == ({"backplane": backplane}, "live")
    assert backplane.state == "closed"


# --- configuration -------------------------------------------------------------------------------------------------


def test_default_url() -> None:
    """Without a URL it is `memory://`."""
    assert Backplane().url == "memory://"


@pytest.mark.parametrize(("value", "expected"), [("memory://from-env", "memory://from-env"), ("", "memory://")])
def test_url_of_the_environment(monkeypatch: pytest.MonkeyPatch, value: str, expected: str) -> None:
    """BACKPLANE_URL is taken where the code names none; an empty one counts as none."""
    monkeypatch.setenv("BACKPLANE_URL", value)
    assert Backplane().url == expected
    assert Backplane("memory://from-code").url == "memory://from-code"


def test_password_is_masked() -> None:
    """Neither `repr` nor `url` contains the password, nor the options, which may hold one."""
    backplane = Backplane("memory://user:secret@host?max_payload_bytes=77")
    assert repr(backplane) == "<Backplane memory://user:***@host closed>"
    assert "secret" not in backplane.url
    assert "77" not in backplane.url


@pytest.mark.parametrize(
    "url", ["localhost", "memori://", "memory://?max_payload_byte=1", "memory://?max_payload_bytes=x"]
)
def test_wrong_url(url: str) -> None:
    """A wrong URL is refused where it is written, before anything starts."""
    with pytest.raises(ConfigurationError):
        Backplane(url)


@pytest.mark.parametrize(
    "options",
    [
        {"start_timeout_seconds": 0},
        {"linger_seconds": -1},
        {"max_outbox_messages": 1.5},
        {"probe_interval_seconds": "5"},
    ],
    ids=str,
)
def test_refused_settings(options: dict[str, Any]) -> None:
    """A setting that makes no sense is refused by its name."""
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        Backplane("memory://", settings=Settings(**options))


async def test_settings_bound_the_outbox() -> None:
    """The bounds of `Settings` hold for each subscriber, and those of the call go before them."""
    async with (
        Backplane("memory://", settings=Settings(max_outbox_messages=1)) as backplane,
        backplane.subscribe("a", when_full="drop_oldest") as by_settings,
        backplane.subscribe("a", when_full="drop_oldest", max_outbox_messages=2) as by_call,
    ):
        for number in range(3):
            await backplane.publish("a", str(number))
        assert await data_of(by_settings, 1) == ["2"]
        assert await data_of(by_call, 2) == ["1", "2"]


# --- publish -------------------------------------------------------------------------------------------------------


class Order(BaseModel):
    """A pydantic model."""

    id: int


@dataclass
class Item:
    """A dataclass."""

    name: str


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("text", "text"),
        ("", ""),
        ("é\x00😀", "é\x00😀"),
        (b"\x00\xff", b"\x00\xff"),
        (b"", b""),
        (bytearray(b"\x01"), b"\x01"),
        (memoryview(b"\x01"), b"\x01"),
        ({"id": 42}, '{"id":42}'),
        ([1, None, True], "[1,null,true]"),
        (Order(id=42), '{"id":42}'),
        (Item(name="x"), '{"name":"x"}'),
        (None, "null"),
    ],
    ids=[
        "text", "no text", "unicode", "bytes", "no bytes", "bytearray", "memoryview", "dict", "list", "model",
        "dataclass", "None",
    ],
)  # fmt: skip
async def test_data_arrives(data: object, expected: str | bytes) -> None:
    """Text arrives as text, bytes as binary, anything else as JSON text."""
    async with Backplane("memory://") as backplane, backplane.subscribe("a") as messages:
        await backplane.publish("a", data)
        (received,) = await data_of(messages, 1)
        assert received == expected
        assert type(received) is type(expected)


@pytest.mark.parametrize(
    "data",
    [object(), {"x": object()}, "\ud800", {"x": "\ud800"}],
    ids=["object", "object inside", "lone surrogate", "lone surrogate inside"],
)
async def test_data_that_cannot_travel(data: object) -> None:
    """What is neither text, nor bytes, nor JSON is refused, and nothing is sent."""
    async with Backplane("memory://") as backplane, backplane.subscribe("a") as messages:
        with pytest.raises(InvalidDataError):
            await backplane.publish("a", data)
        await backplane.publish("a", "next")
        assert await data_of(messages, 1) == ["next"]


@pytest.mark.parametrize(
    "channel",
    ["", "x" * 256, "é" * 128, "$backplane/probe", "\ud800", b"bytes", None],
    ids=["empty", "long", "long in bytes", "reserved", "lone surrogate", "bytes", "None"],
)
async def test_channel_that_is_not_legal(channel: Any) -> None:
    """A name that is not legal is refused."""
    async with Backplane("memory://") as backplane:
        with pytest.raises(InvalidChannelError):
            await backplane.publish(channel, "x")


async def test_payload_at_and_over_the_limit() -> None:
    """The limit counts the header of 21 bytes; one byte more is refused, with both sizes, before anything is sent."""
    async with Backplane("memory://?max_payload_bytes=100") as backplane, backplane.subscribe("a") as messages:
        await backplane.publish("a", b"x" * 79)
        with pytest.raises(PayloadTooLargeError) as caught:
            await backplane.publish("a", b"x" * 80)
        assert (caught.value.size_bytes, caught.value.limit_bytes) == (101, 100)
        await backplane.publish("a", "next")
        assert await data_of(messages, 2) == [b"x" * 79, "next"]


async def test_publish_to_nobody() -> None:
    """That no one subscribes is no error."""
    async with Backplane("memory://") as backplane:
        await backplane.publish("nobody", "x")


async def test_publish_in_a_loop_reaches_all() -> None:
    """A publisher that never waits for anything else does not lose, double or reorder a message."""
    async with Backplane("memory://") as backplane, backplane.subscribe("a", max_outbox_messages=10_000) as messages:
        texts = [str(number) for number in range(5_000)]
        for text in texts:
            await backplane.publish("a", text)
        assert await data_of(messages, 5_000) == texts


def by_connection(connection: Connection) -> Connection | str:
    """Name a connection by itself."""
    return connection


def by_id(connection: Connection) -> Connection | str:
    """Name a connection by its id."""
    return connection.id


@pytest.mark.parametrize("name", [by_connection, by_id])
async def test_exclude(name: Callable[[Connection], Connection | str]) -> None:
    """The excluded connection gets every other message, and the others get all."""
    async with Backplane("memory://") as backplane:
        says, hears = Client(), Client()
        async with (
            backplane.connect(says.websocket, "a") as connection,
            backplane.connect(hears.websocket, "a"),
        ):
            await backplane.publish("a", "1")
            await backplane.publish("a", "2", exclude=name(connection))
            await backplane.publish("a", "3")
            assert [await hears.hears() for _ in range(3)] == ["1", "2", "3"]
            assert [await says.hears() for _ in range(2)] == ["1", "3"]


@pytest.mark.parametrize(
    "exclude",
    ["", "xyz", "00", "00" * 7, "00" * 9, "é" * 16, b"00" * 8, 7, WebSocket({"type": "websocket"}, Mock(), Mock())],
    ids=lambda exclude: f"{exclude!r:.30}",
)
async def test_exclude_of_what_is_no_connection(exclude: Any) -> None:
    """What is neither a connection nor an id, such as its `WebSocket`, is refused instead of excluding nobody."""
    async with Backplane("memory://") as backplane:
        with pytest.raises(InvalidDataError, match=r"as `async with backplane\.connect.* returns it, or its id, not "):
            await backplane.publish("a", "x", exclude=exclude)


async def test_exclude_of_an_unknown_id() -> None:
    """The id of a connection elsewhere, or gone, excludes nobody here."""
    async with Backplane("memory://") as backplane, backplane.subscribe("a") as messages:
        await backplane.publish("a", "x", exclude="00" * 8)
        assert await data_of(messages, 1) == ["x"]


# --- wire_format ------------------------------------------------------------------------------------------------------


async def test_plain_wire_format() -> None:
    """Workers with and without a header receive each other, from synchronous code too; `exclude` is refused."""
    url = "memory://of-this-test"
    async with (
        Backplane(f"{url}?wire_format=plain") as plain,
        Backplane(url) as usual,
        plain.subscribe("a") as plain_messages,
        usual.subscribe("a") as usual_messages,
    ):
        await plain.publish("a", {"id": 1})
        await usual.publish("a", b"2")
        with SyncBackplane(f"{url}?wire_format=plain") as outside:
            await asyncio.to_thread(outside.publish, "a", "3")
        with pytest.raises(ConfigurationError, match="wire_format=plain"):
            await plain.publish("a", "x", exclude="00" * 8)
        for messages in (plain_messages, usual_messages):
            assert await data_of(messages, 3) == ['{"id":1}', b"2", "3"]


@pytest.mark.parametrize("scheme", ["redis", "nats", "kafka"])
async def test_name_that_no_host_can_have(scheme: str) -> None:
    """A label of more than 63 characters, which no resolver is asked for, fails the start like any unknown host."""
    with pytest.raises(BrokerUnavailableError):
        await Backplane(f"{scheme}://{'x' * 64}:1", settings=Settings(start_timeout_seconds=0.1)).start()
