"""A WebSocket client as an ASGI server shows it to an application, for unit tests."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from starlette.websockets import WebSocket

from backplane import Gap, Subscription
from tests.unit.doubles import Gate

if TYPE_CHECKING:
    from starlette.types import Message as Event


WAIT_SECONDS = 60.0


class Client:
    """A WebSocket client as a server shows it to the application.

    Attributes:
        receiver: What the client does, as ASGI events; the handshake is the first.
        websocket: What the application gets.
        accepting: Set when the application accepts.
        sent: What the application sent, as ASGI events.
        accept_gate: Holds the application's `accept`.
    """

    def __init__(self) -> None:
        self.receiver: asyncio.Queue[Event] = asyncio.Queue()
        self.receiver.put_nowait({"type": "websocket.connect"})
        self.sent: asyncio.Queue[Event] = asyncio.Queue()
        self.accept_gate = Gate()
        self.accepting = asyncio.Event()
        scope: dict[str, Any] = {"type": "websocket", "path": "/", "headers": [], "extensions": {}}
        self.websocket = WebSocket(scope, self.receiver.get, self._send)

    async def receives(self) -> str | int:
        """Return the next text, or the code of the close."""
        async with asyncio.timeout(WAIT_SECONDS):
            event = await self.sent.get()
            if event["type"] == "websocket.accept":
                event = await self.sent.get()
        received: str | int = event["code"] if event["type"] == "websocket.close" else event["text"]
        return received

    async def _send(self, event: Event) -> None:
        if event["type"] == "websocket.accept":
            self.accepting.set()
            await self.accept_gate.passage()
        self.sent.put_nowait(event)


async def data_of(messages: Subscription, count: int) -> list[str | bytes]:
    """Return the data of the next `count` messages."""
    data: list[str | bytes] = []
    async with asyncio.timeout(WAIT_SECONDS):
        while len(data) < count:
            message = await anext(messages)
            assert not isinstance(message, Gap)
            data.append(message.data)
    return data
