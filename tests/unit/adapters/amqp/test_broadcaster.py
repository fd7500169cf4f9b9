"""The adapter on a stand-in that answers as RabbitMQ does; real servers are in `tests/integration/test_amqp.py`."""

from collections.abc import AsyncGenerator
from typing import Any

import pytest
from pamqp import commands

from backplane.adapters.amqp import AmqpBroadcaster
from backplane.broker.registry import broadcaster_from_url
from backplane.errors import BrokerUnavailableError, PublishError, PublishOutcomeUnknownError
from backplane.testing.recording import RecordingSink
from tests.unit.adapters.amqp.stand_in import StandIn

pytestmark = pytest.mark.anyio


@pytest.fixture
async def adapter(server: StandIn, sink: RecordingSink) -> AsyncGenerator[AmqpBroadcaster]:
    """An adapter that is subscribed to `room`."""
    made = broadcaster_from_url(f"amqp://127.0.0.1:{server.port}")
    assert isinstance(made, AmqpBroadcaster)
    await made.start(sink)
    await made.subscribe(["room"])
    yield made
    await made.stop()


async def test_publish_and_receive(adapter: AmqpBroadcaster, sink: RecordingSink) -> None:
    """What is published comes back, on subscribed channels alone."""
    await adapter.publish("room", b"1")
    await adapter.publish("other", b"2")
    await adapter.check()
    await adapter.publish("room", b"3")
    await sink.until(lambda: len(sink.delivered) == 2)
    await adapter.unsubscribe(["room"])
    assert (sink.payloads("room"), sink.gaps) == ([b"1", b"3"], [])
    assert await adapter.describe() == "RabbitMQ 0"


async def test_a_hole_is_a_gap(adapter: AmqpBroadcaster, sink: RecordingSink, server: StandIn) -> None:
    """A message that the queue dropped, though it was confirmed."""
    server.drop = {b"2"}
    for payload in (b"1", b"2", b"3"):
        await adapter.publish("room", payload)
    await sink.until(lambda: len(sink.delivered) == 2)
    assert sink.gaps == [
        (None, "the queue of this worker overran, or the cluster was parted: at least 1 messages are missing")
    ]


async def test_refusals(adapter: AmqpBroadcaster, sink: RecordingSink, server: StandIn) -> None:
    """One message the server could not take, and one without rights; the link stays."""
    server.on_publish = commands.Basic.Nack(1)
    with pytest.raises(PublishOutcomeUnknownError, match="could not take it"):
        await adapter.publish("room", b"1")
    server.on_publish = commands.Channel.Close(403, "ACCESS_REFUSED", 60, 40)
    with pytest.raises(PublishError, match="ACCESS_REFUSED"):
        await adapter.publish("room", b"2")
    server.on_publish = None
    await adapter.publish("room", b"3")
    assert not sink.losses


async def test_an_alarm(adapter: AmqpBroadcaster, server: StandIn) -> None:
    """It is named, and ends."""
    server.on_publish = commands.Connection.Blocked("low on memory")
    with pytest.raises(PublishOutcomeUnknownError, match="low on memory"):
        await adapter.publish("room", b"1")
    with pytest.raises(BrokerUnavailableError, match="low on memory"):
        await adapter.publish("room", b"2")
    await adapter.check()


@pytest.mark.parametrize(
    ("method", "channel", "reason"),
    [
        (commands.Basic.Cancel("c"), 1, "queue of this worker was deleted"),
        (commands.Channel.Close(404, "NOT_FOUND", 0, 0), 1, "NOT_FOUND"),
        (commands.Connection.Close(320, "CONNECTION_FORCED", 0, 0), 0, "CONNECTION_FORCED"),
        (commands.Exchange.DeclareOk(), 1, "answers nothing"),
    ],
)
async def test_what_ends_the_link(
    adapter: AmqpBroadcaster, sink: RecordingSink, server: StandIn, method: Any, channel: int, reason: str
) -> None:
    """Once, with its reason; every call fails afterwards."""
    server.send(method, channel)
    await sink.until(lambda: bool(sink.losses))
    assert reason in str(sink.losses[0])
    with pytest.raises(BrokerUnavailableError):
        await adapter.subscribe(["more"])
    await adapter.stop()
    with pytest.raises(BrokerUnavailableError):
        await adapter.publish("room", b"1")
    assert len(sink.losses) == 1


async def test_a_url_that_leads_to_two_clusters(server: StandIn, sink: RecordingSink) -> None:
    """The connections must lead to the same."""
    made = broadcaster_from_url(f"amqp://127.0.0.1:{server.port}")
    await made.start(sink)
    server.cluster = "two"
    with pytest.raises(BrokerUnavailableError, match="more than one cluster: two connections found one, two"):
        await made.subscribe(["room"])
    await made.stop()
