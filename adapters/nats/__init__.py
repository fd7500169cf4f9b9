"""NATS: a server or a cluster. Needs `fastapi-backplane[nats]`."""

from backplane.adapters.nats.broadcaster import NatsBroadcaster

__all__ = ["NatsBroadcaster"]
