"""The subscriptions of each channel as the broker itself reports them."""

from __future__ import annotations

import json
from collections import Counter
from http.client import HTTPConnection
from typing import Any

from redis import Redis

__all__ = ["nats_subscriptions", "redis_subscriptions"]


def redis_subscriptions(url: str) -> Counter[str]:
    """Return how many connections are subscribed to each channel, by `PUBSUB NUMSUB`."""
    clients: Any = Redis
    with clients.from_url(url) as client:
        names: list[bytes] = client.pubsub_channels()
        counts: list[tuple[bytes, int]] = client.pubsub_numsub(*names) if names else []
    return Counter({name.decode(): count for name, count in counts})


def nats_subscriptions(monitoring_port: int) -> Counter[str]:
    """Return how many subscriptions there are to each subject, by the monitoring endpoint `/connz`."""
    link = HTTPConnection("127.0.0.1", monitoring_port, timeout=5)
    try:
        link.request("GET", "/connz?subs=1")
        connections: list[dict[str, Any]] = json.loads(link.getresponse().read())["connections"]
        return Counter(name for connection in connections for name in connection.get("subscriptions_list", ()))
    finally:
        link.close()
