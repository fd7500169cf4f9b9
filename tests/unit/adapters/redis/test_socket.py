"""`backplane.adapters.redis.socket`: what redis-py sends, whose the socket is afterwards, and what its errors mean."""

from __future__ import annotations

import asyncio
import gc
import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import hiredis
import pytest

from backplane.adapters.redis.link import RedisLink
from backplane.adapters.redis.socket import open_socket
from backplane.errors import BrokerUnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from backplane.adapters.redis.link import Address
    from backplane.adapters.redis.options import Login

pytestmark = pytest.mark.anyio

AUTH = b"*3\r\n$4\r\nAUTH\r\n$5\r\nalice\r\n$6\r\nsecret\r\n"
SETNAME = b"*3\r\n$6\r\nCLIENT\r\n$7\r\nSETNAME\r\n$3\r\nweb\r\n"
PING = b"*1\r\n$4\r\nPING\r\n"


class Server:
    """Answers each command with the next of its words, the greeting first, and ends when there are none left."""

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
    """Serve as the words prescribe, at a port or a Unix socket."""
    server = Server(greeting, answers)
    if path is None:
        listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
        address: Address = listening.sockets[0].getsockname()[:2]
    else:
        listening = await asyncio.start_unix_server(server.serve, path)
        address = str(path)
    async with listening:
        yield server, address


async def first_answer(link: RedisLink, server: Server, address: Address, login: Login) -> None:
    """Open the link, and ask when the server is through."""
    await open_socket(link, address, login)
    await server.ended.wait()
    await link.ask(b"PING")


async def test_socket_is_the_links_alone() -> None:
    """AUTH and CLIENT SETNAME are all that redis-py sends, and its end does not close what it opened."""
    link = RedisLink()
    async with serving(b"+OK\r\n", b"+OK\r\n", b"+PONG\r\n", b"") as (server, address):
        await open_socket(link, address, ("alice", "secret"), client_name="web")
        gc.collect()
        assert await link.ask(b"PING") == b"PONG"
        assert server.received == AUTH + SETNAME + PING
        link.end("the test is over")
        await server.ended.wait()


async def test_unix_socket(tmp_path: Path) -> None:
    """A path leads to a Unix socket, where the login is the same."""
    link = RedisLink()
    async with serving(*[b"+OK\r\n"] * 2, b"+PONG\r\n", b"", path=tmp_path / "redis.sock") as (server, address):
        await open_socket(link, address, ("alice", "secret"))
        assert await link.ask(b"PING") == b"PONG"
        assert server.received == 2 * AUTH + PING  # redis-py does it twice there
        link.end("the test is over")
        await server.ended.wait()


async def test_no_login_sends_nothing() -> None:
    """Without user, password and name the first bytes are those of the link."""
    link = RedisLink()
    async with serving(b"+PONG\r\n", b"") as (server, address):
        await open_socket(link, address, (None, None))
        await link.ask(b"PING")
        assert server.received == PING
        link.end("the test is over")


@pytest.mark.parametrize("login", [(None, None), ("alice", "secret")], ids=["anonymous", "login"])
@pytest.mark.parametrize("words", ["DENIED Redis is running in protected mode", "ERR max number of clients reached"])
async def test_word_of_a_server_that_lets_nobody_in_is_kept(words: str, login: Login) -> None:
    """What a server sends unasked before it ends the connection is raised with its code, whoever reads it."""
    link = RedisLink()
    async with serving(greeting=b"-%b\r\n" % words.encode()) as (server, address):
        with pytest.raises(hiredis.ReplyError) as raised:
            await first_answer(link, server, address, login)
        assert str(raised.value) == words
    link.end("the test is over")


@pytest.mark.parametrize(
    "words",
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
async def test_refused_login_has_the_servers_words(words: str, unix: bool, tmp_path: Path) -> None:
    """Every error reply is raised whole, its code included, and the connection is closed."""
    link = RedisLink()
    path = tmp_path / "redis.sock" if unix else None
    async with serving(b"-%b\r\n" % words.encode(), b"", path=path) as (server, address):
        with pytest.raises(hiredis.ReplyError) as raised:
            await open_socket(link, address, ("alice", "secret"))
        await server.ended.wait()
    assert str(raised.value) == words
    assert link.closed.is_set()


@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
async def test_end_of_the_connection_is_no_refusal(unix: bool, tmp_path: Path) -> None:
    """A server that ends the connection instead of an answer is unavailable."""
    path = tmp_path / "redis.sock" if unix else None
    async with serving(b"+OK", path=path) as (_, address):
        with pytest.raises(BrokerUnavailableError, match="the connection ended"):
            await open_socket(RedisLink(), address, ("alice", "secret"))


async def test_nobody_there_is_an_error_of_the_system(tmp_path: Path) -> None:
    """What the system reports is raised as it is, for the words of the caller."""
    async with serving() as (_, address):
        pass
    with pytest.raises(ConnectionRefusedError):
        await open_socket(RedisLink(), address, ("alice", "secret"))
    with pytest.raises(FileNotFoundError):
        await open_socket(RedisLink(), str(tmp_path / "nothing"), (None, None))


async def test_plain_port_is_an_error_of_tls() -> None:
    """A server that answers a handshake in clear has received neither user nor password."""
    tls = (ssl.create_default_context(), "name.example")
    async with serving(b"+OK\r\n", b"+OK\r\n") as (server, address):
        with pytest.raises(ssl.SSLError):
            await open_socket(RedisLink(), address, ("alice", "secret"), tls=tls)
    assert b"secret" not in server.received


async def test_cancelled_login_leaves_no_socket() -> None:
    """A login that is given up while the server is silent closes its connection at once."""
    async with serving(b"", b"") as (server, address):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await open_socket(RedisLink(), address, ("alice", "secret"))
        await server.ended.wait()
