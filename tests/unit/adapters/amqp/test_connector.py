"""Which of several servers is used, and with which login."""

import asyncio

import pytest

from backplane.broker.registry import broadcaster_from_url
from backplane.errors import BrokerUnavailableError
from backplane.testing.recording import RecordingSink
from tests.brokers.process import free_port
from tests.unit.adapters.amqp.stand_in import StandIn

pytestmark = pytest.mark.anyio


async def test_no_server_answers(sink: RecordingSink) -> None:
    """The error names each of several."""
    ports = [free_port(), free_port()]
    made = broadcaster_from_url(f"amqp://me:secret@127.0.0.1:{ports[0]},127.0.0.1:{ports[1]}")
    with pytest.raises(
        BrokerUnavailableError, match=f"server 127.0.0.1:{ports[0]}.*server 127.0.0.1:{ports[1]}"
    ) as error:
        await made.start(sink)
    assert "secret" not in str(error.value)


async def _never_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()


async def test_a_silent_server_is_given_up(sink: RecordingSink) -> None:
    """After the time for connecting."""
    async with await asyncio.start_server(_never_answer, "127.0.0.1", 0) as silent:
        port = silent.sockets[0].getsockname()[1]
        made = broadcaster_from_url(f"amqp://127.0.0.1:{port}?connect_timeout_seconds=0.05")
        with pytest.raises(BrokerUnavailableError, match=r"no answer within 0\.05 s"):
            await made.start(sink)


def credentials() -> tuple[str, str]:
    """Return a login."""
    return "me", "token"


async def test_credentials_of_a_callable(server: StandIn, sink: RecordingSink) -> None:
    """It is asked at each connect."""
    made = broadcaster_from_url(f"amqp://127.0.0.1:{server.port}?credentials={__name__}:credentials")
    await made.start(sink)
    await made.stop()
    assert server.logins == ["\0me\0token"]
