"""A Starlette or FastAPI `WebSocket` as the `Socket` that a `Connection` needs."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from starlette.exceptions import WebSocketException
from starlette.websockets import WebSocketDisconnect, WebSocketState

from backplane.client_address import address_key
from backplane.closing import close_reason
from backplane.denial import denial, deny
from backplane.errors import BackplaneError, ClosedError, LifecycleError
from backplane.framework import framework_ending
from backplane.lane import EXTENSION, when_gone
from backplane.outgoing import SocketGoneError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from starlette.websockets import WebSocket

    from backplane.ending import Ending
    from backplane.lane import Lane

__all__ = ["StarletteSocket"]

# What Starlette and the servers raise for a send to a client that is gone, or behind a close.
_GONE = (WebSocketDisconnect, RuntimeError, OSError)

# A client that does not read does not read why it is refused either.
_REFUSE_SECONDS: Final = 1.0


class StarletteSocket:
    """Wraps `websocket`, which must not have been accepted yet.

    Raises:
        LifecycleError: It was accepted.
        ClosedError: It is closed.
    """

    __slots__ = ("_websocket", "lane")

    def __init__(self, websocket: WebSocket) -> None:
        states = (websocket.application_state, websocket.client_state)
        if WebSocketState.DISCONNECTED in states:
            raise ClosedError("this WebSocket is closed already")
        if websocket.application_state is not WebSocketState.CONNECTING:
            raise LifecycleError(
                "this WebSocket is accepted already: connect() accepts it, remove `await websocket.accept()`"
            )
        self._websocket = websocket
        self.lane: Lane | None = websocket.scope.get("extensions", {}).get(EXTENSION)

    @property
    def origin(self) -> str | None:
        """The page the client says it is on; `None` for what is no browser."""
        return self._websocket.headers.get("origin")

    @property
    def host(self) -> str | None:
        """The host the client wanted to reach."""
        return self._websocket.headers.get("host")

    @property
    def address_key(self) -> bytes | None:
        """Key of the client's address; `None` where the server does not know it."""
        return address_key(self._websocket.scope)

    async def accept(self, subprotocol: str | None, headers: Iterable[tuple[bytes, bytes]] | None) -> None:
        """Finish the handshake."""
        await self._websocket.accept(subprotocol, headers)

    async def left(self) -> None:
        """Return when the client has left; before the handshake is answered it can send nothing else."""
        while (await self._websocket.receive())["type"] != "websocket.disconnect":
            pass

    async def refuse(self, refused: Ending) -> BaseException:
        """Answer the handshake with an HTTP error, and return what the handler is to raise.

        `backplane.denial` decides with which status. A server without the denial response extension answers 403. What
        is no error of ours is left to the framework, which answers its own `HTTPException` and `WebSocketException`.
        """
        if not isinstance(refused.error, BackplaneError):
            return refused.error or AssertionError("a refusal without an error")
        with suppress(*_GONE):
            await deny(self._websocket, denial(refused.error))
        return self._answered(refused)

    async def refuse_after_accept(self, refused: Ending, subprotocol: str | None) -> BaseException:
        """Accept and close, and return what the handler is to raise."""
        try:
            async with asyncio.timeout(_REFUSE_SECONDS):
                await self.accept(subprotocol, None)
                await self._websocket.close(refused.code, close_reason(refused.code, refused.reason))
        except _GONE:
            if self.lane is not None:
                self.lane.close()
        return self._answered(refused)

    def _answered(self, refused: Ending) -> BaseException:
        """Return a `WebSocketException`, of which the framework's handler calls `close`: that is done already."""
        self._websocket.close = _is_answered  # type: ignore[method-assign]
        answered = WebSocketException(refused.code, str(refused.error))
        answered.__cause__ = refused.error
        return answered

    @staticmethod
    def ending(error: BaseException, /) -> Ending | None:
        """Return what an error of the framework means to an accepted client; `None` for any other error."""
        return framework_ending(error)

    async def send(self, data: str | bytes) -> None:
        """Send one message."""
        try:
            # What `send_text` and `send_bytes` do, with one call less on the way of every message.
            await self._websocket.send({"type": "websocket.send", "text" if isinstance(data, str) else "bytes": data})
        except _GONE as error:
            raise SocketGoneError from error

    async def receive(self) -> str | bytes | None:
        """Return the next message, or `None` when the client is gone."""
        if self._websocket.application_state is WebSocketState.DISCONNECTED:
            return None
        message = await self._websocket.receive()
        if message["type"] == "websocket.disconnect":
            return None
        text: str | None = message.get("text")
        data: bytes = message.get("bytes") or b""
        return data if text is None else text

    async def close(self, code: int, reason: str) -> None:
        """Close, if it is still open."""
        if WebSocketState.DISCONNECTED in (self._websocket.application_state, self._websocket.client_state):
            return
        with suppress(*_GONE):
            await self._websocket.close(code, reason)

    def when_gone(self, callback: Callable[[], None], /) -> None:
        """Call `callback` once the client's transport is gone, and at once where the server does not report it."""
        when_gone(self._websocket.scope, callback)


async def _is_answered(code: int = 1000, reason: str | None = None) -> None:
    """Stand in for `WebSocket.close`, which the framework's handler of a `WebSocketException` calls."""
