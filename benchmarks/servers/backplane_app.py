"""What a user of backplane writes: `/ws/{channel}` hears, `/publish` says; the channel stands in the text."""

from __future__ import annotations

from fastapi import FastAPI, WebSocket

from backplane import Backplane, BrokerError, Gap

backplane = Backplane()
app = FastAPI(lifespan=backplane.lifespan)


@app.websocket("/ws/{channel}")
async def hear(websocket: WebSocket, channel: str) -> None:
    """Join the channel for as long as the client stays."""
    async with backplane.connect(websocket, channel) as connection:
        async for _ in connection:
            pass


@app.websocket("/publish")
async def say(websocket: WebSocket) -> None:
    """Publish what the client says; send back what the broker did not take."""
    await websocket.accept()
    async for text in websocket.iter_text():
        try:
            await backplane.publish(text[8:12], text)
        except BrokerError:
            await websocket.send_text(f"!{text}")


@app.websocket("/gaps/{channel}")
async def tell_gaps(websocket: WebSocket, channel: str) -> None:
    """Tell each gap of the channel, and nothing else."""
    await websocket.accept()
    async with backplane.subscribe(channel, when_full="drop_oldest") as messages:
        async for message in messages:
            if isinstance(message, Gap):
                await websocket.send_text(f"gap {message.reason}")
