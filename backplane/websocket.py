"""A Starlette or FastAPI `WebSocket` as the `Socket` that a `Connection` needs."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from starlette.exceptions import WebSocketException
from starlette.websockets import WebSocketDisconnect, WebSocketState

from backplane.denial import denial, deny
from backplane.errors import BackplaneError, BrokerError, ClosedError, LifecycleError, RefusedError
from backplane.lane import EXTENSION, when_gone
from backplane.outgoing import SocketGoneError
from backplane.read_ahead import ReadAhead

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable

    from starlette.websockets import WebSocket

    from backplane.lane import Lane

__all__ = ["StarletteSocket"]

# What Starlette and the servers raise for a send to a client that is gone, or behind a close.
_GONE = (WebSocketDisconnect, RuntimeError, OSError)


class StarletteSocket:
    """Wraps `websocket`, which must not have been accepted yet.

    Raises:
        LifecycleError: It was accepted.
        ClosedError: It is closed.
    """

    __slots__ = ("_ahead", "_websocket", "lane")

    def __init__(self, websocket: WebSocket) -> None:
        states = (websocket.application_state, websocket.client_state)
        if WebSocketState.DISCONNECTED in states:
            raise ClosedError("this WebSocket is closed already")
        if websocket.application_state is not WebSocketState.CONNECTING:
            raise LifecycleError(
                "this WebSocket is accepted already: connect() accepts it, remove `await websocket.accept()`"
            )
        self._websocket = websocket
        self._ahead: ReadAhead | None = None
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
    def client_host(self) -> str:
        """The client's address, as the server knows it."""
        client = self._websocket.client
        return "" if client is None else client.host

    async def accept(self, subprotocol: str | None, headers: Iterable[tuple[bytes, bytes]] | None) -> None:
        """Finish the handshake."""
        await self._websocket.accept(subprotocol, headers)

    @asynccontextmanager
    async def refusing_on_error(self) -> AsyncGenerator[None]:
        """Answer the handshake with an HTTP error if the block raises one of ours, and let the error go on.

        A `RefusedError`, a `BrokerError`, or a `ClosedError` while the worker ends, goes on as the cause of a
        `WebSocketException`, which the framework handles without a traceback.

        `backplane.denial` decides with which status. A server without the denial response extension answers 403.
        """
        try:
            yield
        except BackplaneError as error:
            await self._refuse(error)
            if isinstance(
                error, RefusedError | BrokerError | ClosedError
            ):  # an ordinary event: no traceback in the server's log
                self._websocket.close = _is_answered  # type: ignore[method-assign]
                raise WebSocketException(1008, str(error)) from error
            raise

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

    def read_ahead(self, on_end: Callable[[], None], /) -> Coroutine[Any, Any, None] | None:
        """Return what receives the messages that `receive` returns later, and calls `on_end` when the client is gone.

        Whoever receives from the `WebSocket` itself gets them too, in their place. `None` where that is under way.
        """
        if self._ahead is None:
            self._ahead = ReadAhead(self._websocket._receive, on_end)  # pyright: ignore[reportPrivateUsage]
            self._websocket._receive = self._ahead.receive  # pyright: ignore[reportPrivateUsage]
        return None if self._ahead.is_reading else self._ahead.run()

    async def close(self, code: int, reason: str) -> None:
        """Close, if it is still open."""
        if WebSocketState.DISCONNECTED in (self._websocket.application_state, self._websocket.client_state):
            return
        with suppress(*_GONE):
            await self._websocket.close(code, reason)

    def when_gone(self, callback: Callable[[], None], /) -> None:
        """Call `callback` once the client's transport is gone, and at once where the server does not report it."""
        when_gone(self._websocket.scope, callback)

    async def _refuse(self, error: BackplaneError) -> None:
        with suppress(*_GONE):
            await deny(self._websocket, denial(error))


async def _is_answered(code: int = 1000, reason: str | None = None) -> None:
    """Stand in for `WebSocket.close`, which the framework's handler of a `WebSocketException` calls."""
