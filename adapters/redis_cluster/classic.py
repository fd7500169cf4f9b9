"""`?pubsub=classic`: PUBLISH and SUBSCRIBE on any node of a cluster, which passes on to all others what is published.

For servers before Redis 7.0, and for programs that publish by PUBLISH. Every node has work with every message.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from backplane.adapters.redis.address_race import first_usable
from backplane.adapters.redis.broadcaster import RedisBroadcaster
from backplane.adapters.redis.connect import Endpoint
from backplane.adapters.redis.errors import unavailable
from backplane.adapters.redis.publisher_link import PublisherLink
from backplane.adapters.redis_cluster.connector import Connector
from backplane.adapters.redis_cluster.slots import DEFAULT_PORT
from backplane.adapters.redis_cluster.topology import report_of
from backplane.adapters.shared.server_address import format_address

if TYPE_CHECKING:
    from backplane.adapters.redis.link import RedisLink
    from backplane.adapters.redis_cluster.options import RedisClusterOptions
    from backplane.adapters.redis_cluster.slots import Host
    from backplane.broadcaster import BrokerUrl, Capabilities, Sink

__all__ = ["ClassicClusterBroadcaster"]


class ClassicClusterBroadcaster(RedisBroadcaster):
    """One link to one node of a cluster, chosen at each start."""

    def __init__(self, url: BrokerUrl, options: RedisClusterOptions) -> None:
        self._seeds: list[Host] = url.servers(DEFAULT_PORT, adapter="redis")
        self._host: Host = self._seeds[0]
        self._learned: set[Host] = set()
        super().__init__(url, options)
        self._connector = Connector(url, options, self._seeds)

    @property
    def capabilities(self) -> Capabilities:
        """What this adapter can do: a cluster has no history."""
        return replace(super().capabilities, keeps="nothing", deduplicates=False)

    async def start(self, sink: Sink) -> None:
        """Find a node that is in contact with the majority of its cluster, and connect to it."""
        self._host = await self._find_node()
        where = f"{format_address(self._host)} (a node of {self.url})"
        self._primary.endpoint = Endpoint(self._host, where, self.url, self.options)
        await super().start(sink)

    async def check(self) -> None:
        """Check that the node answers, and that it is in contact with the majority: else it passes on to few or none.

        Raises:
            BrokerUnavailableError: It is not.
        """
        await self._check_connections()
        if self._publisher is None:
            raise unavailable("the link is closed")
        self._learned = (await report_of(self._publisher, self._host)).slots.nodes

    def _read_url(self) -> Endpoint:
        return Endpoint(self._host, str(self.url), self.url, self.options)

    async def _find_node(self) -> Host:
        found: dict[RedisLink, Host] = {}

        async def ask(host: Any) -> RedisLink:
            link = await self._connector.open(lambda: PublisherLink(self.options.max_pending_bytes), host)
            try:
                self._learned = (await report_of(link, host)).slots.nodes
            except BaseException:
                link.end("it was given up")
                raise
            found[link] = host
            return link

        link = await first_usable(list(dict.fromkeys((*self._seeds, *self._learned))), ask)
        link.end("it was asked")
        await link.closed.wait()
        return found[link]
