"""A Starlette or FastAPI `WebSocket` as the `Socket` that a `Connection` needs."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from starlette.exceptions import WebSocketException
from starlette.websockets import WebSocketDisconnect, WebSocketState

from backplane.denial import denial, deny
from backplane.errors import BackplaneError, BrokerError, ClosedError, LifecycleError, RefusedError
from backplane.lane import EXTENSION, when_gone
from backplane.outgoing import SocketGoneError
from backplane.sockets import is_of_client

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, MutableMapping

    from starlette.websockets import WebSocket

    from backplane.lane import Lane
    from backplane.sockets import Bypass

__all__ = ["StarletteSocket"]

# What Uvicorn, Hypercorn and Daphne call a send after the end, where a middleware has seen or made it before Starlette.
_AFTER_THE_END: Final = ("after sending 'websocket.close'", "ASGIWebsocketState.CLOSED", "on a closed protocol")


class StarletteSocket:
    """Wraps `websocket`, which must not have been accepted yet.

    Raises:
        LifecycleError: It was accepted.
        ClosedError: It is closed.
    """

    __slots__ = ("_receive_bypassed", "_websocket", "lane")

    def __init__(self, websocket: WebSocket) -> None:
        states = (websocket.application_state, websocket.client_state)
        if WebSocketState.DISCONNECTED in states:
            raise ClosedError("this WebSocket is closed already")
        if websocket.application_state is not WebSocketState.CONNECTING:
            raise LifecycleError(
                "this WebSocket is accepted already: connect() accepts it, remove `await websocket.accept()`"
            )
        self._websocket = websocket
        self._receive_bypassed: Bypass | None = None
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
        self._websocket.receive = self._bypass  # type: ignore[method-assign]

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

    def send(self, data: str | bytes) -> Coroutine[Any, Any, None]:
        """Send one message."""
        # What `send_text` and `send_bytes` do, with one call less on the way of every message.
        return self._websocket.send({"type": "websocket.send", "text" if isinstance(data, str) else "bytes": data})

    def is_gone(self, error: Exception) -> bool:
        """Return whether the client is gone, by the state of the socket where `error` alone could be anybody's.

        Uvicorn raises an OSError of its own, and behind a close a RuntimeError, as Starlette does; Hypercorn, Granian
        and Daphne drop what is sent to a client that is gone. A task group of a middleware makes a group of it.
        """
        if self._websocket.client_state is WebSocketState.DISCONNECTED:
            return True
        match error:
            case WebSocketDisconnect():
                cause = error.__context__  # Starlette takes every OSError for the end, a middleware's own too
                if isinstance(cause, OSError) and not is_of_client(cause):
                    self._websocket.application_state = WebSocketState.CONNECTED  # so that it can be closed
                    return False
                return True
            case OSError():
                return is_of_client(error)
            case ExceptionGroup():
                parts: tuple[Exception, ...] = error.exceptions
                return all(self.is_gone(part) for part in parts)
            case _:
                if isinstance(error, SocketGoneError) or self._is_closed:
                    return True
                return any(words in str(error) for words in _AFTER_THE_END)

    async def receive(self) -> str | bytes | None:
        """Return the next message, or `None` when the client is gone."""
        if self._is_closed:
            return None
        return _data(await type(self._websocket).receive(self._websocket))

    async def close(self, code: int, reason: str) -> None:
        """Close, if it is still open."""
        if self._is_closed:
            return
        try:
            await self._websocket.close(code, reason)
        except Exception as error:
            if not self.is_gone(error):
                raise

    def on_bypass(self, receive: Bypass, /) -> None:
        """Ask `receive` for what the application receives from the WebSocket itself, once it is accepted."""
        self._receive_bypassed = receive

    def when_gone(self, callback: Callable[[], None], /) -> None:
        """Call `callback` once the client's transport is gone, and at once where the server does not report it."""
        when_gone(self._websocket.scope, callback)

    async def _bypass(self) -> MutableMapping[str, Any]:
        """Stand in for `WebSocket.receive`, which all of its methods that receive call."""
        message: MutableMapping[str, Any] = {"type": "websocket.disconnect", "code": 1006, "reason": ""}

        async def receive() -> str | bytes | None:
            nonlocal message
            received = await type(self._websocket).receive(self._websocket)
            if received["type"] == "websocket.disconnect":
                message = received
            return _data(received)

        if self._receive_bypassed is None:
            return await type(self._websocket).receive(self._websocket)
        try:
            data = await self._receive_bypassed(receive)
        except StopAsyncIteration:
            return message
        return {"type": "websocket.receive", "text" if isinstance(data, str) else "bytes": data}

    @property
    def _is_closed(self) -> bool:
        return WebSocketState.DISCONNECTED in (self._websocket.application_state, self._websocket.client_state)

    async def _refuse(self, error: BackplaneError) -> None:
        try:
            await deny(self._websocket, denial(error))
        except Exception as failure:
            if not self.is_gone(failure):
                raise


def _data(message: MutableMapping[str, Any]) -> str | bytes | None:
    if message["type"] == "websocket.disconnect":
        return None
    text: str | None = message.get("text")
    data: bytes = message.get("bytes") or b""
    return data if text is None else text


async def _is_answered(code: int = 1000, reason: str | None = None) -> None:
    """Stand in for `WebSocket.close`, which the framework's handler of a `WebSocketException` calls."""
