"""`backplane.adapters.nats.connect`: which server is used, and which error names that none is."""

from __future__ import annotations

import asyncio
import sys
from contextlib import asynccontextmanager
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

from backplane import BrokerAuthenticationError, BrokerUnavailableError
from backplane.broker.registry import broadcaster_from_url
from backplane.testing import RecordingSink
from tests.brokers.process import free_port
from tests.unit.adapters.nats.played_login import INFO, PONG

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def serving(answer: bytes) -> AsyncGenerator[str]:
    """Serve clients with an INFO, and each PING with `answer`; return the address."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(INFO)
        while line := await reader.readline():
            if line == b"PING\r\n":
                writer.write(answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_refusal_of_one_server_is_the_error_of_all() -> None:
    """Where one server refuses the credentials and another is away, the start raises the refusal, with its text."""
    async with serving(b"-ERR 'Authorization Violation'\r\n") as refusing:
        broadcaster = broadcaster_from_url(f"nats://127.0.0.1:{free_port()},{refusing}")
        with pytest.raises(BrokerAuthenticationError, match=r"refused the credentials: .*Authorization Violation"):
            await broadcaster.start(RecordingSink())


async def test_every_failure_is_in_the_error() -> None:
    """Where no server can be reached, the error holds the reason of each, after its address."""
    one, two = free_port(), free_port()
    with pytest.raises(BrokerUnavailableError) as raised:
        await broadcaster_from_url(f"nats://127.0.0.1:{one},127.0.0.1:{two}").start(RecordingSink())
    assert all(f"127.0.0.1:{port}: " in str(raised.value) for port in (one, two))


async def test_a_server_that_is_away_is_passed_over() -> None:
    """The first server that accepts the login is used, wherever it stands in the URL."""
    async with serving(PONG) as accepting:
        broadcaster = broadcaster_from_url(f"nats://127.0.0.1:{free_port()},{accepting},127.0.0.1:{free_port()}")
        await broadcaster.start(RecordingSink())
        await broadcaster.publish("room", b"hello")
        await broadcaster.stop()


async def test_failing_callable_is_retriable(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of a token service is retriable, and not taken for refused credentials by the name of its module."""

    def current() -> str:
        raise ConnectionError

    module = ModuleType("credentials_here")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    vars(module)["current"] = current
    broadcaster = broadcaster_from_url("nats://127.0.0.1:1?credentials=credentials_here:current")
    with pytest.raises(BrokerUnavailableError, match="no credentials: credentials_here:current raised Conn") as raised:
        await broadcaster.start(RecordingSink())
    assert raised.value.retriable
