"""A dashboard: every worker publishes its numbers once a second, every page shows those of all workers.

Run it in this folder, then open http://127.0.0.1:8000/:

    BACKPLANE_URL=ipc://dashboard backplane run dashboard:app --workers 4
"""

import asyncio
import logging
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, WebSocket
from fastapi.responses import FileResponse
from pydantic import BaseModel, TypeAdapter

from backplane import Backplane, BrokerError, Message
from backplane.health_routes import health_routes


class Reading(BaseModel):
    """One worker at one moment."""

    worker: int
    connections: int
    delivered: int


SECONDS = 1.0
backplane = Backplane()
# The only message here that replaces the one before: a page that is slow skips readings, and is never cut for it.
readings = backplane.channel("readings", Reading)
one_reading = TypeAdapter(Reading)


async def publish_readings() -> None:
    """Publish this worker's numbers for as long as it runs."""
    while True:
        health = await backplane.health()
        delivered = backplane.statistics()["delivered"]
        try:
            await readings.publish(Reading(worker=os.getpid(), connections=health.connections, delivered=delivered))
        except BrokerError as error:  # the next reading is as good as this one
            logging.getLogger(__name__).warning("no reading published: %s", error)
        await asyncio.sleep(SECONDS)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[dict[str, object]]:
    """Run the background task between the start and the end of the backplane."""
    async with backplane.lifespan(app) as state, asyncio.TaskGroup() as tasks:
        publishing = tasks.create_task(publish_readings())
        yield state
        publishing.cancel()


app = FastAPI(lifespan=lifespan)
app.mount("/health", health_routes(backplane))


@app.get("/", include_in_schema=False)
async def page() -> FileResponse:
    """Serve the page."""
    return FileResponse(Path(__file__).with_name("dashboard.html"))


def worker_of(message: Message) -> int:
    """Tell the readings of different workers apart."""
    return one_reading.validate_json(message.data).worker


@app.websocket("/readings")
async def watch(websocket: WebSocket) -> None:
    """Send every reading, and to a slow page the latest of each worker."""
    channel = readings.name()
    async with backplane.connect(websocket, channel, when_full="latest", latest_by=worker_of) as connection:
        async for _ in connection:
            pass
