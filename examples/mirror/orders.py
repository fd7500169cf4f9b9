"""Records of a Kafka topic of another service: one worker of all reads each, and publishes it to the pages of all.

A record with the key `42` reaches the pages of `/orders/42`, on every worker, also when Kafka or the workers were away
for a while. Every page is in the channel `orders` too: where records were deleted before they were read, all pages are
closed with 4000, and load their orders again. Run it in the folder above:

    KAFKA=kafka://localhost:9092 BACKPLANE_URL=ipc://orders uvicorn mirror.orders:app --workers 4
"""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI, WebSocket

from backplane import Backplane, CloseCode
from backplane.health_routes import health_routes

from .kafka_topic import kafka_topic
from .mirror import shared_mirror

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

backplane = Backplane(cluster=True)
source = kafka_topic(os.environ["KAFKA"], os.environ.get("TOPIC", "orders"), group="order-pages")


def channel_of(key: str) -> str | None:
    """Return the channel of an order; records without a key have none."""
    return f"orders:{key}" if key else None


async def reload(reason: str) -> None:
    """Close every page, so that it comes back and loads its order again."""
    await backplane.disconnect(channel="orders", code=CloseCode.MESSAGES_MISSED, reason=reason)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    """Read for as long as the application runs."""
    async with backplane, shared_mirror(backplane, source, channel_of, on_missing=reload):
        yield


app = FastAPI(lifespan=lifespan)
app.mount("/health", health_routes(backplane))


@app.websocket("/orders/{number}")
async def order(websocket: WebSocket, number: str) -> None:
    """Receive what happens to one order."""
    async with backplane.connect(websocket, "orders", f"orders:{number}") as connection:
        async for _ in connection:
            pass
