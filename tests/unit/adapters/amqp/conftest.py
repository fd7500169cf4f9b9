"""What the tests of the RabbitMQ adapter share: a stand-in of the server."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from backplane.testing.recording import RecordingSink
from tests.unit.adapters.amqp.stand_in import StandIn


@pytest.fixture
async def server() -> AsyncGenerator[StandIn]:
    """A stand-in."""
    stand_in = StandIn()
    async with await asyncio.start_server(stand_in.serve, "127.0.0.1", 0) as listener:
        stand_in.port = listener.sockets[0].getsockname()[1]
        yield stand_in


@pytest.fixture
async def sink() -> RecordingSink:
    """A sink."""
    return RecordingSink()
