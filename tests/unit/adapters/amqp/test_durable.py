"""`durable=true` on a stand-in; real servers are in `tests/integration/test_amqp_durable.py`."""

import asyncio
from collections.abc import AsyncGenerator

import pytest
from pamqp import commands

from backplane.adapters.amqp.durable import DurableAmqpBroadcaster
from backplane.broker.registry import broadcaster_from_url
from backplane.errors import BrokerUnavailableError
from backplane.testing.recording import RecordingSink
from tests.unit.adapters.amqp.stand_in import StandIn

pytestmark = pytest.mark.anyio


@pytest.fixture
async def durable(server: StandIn, sink: RecordingSink) -> AsyncGenerator[DurableAmqpBroadcaster]:
    """An adapter that reads a stream, subscribed to `room`."""
    server.offset = 1
    made = broadcaster_from_url(f"amqp://127.0.0.1:{server.port}?durable=true")
    assert isinstance(made, DurableAmqpBroadcaster)
    await made.start(sink)
    await made.subscribe(["room"])
    yield made
    await made.stop()


async def test_a_stream_is_resumed(durable: DurableAmqpBroadcaster, sink: RecordingSink, server: StandIn) -> None:
    """The last message is read again, and not delivered again; those after it are."""
    assert (durable.capabilities.resumes, durable.capabilities.publish_returns) == (True, "stored")
    await durable.publish("room", b"1")
    await sink.until(lambda: len(sink.delivered) == 1)
    await durable.check()
    await durable.suspend()
    other = broadcaster_from_url(f"amqp://127.0.0.1:{server.port}?durable=true")
    await other.start(RecordingSink())
    await other.publish("room", b"2")
    await other.stop()
    await durable.resume(sink, ["room"])
    await durable.publish("room", b"3")
    await sink.until(lambda: len(sink.delivered) == 3)
    assert (sink.payloads("room"), sink.gaps) == ([b"1", b"2", b"3"], [])


@pytest.mark.parametrize(("first", "reason"), [(50, "were deleted"), (0, "another stream")])
async def test_a_stream_without_the_position_is_a_gap(
    durable: DurableAmqpBroadcaster, sink: RecordingSink, server: StandIn, first: int, reason: str
) -> None:
    """Retention, or another stream of the same name."""
    await durable.publish("room", b"1")
    await sink.until(lambda: len(sink.delivered) == 1)
    await durable.suspend()
    server.stored, server.offset = [], first
    await durable.resume(sink, ["room"])
    await durable.publish("room", b"2")
    await sink.until(lambda: len(sink.delivered) == 2)
    assert [reason in gap for _, gap in sink.gaps] == [True]


async def test_a_hole_in_a_stream_is_a_gap(
    durable: DurableAmqpBroadcaster, sink: RecordingSink, server: StandIn
) -> None:
    """The numbers of the workers show it: those of the stream have holes of their own."""
    server.drop = {b"2"}
    for payload in (b"1", b"2", b"3"):
        await durable.publish("room", payload)
    await sink.until(lambda: len(sink.delivered) == 2)
    assert [reason for _, reason in sink.gaps] == [
        "messages were deleted (retention) before this worker had received them"
    ]


async def test_messages_of_a_stream_are_acknowledged(durable: DurableAmqpBroadcaster, sink: RecordingSink) -> None:
    """Many at once; more than the server sends without."""
    await asyncio.gather(*(durable.publish("room", b"%d" % number) for number in range(600)))
    await sink.until(lambda: len(sink.delivered) == 600)


async def test_a_queue_without_places_is_no_stream(
    durable: DurableAmqpBroadcaster, sink: RecordingSink, server: StandIn
) -> None:
    """It is an error of the link."""
    server.offset = None
    await durable.publish("room", b"1")
    await sink.until(lambda: bool(sink.losses))
    assert "is no stream" in str(sink.losses[0])


async def test_a_link_that_ends_before_it_caught_up(server: StandIn, sink: RecordingSink) -> None:
    """The subscription fails with its reason."""
    made = broadcaster_from_url(f"amqp://127.0.0.1:{server.port}?durable=true")
    await made.start(sink)
    try:
        with pytest.raises(BrokerUnavailableError, match="is no stream"):
            await made.subscribe(["room"])
    finally:
        await made.stop()


async def test_a_stream_that_exists_is_used_as_it_is(server: StandIn, sink: RecordingSink) -> None:
    """With another retention; what declares it goes on in a new channel."""
    answers = iter([commands.Channel.Close(406, "PRECONDITION_FAILED - inequivalent arg", 50, 10)])
    server.answers["Queue.Declare"] = lambda: next(answers, commands.Queue.DeclareOk("q", 0, 0))
    made = broadcaster_from_url(f"amqp://127.0.0.1:{server.port}?durable=true")
    await made.start(sink)
    await made.stop()


async def test_a_passing_refusal_of_a_stream_is_raised(server: StandIn, sink: RecordingSink) -> None:
    """Its node is down: the core tries again."""
    server.answers["Queue.Declare"] = lambda: commands.Channel.Close(404, "NOT_FOUND - home node is down", 50, 10)
    made = broadcaster_from_url(f"amqp://127.0.0.1:{server.port}?durable=true")
    with pytest.raises(BrokerUnavailableError, match="home node is down"):
        await made.start(sink)
