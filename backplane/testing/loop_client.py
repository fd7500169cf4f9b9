"""A WebSocket client in the event loop of the test, without a server: the application's handler, and what it sends."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self

from starlette.websockets import WebSocket

from backplane.presence_types import Who

if TYPE_CHECKING:
    from backplane import Backplane, Connection

__all__ = ["LoopClient"]

_WAIT_SECONDS = 30.0


class LoopClient:
    """One connection of a user to one worker.

        async with LoopClient(backplane, "room:1", user="u42") as client:
            ...

    Args:
        backplane: The worker.
        *channels: What it joins.
        user: The user.
        info: What is shown with the user.

    Attributes:
        user: The user.
        sent: What the application has sent to it, in order.
        close_code: With which it was closed; `None` while it is open, or where it has closed.
    """

    def __init__(self, backplane: Backplane, *channels: str, user: str, info: Any = None) -> None:
        self.user: str = user
        self.sent: list[str] = []
        self.close_code: int | None = None
        self._backplane = backplane
        self._channels = channels
        self._who = Who(user=user, info=info)
        self._events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._serving: asyncio.Task[None] | None = None
        self._served: asyncio.Future[Connection] | None = None
        self._changed = asyncio.Event()

    @property
    def connection(self) -> Connection:
        """The connection, as the application has it."""
        assert self._served is not None, "enter the client first"
        return self._served.result()

    async def open(self) -> Self:
        """Connect, and return once it is served; raises what `Backplane.connect` raises."""
        self._events.put_nowait({"type": "websocket.connect"})
        self._served = asyncio.get_running_loop().create_future()
        self._serving = asyncio.create_task(self._serve(self._served))
        ends: list[asyncio.Future[Any]] = [self._served, self._serving]
        async with asyncio.timeout(_WAIT_SECONDS):
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if not self._served.done():
            await self._serving
        return self

    async def close(self) -> None:
        """Disconnect, and return once the application's handler has ended."""
        self._events.put_nowait({"type": "websocket.disconnect", "code": 1000})
        if self._serving is not None:
            async with asyncio.timeout(_WAIT_SECONDS):
                await self._serving

    async def ended(self) -> int:
        """Wait until the server has closed it, and return the close code."""
        async with asyncio.timeout(_WAIT_SECONDS):
            while self.close_code is None:
                self._changed.clear()
                await self._changed.wait()
        return self.close_code

    async def receives(self, text: str) -> None:
        """Wait until a text has been sent to it."""
        async with asyncio.timeout(_WAIT_SECONDS):
            while text not in self.sent:
                self._changed.clear()
                await self._changed.wait()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _serve(self, served: asyncio.Future[Connection]) -> None:
        scope: dict[str, Any] = {"type": "websocket", "path": "/", "headers": [], "extensions": {}}
        websocket = WebSocket(scope, self._events.get, self._send)
        async with self._backplane.connect(websocket, *self._channels, presence=self._who) as connection:
            served.set_result(connection)
            async for _ in connection:
                pass

    async def _send(self, event: Any) -> None:
        if event["type"] == "websocket.close":
            self.close_code = event["code"]
            self._events.put_nowait({"type": "websocket.disconnect", "code": event["code"]})
        elif event["type"] == "websocket.send":
            self.sent.append(event.get("text") or event["bytes"].decode())
        self._changed.set()
