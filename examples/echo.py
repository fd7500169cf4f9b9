"""Echo: what a client says comes back to it, and to nobody else.

Run it in this folder, then connect with `websockets ws://127.0.0.1:8000/`:

    uvicorn echo:app
"""

from fastapi import FastAPI, WebSocket

from backplane import Backplane
from backplane.health_routes import health_routes

backplane = Backplane()
app = FastAPI(lifespan=backplane.lifespan)
app.mount("/health", health_routes(backplane))


@app.websocket("/")
async def echo(websocket: WebSocket) -> None:
    """Send back whatever comes, text as text and binary as binary."""
    async with backplane.connect(websocket) as connection:  # accepts; no channel, so nothing else is heard
        async for message in connection:
            await connection.send(message)
