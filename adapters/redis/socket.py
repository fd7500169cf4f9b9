"""The socket of a Redis link: redis-py connects, speaks TLS and logs in, then its socket is taken over.

The one module that knows redis-py. The private names in use are the same from redis-py 5.0 to 8.1: `_reader` and
`_writer` of a connection, and `_connection_arguments`, what it opens the socket with.
"""

# The types of redis-py are not complete.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import hiredis
from redis.asyncio.connection import Connection, DefaultParser, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from backplane.adapters.redis.error import unavailable

if TYPE_CHECKING:
    import ssl

    from backplane.adapters.redis.link import Address, RedisLink
    from backplane.adapters.redis.options import Login

__all__ = ["open_socket"]


async def open_socket(
    link: RedisLink,
    address: Address,
    login: Login,
    *,
    client_name: str | None = None,
    tls: tuple[ssl.SSLContext, str] | None = None,
) -> None:
    """Connect to `address`, log in, and make the socket that of `link`. Cancelled, it leaves no socket open.

    Args:
        link: What receives from then on.
        address: Where to connect.
        login: As whom.
        client_name: Name in `CLIENT LIST`.
        tls: Its settings, and the name that the certificate must have.

    Raises:
        hiredis.ReplyError: The server refused the login.
        OSError: Nobody can be reached there, or not by TLS.
        BrokerUnavailableError: The server ended the connection.
    """
    connection = _connection(address, login, client_name, tls)
    try:
        await connection.connect()
        await _hand_over(connection, link)
    except RedisError as error:
        raise _meant(error) from error
    finally:
        _abort(connection)


async def _hand_over(connection: Any, link: RedisLink) -> None:
    """Make the socket that of `link`, with what arrived meanwhile: the word of a server that lets nobody in."""
    reader, writer = connection._reader, connection._writer
    if reader.at_eof() or writer.transport.is_closing():
        raise unavailable("the connection ended")
    connection._reader = connection._writer = None  # else the end of `connection` closes it
    writer.transport.set_protocol(link)
    link.connection_made(writer.transport)
    link.streams = writer
    reader.feed_eof()  # so that reading waits for nothing
    if early := await reader.read():
        link.data_received(early)


async def _log_in(connection: Any) -> None:
    """Log in as redis-py does, and close the socket at once where that fails: closing TLS waits for the server."""
    try:
        await connection.on_connect()
    except BaseException:
        _abort(connection)
        raise


def _abort(connection: Any) -> None:
    if connection._writer is not None:
        connection._writer.transport.abort()
    connection._reader = connection._writer = None


def _connection(address: Address, login: Login, client_name: str | None, tls: tuple[ssl.SSLContext, str] | None) -> Any:
    username, password = login
    settings: dict[str, Any] = {
        "username": username,
        "password": password,
        "client_name": client_name,
        # RESP2: every server speaks it, and a reply cannot be taken for a message.
        "protocol": 2,
        "parser_class": _Parser,
        "redis_connect_func": _log_in,
        "retry": Retry(NoBackoff(), 0),
        # The caller's limit, which knows a pause of the process from silence, is the only one.
        "socket_timeout": None,
        "socket_connect_timeout": None,
    }
    connection: Any
    if isinstance(address, str):
        connection = UnixDomainSocketConnection(path=address, **settings)
    else:
        settings |= {"host": address[0], "port": address[1], "socket_keepalive": True}
        connection = Connection(**settings) if tls is None else _TlsConnection(*tls, **settings)
    # No CLIENT SETINFO: each refusal of it stands in the server's ACL LOG, and redis-py drops what answers it, the word
    # of a server that lets nobody in as well. Old versions of redis-py read the first two names, new ones the third.
    connection.lib_name = connection.lib_version = connection.driver_info = None
    return connection


class _TlsConnection(SSLConnection):
    """TLS to an address, with a certificate for the name that has it."""

    def __init__(self, context: ssl.SSLContext, name: str, **settings: Any) -> None:
        super().__init__(**settings)
        # redis-py's own would trust the system's authorities beside `ssl_ca_certs`.
        self.ssl_context.context = context
        self._name = name

    def _connection_arguments(self) -> dict[str, Any]:
        return {**super()._connection_arguments(), "server_hostname": self._name}


class _Parser(DefaultParser):  # type: ignore[valid-type,misc]  # a variable, which holds the parser by hiredis
    """Keeps the words of an error reply, of which redis-py takes off the first, the code."""

    @classmethod
    def parse_error(cls, response: str) -> Any:
        error: Any = super().parse_error(response)
        error.reply = response
        return error


def _meant(error: BaseException) -> Exception:
    """Return what redis-py's error is about: an error reply, an error of the system, or an end of the connection."""
    found: BaseException | None = error
    while found is not None:
        if (reply := getattr(found, "reply", None)) is not None:
            return hiredis.ReplyError(reply)
        if isinstance(found, OSError) and not isinstance(found, ConnectionResetError | BrokenPipeError):
            return found
        found = found.__cause__ or found.__context__
    return unavailable(f"the connection ended: {error}")
