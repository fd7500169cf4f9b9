"""Receiving for a handler that does not, so that its client's end is noticed: ASGI reports that to `receive` alone."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from backplane.journal.events import CLIENT_UNREAD
from backplane.journal.writing import write

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    _Message = MutableMapping[str, Any]

__all__ = ["ReadAhead"]

logger: Final = logging.getLogger("backplane.web.read_ahead")

# How much is received ahead of the handler; then the server stops reading, as it does without this.
_MAX_BYTES: Final = 64 * 1024
_MAX_MESSAGES: Final = 64


class ReadAhead:
    """The messages of one client, received before its handler asks for them, which it may still do at any time.

    Args:
        receive: The ASGI callable of the connection.
        on_message: Called with the time, by the event loop's clock, when the client has sent a message.
        on_end: Called when the client is gone.
    """

    __slots__ = ("_arrived", "_messages", "_on_end", "_on_message", "_receive", "_size", "is_reading")

    def __init__(
        self,
        receive: Callable[[], Awaitable[_Message]],
        on_message: Callable[[float], None],
        on_end: Callable[[], None],
    ) -> None:
        self._receive = receive
        self._on_message = on_message
        self._on_end = on_end
        self._messages: deque[_Message] = deque()
        self._size = 0
        self._arrived: asyncio.Future[None] | None = None
        self.is_reading: bool = False

    async def run(self) -> None:
        """Receive until the client is gone, or until a task waits for a message, which receives from then on."""
        self.is_reading = True
        try:
            while self._size < _MAX_BYTES and len(self._messages) < _MAX_MESSAGES:
                message = await self._receive()
                self._messages.append(message)
                self._size += len(message.get("text") or message.get("bytes") or b"")
                if message["type"] == "websocket.disconnect":
                    return self._on_end()
                self._on_message(asyncio.get_running_loop().time())
                if self._arrived is not None:
                    return
        except Exception as error:
            # Another caller of `receive` has taken the client's end, which some servers answer with an error.
            write(logger, CLIENT_UNREAD, "nothing more can be received", exc_info=error)
            self._messages.append({"type": "websocket.disconnect", "code": 1006})
            self._on_end()
        finally:
            self.is_reading = False
            if self._arrived is not None:
                self._arrived.set_result(None)
                self._arrived = None

    async def receive(self) -> _Message:
        """Return the next message, as the ASGI callable does: in its place. Cancelling loses none."""
        while not self._messages:
            if not self.is_reading:
                return await self._receive()
            if self._arrived is None:
                self._arrived = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._arrived])
        message = self._messages.popleft()
        self._size -= len(message.get("text") or message.get("bytes") or b"")
        return message
