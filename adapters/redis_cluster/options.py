"""Options of `redis+cluster://` and `rediss+cluster://`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from backplane.adapters.redis.options import RedisOptions

__all__ = ["RedisClusterOptions"]


class RedisClusterOptions(RedisOptions):
    """Options of `redis+cluster://`, `rediss+cluster://`, `valkey+cluster://` and `valkeys+cluster://`."""

    pubsub: Literal["sharded", "classic"] = "sharded"
    """How messages are distributed. `sharded`: a channel belongs to one node (`SPUBLISH`). `classic`: one node takes
    every message and passes it on to all others (`PUBLISH`), for other programs that do so, and before Redis 7.0."""
    node_timeout_seconds: float = Field(default=1.0, ge=0.2)
    """How long a node may leave a command without a reply, or a delivery probe without a return, before its connections
    are replaced. The other nodes are not affected."""
