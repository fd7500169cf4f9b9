"""Notifications: an HTTP request, or a process that is no web worker, reaches every window of one user.

Run it in this folder:

    BACKPLANE_URL=ipc://notifications uvicorn notifications:app --workers 2

Connect to ws://127.0.0.1:8000/users/ada, then notify from HTTP and from outside (see notify_task.py):

    curl -X POST http://127.0.0.1:8000/users/ada -H 'Content-Type: application/json' -d '{"title": "hello"}'
    BACKPLANE_URL=ipc://notifications python notify_task.py ada "your order was shipped"
"""

from typing import Annotated

from fastapi import FastAPI, HTTPException, Path, WebSocket
from pydantic import BaseModel, Field

from backplane import Backplane, BrokerError
from backplane.health_routes import health_routes

# Anyone may listen for anyone here: login.py shows how to know who it is.
User = Annotated[str, Path(pattern=r"^[\w-]{1,40}$")]


class Notification(BaseModel):
    """What is told to a user."""

    title: Annotated[str, Field(min_length=1, max_length=200)]


backplane = Backplane()
notifications = backplane.channel("users:{user}", Notification)
app = FastAPI(lifespan=backplane.lifespan)
app.mount("/health", health_routes(backplane))


@app.websocket("/users/{user}")
async def listen(websocket: WebSocket, user: User) -> None:
    """Hear what is told to a user. A client has nothing to say here, but reading is how its end is noticed."""
    async with backplane.connect(websocket, notifications.name(user=user)) as connection:
        async for _ in connection:
            pass


@app.post("/users/{user}", status_code=202)
async def notify(user: User, notification: Notification) -> None:
    """Tell a user something: 202 when the broker has it, 503 when nobody may have heard it."""
    try:
        await notifications.publish(notification, user=user)
    except BrokerError as error:
        raise HTTPException(503, "try again later") from error
