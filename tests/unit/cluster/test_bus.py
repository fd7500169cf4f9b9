"""`backplane.cluster.bus`: what workers exchange, over a broker that loses, refuses and is written to by others."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import pytest

from backplane import BrokerUnavailableError, ClosedError, PayloadTooLargeError, SubscribeError
from backplane.cluster.signatures import Signer
from backplane.cluster.topics import CONTROL, WORKERS
from tests.unit.cluster.world import MAX_PAYLOAD, Recorder, buses
from tests.unit.doubles import until_idle
from tests.unit.kit import WAIT_SECONDS, lost, warnings_of

if TYPE_CHECKING:
    from tests.unit.cluster.world import Broker, BusWorker

pytestmark = pytest.mark.anyio

SECRET = b"s" * 32


async def subscribed_soon(worker: BusWorker, topic: str, receiver: Recorder) -> None:
    """Subscribe, and wait for the confirmation."""
    confirmed = asyncio.Event()
    worker.bus.subscribe_soon(topic, receiver, confirmed.set)
    async with asyncio.timeout(WAIT_SECONDS):
        await confirmed.wait()


# --- sending and receiving ---


async def test_what_one_sends_all_receive_in_order() -> None:
    """Each worker that subscribes a channel receives what is sent there, also by itself, in the order of the calls."""
    async with buses(None, None) as (_, [first, second]):
        one, other = Recorder(), Recorder()
        await first.bus.subscribe("$backplane/x", one)
        await second.bus.subscribe("$backplane/x", other)
        for number in range(50):
            first.bus.send_soon("$backplane/x", str(number))
        await first.bus.flush()
        await until_idle()
        assert one.texts == other.texts == [str(number) for number in range(50)]
        assert (first.bus.topics, second.bus.topics) == (1, 1)


async def test_it_is_named_by_its_origin() -> None:
    """The name of a worker is that of its process on the broker, in hexadecimal digits."""
    async with buses() as (_, [worker]):
        assert worker.bus.worker == "0000000000000001"


async def test_send_raises_what_the_broker_answers() -> None:
    """`send` reports a failure to its caller; nothing is logged for it."""
    async with buses() as (broker, [worker]):
        broker.error = BrokerUnavailableError("away")
        with pytest.raises(BrokerUnavailableError):
            await worker.bus.send("$backplane/x", "1")


async def test_a_message_that_is_too_large() -> None:
    """It is refused before it is published, with its size; the signature and the header count."""
    async with buses(SECRET) as (broker, [worker]):
        with pytest.raises(PayloadTooLargeError) as refused:
            await worker.bus.send("$backplane/x", "x" * (MAX_PAYLOAD - 21 - 31))
        assert refused.value.size_bytes == MAX_PAYLOAD + 1
        await worker.bus.send("$backplane/x", "x" * (MAX_PAYLOAD - 21 - 32))
        assert len(broker.published) == 1


@pytest.mark.parametrize("error", [BrokerUnavailableError("away"), ClosedError("stopped")])
async def test_send_soon_reports_a_failure(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """What could not be sent is reported to the caller that asks for it, and logged once for many."""
    async with buses() as (broker, [worker]):
        broker.error, failures = error, list[int]()
        for number in range(3):
            worker.bus.send_soon("$backplane/x", "secret", lambda number=number: failures.append(number))  # type: ignore[misc]
        worker.bus.send_soon("$backplane/x", "secret")
        await worker.bus.flush()
        assert failures == [0, 1, 2]
        assert warnings_of(caplog) == [f"could not send on '$backplane/x': {error}"]
        assert "secret" not in caplog.text


async def test_send_soon_of_what_is_too_large() -> None:
    """It is reported as a failure too."""
    async with buses() as (_, [worker]):
        failed = asyncio.Event()
        worker.bus.send_soon("$backplane/x", "x" * MAX_PAYLOAD, failed.set)
        await worker.bus.flush()
        assert failed.is_set()


async def test_what_a_join_gives_back_is_received() -> None:
    """Reserved channels have no history; what a hub gave back all the same would be received."""
    async with buses() as (_, [worker]):
        recorder = Recorder()
        await worker.bus.subscribe("$backplane/x", recorder)
        worker.world.hub.deliver("$backplane/x", b"text")
        await until_idle()
        worker.bus.offer_missed([])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        assert recorder.texts == ["text"]


async def test_what_every_worker_receives_is_counted() -> None:
    """Heartbeats and commands count, which all workers receive alike; what only some receive does not."""
    async with buses() as (_, [worker]):
        for topic in (WORKERS, CONTROL, "$backplane/presence/a"):
            await worker.bus.subscribe(topic, Recorder())
            worker.world.hub.deliver(topic, b"text")
        await until_idle()
        assert worker.bus.received_of_all == 2


# --- subscribing ---


async def test_a_refused_channel_is_not_received() -> None:
    """`subscribe` raises, and leaves nothing."""
    async with buses() as (_, [worker]):
        worker.world.adapter.refusals["$backplane/x"] = "no permission"
        with pytest.raises(SubscribeError):
            await worker.bus.subscribe("$backplane/x", Recorder())
        assert (worker.bus.topics, list(worker.world.hub.channels)) == (0, [])


async def test_subscribe_soon_tries_until_the_broker_confirms(caplog: pytest.LogCaptureFixture) -> None:
    """A refusal is logged, and the channel is tried again; only the confirmation counts."""
    async with buses() as (broker, [worker]):
        adapter, recorder, confirmed = worker.world.adapter, Recorder(), asyncio.Event()
        adapter.refusals["$backplane/x"] = "no permission"
        worker.bus.subscribe_soon("$backplane/x", recorder, confirmed.set)
        await adapter.until(lambda: len(adapter.calls) == 1)
        await until_idle()
        assert not confirmed.is_set()
        assert "trying again" in warnings_of(caplog)[0]
        adapter.refusals.clear()
        async with asyncio.timeout(WAIT_SECONDS):
            await confirmed.wait()
        broker.deliver("$backplane/x", b"text")
        await until_idle()
        assert recorder.texts == ["text"]


async def test_unsubscribe_ends_it() -> None:
    """Nothing more is received; a receiver that is not there changes nothing."""
    async with buses() as (broker, [worker]):
        recorder = Recorder()
        await subscribed_soon(worker, "$backplane/x", recorder)
        worker.bus.unsubscribe("$backplane/x", Recorder())
        worker.bus.unsubscribe("$backplane/y", recorder)
        broker.deliver("$backplane/x", b"1")
        await until_idle()
        worker.bus.unsubscribe("$backplane/x", recorder)
        worker.bus.unsubscribe("$backplane/x", recorder)
        broker.deliver("$backplane/x", b"2")
        await until_idle()
        assert recorder.texts == ["1"]
        assert (worker.bus.topics, list(worker.world.hub.channels)) == (0, [])


@pytest.mark.parametrize("turns", range(6))
async def test_unsubscribing_before_the_confirmation(turns: int) -> None:
    """A channel that is given up, and wanted again at once, is subscribed in the end, however far the first was."""
    async with buses() as (broker, [worker]):
        adapter, first, second = worker.world.adapter, Recorder(), Recorder()
        adapter.subscribe_gate.close()
        confirmations: list[str] = []
        worker.bus.subscribe_soon("$backplane/x", first, lambda: confirmations.append("first"))
        for _ in range(turns):
            await asyncio.sleep(0)
        worker.bus.unsubscribe("$backplane/x", first)
        confirmed = asyncio.Event()
        worker.bus.subscribe_soon("$backplane/x", second, confirmed.set)
        adapter.subscribe_gate.open()
        async with asyncio.timeout(WAIT_SECONDS):
            await confirmed.wait()
        await until_idle()
        broker.deliver("$backplane/x", b"text")
        await until_idle()
        assert (first.texts, second.texts, confirmations) == ([], ["text"], [])
        worker.bus.unsubscribe("$backplane/x", second)
        assert list(worker.world.hub.channels) == []


async def test_stop_ends_all(caplog: pytest.LogCaptureFixture) -> None:
    """What waits for the broker is given up: a channel, and what is to be sent."""
    async with buses() as (broker, [worker]):
        recorder = Recorder()
        await worker.bus.subscribe("$backplane/x", recorder)
        worker.world.adapter.subscribe_gate.close()
        worker.bus.subscribe_soon("$backplane/y", recorder, lambda: pytest.fail("it was not confirmed"))
        broker.gate.close()
        worker.bus.send_soon("$backplane/x", "1", lambda: pytest.fail("no failure, but the end"))
        await until_idle()
        await worker.bus.stop()
        worker.world.adapter.subscribe_gate.open()
        broker.gate.open()
        broker.deliver("$backplane/x", b"2")
        await until_idle()
        assert recorder.texts == []
        assert broker.published == [("$backplane/x", b"2")]
        assert worker.bus.topics == 0
        await worker.bus.stop()
    assert warnings_of(caplog) == []


# --- what others publish there ---


async def test_a_receiver_that_raises_costs_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged by its place, without the data, and what follows is received."""
    async with buses() as (broker, [worker]):
        recorder = Recorder()
        await worker.bus.subscribe("$backplane/x", recorder)
        recorder.error = ValueError("some data")
        broker.deliver("$backplane/x", b"1")
        await until_idle()
        worker.world.hub.gap(["$backplane/x"], "a test")
        recorder.error = None
        broker.deliver("$backplane/x", b"2")
        worker.world.hub.gap(["$backplane/x"], "a test")
        await until_idle()
        assert (recorder.texts, recorder.gaps) == (["2"], ["$backplane/x"])
        errors = warnings_of(caplog, logging.ERROR)
        assert len(errors) == 1
        assert "ValueError at world.py" in errors[0]
        assert "some data" not in caplog.text


async def test_what_no_worker_sends_is_dropped_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    """Binary data, and what is larger than a worker sends, is dropped before it is read; of many one line is logged."""
    async with buses() as (broker, [worker]):
        recorder = Recorder()
        await worker.bus.subscribe("$backplane/x", recorder)
        for payload in (b"\xff\xfe", b"\xff", b"x" * (MAX_PAYLOAD + 1), b"[" * 10_000_000):
            broker.deliver("$backplane/x", payload)
        await until_idle()
        assert (recorder.texts, worker.bus.rejected) == ([], 4)
        assert [line[:45] for line in warnings_of(caplog)] == [
            "dropped a message on '$backplane/x' that is b",
            "dropped a message on '$backplane/x' that is l",
        ]


async def forged(broker: Broker, topic: str) -> int:
    """Publish to a channel without the secret in some ways; return in how many."""
    text = '["command","1","disconnect",{"user":"u"},{},null,0]'
    signed = [
        text,
        Signer(b"t" * 32).sign(topic, text),
        Signer(SECRET).sign("$backplane/other", text),
        Signer(SECRET).sign(topic, text)[:-1],
        Signer(SECRET).sign(topic, text)[1:],
        "é" + Signer(SECRET).sign(topic, text),
        "",
    ]
    for each in signed:
        broker.deliver(topic, each.encode())
    await until_idle()
    return len(signed)


async def test_with_a_secret_only_what_is_signed_by_it_is_received(caplog: pytest.LogCaptureFixture) -> None:
    """All else is dropped and counted, with one line in the log that holds neither the secret nor the data."""
    async with buses(SECRET, SECRET, b"t" * 32, None) as (broker, [first, second, stranger, unsigned]):
        recorder = Recorder()
        await first.bus.subscribe(CONTROL, recorder)
        count = await forged(broker, CONTROL)
        assert (recorder.texts, first.bus.rejected) == ([], count)
        await stranger.bus.send(CONTROL, "2")
        await unsigned.bus.send(CONTROL, "3")
        await second.bus.send(CONTROL, "4")
        await until_idle()
        assert (recorder.texts, first.bus.rejected) == (["4"], count + 2)
        assert len(warnings_of(caplog)) == 1
        assert "is not signed with this worker's control_secret" in caplog.text
        assert SECRET.decode() not in caplog.text
        assert "disconnect" not in caplog.text


async def test_what_no_receiver_takes_is_dropped() -> None:
    """What arrives after `unsubscribe`, in the same pass of the event loop, is for no receiver."""
    async with buses() as (_, [worker]):
        recorder = Recorder()
        await worker.bus.subscribe("$backplane/x", recorder)
        batches: list[Any] = []
        offer = worker.bus.offer
        worker.bus.offer = lambda batch, /: batches.append(batch)  # type: ignore[method-assign]
        worker.world.hub.deliver("$backplane/x", b"1")
        await until_idle()
        worker.bus.unsubscribe("$backplane/x", recorder)
        offer(batches[0])
        worker.bus.gap(lost("$backplane/x"))
        assert (recorder.texts, recorder.gaps) == ([], [])
