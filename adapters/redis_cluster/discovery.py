"""Finds the first map of a cluster: at a node of the URL, or at one that was learned from it before."""

from __future__ import annotations

import random
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import hiredis

from backplane.adapters.redis.address_race import first_usable
from backplane.adapters.redis.errors import classify_reply
from backplane.adapters.redis_cluster.links import ShardPublisherLink
from backplane.adapters.redis_cluster.topology import report_of
from backplane.channels import RESERVED_PREFIX
from backplane.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from backplane.adapters.redis.link import RedisLink
    from backplane.adapters.redis_cluster.connector import Connector
    from backplane.adapters.redis_cluster.options import RedisClusterOptions
    from backplane.adapters.redis_cluster.slots import Host, SlotMap
    from backplane.broadcaster import BrokerUrl

__all__ = ["find_map"]


async def find_map(
    connector: Connector,
    url: BrokerUrl,
    options: RedisClusterOptions,
    *,
    seeds: Sequence[Host],
    learned: Collection[Host],
) -> SlotMap:
    """Return the map of the first node that answers and can be trusted. Cancelled, it leaves no connection.

    Args:
        connector: Opens connections.
        url: The URL, as errors show it.
        options: Those of the adapter.
        seeds: The nodes of the URL, in its order.
        learned: Further nodes, which are asked in turn with those.

    Raises:
        BrokerError: None answers that can be trusted, or one knows no sharded pub/sub.
    """
    turns = zip_longest(seeds, random.sample(sorted(learned), len(learned)))
    hosts = dict.fromkeys(host for turn in turns for host in turn if host is not None)
    maps: dict[RedisLink, SlotMap] = {}

    async def ask(host: Any) -> RedisLink:
        link = await connector.open(lambda: ShardPublisherLink(options.max_pending_bytes), host)
        try:
            maps[link] = (await report_of(link, host)).slots
            await _require_sharded(link, url, options)
        except BaseException:
            link.end("it was given up")
            raise
        return link

    link = await first_usable(list(hosts), ask)
    link.end("it was asked")
    await link.closed.wait()
    return maps[link]


async def _require_sharded(link: RedisLink, url: BrokerUrl, options: RedisClusterOptions) -> None:
    try:
        await link.ask(b"SPUBLISH", f"{options.prefix}{RESERVED_PREFIX}probe/start".encode(), b"")
    except hiredis.ReplyError as error:
        if classify_reply(error) == "refused" and "unknown command" in str(error):
            reason = f"{url} has no sharded pub/sub (Redis 7.0 and later, Valkey): {error}"
            raise BrokerError(reason, adapter="redis", retriable=False) from error
