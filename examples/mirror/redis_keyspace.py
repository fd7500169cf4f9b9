"""What happens to keys of Redis: `redis_keyspace("redis://localhost/0", "session:*")`.

Redis publishes it where `notify-keyspace-events` is set, to `KA` for everything; each node of a cluster does so for its
own keys alone, so each needs a source there. The payload is the name of the event: `set`, `del`, `expired`.
"""

# redis-py has no types of its options:
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError

from backplane.errors import BrokerError

from .mirror import Item, Source

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

_QUIET_SECONDS = 10


def redis_keyspace(url: str, keys: str = "*") -> Source:
    """Return the events of the keys that match the pattern `keys`."""
    return Source(url=url, topic=keys, read=partial(_read, url, keys))


@asynccontextmanager
async def _read(url: str, keys: str) -> AsyncGenerator[AsyncIterator[Item]]:
    # With retries redis-py connects again by itself, and what was missed meanwhile is not reported.
    redis: Any = Redis.from_url(url, retry=Retry(NoBackoff(), 0), decode_responses=True)
    async with redis, redis.pubsub() as events:
        flags = "K"
        with suppress(ResponseError):  # asking is not permitted everywhere
            flags = (await redis.config_get("notify-keyspace-events"))["notify-keyspace-events"]
        if "K" not in flags:
            raise BrokerError("Redis publishes no events of keys: set notify-keyspace-events to KA")
        prefix = f"__keyspace@{redis.connection_pool.connection_kwargs.get('db', 0)}__:"
        await events.psubscribe(prefix + keys)
        await events.get_message(timeout=_QUIET_SECONDS)  # the confirmation
        yield _items(events, prefix)


async def _items(events: Any, prefix: str) -> AsyncIterator[Item]:
    is_asked = False
    while True:
        event = await events.get_message(timeout=_QUIET_SECONDS)
        if event is None and is_asked:
            raise TimeoutError("Redis does not answer")
        is_asked = event is None
        if event is None:
            await events.ping()
        elif event["type"] == "pmessage":
            yield event["channel"].removeprefix(prefix), event["data"]
