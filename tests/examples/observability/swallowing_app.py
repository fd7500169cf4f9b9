"""An application whose adapter drops what arrives on the channel `SWALLOWS`, as a broker does that has lost it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.routing import Mount, Route

from backplane import Backplane, Settings, metrics_routes
from backplane.adapters.redis import RedisBroadcaster
from backplane.adapters.redis.broadcaster import RedisOptions
from backplane.broadcaster import BrokerUrl
from backplane.health_routes import health_routes

if TYPE_CHECKING:
    from collections.abc import Collection

    from backplane.broadcaster import Sink
    from backplane.errors import BrokerError
    from backplane.message import All, Place


class SwallowingSink:
    """Passes everything on but the messages of one channel."""

    def __init__(self, sink: Sink, channel: str) -> None:
        self._sink = sink
        self._channel = channel

    def deliver(self, channel: str, payload: bytes, place: Place | None = None) -> None:
        """Pass a message on, unless it is on the channel."""
        if channel != self._channel:
            self._sink.deliver(channel, payload, place)

    def gap(self, channels: Collection[str] | All, reason: str) -> None:
        """Pass a gap on."""
        self._sink.gap(channels, reason)

    def revoked(self, channels: Collection[str], reason: str) -> None:
        """Pass on that subscriptions were revoked."""
        self._sink.revoked(channels, reason)

    def lost(self, error: BrokerError) -> None:
        """Pass on that the link is lost."""
        self._sink.lost(error)


class SwallowingBroadcaster(RedisBroadcaster):
    """The adapter for Redis, with a channel that never arrives."""

    async def start(self, sink: Sink) -> None:
        """Open the link."""
        await super().start(SwallowingSink(sink, os.environ["SWALLOWS"]))


backplane = Backplane(
    SwallowingBroadcaster(BrokerUrl.parse(os.environ["BACKPLANE_URL"]), RedisOptions()),
    cluster=True,
    settings=Settings(worker_heartbeat_seconds=0.2, worker_down_seconds=1),
)
app = Starlette(
    lifespan=backplane.lifespan,
    routes=[Route("/metrics", metrics_routes(backplane)), Mount("/health", health_routes(backplane))],
)
