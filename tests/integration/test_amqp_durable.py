"""`amqp://...?durable=true`: nothing is missing, nothing comes twice after a lost link; what was deleted is a gap."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import pytest

from backplane.adapters.amqp.durable import DurableAmqpBroadcaster
from backplane.broker.registry import broadcaster_from_url
from backplane.errors import BrokerError
from backplane.testing.recording import RecordingSink
from tests.brokers.rabbitmq import RabbitProcess

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from tests.brokers.broker import Broker

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """One event loop: the conformance suite runs on both."""
    return "asyncio", {"use_uvloop": False}


@pytest.fixture
def url(amqp_broker: Broker) -> str:
    """A stream of the test's own."""
    return f"{amqp_broker.own_url}&durable=true"


@asynccontextmanager
async def started(url: str, sink: RecordingSink | None = None) -> AsyncGenerator[DurableAmqpBroadcaster]:
    """An adapter of the test's own."""
    adapter = broadcaster_from_url(url)
    assert isinstance(adapter, DurableAmqpBroadcaster)
    try:
        await adapter.start(sink or RecordingSink())
        yield adapter
    finally:
        await adapter.stop()


def numbered(first: int, last: int) -> list[bytes]:
    """Return payloads."""
    return [b"%d" % number for number in range(first, last)]


async def publish(adapter: DurableAmqpBroadcaster, payloads: list[bytes], channel: str = "room") -> None:
    """Publish all, in order."""
    await asyncio.gather(*(adapter.publish(channel, payload) for payload in payloads))


async def test_what_was_published_meanwhile_is_delivered_once(url: str) -> None:
    """Again and again; also messages of another program, and on channels that are wanted since."""
    sink, expected = RecordingSink(), numbered(0, 600)
    async with started(url, sink) as worker, started(url) as publisher:
        await worker.subscribe(["room"])
        for start in range(0, 600, 60):
            await publish(publisher, expected[start : start + 30])
            await worker.suspend()
            await publish(publisher, expected[start + 30 : start + 60])
            await publisher.publish("other", b"x")
            await worker.resume(sink, ["room"])
        assert sink.payloads("room") == expected
    assert (sink.gaps, sink.losses) == ([], [])


async def test_a_link_that_is_lost_before_the_first_message(url: str) -> None:
    """The position is known when `subscribe` returns."""
    sink = RecordingSink()
    async with started(url) as publisher, started(url, sink) as worker:
        await publisher.publish("room", b"before")
        await worker.subscribe(["room"])
        await worker.suspend()
        await publisher.publish("room", b"meanwhile")
        await worker.resume(sink, ["room"])
    assert (sink.payloads("room"), sink.gaps) == ([b"meanwhile"], [])


async def test_another_stream_of_the_same_name_is_a_gap(amqp_broker: Broker, url: str) -> None:
    """An operator deleted it: its numbers begin anew."""
    if not isinstance(amqp_broker, RabbitProcess):
        pytest.skip("this needs rabbitmqctl of the server")
    sink = RecordingSink()
    async with started(url, sink) as worker:
        await worker.subscribe(["room"])
        await publish(worker, numbered(0, 5))
        await sink.until(lambda: len(sink.delivered) == 5)
        name = cast("Any", worker)._stream.name
        await asyncio.to_thread(amqp_broker.control, "delete_queue", name)
        await sink.until(lambda: bool(sink.losses))
        await worker.suspend()
        async with started(url) as publisher:
            await publish(publisher, numbered(5, 20))
        await worker.resume(sink, ["room"])
        await worker.publish("room", b"after")
        await sink.until(lambda: sink.payloads("room")[-1] == b"after")
    assert "another stream" in sink.gaps[0][1]
    assert len(sink.gaps) == 1


async def test_what_was_deleted_is_a_gap(url: str) -> None:
    """The stream keeps no more than its retention."""
    sink, large = RecordingSink(), bytes(500_000)
    url = f"{url}&retention_bytes=10485760"
    async with started(url, sink) as worker, started(url) as publisher:
        await worker.subscribe(["room"])
        await publisher.publish("room", b"first")
        await sink.until(lambda: bool(sink.delivered))
        await worker.suspend()
        for _ in range(12):
            await publish(publisher, [large] * 5)
        await worker.resume(sink, ["room"])
    assert len(sink.gaps) == 1
    assert "were deleted (retention)" in sink.gaps[0][1]
    assert 0 < len(sink.delivered) < 61


async def test_a_new_segment_is_no_gap(url: str) -> None:
    """RabbitMQ leaves out a number there."""
    sink, url = RecordingSink(), f"{url}&retention_bytes=10485760"
    async with started(url, sink) as worker:
        await worker.subscribe(["room"])
        for number in range(12):
            await worker.publish("room", bytes(500_000) + b"%d" % number)
        await sink.until(lambda: len(sink.delivered) == 12)
    assert sink.gaps == []


async def test_plain_workers_share_the_exchange(amqp_broker: Broker) -> None:
    """A worker without the option receives what one with it publishes, and the other way round."""
    plain_url, sinks = amqp_broker.own_url, (RecordingSink(), RecordingSink())
    plain = broadcaster_from_url(plain_url)
    async with started(f"{plain_url}&durable=true", sinks[0]) as durable:
        await plain.start(sinks[1])
        try:
            for number, adapter in enumerate((durable, plain)):
                await durable.subscribe([f"room-{number}"])
                await plain.subscribe([f"room-{number}"])
                await adapter.publish(f"room-{number}", b"x")
            for sink in sinks:
                await sink.until(lambda: len(sink.delivered) == 2)  # noqa: B023
        finally:
            await plain.stop()


async def test_a_stream_with_another_retention_is_used_as_it_is(url: str) -> None:
    """A change of the option must not keep new workers from those that run."""
    sink = RecordingSink()
    async with started(url, sink) as worker, started(f"{url}&retention_seconds=60") as other:
        await worker.subscribe(["room"])
        await other.subscribe(["room"])
        await other.publish("room", b"x")
        await sink.until(lambda: bool(sink.delivered))
        assert [(await adapter.inspect({}))[-1].level for adapter in (worker, other)] == ["ok", "warning"]


async def test_a_queue_that_is_no_stream(amqp_broker: Broker) -> None:
    """The error names it."""
    url = amqp_broker.own_url
    plain: Any = broadcaster_from_url(url)
    await plain.start(RecordingSink())
    try:
        from pamqp import commands

        name = f"{plain.options.exchange}.stream"
        await plain._publisher.ask(commands.Queue.Declare(queue=name, auto_delete=True, durable=True))
        async with started(f"{url}&durable=true") as worker:
            with pytest.raises(BrokerError, match="invalid arg 'x-stream-offset'"):
                await worker.subscribe(["room"])
    finally:
        await plain.stop()
