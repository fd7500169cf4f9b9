"""Connecting to one address of a server: the addresses of its name, TLS, the login, and what the server reports."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import hiredis

from backplane.adapters.redis.errors import classify_reply, connect_error, login_error, unavailable
from backplane.adapters.redis.login import open_connection
from backplane.adapters.redis.options import speaks_tls, tls_context
from backplane.adapters.redis.server_info import Address, ServerInfo, server_info
from backplane.adapters.shared.hidden_secrets import hiding
from backplane.adapters.shared.server_address import format_address
from backplane.concurrency.timeouts import PatientTimeout
from backplane.errors import BrokerError, BrokerUnavailableError

if TYPE_CHECKING:
    import ssl

    from backplane.adapters.redis.credentials import Credentials
    from backplane.adapters.redis.link import RedisLink
    from backplane.adapters.redis.options import RedisOptions
    from backplane.broadcaster import BrokerUrl

__all__ = ["Endpoint", "Resolve", "identify", "resolve"]

Resolve = Callable[[str, int], Awaitable[list[Address]]]
"""Returns the addresses of a host and a port."""


async def resolve(host: str, port: int) -> list[Address]:
    """Return the addresses of a host; one that is an address already needs no resolver.

    Raises:
        OSError: The name has no address.
    """
    for family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError):
            socket.inet_pton(family, host)
            return [(host, port)]
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys((str(entry[4][0]), int(entry[4][1])) for entry in found))


class Endpoint:
    """The server of a URL, and how to connect to it.

    Args:
        target: Host and port, or the path of a Unix socket.
        where: The same, as errors show it.
        url: Its scheme decides about TLS.
        options: Those of the adapter.
        resolve: Returns the addresses of a name. Defaults to those that the system's resolver returns.
        tls_name: The name that the certificate must hold. Defaults to the host.
    """

    def __init__(
        self,
        target: Address,
        where: str,
        url: BrokerUrl,
        options: RedisOptions,
        *,
        resolve: Resolve = resolve,
        tls_name: str | None = None,
    ) -> None:
        self.where: str = where
        self._target = target
        self._url = url
        self._options = options
        self._resolve = resolve
        self._tls_name = tls_name or str(target[0])

    async def addresses(self) -> list[Address]:
        """Return every address that the name has now.

        Raises:
            BrokerUnavailableError: It has none, or the resolver did not answer.
        """
        if isinstance(self._target, str):
            return [self._target]
        try:
            async with PatientTimeout(self._options.connect_timeout_seconds):
                return await self._resolve(*self._target)
        except (OSError, UnicodeError) as error:  # a label of more than 63 characters is a UnicodeError
            raise connect_error(error, self.where) from error

    async def connect(self, link: RedisLink, address: Address, credentials: Credentials) -> None:
        """Connect `link` to one of the addresses, and log in.

        Raises:
            BrokerUnavailableError: No server there, or one that accepts no commands.
            BrokerAuthenticationError: The server refused the credentials.
            BrokerError: Its certificate is not trusted.
        """
        try:
            with hiding(credentials[1], shown=(self._url, credentials[0])):
                await self._connect(link, address, credentials)
        except BaseException:
            link.end("it was given up")
            raise
        link.address = address

    async def _connect(self, link: RedisLink, address: Address, credentials: Credentials) -> None:
        where = self.where if address == self._target else f"{self.where} ({format_address(address)})"
        client_name = self._options.client_name
        command = b"AUTH"
        try:
            async with PatientTimeout(self._options.connect_timeout_seconds):
                await open_connection(link, address, credentials, client_name=client_name, tls=self._tls())
                command = b"PING"  # without a password AUTH is not sent, and this is refused
                await link.ask(command)
        except hiredis.ReplyError as reply:
            if (refused := login_error(command, reply, where)) is not None:
                raise refused from reply
        except TimeoutError as error:
            silent = TimeoutError(f"no answer within {self._options.connect_timeout_seconds:g} s")
            raise self._error(silent, where) from error
        except (OSError, BrokerUnavailableError) as error:
            raise self._error(error, where) from error

    def _tls(self) -> tuple[ssl.SSLContext, str] | None:
        return (tls_context(self._options), self._tls_name) if speaks_tls(self._url) else None

    def _error(self, error: Exception, where: str) -> BrokerError:
        return connect_error(error, where, scheme=self._url.scheme, tls=speaks_tls(self._url))


async def identify(link: RedisLink) -> ServerInfo:
    """Return what the server reports about itself.

    Raises:
        BrokerUnavailableError: The link ended, or the server accepts no commands at present.
    """
    role, info = await asyncio.gather(_ask_if_granted(link, b"ROLE"), _ask_if_granted(link, b"INFO", b"server"))
    return server_info(role, info)


async def _ask_if_granted(link: RedisLink, *parts: bytes) -> Any:
    """Return the reply; `None` where the server refuses the command: an ACL denies it, or it was renamed."""
    try:
        return await link.ask(*parts)
    except hiredis.ReplyError as error:
        if classify_reply(error) == "passing":
            raise unavailable(f"the server takes no commands at present: {error}") from error
        return None
