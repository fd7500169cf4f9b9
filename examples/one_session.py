"""One session per user: a new connection ends the older ones of its user, on every worker.

Run it in this folder, and connect twice to ws://127.0.0.1:8000/session/ada: the first one is closed with 4503.

    BACKPLANE_URL=ipc://session uvicorn one_session:app --workers 2

Of several connections that are opened at the same moment, as by a browser that opens its tabs again, one stays. The
clocks of their workers decide which one is the newest.

What it does not promise: a worker that is cut off from the broker at that moment does not receive the command, so an
older session there lives on. `unconfirmed` names such workers to the client.
"""

from typing import Annotated

from fastapi import FastAPI, Path, WebSocket

from backplane import Backplane, BrokerError, CloseCode
from backplane.health_routes import health_routes

# Any client may be any user here: login.py shows how to check who it is.
User = Annotated[str, Path(pattern=r"^[\w-]{1,30}$")]

CONFIRM_SECONDS = 2.0

backplane = Backplane(cluster=True)
app = FastAPI(lifespan=backplane.lifespan)
app.mount("/health", health_routes(backplane))


@app.websocket("/session/{user}")
async def session(websocket: WebSocket, user: User) -> None:
    """Be the one session of a user; what the client sends is sent back."""
    async with backplane.connect(websocket, client_key=user) as connection:
        try:
            ended = await backplane.disconnect(
                user=user,
                older_than=connection,  # not itself, and none that was opened later and does the same
                code=CloseCode.FORBIDDEN,  # the page must not come back, and end this session in turn
                reason="logged in elsewhere",
                confirm_seconds=CONFIRM_SECONDS,
            )
        except BrokerError:
            # The older sessions may live on: this one is refused, with a code after which a page comes back.
            await connection.close(CloseCode.TRY_AGAIN_LATER, "try again later")
            return
        unconfirmed = [f"{worker.host} {worker.pid}" for worker in ended.missing]
        await connection.send(
            {"session": connection.id, "ended": sum(ended.by_worker.values()), "unconfirmed": unconfirmed}
        )
        async for message in connection:
            await connection.send(message)
