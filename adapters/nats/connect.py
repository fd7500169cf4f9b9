"""Connecting to the first of several servers that accepts the login."""

from __future__ import annotations

import re
import ssl
from typing import TYPE_CHECKING, Final

from backplane.adapters.nats.errors import unavailable
from backplane.adapters.nats.link import NatsLink
from backplane.adapters.nats.login import Tls
from backplane.adapters.nats.servers import DEFAULT_PORT, Server, Servers
from backplane.adapters.shared.connect_race import NEXT_SERVER_SECONDS, NoneConnectedError, first_connected
from backplane.adapters.shared.error_chain import certificate_error, reason_of
from backplane.adapters.shared.tls import client_context
from backplane.errors import BrokerAuthenticationError, BrokerError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backplane.adapters.nats.channel_log import ChannelLogs
    from backplane.adapters.nats.login import NatsLogin
    from backplane.adapters.nats.options import NatsOptions
    from backplane.broadcaster import BrokerUrl, Sink

__all__ = ["NatsConnector"]

# Errors of a server that refuse the credentials. "Authentication Timeout" is none of them, because the server waited
# for this process then. Neither is "no credentials", an error of the application's own callable.
_CREDENTIALS_REFUSED: Final = re.compile(
    r"^(?!no credentials: ).*(authorization violation|authentication (expired|revoked)|credentials)", re.I
)


class NatsConnector:
    """Opens links, and remembers the servers of which the cluster notifies its clients.

    Args:
        url: Where to connect. Errors show it, so a token must be in the place of the password.
        options: Those of the adapter.
        login: Opens a connection.
        on_lost: Called once, when a link that was returned ends.
        on_info: Called after every INFO on any link.
        logs: Which channels have a history.

    Attributes:
        servers: Every known server.
    """

    def __init__(
        self,
        url: BrokerUrl,
        options: NatsOptions,
        login: NatsLogin,
        *,
        on_lost: Callable[[NatsLink, BrokerError], None],
        on_info: Callable[[NatsLink], None],
        logs: ChannelLogs | None = None,
    ) -> None:
        self._url = url
        self._options = options
        self._on_lost = on_lost
        self._on_info = on_info
        self._logs = logs
        self._login = login
        self._tls = Tls(
            required=url.scheme == "tls" or any((options.tls_ca_certs, options.tls_certfile, options.tls_first)),
            first=options.tls_first,
            make_context=self._tls_context,
        )
        self._line_limits: dict[str, int] = {}
        self.servers: Servers = Servers(
            [Server(host, port, host) for host, port in url.servers(DEFAULT_PORT, adapter="nats")]
        )

    async def connect(self, sink: Sink) -> NatsLink:
        """Return a link to the first server that accepts the login; one that is slow to answer delays no other.

        Raises:
            BrokerError: No server does.
            ConfigurationError: The callable that `credentials` names is missing, or returned something else.
        """
        failures: list[tuple[NatsLink, Exception]] = []

        async def connect(server: Server) -> NatsLink:
            link = self._link(server, sink)
            try:
                await self._open(link)
            except (OSError, BrokerError) as error:
                failures.append((link, error))
                raise
            return link

        try:
            return await first_connected(
                self.servers.in_order(),
                connect,
                end=NatsLink.abort,
                failures=(OSError, BrokerError),
                next_after_seconds=NEXT_SERVER_SECONDS,
            )
        except NoneConnectedError as error:
            raise self._error(failures) from error.failures[-1]

    def _link(self, server: Server, sink: Sink) -> NatsLink:
        return NatsLink(
            sink,
            server,
            on_lost=self._on_lost,
            on_info=self._info_received,
            max_pending_bytes=self._options.max_pending_bytes,
            line_limits=self._line_limits,
            prefix=self._options.prefix,
            logs=self._logs,
        )

    async def _open(self, link: NatsLink) -> None:
        try:
            await self._login.open(link, self._tls)
        finally:
            if link.is_up:
                self.servers.reached(link.server)
            else:  # failed, or cancelled
                link.abort()
                self.servers.failed(link.server)

    def _info_received(self, link: NatsLink) -> None:
        verified = link.is_encrypted or not self._tls.required
        self.servers.learn(link.info.connect_urls or (), link.server, verified=verified)
        self._on_info(link)

    def _tls_context(self) -> ssl.SSLContext:
        options = self._options
        return client_context(options.tls_ca_certs, options.tls_certfile, options.tls_keyfile, adapter="nats")

    def _error(self, failures: Sequence[tuple[NatsLink, Exception]]) -> BrokerError:
        """Return one error for all servers: the first refusal, because no other try helps against it, else all."""
        for link, error in failures:
            reason = reason_of(error)
            if certificate_error(error) is not None:
                return BrokerError(f"{self._url} shows a certificate that is not trusted: {reason}", adapter="nats")
            if isinstance(error, BrokerError) and not error.retriable:
                return BrokerError(f"{self._url}, server {link.server}: {reason}", adapter="nats")
            if isinstance(error, BrokerError) and _CREDENTIALS_REFUSED.search(reason):
                return BrokerAuthenticationError(f"{self._url} refused the credentials: {reason}", adapter="nats")
        return unavailable(f"cannot reach {self._url}: {'; '.join(self._reason(*failure) for failure in failures)}")

    def _reason(self, link: NatsLink, error: Exception) -> str:
        reason = reason_of(error) or f"no answer within {self._options.connect_timeout_seconds:g} s"
        info_received = link.info.server_id or not isinstance(error, (TimeoutError, ssl.SSLError, BrokerError))
        if self._tls.required and not info_received:
            other = "false" if self._tls.first else "true"
            reason += f"; no INFO came, as from a server that wants tls_first={other} (its handshake_first)"
        return reason if str(link.server) == self._url.netloc else f"{link.server}: {reason}"
