"""Opens connections to the first of several servers that accepts the login."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from backplane.adapters.amqp.connection import AmqpConnection
from backplane.adapters.amqp.errors import CONNECT_ERRORS, connect_error, unavailable
from backplane.adapters.amqp.options import default_port, tls_settings, virtual_host
from backplane.adapters.shared.connect_race import first_usable
from backplane.adapters.shared.credentials import ask_login
from backplane.adapters.shared.hidden_secrets import hiding
from backplane.adapters.shared.server_address import format_server
from backplane.concurrency.timeouts import PatientTimeout

if TYPE_CHECKING:
    from collections.abc import Callable

    from backplane.adapters.amqp.options import AmqpOptions
    from backplane.broadcaster import BrokerUrl

__all__ = ["Connector"]

_Connection = TypeVar("_Connection", bound=AmqpConnection)

_GUEST: Final = "guest"  # the user of a new server, who may connect from its own host alone


class Connector:
    """Opens connections.

    Args:
        url: Where to.
        options: Those of the adapter.

    Raises:
        ConfigurationError: The URL has a malformed server.
    """

    def __init__(self, url: BrokerUrl, options: AmqpOptions) -> None:
        self._url = url
        self._options = options
        self._servers = url.servers(default_port(url), adapter="amqp")

    async def open(self, make: Callable[[], _Connection]) -> _Connection:
        """Return a connection to the first server that takes it; one that is slow to answer delays no other.

        Args:
            make: Makes a connection that is not open.

        Raises:
            BrokerError: No server takes it.
            ConfigurationError: The callable that `credentials` names is missing, or returned something else.
        """
        login = await self._login()
        return await first_usable(
            self._servers,
            lambda server: self._try(make(), server, login),
            end=lambda connection: connection.end(unavailable("another one was faster")),
            adapter="amqp",
        )

    async def _try(self, connection: _Connection, server: tuple[str, int], login: tuple[str, str]) -> _Connection:
        with hiding(login[1], shown=(self._url, login[0])):
            return await self._connect(connection, server, login)

    async def _connect(self, connection: _Connection, server: tuple[str, int], login: tuple[str, str]) -> _Connection:
        where = format_server(self._url, server)
        try:
            async with PatientTimeout(self._options.connect_timeout_seconds):
                await connection.open(
                    server,
                    tls=tls_settings(self._url, self._options),
                    login=login,
                    virtual_host=virtual_host(self._url),
                    name=self._options.connection_name,
                    heartbeat_seconds=self._options.heartbeat_seconds,
                )
        except TimeoutError as error:
            seconds = self._options.connect_timeout_seconds
            raise unavailable(f"cannot reach {where}: no answer within {seconds:g} s") from error
        except CONNECT_ERRORS as error:
            raise connect_error(error, where) from error
        return connection

    async def _login(self) -> tuple[str, str]:
        """Return user and password; without a user those of a new server."""
        path, user = self._options.credentials, self._url.username
        if path is None:
            return user or _GUEST, (self._url.password or "") if user else _GUEST
        username, password = await ask_login(path, adapter="amqp", seconds=self._options.connect_timeout_seconds)
        return username or user or _GUEST, password
