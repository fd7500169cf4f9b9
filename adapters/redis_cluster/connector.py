"""Opens connections to the nodes of a cluster."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING, TypeVar

import hiredis

from backplane.adapters.redis.address_race import first_usable
from backplane.adapters.redis.connect import Endpoint
from backplane.adapters.redis.credentials import find_credentials
from backplane.adapters.redis.errors import unavailable
from backplane.adapters.redis.link import RedisLink
from backplane.adapters.shared.server_address import format_address

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backplane.adapters.redis.server_info import Address
    from backplane.adapters.redis_cluster.options import RedisClusterOptions
    from backplane.adapters.redis_cluster.slots import Host
    from backplane.broadcaster import BrokerUrl

__all__ = ["Connector"]

_L = TypeVar("_L", bound=RedisLink)


class Connector:
    """Connects to nodes, as the URL and its options demand.

    Args:
        url: The URL; its user and password are those of every node.
        options: Those of the adapter.
        seeds: The nodes of the URL.
    """

    def __init__(self, url: BrokerUrl, options: RedisClusterOptions, seeds: Sequence[Host]) -> None:
        self._url = url
        self._options = options
        # Where nodes announce addresses, and certificates hold names, those of the URL are the ones to check.
        self._name = next((host for host, _ in seeds if not _is_address(host)), None)

    async def open(self, make: Callable[[], _L], host: Host, node_id: str = "") -> _L:
        """Return a new connection to a node, not adopted. Cancelled, it leaves none.

        Args:
            make: Returns the link.
            host: Where the node is.
            node_id: Its id, where it is known: an address can have been given to another node since.

        Raises:
            BrokerError: It cannot be reached, refuses the credentials, or is another node.
        """
        tls_name = self._name if _is_address(host[0]) else None
        endpoint = Endpoint(host, format_address(host), self._url, self._options, tls_name=tls_name)
        credentials = await find_credentials(self._url, self._options)

        async def connect(address: Address) -> _L:
            link = make()
            try:
                await endpoint.connect(link, address, credentials)
                if node_id:
                    await self._compare(link, host, node_id)
            except BaseException:
                link.end("it was given up")
                raise
            return link

        return await first_usable(await endpoint.addresses(), connect)

    @staticmethod
    async def _compare(link: RedisLink, host: Host, node_id: str) -> None:
        try:
            reply = await link.ask(b"CLUSTER", b"MYID")
        except hiredis.ReplyError:  # an ACL denies it
            return
        if reply != node_id.encode():
            raise unavailable(f"{format_address(host)} leads to another node than before")


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
