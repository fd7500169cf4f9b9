"""The login: redis-py connects, does the TLS handshake and logs in, then its socket becomes that of a link.

The only module that imports redis-py. The private names in use are the same from redis-py 5.0 to 8.1: `_reader` and
`_writer` of a connection, and `_connection_arguments`, the arguments that it opens the socket with.
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

from backplane.adapters.redis.errors import unavailable
from backplane.adapters.shared.error_chain import error_chain

if TYPE_CHECKING:
    import ssl

    from backplane.adapters.redis.credentials import Credentials
    from backplane.adapters.redis.link import RedisLink
    from backplane.adapters.redis.server_info import Address

__all__ = ["open_connection"]


async def open_connection(
    link: RedisLink,
    address: Address,
    credentials: Credentials,
    *,
    client_name: str | None = None,
    tls: tuple[ssl.SSLContext, str] | None = None,
) -> None:
    """Connect to `address`, log in, and hand the socket over to `link`. Cancelled, it leaves no socket open.

    Args:
        link: The protocol of the socket from then on.
        address: Where to connect.
        credentials: User and password.
        client_name: Name in `CLIENT LIST`.
        tls: The TLS settings, and the name that the certificate must hold.

    Raises:
        hiredis.ReplyError: The server refused the login.
        OSError: There is no server, or the TLS handshake failed.
        BrokerUnavailableError: The server ended the connection.
    """
    connection = _connection(address, credentials, client_name, tls)
    try:
        await connection.connect()
        await _hand_over(connection, link)
    except RedisError as error:
        raise _cause_of(error) from error
    finally:
        _abort(connection)


async def _hand_over(connection: Any, link: RedisLink) -> None:
    """Make `link` the protocol of the socket, and pass on what was received already.

    That is an error reply where the server refuses every client: it sends the reply before the first command.
    """
    reader, writer = connection._reader, connection._writer
    if reader.at_eof() or writer.transport.is_closing():
        raise unavailable("the connection ended")
    connection._reader = connection._writer = None  # else the collection of `connection` closes the socket
    writer.transport.set_protocol(link)
    link.connection_made(writer.transport)
    link.streams = writer
    reader.feed_eof()  # without it `read` waits for the end of the connection
    if early := await reader.read():
        link.data_received(early)


async def _log_in(connection: Any) -> None:
    """Log in as redis-py does; where that fails abort the socket, because a close of TLS waits for the server."""
    try:
        await connection.on_connect()
    except BaseException:
        _abort(connection)
        raise


def _abort(connection: Any) -> None:
    if connection._writer is not None:
        connection._writer.transport.abort()
    connection._reader = connection._writer = None


def _connection(
    address: Address, credentials: Credentials, client_name: str | None, tls: tuple[ssl.SSLContext, str] | None
) -> Any:
    username, password = credentials
    settings: dict[str, Any] = {
        "username": username,
        "password": password,
        "client_name": client_name,
        # RESP2: every server speaks it, and replies are in the order of the commands.
        "protocol": 2,
        "parser_class": _Parser,
        "redis_connect_func": _log_in,
        "retry": Retry(NoBackoff(), 0),
        # The caller's time limit is the only one: it does not count a pause of this process as silence of the server.
        "socket_timeout": None,
        "socket_connect_timeout": None,
    }
    connection: Any
    if isinstance(address, str):
        connection = UnixDomainSocketConnection(path=address, **settings)
    else:
        settings |= {"host": address[0], "port": address[1], "socket_keepalive": True}
        connection = Connection(**settings) if tls is None else _TlsConnection(*tls, **settings)
    # No CLIENT SETINFO: the server records each refusal of it in its ACL LOG, and redis-py discards the reply, even
    # where it is the error of a server that refuses every client. Old versions of redis-py read the first two names,
    # new ones the third.
    connection.lib_name = connection.lib_version = connection.driver_info = None
    return connection


class _TlsConnection(SSLConnection):
    """TLS to one address of a name: the certificate must hold the name."""

    def __init__(self, context: ssl.SSLContext, name: str, **settings: Any) -> None:
        super().__init__(**settings)
        # The context of redis-py would trust the system's authorities in addition to those of `ssl_ca_certs`.
        self.ssl_context.context = context
        self._name = name

    def _connection_arguments(self) -> dict[str, Any]:
        return {**super()._connection_arguments(), "server_hostname": self._name}


class _Parser(DefaultParser):  # type: ignore[valid-type,misc]  # a variable: the parser that uses hiredis
    """Keeps the whole text of an error reply: redis-py removes the code at its begin."""

    @classmethod
    def parse_error(cls, response: str) -> Any:
        error: Any = super().parse_error(response)
        error.reply = response
        return error


def _cause_of(error: BaseException) -> Exception:
    """Return what an error of redis-py was raised for: an error reply, an error of the system, or a lost connection."""
    for cause in error_chain(error):
        if (reply := getattr(cause, "reply", None)) is not None:
            return hiredis.ReplyError(reply)
        if isinstance(cause, OSError) and not isinstance(cause, ConnectionResetError | BrokenPipeError):
            return cause
    return unavailable(f"the connection ended: {error}")
