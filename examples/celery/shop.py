"""A shop: an HTTP request hands a slow job to Celery, and the job publishes its progress to the customer's page.

One module serves the web workers and the task queue. Run it in this folder; one Redis carries Celery's queue and
what is published:

    BACKPLANE_URL=redis://localhost uvicorn shop:app
    BACKPLANE_URL=redis://localhost celery --app shop:queue worker --pool prefork

Connect to ws://127.0.0.1:8000/orders/42, then:

    curl -X POST http://127.0.0.1:8000/orders/42/ship
"""

import os

from celery import Celery
from fastapi import FastAPI, WebSocket
from pydantic import BaseModel

from backplane import Backplane, BrokerUnavailableError, History
from backplane.health_routes import health_routes


class Progress(BaseModel):
    """What a customer's page receives."""

    order: int
    state: str


# A page that connects later, or again, gets the present state of its order first.
backplane = Backplane(history={"orders:*": History(latest=True)})
# In a web worker it publishes through the worker's own link, in a process of Celery through a link of that process.
progress = backplane.sync.channel("orders:{order}", Progress)
app = FastAPI(lifespan=backplane.lifespan)
app.mount("/health", health_routes(backplane))
queue = Celery("shop", broker=os.environ.get("CELERY_BROKER_URL", "redis://localhost"))
queue.conf.task_ignore_result = True


# `BrokerUnavailableError` means that nothing was published, so a retry cannot publish twice.
@queue.task(autoretry_for=(BrokerUnavailableError,), retry_backoff=True)
def ship(order: int) -> None:
    """Do the slow work, and publish that it is done."""
    progress.publish(Progress(order=order, state="shipped"), order=order)


@app.websocket("/orders/{order}")
async def follow(websocket: WebSocket, order: int) -> None:
    """Receive the progress of an order."""
    async with backplane.connect(websocket, progress.name(order=order)) as connection:
        async for _ in connection:
            pass


@app.post("/orders/{order}/ship", status_code=202)
def ask_to_ship(order: int) -> None:
    """Hand the work to Celery. A `def` endpoint runs in a thread, and publishes as a task does."""
    ship.delay(order)
    progress.publish(Progress(order=order, state="accepted"), order=order)
