"""The FastAPI tutorial's `ConnectionManager`: a list of sockets for each room, and a loop of awaited sends."""

from __future__ import annotations

from collections import defaultdict

from fastapi import FastAPI, WebSocket, WebSocketDisconnect


class ConnectionManager:
    """As the tutorial has it, with rooms."""

    def __init__(self) -> None:
        self.active_connections: defaultdict[str, list[WebSocket]] = defaultdict(list)

    async def connect(self, websocket: WebSocket, channel: str) -> None:
        """Add a socket."""
        await websocket.accept()
        self.active_connections[channel].append(websocket)

    def disconnect(self, websocket: WebSocket, channel: str) -> None:
        """Remove a socket."""
        self.active_connections[channel].remove(websocket)

    async def broadcast(self, channel: str, message: str) -> None:
        """Send to every socket of the channel."""
        for connection in self.active_connections[channel]:
            await connection.send_text(message)


app = FastAPI()
manager = ConnectionManager()


@app.websocket("/ws/{channel}")
async def listen(websocket: WebSocket, channel: str) -> None:
    """Send the channel until the client leaves."""
    await manager.connect(websocket, channel)
    try:
        while True:
            await websocket.receive_text()
    except WebSocketDisconnect:
        manager.disconnect(websocket, channel)


@app.websocket("/publish")
async def publish(websocket: WebSocket) -> None:
    """Publish what the client sends."""
    await websocket.accept()
    async for text in websocket.iter_text():
        await manager.broadcast(text[8:12], text)
