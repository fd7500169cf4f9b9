"""The WebSockets of a Django shop: what its views publish reaches every connected page. See shop.py."""

from fastapi import FastAPI, WebSocket

from backplane import Backplane
from backplane.health_routes import health_routes

backplane = Backplane()
app = FastAPI(lifespan=backplane.lifespan)
app.mount("/health", health_routes(backplane))


@app.websocket("/orders")
async def orders(websocket: WebSocket) -> None:
    """Receive every order."""
    async with backplane.connect(websocket, "orders") as connection:
        async for _ in connection:
            pass
