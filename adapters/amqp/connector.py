"""Opens connections to the first of several servers that accepts the login."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from backplane.adapters.amqp.connection import AmqpConnection
from backplane.adapters.amqp.errors import CONNECT_ERRORS, connect_error, unavailable
from backplane.adapters.amqp.options import default_port, tls_settings, virtual_host
from backplane.adapters.shared.connect_race import NoneConnectedError, first_connected
from backplane.adapters.shared.credentials import ask_login
from backplane.concurrency.timeouts import PatientTimeout
from backplane.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from backplane.adapters.amqp.options import AmqpOptions
    from backplane.broadcaster import BrokerUrl

__all__ = ["Connector"]

_Connection = TypeVar("_Connection", bound=AmqpConnection)

# After it the next server is tried as well, where one does not answer.
_NEXT_SERVER_SECONDS: Final = 1.0
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
        failures: list[BrokerError] = []
        login = await self._login()

        async def connect(server: tuple[str, int]) -> _Connection:
            try:
                return await self._connect(make(), server, login)
            except BrokerError as error:
                failures.append(error)
                raise

        try:
            return await first_connected(
                self._servers,
                connect,
                end=lambda connection: connection.end(unavailable("another one was faster")),
                failures=(BrokerError,),
                next_after_seconds=_NEXT_SERVER_SECONDS,
            )
        except NoneConnectedError:
            refusals = [error for error in failures if not error.retriable]
            if refusals or len(failures) == 1:  # a refusal first: no other try helps against it
                raise (refusals or failures)[0] from failures[-1].__cause__
            raise unavailable("; ".join(error.reason for error in failures)) from failures[-1]

    async def _connect(self, connection: _Connection, server: tuple[str, int], login: tuple[str, str]) -> _Connection:
        where = self._where(server)
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

    def _where(self, server: tuple[str, int]) -> str:
        if len(self._servers) == 1:
            return str(self._url)
        host = f"[{server[0]}]" if ":" in server[0] else server[0]
        return f"{self._url}, server {host}:{server[1]},"

    async def _login(self) -> tuple[str, str]:
        """Return user and password; without a user those of a new server."""
        path, user = self._options.credentials, self._url.username
        if path is None:
            return user or _GUEST, (self._url.password or "") if user else _GUEST
        username, password = await ask_login(path, adapter="amqp", seconds=self._options.connect_timeout_seconds)
        return username or user or _GUEST, password
