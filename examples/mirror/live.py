"""Messages of another service, live: every worker reads them by itself, and its pages see what they ask for.

A page of `/live/prices.eur` receives what is published to the subject `prices.eur` of NATS, or to the topic of that
name of MQTT; or what happens to that key of Redis; or the records of Kafka with that key. Where messages may be missing
it is closed with 4000, and comes back. Run it in the folder above:

    FEED=nats://localhost:4222 FEED_TOPIC="prices.>" uvicorn mirror.live:app --workers 4
    FEED=mqtt://localhost FEED_TOPIC="sensors/#" uvicorn mirror.live:app --workers 4
    FEED=redis://localhost FEED_TOPIC="session:*" uvicorn mirror.live:app --workers 4
    FEED=kafka://localhost:9092 FEED_TOPIC=prices uvicorn mirror.live:app --workers 4
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

from fastapi import FastAPI, WebSocket

from backplane import Backplane
from backplane.health_routes import health_routes

from .mirror import LocalMirror

SOURCES = {"nats": "nats_subjects", "mqtt": "mqtt_topics", "redis": "redis_keyspace", "kafka": "kafka_topic"}


def source_of(url: str, topic: str) -> Any:
    """Return the source of a URL; the client libraries of the others need not be installed."""
    name = SOURCES[url.partition(":")[0].removesuffix("s")] if not url.startswith("nats") else SOURCES["nats"]
    return getattr(import_module(f".{name}", __package__), name)(url, topic)


feed = Backplane(LocalMirror(source_of(os.environ["FEED"], os.environ["FEED_TOPIC"])))
app = FastAPI(lifespan=feed.lifespan)
app.mount("/health", health_routes(feed))


@app.websocket("/live/{name:path}")
async def live(websocket: WebSocket, name: str) -> None:
    """Receive what is published under one name."""
    async with feed.connect(websocket, name) as connection:
        async for _ in connection:
            pass
