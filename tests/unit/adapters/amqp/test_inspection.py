"""What `backplane doctor` finds of RabbitMQ, on a stand-in; a real server is in `tests/integration/test_amqp.py`."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pamqp import commands

from backplane.adapters.amqp import AmqpBroadcaster
from backplane.broker.registry import broadcaster_from_url
from backplane.errors import BrokerUnavailableError
from backplane.findings import Finding
from backplane.testing.recording import RecordingSink
from tests.unit.adapters.amqp.stand_in import StandIn

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """One event loop is enough: what is tested does not depend on it."""
    return "asyncio", {"use_uvloop": False}


@asynccontextmanager
async def started(server: StandIn, query: str = "") -> AsyncGenerator[AmqpBroadcaster]:
    """An adapter of the test's own."""
    adapter = broadcaster_from_url(f"amqp://127.0.0.1:{server.port}{query}")
    assert isinstance(adapter, AmqpBroadcaster)
    await adapter.start(RecordingSink())
    try:
        yield adapter
    finally:
        await adapter.stop()


async def found(server: StandIn, query: str = "") -> dict[str, Finding]:
    """Return what is found, by check."""
    async with started(server, query) as adapter:
        return {finding.check: finding for finding in await adapter.inspect({})}


def levels(findings: dict[str, Finding]) -> dict[str, str]:
    """Return the levels of those that are not `ok`, by check."""
    return {check: finding.level for check, finding in findings.items() if finding.level != "ok"}


async def test_a_server_that_is_well(server: StandIn) -> None:
    """Name, version and cluster are stated, and what AMQP does not show."""
    findings = await found(server, "?durable=true")
    assert levels(findings) == {"amqp_policies": "skipped"}
    assert findings["amqp_server"].text == "RabbitMQ 0, cluster one"
    assert findings["amqp_heartbeat"].text == "heartbeats of 10 s: a server that is silent for 20 s is given up"
    assert findings["amqp_stream"].text == "stream 'backplane.stream' has the retention of the options"


async def test_a_server_without_what_the_adapter_needs(server: StandIn) -> None:
    """What it does not state is named, with what follows."""
    del server.capabilities["connection.blocked"]
    server.cluster = ""
    finding = (await found(server))["amqp_server"]
    assert (finding.level, finding.text) == ("warning", "RabbitMQ 0 does not state connection.blocked")
    assert "alarm" in finding.cure


async def test_an_alarm(server: StandIn) -> None:
    """It is an error, and whether a message would be confirmed is not known."""
    server.on_publish = commands.Connection.Blocked("low on memory")
    findings = await found(server)
    assert levels(findings) == {"amqp_alarm": "error", "amqp_publish": "skipped", "amqp_policies": "skipped"}
    assert "low on memory" in findings["amqp_alarm"].text


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        (commands.Channel.Close(403, "ACCESS_REFUSED", 60, 40), "ACCESS_REFUSED"),
        (commands.Basic.Nack(1), "a queue could not take it"),
    ],
)
async def test_a_message_that_is_refused(server: StandIn, method: Any, reason: str) -> None:
    """A user without write, and a queue that rejects."""
    server.on_publish = method
    findings = await found(server)
    assert levels(findings) == {"amqp_publish": "error", "amqp_policies": "skipped"}
    assert reason in findings["amqp_publish"].text


async def test_what_may_not_be_created(server: StandIn) -> None:
    """The exchange and the stream are used as they are."""
    refused = commands.Channel.Close(403, "ACCESS_REFUSED", 40, 10)
    server.once = {"Exchange.Declare": refused, "Queue.Declare": refused}
    findings = await found(server, "?durable=true")
    assert levels(findings) == {"amqp_rights": "warning", "amqp_stream": "warning", "amqp_policies": "skipped"}
    assert "ACCESS_REFUSED" in findings["amqp_stream"].text


async def test_a_long_heartbeat(server: StandIn) -> None:
    """One that is longer than what the server proposes."""
    finding = (await found(server, "?heartbeat_seconds=600"))["amqp_heartbeat"]
    assert (finding.level, finding.text.endswith("; the server proposes 60 s")) == ("warning", True)


async def test_a_link_that_is_lost(server: StandIn) -> None:
    """It is an error of the link, and no finding."""
    server.on_publish = commands.Channel.Close(404, "NOT_FOUND", 60, 40)
    async with started(server) as adapter:
        with pytest.raises(BrokerUnavailableError, match="NOT_FOUND"):
            await adapter.inspect({})
    with pytest.raises(BrokerUnavailableError, match="closed"):
        await adapter.inspect({})
