"""A Starlette or FastAPI `WebSocket` as the `Socket` that a `Connection` needs."""

from __future__ import annotations

import asyncio
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, Final, NoReturn

from starlette.exceptions import WebSocketException
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from backplane.close_codes import close_reason
from backplane.connection.sender import SocketGoneError
from backplane.connection.socket import is_of_client
from backplane.errors import BackplaneError, ClosedError, LifecycleError
from backplane.lane import EXTENSION, when_gone
from backplane.web.client_address import address_key
from backplane.web.framework_errors import framework_ending, is_use_after_end
from backplane.web.read_ahead import ReadAhead
from backplane.web.refusal import denial, deny

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, MutableMapping

    from starlette.types import Message

    from backplane.connection.ending import Ending
    from backplane.connection.socket import Bypass
    from backplane.lane import HandedOverLane, Lane, LaneReceiver

__all__ = ["HandedOverSocket", "StarletteSocket"]

_STARLETTE_SEND: Final = WebSocket.send

# A client that does not read does not read the reason of its refusal either.
_REFUSE_SECONDS: Final = 1.0


class StarletteSocket:
    """Wraps `websocket`, which must not have been accepted yet.

    Raises:
        LifecycleError: It was accepted.
        ClosedError: It is closed.
    """

    __slots__ = ("_ahead", "_bypass", "_sends_directly", "_websocket", "lane")

    def __init__(self, websocket: WebSocket) -> None:
        states = (websocket.application_state, websocket.client_state)
        if WebSocketState.DISCONNECTED in states:
            raise ClosedError("this WebSocket is closed already")
        if websocket.application_state is not WebSocketState.CONNECTING:
            raise LifecycleError(
                "this WebSocket is accepted already: connect() accepts it, remove `await websocket.accept()`"
            )
        self._websocket = websocket
        self._bypass: Bypass | None = None
        self._ahead: ReadAhead | None = None
        self._sends_directly = False
        self.lane: Lane | None = websocket.scope.get("extensions", {}).get(EXTENSION)

    @property
    def origin(self) -> str | None:
        """The origin of the page that connects, as its browser sends it; `None` for what is no browser."""
        return self._websocket.headers.get("origin")

    @property
    def host(self) -> str | None:
        """The host that the client requested."""
        return self._websocket.headers.get("host")

    def offers(self, subprotocol: str) -> bool:
        """Return whether the client offers a subprotocol."""
        return subprotocol in self._websocket.scope.get("subprotocols", ())

    @property
    def address_key(self) -> bytes | None:
        """Key of the client's address; `None` where the server does not know it."""
        return address_key(self._websocket.scope)

    async def accept(self, subprotocol: str | None, headers: Iterable[tuple[bytes, bytes]] | None) -> None:
        """Finish the handshake."""
        await self._websocket.accept(subprotocol, headers)
        self._sends_directly = _sends_directly(self._websocket)
        self._websocket.receive = self._receive_bypassed  # type: ignore[method-assign]

    async def left(self) -> None:
        """Return when the client has left; before the handshake is answered it can send nothing else."""
        while (await self._websocket.receive())["type"] != "websocket.disconnect":
            pass

    async def refuse(self, refused: Ending) -> BaseException:
        """Answer the handshake with an HTTP error, and return what the handler is to raise.

        `backplane.web.refusal` decides with which status. A server without the denial response extension answers 403.
        Any other error is left to the framework, which answers its own `HTTPException` and `WebSocketException`.
        """
        if not isinstance(refused.error, BackplaneError):
            return refused.error or AssertionError("a refusal without an error")
        try:
            await deny(self._websocket, denial(refused.error))
        except Exception as failure:
            if not self.is_gone(failure):
                raise
        return self._answered(refused)

    async def refuse_after_accept(self, refused: Ending, subprotocol: str | None) -> BaseException:
        """Accept and close, and return what the handler is to raise."""
        deadline = asyncio.timeout(_REFUSE_SECONDS)
        try:
            async with deadline:
                await self.accept(subprotocol, None)
                await self._websocket.close(refused.code, close_reason(refused.code, refused.reason))
        except Exception as failure:
            if not (deadline.expired() or self.is_gone(failure)):
                raise
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
        """Return how an error of the framework closes an accepted client; `None` for any other error."""
        return framework_ending(error)

    def send(self, data: str | bytes) -> Coroutine[Any, Any, None]:
        """Send one message."""
        websocket = self._websocket
        message: Message = {"type": "websocket.send", "text" if isinstance(data, str) else "bytes": data}
        # What `send_text` and `send_bytes` do. Each coroutine that is left out saves a tenth of a send.
        if self._sends_directly and websocket.application_state is WebSocketState.CONNECTED:
            return websocket._send(message)  # type: ignore[return-value]  # pyright: ignore[reportPrivateUsage, reportReturnType]
        return websocket.send(message)

    def is_gone(self, error: Exception) -> bool:
        """Return whether the client is gone, by the state of the socket where `error` alone does not show it.

        Uvicorn raises an OSError of its own, and after a close a RuntimeError, as Starlette does; Hypercorn, Granian
        and Daphne drop what is sent to a client that is gone. A task group of a middleware makes a group of the error.
        """
        is_gone = self._shows_end(error)
        if is_gone and isinstance(error, OSError):
            self._websocket.application_state = WebSocketState.DISCONNECTED  # as `WebSocket.send` does
        return is_gone

    def _shows_end(self, error: Exception) -> bool:
        if self._websocket.client_state is WebSocketState.DISCONNECTED:
            return True
        match error:
            case WebSocketDisconnect():
                cause = error.__context__  # Starlette treats every OSError as the end, a middleware's own too
                if isinstance(cause, OSError) and not is_of_client(cause):
                    self._websocket.application_state = WebSocketState.CONNECTED  # so that it can be closed
                    return False
                return True
            case OSError():
                return is_of_client(error)
            case ExceptionGroup():
                parts: tuple[Exception, ...] = error.exceptions
                return all(self._shows_end(part) for part in parts)
            case _:
                return isinstance(error, SocketGoneError) or self._is_closed or is_use_after_end(error)

    async def receive(self) -> str | bytes | None:
        """Return the next message, or `None` when the client is gone."""
        if self._is_closed:
            return None
        return _data(await type(self._websocket).receive(self._websocket))

    def read_ahead(
        self, on_message: Callable[[float], None], on_end: Callable[[], None], /
    ) -> Coroutine[Any, Any, None] | None:
        """Return what receives the messages that `receive` returns later, and notifies of each and of the end.

        What receives from the `WebSocket` itself gets them too, in order. `None` where that runs already.
        """
        if self._ahead is None:
            receive = self._websocket._receive  # pyright: ignore[reportPrivateUsage]
            self._ahead = ReadAhead(receive, on_message, on_end)
            self._websocket._receive = self._ahead.receive  # pyright: ignore[reportPrivateUsage]
        return None if self._ahead.is_reading else self._ahead.run()

    async def close(self, code: int, reason: str) -> None:
        """Close, if it is still open."""
        if self._is_closed:
            return
        try:
            await self._websocket.close(code, reason)
        except Exception as error:
            if not self.is_gone(error):
                raise

    def hand_over(self, receiver: LaneReceiver, /) -> HandedOverSocket | None:
        """Take the client from ASGI; from then on its `WebSocket` is one that is closed."""
        lane = None if self.lane is None or self._ahead is not None else self.lane.hand_over(receiver)
        if lane is None:
            return None
        self._websocket.application_state = self._websocket.client_state = WebSocketState.DISCONNECTED
        del self._websocket.receive  # cycles, in which the scope and the protocol would wait for a collection
        self._bypass = None
        return HandedOverSocket(lane)

    def on_bypass(self, receiver: Bypass, /) -> None:
        """Receive through `receiver` what the application receives from the WebSocket itself, once it is accepted."""
        self._bypass = receiver

    def when_gone(self, callback: Callable[[], None], /) -> None:
        """Call `callback` once the client's transport is gone, and at once where the server does not report it."""
        when_gone(self._websocket.scope, callback)

    async def _receive_bypassed(self) -> MutableMapping[str, Any]:
        """Replace `WebSocket.receive`, which all of its methods that receive call."""
        message: MutableMapping[str, Any] = {"type": "websocket.disconnect", "code": 1006, "reason": ""}

        async def receive() -> str | bytes | None:
            nonlocal message
            received = await type(self._websocket).receive(self._websocket)
            if received["type"] == "websocket.disconnect":
                message = received
            return _data(received)

        if self._bypass is None:
            return await type(self._websocket).receive(self._websocket)
        try:
            data = await self._bypass.bypass(receive)
        except StopAsyncIteration:
            self._websocket.receive = _end_is_received  # type: ignore[method-assign]
            return message
        return {"type": "websocket.receive", "text" if isinstance(data, str) else "bytes": data}

    @property
    def _is_closed(self) -> bool:
        return WebSocketState.DISCONNECTED in (self._websocket.application_state, self._websocket.client_state)


class HandedOverSocket:
    """A client that the server has handed over: of the framework only its errors are left."""

    __slots__ = ("lane",)

    def __init__(self, lane: HandedOverLane) -> None:
        self.lane: HandedOverLane = lane

    @staticmethod
    def ending(error: BaseException, /) -> Ending | None:
        """Return how an error of the framework closes the client; `None` for any other error."""
        return framework_ending(error)

    def is_gone(self, error: Exception) -> bool:
        """Return whether the transport raised `error` because the client is gone."""
        return isinstance(error, OSError) and is_of_client(error)

    def read_ahead(self, _: Callable[[float], None], __: Callable[[], None], /) -> None:
        """Return `None`: the server receives without being asked."""

    async def close(self, code: int, reason: str) -> None:
        """Send the close frame, after what the transport has buffered."""
        self.lane.close_with(code, reason)


def _sends_directly(websocket: WebSocket) -> bool:
    """Return whether `WebSocket.send` can be left out: it is Starlette's own and calls a coroutine function.

    Any other function would run outside of the client's task and Context, up to the awaitable that it returns.
    """
    is_own = getattr(websocket.send, "__func__", None) is _STARLETTE_SEND
    return is_own and iscoroutinefunction(getattr(websocket, "_send", None))


def _data(message: MutableMapping[str, Any]) -> str | bytes | None:
    if message["type"] == "websocket.disconnect":
        return None
    text: str | None = message.get("text")
    data: bytes = message.get("bytes") or b""
    return data if text is None else text


async def _end_is_received() -> NoReturn:
    """Replace `WebSocket.receive` after the end, as after a client's: a loop that ignores it would never suspend."""
    raise RuntimeError('Cannot call "receive" once a disconnect message has been received.')


async def _is_answered(code: int = 1000, reason: str | None = None) -> None:
    """Replace `WebSocket.close`, which the framework's handler of a `WebSocketException` calls."""
