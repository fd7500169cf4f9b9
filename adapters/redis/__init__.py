"""Redis and Valkey: a single server or a primary behind Sentinels. Needs `fastapi-backplane[redis]`."""

from backplane.adapters.redis.broadcaster import RedisBroadcaster

__all__ = ["RedisBroadcaster"]
