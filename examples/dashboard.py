"""A dashboard: every worker publishes its numbers once a second, every page shows those of all workers.

A status, which changes rarely, is kept: a page that opens, or comes back, shows the current one at once. Run it in this
folder, then open http://127.0.0.1:8000/ and change the status:

    BACKPLANE_URL=ipc://dashboard backplane run dashboard:app --workers 4
    curl -X PUT http://127.0.0.1:8000/status -H 'Content-Type: application/json' -d '{"status": "all is well"}'
"""

import asyncio
import logging
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

from fastapi import FastAPI, WebSocket
from fastapi.responses import FileResponse
from pydantic import BaseModel, StringConstraints, TypeAdapter

from backplane import Backlog, Backplane, BrokerError, History, Message
from backplane.health_routes import health_routes


class Reading(BaseModel):
    """One worker at one moment."""

    worker: int
    connections: int
    delivered: int


class Status(BaseModel):
    """What the operators have announced."""

    status: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]


SECONDS = 1.0
# The newest status counts, and every page that joins gets it. A reading needs no history: the next comes in a second.
backplane = Backplane(history={"status": History(latest=True, max_age_seconds=30 * 24 * 3600)})
readings = backplane.channel("readings", Reading)
statuses = backplane.channel("status", Status)
one_reading = TypeAdapter(Reading)


async def publish_readings() -> None:
    """Publish this worker's numbers for as long as it runs."""
    while True:
        health = await backplane.health()
        delivered = backplane.statistics().delivered
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


@app.put("/status", status_code=202)
async def announce(status: Status) -> None:
    """Show a status on every page."""
    await statuses.publish(status)


def subject(message: Message) -> object:
    """Return what a message is about: of each, the latest is kept for a slow page, which is never cut for it."""
    return one_reading.validate_json(message.data).worker if message.channel == readings.name() else "status"


LATEST = Backlog(when_full="latest", latest_by=subject)


@app.websocket("/readings")
async def watch(websocket: WebSocket) -> None:
    """Send the current status and every later one, and every reading; to a slow page the latest of each worker."""
    async with backplane.connect(websocket, readings.name(), statuses.name(), backlog=LATEST) as connection:
        async for _ in connection:
            pass
