"""One connection to a server that a test scripts."""

# pyright: reportPrivateUsage=false, reportMissingTypeStubs=false

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from aiokafka.errors import KafkaError  # type: ignore[import-untyped]

from backplane.adapters.kafka.connection import Connection
from backplane.adapters.kafka.login import Security
from backplane.concurrency.timeouts import PatientTimeout
from backplane.errors import BrokerUnavailableError


@pytest.mark.anyio
@pytest.mark.parametrize("size", [-1, 0x15030300, 2**31 - 1])
async def test_an_answer_of_an_invalid_size_ends_the_connection(size: int) -> None:
    """A server that does not speak Kafka is detected at the first length, before anything is read into memory."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(4)
        writer.write(size.to_bytes(4, "big", signed=True))
        await reader.read()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        security = Security(ssl_context=None, mechanism="PLAIN", username=None, password=None)
        connection = Connection(server.sockets[0].getsockname(), security, 5, lambda _: None)
        with pytest.raises(KafkaError) as raised:
            await connection.open()
        assert "does this port speak TLS?" in str(raised.value.__cause__)


@pytest.mark.anyio
async def test_a_broker_that_throttles_is_not_taken_for_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A client over its quota is read again after the time in the last answer; otherwise no answer is silence."""
    limits: list[float | None] = []

    class RecordedTimeout(PatientTimeout):
        def __init__(self, seconds: float | None) -> None:
            limits.append(seconds)
            super().__init__(seconds)

    monkeypatch.setattr("backplane.adapters.kafka.connection.PatientTimeout", RecordedTimeout)
    security = Security(ssl_context=None, mechanism="PLAIN", username=None, password=None)
    connection = Connection(("127.0.0.1", 9), security, 0.1, lambda _: None)
    throttled, later = SimpleNamespace(throttle_time_ms=3_600_000), SimpleNamespace(throttle_time_ms=0)
    answers = [throttled, later]

    async def send(_: object) -> SimpleNamespace:
        return answers.pop(0) if answers else await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(connection._inner, "send", send)
    assert await connection._request(object()) is throttled
    assert await connection._request(object()) is later
    with pytest.raises(BrokerUnavailableError, match="no answer from"):
        await connection._request(object())
    assert limits == [0.1, pytest.approx(3_600, abs=60), 0.1]
