"""Opens sessions at the first of several servers that is the primary."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backplane.adapters.postgres.connection import PostgresConnection, open_session
from backplane.adapters.postgres.errors import CONNECT_ERRORS, connect_error, unavailable
from backplane.adapters.postgres.options import servers_of, tls_settings
from backplane.adapters.shared.connect_race import first_usable
from backplane.adapters.shared.credentials import ask_login
from backplane.adapters.shared.hidden_secrets import hiding
from backplane.adapters.shared.server_address import format_server
from backplane.concurrency.timeouts import PatientTimeout

if TYPE_CHECKING:
    from backplane.adapters.postgres.options import PostgresOptions, Server
    from backplane.broadcaster import BrokerUrl

__all__ = ["Connector"]


class Connector:
    """Opens sessions.

    Args:
        url: Where to.
        options: Those of the adapter.

    Raises:
        ConfigurationError: The URL has a malformed server.
    """

    def __init__(self, url: BrokerUrl, options: PostgresOptions) -> None:
        self._url = url
        self._options = options
        self._servers = servers_of(url, options)

    async def open(self) -> PostgresConnection:
        """Return a session at the primary; a server that is slow to answer delays no other.

        Raises:
            BrokerError: No server is reachable and a primary.
            ConfigurationError: The callable that `credentials` names is missing, or returned something else.
        """
        user, password = await self._login()
        return await first_usable(
            self._servers,
            lambda server: self._try(server, user, password),
            end=lambda connection: connection.end("another one was faster"),
            adapter="postgres",
        )

    async def _try(self, server: Server, user: str | None, password: str | None) -> PostgresConnection:
        with hiding(password, shown=(self._url, user)):
            return await self._connect(server, user, password)

    async def _connect(self, server: Server, user: str | None, password: str | None) -> PostgresConnection:
        where = format_server(self._url, server)
        try:
            async with PatientTimeout(self._options.connect_timeout_seconds):
                connection = await open_session(
                    host=server[0],
                    port=server[1],
                    user=user,
                    password=password,
                    database=self._url.path.strip("/") or None,
                    ssl=tls_settings(self._options),
                    server_settings={"application_name": self._options.application_name},
                )
        except TimeoutError as error:
            seconds = self._options.connect_timeout_seconds
            raise unavailable(f"cannot reach {where}: no answer within {seconds:g} s") from error
        except CONNECT_ERRORS as error:
            raise connect_error(error, where) from error
        if connection.is_standby:
            connection.end("it is a standby")
            raise unavailable(
                f"{where} is a standby, which takes neither LISTEN nor NOTIFY: name the primary too, as in "
                "postgres://one,two/database"
            )
        if connection.is_read_only and self._options.target_session_attrs == "read-write":
            connection.end("it is read-only")
            raise unavailable(f"sessions of {where} are read-only, and the URL demands target_session_attrs=read-write")
        return connection

    async def _login(self) -> tuple[str | None, str | None]:
        """Return user and password; asyncpg looks for what is missing where libpq does."""
        path = self._options.credentials
        if path is None:
            return self._url.username, self._url.password
        username, password = await ask_login(path, adapter="postgres", seconds=self._options.connect_timeout_seconds)
        return username or self._url.username, password
