"""A proxy to another WebSocket server, in both directions; how one side ends is told to the other.

Run it in this folder, in front of echo.py on port 9000:

    UPSTREAM_URL=ws://127.0.0.1:9000/ uvicorn proxy:app
"""

import logging
import os
from contextlib import suppress

from fastapi import FastAPI, WebSocket
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from backplane import Backplane, Connection
from backplane.health_routes import health_routes

logger = logging.getLogger(__name__)

UPSTREAM_URL = os.environ["UPSTREAM_URL"]
BAD_GATEWAY = 1014  # of the registry of RFC 6455: what a 502 is in HTTP

backplane = Backplane()
app = FastAPI(lifespan=backplane.lifespan)
app.mount("/health", health_routes(backplane))


@app.websocket("/")
async def proxy(websocket: WebSocket) -> None:
    """Pass messages on, until one side ends; origin, limits and heartbeats of the client are the backplane's."""
    async with backplane.connect(websocket) as connection:
        try:
            async with connect(UPSTREAM_URL, open_timeout=5, close_timeout=1) as upstream:
                connection.spawn(pass_down(upstream, connection))
                await pass_up(connection, upstream)
        except (OSError, InvalidHandshake) as error:  # a timeout is an OSError
            logger.warning("the upstream cannot be reached: %s", error)
            await connection.close(BAD_GATEWAY, "upstream not reachable")


async def pass_up(connection: Connection, upstream: ClientConnection) -> None:
    """Pass on what the client says. With its end the upstream is closed."""
    async for message in connection:
        with suppress(ConnectionClosed):  # its end, which `pass_down` tells the client
            await upstream.send(message)


async def pass_down(upstream: ClientConnection, connection: Connection) -> None:
    """Pass on what the upstream says, and how it ended."""
    with suppress(ConnectionClosed):
        async for message in upstream:
            await connection.send(message)
    await connection.close(*mapped_end(upstream.close_code, upstream.close_reason))


def mapped_end(code: int | None, reason: str | None) -> tuple[int, str]:
    """Return how the client is closed: as the upstream closed, but codes that never travel are mapped."""
    if code == 1005:  # it gave no code
        return 1000, ""
    if code in {None, 1006, 1015}:  # it was cut
        return BAD_GATEWAY, "upstream gone"
    return code or 1000, reason or ""
