"""`backplane.core`: what an application sees of `Backplane`, on `memory://`."""

from __future__ import annotations

import asyncio
import gc
import sys
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import pytest
from pydantic import BaseModel
from starlette.exceptions import WebSocketException
from starlette.websockets import WebSocket

from backplane import (
    Backlog,
    Backplane,
    BrokerAuthenticationError,
    BrokerError,
    BrokerUnavailableError,
    ClosedError,
    ConfigurationError,
    Connection,
    Gap,
    History,
    InvalidChannelError,
    InvalidDataError,
    Joined,
    LifecycleError,
    Limits,
    Message,
    PayloadTooLargeError,
    PublishError,
    PublishOutcomeUnknownError,
    Receipt,
    Settings,
    SlowConsumerError,
    StateChange,
    Statistics,
)
from backplane.adapters.memory import MemoryBroadcaster
from backplane.concurrency.paced import PacedCalls
from backplane.fanout.codec import decode
from backplane.sync import SyncBackplane
from tests.unit.asgi_client import WAIT_SECONDS, Client, data_of
from tests.unit.controlled_adapter import ControlledHistoryAdapter
from tests.unit.doubles import ControlledBroadcaster, Gate, until_idle
from tests.unit.keeping_hub import KeepingHub

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection, Iterable
    from types import FrameType

    from backplane.broadcaster import Sink

pytestmark = pytest.mark.anyio


# --- life ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["authorize", "on_slow"])
async def test_configured_before_the_start(name: str) -> None:
    """What applies to all clients alike is set before the start, or after a stop: in between it is refused by name."""
    backplane = Backplane("memory://")
    configure: Callable[[Callable[..., bool]], object] = getattr(backplane, name)
    for _ in range(2):
        configure(lambda *_: True)
        async with backplane:
            with pytest.raises(LifecycleError, match=f"^{name} must be set before the backplane is started"):
                configure(lambda *_: True)


async def test_statistics_while_not_running() -> None:
    """Before the start and after the stop every figure is zero."""
    backplane = Backplane("memory://")
    assert backplane.statistics() == Statistics()
    async with backplane:
        await backplane.publish("a", "x")
        assert backplane.statistics() == Statistics(published=1, published_bytes=22)
    assert backplane.statistics() == Statistics()


@pytest.mark.parametrize("given", ["nothing", "argument", "environment", "lifespan"])
async def test_warning_of_the_default_url(
    given: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A script without a URL gets a warning with the name of the variable; a web application does not."""
    if given == "environment":
        monkeypatch.setenv("BACKPLANE_URL", "memory://")
    backplane = Backplane("memory://" if given == "argument" else None)
    async with backplane.lifespan(object()) if given == "lifespan" else backplane:
        await backplane.publish("a", "x")
    assert ("BACKPLANE_URL" in caplog.text) is (given == "nothing")


async def test_state() -> None:
    """The state is closed, live, closed."""
    backplane = Backplane("memory://")
    states: list[str] = [backplane.state]
    async with backplane as entered:
        assert entered is backplane
        states.append(backplane.state)
    assert [*states, backplane.state] == ["closed", "live", "closed"]


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


# --- drain, state and health ---------------------------------------------------------------------------------------


async def ends(handling: Iterable[asyncio.Task[Any]]) -> None:
    """Wait until every handler has ended."""
    _, pending = await asyncio.wait(list(handling), timeout=WAIT_SECONDS)
    assert pending == set()


async def listen(backplane: Backplane, client: Client) -> None:
    """Be the handler of a client that sends nothing."""
    async with backplane.connect(client.websocket, "a") as connection:
        async for _ in connection:
            pytest.fail("the client sent nothing")


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
        assert [await client.receives() for client in clients] == [1012] * 20
        health = await backplane.health()
        assert (health.draining, health.ready, health.live, health.connections) == (True, False, True, 0)
        await backplane.publish("a", "still there")
        assert [message async for message in messages] == []
        with pytest.raises(ClosedError):
            await backplane.wait_for_state("degraded")


async def test_drain_spreads_the_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many clients are closed one after the other, spread over the whole of `drain_seconds` but its first tenth."""
    spread: list[tuple[int, float, float]] = []

    def paced(call: Callable[[object], object], items: Collection[object], **times: float) -> None:
        spread.append((len(items), times["after_seconds"], times["seconds"]))
        PacedCalls(call, items, after_seconds=0.0, seconds=0.0)

    async with Backplane("memory://", settings=Settings(drain_seconds=3)) as backplane:
        _, handling = await accepted(backplane, 100)
        monkeypatch.setattr("backplane.worker.clients.PacedCalls", paced)
        await asyncio.wait_for(backplane.drain(), WAIT_SECONDS)
        await ends(handling)
    assert spread == [(100, 0.3, 2.7)]


async def test_drain_takes_no_new_clients() -> None:
    """From the beginning of the drain on a client is refused, so that it goes to another worker."""
    async with Backplane("memory://") as backplane:
        await backplane.drain()
        client = Client()
        with pytest.raises(WebSocketException, match="about to end") as refused:
            async with backplane.connect(client.websocket, "a"):
                pytest.fail("the block was entered")
        assert isinstance(refused.value.__cause__, ClosedError)
        assert await client.receives() == 1008  # 503 where the server can send it
        assert (await backplane.health()).connections == 0


async def test_drain_is_bounded_by_a_handler_that_hangs(caplog: pytest.LogCaptureFixture) -> None:
    """A handler that does not end with its client does not keep the server from ending."""
    settings = Settings(drain_seconds=0.05, handler_grace_seconds=0.01)
    async with Backplane("memory://", settings=settings) as backplane:
        backplane._lifecycle.running().close_seconds = 0.05  # pyright: ignore[reportPrivateUsage]
        client, may_end = Client(), asyncio.Event()

        async def hang() -> None:
            async with backplane.connect(client.websocket, "a"):
                while not may_end.is_set():
                    with suppress(asyncio.CancelledError):
                        await may_end.wait()

        handling = asyncio.create_task(hang())
        await client.accepting.wait()
        await asyncio.wait_for(backplane.drain(), WAIT_SECONDS)
        assert await client.receives() == 1012
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
        assert [await client.receives() for client in clients] == [1012] * 5
        assert [client.sent.qsize() for client in clients] == [0] * 5
    await backplane.drain()
    async with backplane:
        assert (await backplane.health()).ready


async def test_stop_in_the_middle_of_a_drain() -> None:
    """A stop does not wait for the rest of the drain: every client is closed now, once."""
    backplane = Backplane("memory://", settings=Settings(drain_seconds=3_000))
    await backplane.start()
    clients, handling = await accepted(backplane, 3)
    draining = asyncio.create_task(backplane.drain())
    await until_idle()
    await asyncio.wait_for(backplane.stop(), WAIT_SECONDS)
    await ends([draining, *handling])
    assert [await client.receives() for client in clients] == [1012] * 3
    assert [client.sent.qsize() for client in clients] == [0] * 3


async def test_on_state_receives_every_change(caplog: pytest.LogCaptureFixture) -> None:
    """Each callback is called with each change, although one before it raises; after another start too."""
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
    attempts, returns, start = count(1), asyncio.Event(), MemoryBroadcaster.start

    async def moody_start(self: MemoryBroadcaster, sink: Sink) -> None:
        if next(attempts) == 1:
            raise BrokerUnavailableError("not yet")
        await returns.wait()
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
        returns.set()
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
        assert {outcome: counted.as_dict()[outcome] for outcome in outcomes} == {**dict.fromkeys(outcomes, 0), name: 3}
    refused = [text for text in caplog.messages if "refused a message" in text]
    assert len(refused) == (3 if name == "publishes_refused" else 0)


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
        assert (counted.published, counted.buffered, counted.buffer_dropped) == (3, 3, 0)


# --- publishing into a history -------------------------------------------------------------------------------------

ORDERS = {"orders:*": History(max_messages=2)}

# What runs for one publish on a live link, without a history: neither a rule nor a key adds to it.
CALLS_OF_A_PUBLISH = [
    "Backplane.publish",
    "Lifecycle.running",
    "Lifecycle.started",
    "LoopAffinity.check",
    "Runtime.publish",
    "Runtime._encoded",
    "validate_channel",
    "excluded_id",
    "encode",
    "_encode_text",
    "WaitingPublisher.publish",
    "SharedTimeout.limit",
    "_Limit.__init__",
    "_Limit.__enter__",
    "SharedTimeout.begin",
    "_AwakeClock.now",
    "SharedTimeout._remove_ended",
    "LinkStatus.live_session",
    "PublishAttempts.attempt",
    "LinkSession.publish_answered",
    "_Limit.__exit__",
    "Histogram.observe",
]
CALLS_OF_RULES = ["ChannelRules.rule_of", "ChannelRules._match"]


async def calls_of_a_publish(backplane: Backplane, channel: str) -> list[str]:
    """Return the functions of the package that run for one publish, in their order."""
    await backplane.publish(channel, "the first one, which is not counted")
    calls: list[str] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_globals.get("__name__", "").startswith("backplane."):
            calls.append(frame.f_code.co_qualname)

    gc.disable()  # a collection calls what finalizes the objects of other tests
    sys.setprofile(note)
    try:
        await backplane.publish(channel, "x")
    finally:
        sys.setprofile(None)
        gc.enable()
    return calls


async def test_publish_without_a_rule_costs_what_it_did() -> None:
    """Without `history` not one function more runs for a publish; with it, a channel without a rule costs a look-up."""
    async with Backplane(ControlledBroadcaster()) as backplane:
        assert await calls_of_a_publish(backplane, "a") == CALLS_OF_A_PUBLISH
    adapter = ControlledHistoryAdapter()
    async with Backplane(adapter, history=ORDERS) as backplane:
        calls = await calls_of_a_publish(backplane, "a")
        assert [name for name in calls if name not in CALLS_OF_RULES] == CALLS_OF_A_PUBLISH
        assert len(calls) == len(CALLS_OF_A_PUBLISH) + 2
        assert (adapter.verbs.count("publish"), adapter.kept) == (2, [])


async def test_publish_returns_a_receipt() -> None:
    """On a channel with a rule it has the position; on another one all publishes share the receipt without one."""
    adapter = ControlledHistoryAdapter()
    async with Backplane(adapter, history=ORDERS) as backplane, backplane.subscribe("orders:1", "b") as messages:
        receipts = [await backplane.publish("orders:1", {"n": number}) for number in range(4)]
        kept = adapter.log("orders:1").items
        assert [receipt.position for receipt in receipts[1:]] == [item.place for item in kept]
        assert [receipt.duplicate for receipt in receipts] == [False] * 4
        unkept = [await backplane.publish("b", "x") for _ in range(2)]
        assert unkept[0] is unkept[1]
        assert unkept[0] == Receipt()
        assert await data_of(messages, 6) == [f'{{"n":{number}}}' for number in range(4)] + ["x", "x"]


async def test_idempotency_key() -> None:
    """The second publish with a key on a channel publishes nothing, gets the first one's position, and is counted."""
    async with (
        Backplane(ControlledHistoryAdapter(), history=ORDERS) as backplane,
        backplane.subscribe("orders:1", "orders:2") as messages,
    ):
        first = await backplane.publish("orders:1", "1", idempotency_key="paid-ü")
        second = await backplane.publish("orders:1", "2", idempotency_key="paid-ü".encode())
        assert (first.duplicate, second.duplicate, second.position) == (False, True, first.position)
        assert not (await backplane.publish("orders:2", "3", idempotency_key="paid-ü")).duplicate
        assert not (await backplane.publish("orders:1", "4", idempotency_key="paid")).duplicate
        assert sorted(await data_of(messages, 3)) == ["1", "3", "4"]
        counted = backplane.statistics()
        assert (counted.published, counted.duplicates) == (4, 1)


@pytest.mark.parametrize("key", ["k" * 128, "ü" * 64, b"\0"])
async def test_idempotency_key_of_any_bytes(key: str | bytes) -> None:
    """A key has 1 to 128 bytes, whichever."""
    adapter = ControlledHistoryAdapter()
    async with Backplane(adapter, history=ORDERS) as backplane:
        await backplane.publish("orders:1", "x", idempotency_key=key)
        assert [kept[2] for kept in adapter.kept] == [key.encode() if isinstance(key, str) else key]


@pytest.mark.parametrize("key", ["", b"", "k" * 129, "ü" * 65, bytes(129), "\ud800", 42, bytearray(b"k")], ids=repr)
async def test_invalid_idempotency_key(key: Any) -> None:
    """Any other key is refused with what is taken, before anything is sent."""
    adapter = ControlledHistoryAdapter()
    async with Backplane(adapter, history=ORDERS) as backplane:
        with pytest.raises(InvalidDataError, match="takes a text or bytes, of 1 to 128 bytes in UTF-8, not "):
            await backplane.publish("orders:1", "x", idempotency_key=key)
        assert (adapter.kept, backplane.statistics().published) == ([], 0)


async def test_idempotency_key_without_a_rule() -> None:
    """A key on a channel without a rule is refused on every adapter, with the rule that it needs."""
    for history in (None, ORDERS):
        async with Backplane(ControlledHistoryAdapter(), history=history) as backplane:
            with pytest.raises(ConfigurationError, match=r"Backplane\(history=\{'other': History\(\)\}\)"):
                await backplane.publish("other", "x", idempotency_key="k")


async def test_idempotency_key_where_the_adapter_keeps_no_keys() -> None:
    """A key is refused where the broker would publish the second message; without one, the channel is kept."""
    adapter = ControlledHistoryAdapter()
    adapter.deduplicates = False
    async with Backplane(adapter, history=ORDERS) as backplane:
        with pytest.raises(ConfigurationError, match="controlled:// cannot drop a second message with the same key"):
            await backplane.publish("orders:1", "x", idempotency_key="k")
        assert (await backplane.publish("orders:1", "x")).position is not None


async def test_kept_message_leaves_out_whom_it_excludes() -> None:
    """What is published into a history carries who is left out, live and when it is read again."""
    adapter = ControlledHistoryAdapter()
    async with (
        Backplane(adapter, history=ORDERS) as backplane,
        backplane.subscribe("orders:1") as one,
        backplane.subscribe("orders:1") as other,
    ):
        await backplane.publish("orders:1", "1", exclude=one.id)
        await backplane.publish("orders:1", "2")
        assert (await data_of(one, 1), await data_of(other, 2)) == (["2"], ["1", "2"])
        message = decode("orders:1", adapter.log("orders:1").items[0].payload)
        assert message is not None
        assert message.excluded == bytes.fromhex(one.id)


async def test_buffered_message_has_no_position_yet() -> None:
    """With `outage="buffer"` an outage, and an answer that is lost with a key, leave the receipt without a position."""
    adapter = ControlledHistoryAdapter()
    async with Backplane(adapter, settings=Settings(outage="buffer"), history=ORDERS) as backplane:
        adapter.reply_errors = [PublishOutcomeUnknownError("cut")]
        assert await backplane.publish("orders:1", "1", idempotency_key="k") == Receipt()
        await adapter.until(lambda: len(adapter.kept) == 2)
        await until_idle()
        adapter.start_gate.close()
        adapter.cut()
        assert await backplane.publish("orders:1", "2") == Receipt()
        adapter.start_gate.open()
        await adapter.until(lambda: len(adapter.published) == 2)
        await until_idle()
        counted = backplane.statistics()
        assert (counted.published, counted.publishes_unknown, counted.buffer_dropped) == (2, 0, 0)
        assert len(adapter.log("orders:1").items) == 2


@pytest.mark.parametrize("history", [{"": History()}, {"a": 5}, {5: History()}], ids=repr)
def test_history_that_cannot_be_used(history: Any) -> None:
    """A pattern or a rule that is none is refused when the object is made."""
    with pytest.raises(ConfigurationError, match="history"):
        Backplane("memory://", history=history)
    with pytest.raises(ConfigurationError, match="history"):
        SyncBackplane("memory://", history=history)


async def test_connections_are_counted() -> None:
    """Each connection that was opened is still open or counted in exactly one of the figures of closes."""
    async with Backplane("memory://", settings=BRIEF) as backplane:
        clients, handling = await accepted(backplane, 5)
        for client in clients[:2]:
            client.receiver.put_nowait({"type": "websocket.disconnect", "code": 1001})
        await ends(handling[:2])
        handling[2].cancel()
        await asyncio.wait([handling[2]])
        counted = backplane.statistics()
        assert (counted.connections_opened, (await backplane.health()).connections) == (5, 2)
        await backplane.drain()
        await ends(handling[3:])
        counted = backplane.statistics()
    closed = {name: count for name, count in counted.as_dict().items() if name.startswith("closed_") and count}
    assert closed == {"closed_by_client": 2, "closed_cancelled": 1, "closed_service_restart": 2}


async def test_health_counts_gaps() -> None:
    """A gap is counted once per channel, with its time and its reason."""
    async with Backplane("memory://") as backplane, backplane.subscribe("a", "b") as messages:
        backplane._lifecycle.running().hub.gap(["a", "b"], "overrun")  # pyright: ignore[reportPrivateUsage]
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
    """The stop can be waited for like every other state."""
    backplane = Backplane("memory://")
    await backplane.start()
    waiting = asyncio.create_task(backplane.wait_for_state("closed"))
    await until_idle()
    await backplane.stop()
    await asyncio.wait_for(waiting, WAIT_SECONDS)


async def test_wait_for_a_state_that_cannot_come() -> None:
    """A wait for another state ends at the stop with an error that states it."""
    backplane = Backplane("memory://")
    await backplane.start()
    waiting = asyncio.create_task(backplane.wait_for_state("degraded"))
    await until_idle()
    await backplane.stop()
    done, _ = await asyncio.wait([waiting], timeout=WAIT_SECONDS)
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
        {"max_buffer_messages": 1.5},
        {"probe_interval_seconds": "5"},
    ],
    ids=str,
)
def test_refused_settings(options: dict[str, Any]) -> None:
    """A setting that makes no sense is refused by its name."""
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        Backplane("memory://", settings=Settings(**options))


async def test_backlog_of_the_backplane() -> None:
    """The backlog of the backplane applies to each subscriber, and one of its own replaces it whole."""
    async with (
        Backplane("memory://", backlog=Backlog(when_full="drop_oldest", max_messages=1)) as backplane,
        backplane.subscribe("a") as by_default,
        backplane.subscribe("a", backlog=Backlog(when_full="drop_newest", max_messages=2)) as by_call,
        backplane.subscribe("a", backlog=Backlog(max_messages=2)) as closing,
    ):
        for number in range(3):
            await backplane.publish("a", str(number))
        assert await data_of(by_default, 1) == ["2"]
        assert await data_of(by_call, 2) == ["0", "1"]
        assert await data_of(closing, 2) == ["0", "1"]
        with pytest.raises(SlowConsumerError):
            await anext(closing)


@pytest.mark.parametrize("backlog", ["latest", 0, {"when_full": "latest"}, Limits()], ids=repr)
async def test_what_is_no_backlog(backlog: Any) -> None:
    """Anything but a `Backlog` is refused where it is given, by the backplane and by each of its subscribers."""
    with pytest.raises(ConfigurationError, match=r"^backlog must be a Backlog\(\.\.\.\), not "):
        Backplane("memory://", backlog=backlog)
    async with Backplane("memory://") as backplane:
        with pytest.raises(ConfigurationError, match=r"^backlog must be a Backlog"):
            async with backplane.subscribe("a", backlog=backlog):
                pytest.fail("the block was entered")
        with pytest.raises(ConfigurationError, match=r"^backlog must be a Backlog"):
            backplane.connect(Client().websocket, "a", backlog=backlog)


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


async def test_publish_without_a_subscriber() -> None:
    """A publish that no subscriber receives is no error."""
    async with Backplane("memory://") as backplane:
        await backplane.publish("empty", "x")


async def test_publish_in_a_loop_reaches_all() -> None:
    """A publisher that never waits for anything else does not lose, double or reorder a message."""
    async with (
        Backplane("memory://") as backplane,
        backplane.subscribe("a", backlog=Backlog(max_messages=10_000)) as messages,
    ):
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
        sender, other = Client(), Client()
        async with (
            backplane.connect(sender.websocket, "a") as connection,
            backplane.connect(other.websocket, "a"),
        ):
            await backplane.publish("a", "1")
            await backplane.publish("a", "2", exclude=name(connection))
            await backplane.publish("a", "3")
            assert [await other.receives() for _ in range(3)] == ["1", "2", "3"]
            assert [await sender.receives() for _ in range(2)] == ["1", "3"]


@pytest.mark.parametrize(
    "exclude",
    ["", "xyz", "00", "00" * 7, "00" * 9, "é" * 16, b"00" * 8, 7, WebSocket({"type": "websocket"}, Mock(), Mock())],
    ids=lambda exclude: f"{exclude!r:.30}",
)
async def test_exclude_of_what_is_no_connection(exclude: Any) -> None:
    """What is neither a connection nor an id, such as its `WebSocket`, is refused: it would exclude no connection."""
    async with Backplane("memory://") as backplane:
        with pytest.raises(InvalidDataError, match=r"as `async with backplane\.connect.* returns it, or its id, not "):
            await backplane.publish("a", "x", exclude=exclude)


async def test_exclude_of_an_unknown_id() -> None:
    """The id of a connection of another worker, or of one that is gone, excludes none here."""
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


@pytest.mark.parametrize("scheme", ["redis", "nats", "kafka", "postgres", "amqp"])
async def test_name_that_no_host_can_have(scheme: str) -> None:
    """A label of more than 63 characters, which no resolver is asked for, fails the start like any unknown host."""
    with pytest.raises(BrokerUnavailableError):
        await Backplane(f"{scheme}://{'x' * 64}:1", settings=Settings(start_timeout_seconds=0.1)).start()


# --- history, envelope -----------------------------------------------------------------------------------------------


@asynccontextmanager
async def keeping() -> AsyncGenerator[tuple[Backplane, KeepingHub]]:
    """Run a backplane whose hub keeps the channels that begin with `kept`."""
    async with Backplane("memory://") as backplane:
        runtime = backplane._lifecycle.running()  # pyright: ignore[reportPrivateUsage]
        runtime.hub = hub = KeepingHub(runtime.broker_subscriptions)
        yield backplane, hub


async def test_connect_resumes() -> None:
    """A client that passes positions gets what it missed of each channel, before the handler runs."""
    async with keeping() as (backplane, hub):
        positions = [str(hub.keep(channel, "seen")) for channel in ("kept:a", "kept:b")]
        for channel in ("kept:a", "kept:b"):
            hub.keep(channel, f"missed in {channel}")
        by_channel: dict[str, str] = {"kept:a": positions[0], "kept:b": positions[1]}
        for since in (".".join(positions), by_channel):
            client = Client()
            async with backplane.connect(client.websocket, "kept:b", "kept:a", since=since) as connection:
                assert connection.resumed
                assert {await client.receives() for _ in range(2)} == {"missed in kept:a", "missed in kept:b"}
        async with backplane.connect(Client().websocket, "kept:a", "kept:b", since=positions[0]) as connection:
            assert not connection.resumed


async def test_connect_rewinds() -> None:
    """A first visit gets the newest messages, without those that exclude the client's former connection."""
    async with keeping() as (backplane, hub):
        for number in range(3):
            hub.keep("kept", str(number), b"previous" if number == 1 else None)
        client = Client()
        async with backplane.connect(
            client.websocket, "kept", since="", rewind=2, previous_id=b"previous".hex()
        ) as connection:
            assert (await client.receives(), connection.resumed) == ("2", False)


async def test_subscribe_resumes() -> None:
    """A subscription gets what was published after the position of the message that it had last."""
    async with keeping() as (backplane, hub):
        seen = hub.keep("kept", "seen")
        hub.keep("kept", "missed")
        async with backplane.subscribe("kept", since=str(seen)) as messages:
            assert (await data_of(messages, 1), messages.resumed) == (["missed"], True)
            stored = str(messages.position("kept"))
        hub.keep("kept", "missed later")
        async with backplane.subscribe("kept", since={"kept": stored}) as messages:
            assert await data_of(messages, 1) == ["missed later"]
        async with backplane.subscribe("kept", rewind=2) as messages:
            assert await data_of(messages, 2) == ["missed", "missed later"]


@pytest.mark.parametrize(
    "options",
    [{"since": 7}, {"rewind": "1"}, {"rewind": True}, {"rewind": 1.0}, {"rewind": 1}],
    ids=lambda options: str(options),
)
async def test_history_options_of_no_use(options: dict[str, Any]) -> None:
    """They raise at once, before a client is joined."""
    async with Backplane("memory://") as backplane:
        with pytest.raises(ConfigurationError, match=next(iter(options))):
            backplane.connect(Client().websocket, "a", **options)
        with pytest.raises(ConfigurationError, match=next(iter(options))):
            async with backplane.subscribe("a", **options):
                pass
        of_no_use: list[dict[str, Any]] = [{"envelope": "xml"}, {"previous_id": 7}]
        for wrong in of_no_use:
            with pytest.raises(ConfigurationError, match=next(iter(wrong))):
                backplane.connect(Client().websocket, "a", **wrong)


OFFERED = "backplane.json.1"


def in_brackets(item: Message | Gap | Joined) -> str:
    """Return an envelope of the application's own."""
    return f"<{item.channel}>"


@pytest.mark.parametrize(
    ("options", "offered", "accepted", "received"),
    [
        ({}, [OFFERED], None, "x"),
        ({"envelope": "json"}, [], None, '{"channel":"a","text":"x"}'),
        ({"envelope": "json"}, ["other", OFFERED], OFFERED, '{"channel":"a","text":"x"}'),
        ({"envelope": "json", "subprotocol": "other"}, ["other", OFFERED], "other", '{"channel":"a","text":"x"}'),
        ({"subprotocol": OFFERED}, [OFFERED], OFFERED, '{"channel":"a","text":"x"}'),
        ({"subprotocol": OFFERED}, ["other"], None, "x"),
        ({"subprotocol": OFFERED, "envelope": in_brackets}, [OFFERED], OFFERED, "<a>"),
        ({"envelope": in_brackets}, [OFFERED], None, "<a>"),
    ],
)
async def test_envelope(options: dict[str, Any], offered: list[str], accepted: str | None, received: str) -> None:
    """By option for every client, or by the subprotocol for those that offer it."""
    async with Backplane("memory://") as backplane:
        client = Client()
        client.websocket.scope["subprotocols"] = offered
        async with backplane.connect(client.websocket, "a", **options):
            assert (await client.sent.get())["subprotocol"] == accepted
            await backplane.publish("a", "x")
            while (text := await client.receives()) == '{"channel":"a","event":"joined","resumed":false}':
                pass
            if received.startswith("<"):
                text = await client.receives()
            assert text == received
