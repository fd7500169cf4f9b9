"""Opens links to one primary, and checks later that they still lead to it.

PUBLISH succeeds on a replica too, and on a former primary, and reaches only the subscribers of that server. So both
connections of a worker must lead to one primary, and a primary can be replaced while they are up.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

import hiredis

from backplane.adapters.redis.address_race import first_usable
from backplane.adapters.redis.connect import identify
from backplane.adapters.redis.credentials import find_credentials
from backplane.adapters.redis.errors import unavailable
from backplane.adapters.redis.publisher_link import PublisherLink
from backplane.adapters.redis.server_info import primary_of
from backplane.adapters.shared.server_address import format_address
from backplane.errors import BrokerError, ConfigurationError
from backplane.journal.events import BROKER_DETAIL, BROKER_MISFIT
from backplane.journal.writing import write

if TYPE_CHECKING:
    from collections.abc import Collection

    from backplane.adapters.redis.connect import Endpoint
    from backplane.adapters.redis.link import RedisLink
    from backplane.adapters.redis.options import RedisOptions
    from backplane.adapters.redis.server_info import Address
    from backplane.broadcaster import BrokerUrl

__all__ = ["COMPARE_SECONDS", "Primary"]

logger: Final = logging.getLogger("backplane.adapters.redis.primary")

COMPARE_SECONDS: Final = 60.0
"""How often a new connection is opened to the address in use. Behind a load balancer the address stays while the server
is replaced, so only a new connection shows it. A name that has other addresses now is noticed at each check."""


class Primary:
    """The primary that an endpoint leads to.

    Args:
        endpoint: Where it is.
        url: The URL, for its credentials.
        options: Those of the adapter.
        replica_hint: What to do where the endpoint leads to a replica, as an error shows it.
        compare_seconds: How often a new connection is opened to the address in use.

    Attributes:
        endpoint: Where it is. Sentinels name another one at each start.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        url: BrokerUrl,
        options: RedisOptions,
        *,
        replica_hint: str,
        compare_seconds: float,
    ) -> None:
        self.endpoint: Endpoint = endpoint
        self._url = url
        self._options = options
        self._replica_hint = replica_hint
        self._compare_seconds = compare_seconds
        self._compared_at = float("-inf")
        self._warned = False

    async def open_publisher(self) -> PublisherLink:
        """Return a connection to the first address that is a primary, not adopted.

        Raises:
            BrokerError: No address is.
        """
        publisher = await self._open_first(await self.endpoint.addresses())
        self._compared_at = asyncio.get_running_loop().time()
        return publisher

    async def open_beside(self, link: RedisLink, other: RedisLink) -> None:
        """Connect `link` to the server that `other` is connected to.

        Raises:
            BrokerError: The address of `other` leads to another server now, or to none.
        """
        await self._open(link, other.address)
        run_ids = {link.server.run_id, other.server.run_id}
        if len(run_ids) > 1 and "" not in run_ids and not link.server.is_cluster:
            link.end("it leads to another server")
            raise unavailable(
                f"{self.endpoint.where} leads to more than one server: two connections to it found two primaries"
            )

    async def check_role(self, publisher: PublisherLink) -> None:
        """Check over `publisher` itself that its server answers and is still a primary.

        Raises:
            BrokerUnavailableError: It does not, or it is a replica now.
        """
        server = publisher.server
        try:
            # Where an ACL denies ROLE it is not asked again: the server records each denial in its ACL LOG.
            reply = await publisher.check(b"ROLE" if server.role else b"PING")
        except hiredis.ReplyError as error:
            write(logger, BROKER_DETAIL, "the role was not reported: %(reason)s", reason=error)
            return
        if (primary := primary_of(reply)) and not server.is_cluster:
            raise unavailable(f"{self.endpoint.where} became a replica of {primary}")

    async def compare(self, publisher: PublisherLink) -> None:
        """Check that a new connection leads to the server of `publisher`: a name or a load balancer can be changed.

        Where a new connection fails, or finds no primary, the present one is the best there is.

        Raises:
            BrokerUnavailableError: A new connection leads to another primary.
        """
        server = publisher.server
        if not server.run_id or server.role != "master" or server.is_cluster:
            return
        now = asyncio.get_running_loop().time()
        try:
            addresses = await self.endpoint.addresses()
            if publisher.address in addresses:
                if now - self._compared_at < self._compare_seconds:
                    return
                addresses = [publisher.address]
            self._compared_at = now
            other = await self._open_first(addresses)
        except (BrokerError, ConfigurationError) as error:
            write(logger, BROKER_DETAIL, "no new connection to compare the link with: %(reason)s", reason=error)
            return
        other.end("it was compared")
        await other.closed.wait()
        if other.server.run_id not in ("", server.run_id):
            raise unavailable(f"{self.endpoint.where} leads to another primary now, {format_address(other.address)}")

    async def _open_first(self, addresses: Collection[Address]) -> PublisherLink:
        async def open_link(address: Address) -> PublisherLink:
            link = PublisherLink(self._options.max_pending_bytes)
            await self._open(link, address)
            return link

        link: PublisherLink = await first_usable(addresses, open_link)
        return link

    async def _open(self, link: RedisLink, address: Address) -> None:
        """Connect `link`, and check that it leads to a primary."""
        try:
            await self.endpoint.connect(link, address, await find_credentials(self._url, self._options))
            link.server = await identify(link)
            self._require_primary(link)
        except BaseException:
            link.end("it was given up")
            raise

    def _require_primary(self, link: RedisLink) -> None:
        server, where = link.server, self.endpoint.where
        if server.role == "slave" and not server.is_cluster:
            raise unavailable(
                f"{where} is a replica of {server.primary}, and what is published there reaches its own subscribers "
                f"only: {self._replica_hint}"
            )
        if server.role == "sentinel":
            raise BrokerError(
                f"{where} is a sentinel: redis+sentinel:// asks it for the primary", adapter="redis", retriable=False
            )
        if not (server.role and server.run_id) and not self._warned:
            self._warned = True
            write(
                logger,
                BROKER_MISFIT,
                "%(url)s does not grant this user ROLE and INFO: that the server was demoted, or that the name leads "
                "to another one, will go unnoticed. Grant them: ACL SETUSER %(username)s +role +info",
                url=where,
                username=self._url.username or "default",
            )
