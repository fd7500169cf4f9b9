"""`backplane.adapters.nats.login`: which answers of a server a login accepts, and what it hands over to the link."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backplane import BrokerError, BrokerUnavailableError
from backplane.adapters.nats import login as nats_login
from backplane.adapters.nats.login import Tls
from backplane.adapters.nats.servers import Server
from tests.unit.adapters.nats.played_login import INFO, PONG, TIMEOUT_SECONDS, attempt, no_context

pytestmark = pytest.mark.anyio


async def test_every_info_of_a_login_reaches_the_link() -> None:
    """An INFO or a PING between CONNECT and PONG is not taken for the answer to the login; the link has each INFO."""
    async with attempt(answer=b'PING\r\nINFO {"server_id":"TWO"}\r\n' + PONG) as attempted:
        await attempted.open()
        assert attempted.infos == ["ONE", "TWO"]


async def test_bytes_after_the_login_reach_the_link() -> None:
    """What the server sends after the PONG reaches the link, also where the reader of the login cannot hold it."""
    infos = b"".join(b'INFO {"server_id":"%d"}\r\n' % number for number in range(20_000))
    async with attempt(answer=PONG + infos) as attempted:
        await attempted.open()
        await attempted.link.settle()
        assert attempted.infos == ["ONE", *map(str, range(20_000))]


@pytest.mark.parametrize("last", [b"", b'INFO {"server_id":"TWO"}\r\n'])
async def test_an_end_right_after_the_login_fails_it(last: bytes) -> None:
    """A server that accepts the login and closes the connection at once fails the login."""
    async with attempt(answer=PONG + last, closes=True) as attempted:
        with pytest.raises(BrokerUnavailableError, match="the connection ended"):
            await attempted.open()
        assert not attempted.link.is_up


@pytest.mark.parametrize(
    ("greeting", "answer", "message"),
    [
        (b"", b"", "closed by the server"),
        (b"INFO", b"", "INFO"),
        (b"INFO []\r\n", b"", "an INFO that cannot be read"),
        (b"INFO " + b"[" * 9999 + b"\r\n", b"", "an INFO that cannot be read"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", "HTTP/1.1 400"),
        (b"x" * 200_000, b"", "the connection ended"),
        (INFO, b"", "closed by the server"),
        (INFO + b"-ERR 'maximum connections exceeded'\r\n", b"", "ended: maximum connections exceeded"),
        (INFO, b"-ERR 'maximum connections exceeded'\r\n", "ended: maximum connections exceeded"),
        (INFO, b"-ERR\r\n", "closed by the server"),
        (INFO, b"INFO x\r\n", "an INFO that cannot be read"),
    ],
)
async def test_a_login_that_fails(greeting: bytes, answer: bytes, message: str) -> None:
    """Whatever is received in place of INFO and PONG fails the login, with the error of the server if it sent one."""
    async with attempt(greeting, answer, closes=True) as attempted:
        with pytest.raises(BrokerUnavailableError, match=message):
            await attempted.open()


@pytest.mark.parametrize("host", ["a" * 64, "a..b", "a\0b", "none"])
async def test_a_malformed_host_is_an_error_of_the_broker(host: str) -> None:
    """A name that no resolver accepts, as a cluster may announce it, raises as a server that is away does."""
    async with attempt() as attempted:
        attempted.link.server = Server(host, 4222, "localhost")
        with pytest.raises((BrokerError, OSError)):
            await attempted.open()


async def test_a_login_that_is_cancelled_leaves_no_connection() -> None:
    """At whatever point a login is cancelled, its connection is closed."""
    for greeting, answer in [(b"", b""), (INFO, b""), (INFO, b"PING\r\n")]:
        async with attempt(greeting, answer) as attempted:
            opening = asyncio.create_task(attempted.open())
            async with asyncio.timeout(TIMEOUT_SECONDS):
                await attempted.served.wait()
                opening.cancel()
                await asyncio.wait([opening])
                await attempted.left.wait()
            assert opening.cancelled()


async def test_nothing_is_sent_unencrypted_where_tls_is_required() -> None:
    """However nats-py reads an INFO, its transport sends nothing before the handshake where TLS is required."""
    async with attempt() as attempted:
        stream = cast("Any", nats_login)._Stream(attempted.link, Tls(True, False, no_context))
        with pytest.raises(BrokerError, match="not encrypted"):
            stream.write(b"CONNECT")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=30),
            st.sampled_from([b"PONG\r\n", b"PING\r\n", b"+OK\r\n", b"-ERR\r\n", b"MSG a 1 1\r\nx\r\n", b"INFO {}\r\n"]),
            st.sampled_from([b'INFO {"connect_urls":["[","::",""]}\r\n', b'INFO {"nonce":1}\r\n', b"INFO null\r\n"]),
        ),
        max_size=6,
    )
)
def test_any_bytes_of_a_server_at_worst_fail_the_login(pieces: list[bytes]) -> None:
    """Whatever a server sends, a login ends with a link or an error of the broker."""

    async def run() -> None:
        async with attempt(INFO, b"".join(pieces), closes=True) as attempted:
            with suppress(BrokerError, OSError):
                await attempted.open()

    asyncio.run(run())
