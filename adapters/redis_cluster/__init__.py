"""`redis+cluster://`: sharded pub/sub on Redis Cluster and Valkey Cluster."""

from backplane.adapters.redis_cluster.broadcaster import RedisClusterBroadcaster

__all__ = ["RedisClusterBroadcaster"]
