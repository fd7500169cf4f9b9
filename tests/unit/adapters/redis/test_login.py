"""`backplane.adapters.redis.login`: what redis-py sends, what owns the socket afterwards, and what its errors mean."""

from __future__ import annotations

import asyncio
import gc
import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import hiredis
import pytest

from backplane.adapters.redis.link import RedisLink
from backplane.adapters.redis.login import open_connection
from backplane.errors import BrokerUnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from backplane.adapters.redis.credentials import Credentials
    from backplane.adapters.redis.server_info import Address

pytestmark = pytest.mark.anyio

AUTH = b"*3\r\n$4\r\nAUTH\r\n$5\r\nalice\r\n$6\r\nsecret\r\n"
SETNAME = b"*3\r\n$6\r\nCLIENT\r\n$7\r\nSETNAME\r\n$3\r\nweb\r\n"
PING = b"*1\r\n$4\r\nPING\r\n"


class Server:
    """Sends the greeting, answers each command with the next of its answers, and closes after the last.

    Attributes:
        received: What the client sent.
        ended: Set when the connection is closed.
    """

    def __init__(self, greeting: bytes, answers: tuple[bytes, ...]) -> None:
        self._greeting = greeting
        self._answers = answers
        self.received = b""
        self.ended = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client."""
        writer.write(self._greeting)
        try:
            for answer in self._answers:
                self.received += await reader.read(1000)
                writer.write(answer)
            if self._answers and self._answers[-1] == b"":  # stays silent
                await reader.read()
        except ConnectionError:
            pass
        if self._answers:
            writer.transport.abort()
        else:
            writer.close()
        self.ended.set()


@asynccontextmanager
async def serving(
    *answers: bytes, greeting: bytes = b"", path: Path | None = None
) -> AsyncGenerator[tuple[Server, Address]]:
    """Serve the answers, at a port or a Unix socket."""
    server = Server(greeting, answers)
    if path is None:
        listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
        address: Address = listening.sockets[0].getsockname()[:2]
    else:
        listening = await asyncio.start_unix_server(server.serve, path)
        address = str(path)
    async with listening:
        yield server, address


async def ask_after_the_end(link: RedisLink, server: Server, address: Address, credentials: Credentials) -> None:
    """Open the link, and send a command when the server has closed the connection."""
    await open_connection(link, address, credentials)
    await server.ended.wait()
    await link.ask(b"PING")


async def test_socket_belongs_to_the_link() -> None:
    """redis-py sends AUTH and CLIENT SETNAME alone, and its collection does not close the socket that it opened."""
    link = RedisLink()
    async with serving(b"+OK\r\n", b"+OK\r\n", b"+PONG\r\n", b"") as (server, address):
        await open_connection(link, address, ("alice", "secret"), client_name="web")
        gc.collect()
        assert await link.ask(b"PING") == b"PONG"
        assert server.received == AUTH + SETNAME + PING
        link.end("the test is over")
        await server.ended.wait()


async def test_unix_socket(tmp_path: Path) -> None:
    """A path leads to a Unix socket, where the login is the same."""
    link = RedisLink()
    async with serving(*[b"+OK\r\n"] * 2, b"+PONG\r\n", b"", path=tmp_path / "redis.sock") as (server, address):
        await open_connection(link, address, ("alice", "secret"))
        assert await link.ask(b"PING") == b"PONG"
        assert server.received == 2 * AUTH + PING  # redis-py logs in twice there
        link.end("the test is over")
        await server.ended.wait()


async def test_without_credentials_nothing_is_sent() -> None:
    """Without user, password and name the first bytes are those of the link."""
    link = RedisLink()
    async with serving(b"+PONG\r\n", b"") as (server, address):
        await open_connection(link, address, (None, None))
        await link.ask(b"PING")
        assert server.received == PING
        link.end("the test is over")


@pytest.mark.parametrize("credentials", [(None, None), ("alice", "secret")], ids=["anonymous", "login"])
@pytest.mark.parametrize("message", ["DENIED Redis is running in protected mode", "ERR max number of clients reached"])
async def test_error_of_a_server_that_refuses_every_client_is_kept(message: str, credentials: Credentials) -> None:
    """The error that a server sends before the first command is raised whole, whether redis-py reads it or the link."""
    link = RedisLink()
    async with serving(greeting=b"-%b\r\n" % message.encode()) as (server, address):
        with pytest.raises(hiredis.ReplyError) as raised:
            await ask_after_the_end(link, server, address, credentials)
        assert str(raised.value) == message
    link.end("the test is over")


@pytest.mark.parametrize(
    "message",
    [
        "WRONGPASS invalid username-password pair or user is disabled.",
        "ERR AUTH <password> called without any password configured for the default user. "
        "Are you sure your configuration is correct?",
        "NOAUTH Authentication required.",
        "LOADING Redis is loading the dataset in memory",
        "NOPERM this user has no permissions to run the 'auth' command",
        "BUSY Redis is busy running a script.",
    ],
)
@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
async def test_refused_login_keeps_the_text_of_the_error(message: str, unix: bool, tmp_path: Path) -> None:
    """An error reply to the login is raised whole, its code included, and the connection is closed."""
    link = RedisLink()
    path = tmp_path / "redis.sock" if unix else None
    async with serving(b"-%b\r\n" % message.encode(), b"", path=path) as (server, address):
        with pytest.raises(hiredis.ReplyError) as raised:
            await open_connection(link, address, ("alice", "secret"))
        await server.ended.wait()
    assert str(raised.value) == message
    assert link.closed.is_set()


@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
async def test_end_of_the_connection_is_no_refusal(unix: bool, tmp_path: Path) -> None:
    """A server that closes the connection in place of a reply is unavailable."""
    path = tmp_path / "redis.sock" if unix else None
    async with serving(b"+OK", path=path) as (_, address):
        with pytest.raises(BrokerUnavailableError, match="the connection ended"):
            await open_connection(RedisLink(), address, ("alice", "secret"))


async def test_missing_server_is_an_error_of_the_system(tmp_path: Path) -> None:
    """The error of the system is raised as it is, for the caller to explain."""
    async with serving() as (_, address):
        pass
    with pytest.raises(ConnectionRefusedError):
        await open_connection(RedisLink(), address, ("alice", "secret"))
    with pytest.raises(FileNotFoundError):
        await open_connection(RedisLink(), str(tmp_path / "nothing"), (None, None))


async def test_port_without_tls_is_an_error_of_tls() -> None:
    """A server that answers the TLS handshake in plain text receives neither user nor password."""
    tls = (ssl.create_default_context(), "name.example")
    async with serving(b"+OK\r\n", b"+OK\r\n") as (server, address):
        with pytest.raises(ssl.SSLError):
            await open_connection(RedisLink(), address, ("alice", "secret"), tls=tls)
    assert b"secret" not in server.received


async def test_cancelled_login_leaves_no_socket() -> None:
    """A login that is cancelled while the server is silent closes its connection at once."""
    async with serving(b"", b"") as (server, address):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await open_connection(RedisLink(), address, ("alice", "secret"))
        await server.ended.wait()
