"""The FastAPI tutorial's `ConnectionManager`: a list of sockets for each room, and a loop of awaited sends."""

from __future__ import annotations

from collections import defaultdict

from fastapi import FastAPI, WebSocket, WebSocketDisconnect


class ConnectionManager:
    """As the tutorial has it, with rooms."""

    def __init__(self) -> None:
        self.active_connections: defaultdict[str, list[WebSocket]] = defaultdict(list)

    async def connect(self, websocket: WebSocket, channel: str) -> None:
        """Take one in."""
        await websocket.accept()
        self.active_connections[channel].append(websocket)

    def disconnect(self, websocket: WebSocket, channel: str) -> None:
        """Take one out."""
        self.active_connections[channel].remove(websocket)

    async def broadcast(self, channel: str, message: str) -> None:
        """Send to each."""
        for connection in self.active_connections[channel]:
            await connection.send_text(message)


app = FastAPI()
manager = ConnectionManager()


@app.websocket("/ws/{channel}")
async def hear(websocket: WebSocket, channel: str) -> None:
    """Hear a channel."""
    await manager.connect(websocket, channel)
    try:
        while True:
            await websocket.receive_text()
    except WebSocketDisconnect:
        manager.disconnect(websocket, channel)


@app.websocket("/publish")
async def say(websocket: WebSocket) -> None:
    """Publish what the client says."""
    await websocket.accept()
    async for text in websocket.iter_text():
        await manager.broadcast(text[8:12], text)
