"""What a connection needs of a web framework's WebSocket; `backplane.web.websocket` is Starlette's."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable

    from backplane.connection.ending import Ending
    from backplane.lane import HandedOverLane, Lane, LaneReceiver

__all__ = ["Bypass", "HandedOver", "OpenSocket", "ServerSocket", "Socket", "is_of_client"]

# What the system reports of a client that is gone. Any other number comes from elsewhere: a file or a connection of a
# middleware. An OSError without a number is the server's own, as ASGI requires (Uvicorn's `ClientDisconnected`), except
# a timeout.
_CLIENT_ERRNOS: Final = frozenset(
    {
        None,
        errno.EBADF,
        errno.ECONNABORTED,
        errno.ECONNRESET,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENOTCONN,
        errno.EPIPE,
        errno.ESHUTDOWN,
    }
)


class Bypass(Protocol):
    """Receives for an application that receives from its WebSocket itself; `Receiver` is one."""

    def bypass(self, receive: Callable[[], Awaitable[str | bytes | None]], /) -> Awaitable[str | bytes]:
        """Return the message that `receive` returns, within the limits of the connection.

        Raises:
            StopAsyncIteration: The end.
        """
        ...


class OpenSocket(Protocol):
    """A WebSocket, with ASGI or handed over."""

    @property
    def lane(self) -> Lane | None:
        """The server's direct lane, where it has one."""
        ...

    def is_gone(self, error: Exception) -> bool:
        """Return whether a send raised `error` because the client is gone; else it is a fault."""
        ...

    def read_ahead(
        self, on_message: Callable[[float], None], on_end: Callable[[], None], /
    ) -> Coroutine[Any, Any, None] | None:
        """Return what receives the messages that the handler asks for later.

        It calls `on_message` with the time of each, `on_end` when the client is gone. `None` where that runs already.
        """
        ...

    async def close(self, code: int, reason: str) -> None:
        """Close; a client that is gone is no error."""
        ...

    def ending(self, error: BaseException, /) -> Ending | None:
        """Return how an error of the web framework closes an accepted client; `None` for any other error."""
        ...


class HandedOver(OpenSocket, Protocol):
    """A WebSocket that its server has handed over."""

    @property
    def lane(self) -> HandedOverLane:
        """Both sides of it."""
        ...


class Socket(OpenSocket, Protocol):
    """An accepted WebSocket with ASGI, or one about to be accepted."""

    def send(self, data: str | bytes) -> Coroutine[Any, Any, None]:
        """Send one message; waits while the client does not read.

        Raises:
            Exception: It was not sent; `is_gone` returns whether the client is the reason.
        """
        ...

    async def receive(self) -> str | bytes | None:
        """Return the client's next message, or `None` at its end."""
        ...

    def on_bypass(self, receiver: Bypass, /) -> None:
        """Receive through `receiver` what the application receives from the WebSocket itself."""
        ...

    def hand_over(self, receiver: LaneReceiver, /) -> HandedOver | None:
        """Go on without ASGI, and return what replaces this; `None` where the server cannot do it for this client."""
        ...


class ServerSocket(Socket, Protocol):
    """A WebSocket whose handshake is not answered yet."""

    @property
    def origin(self) -> str | None:
        """The origin of the page that connects, as its browser sends it; `None` for what is no browser."""
        ...

    @property
    def host(self) -> str | None:
        """The host that the client requested."""
        ...

    @property
    def address_key(self) -> bytes | None:
        """Key of the client's address; `None` where the server does not know it."""
        ...

    async def left(self) -> None:
        """Return when the client has left. To be called before `accept` only, and not while it runs."""
        ...

    async def refuse(self, refused: Ending) -> BaseException:
        """Answer the handshake with an HTTP error, and return what the handler is to raise.

        The framework treats it as handled and logs no traceback, or answers it itself where the error is its own.
        """
        ...

    async def refuse_after_accept(self, refused: Ending, subprotocol: str | None) -> BaseException:
        """Refuse the client by accepting and closing, with a code and a reason that a page can read."""
        ...

    async def accept(self, subprotocol: str | None, headers: Iterable[tuple[bytes, bytes]] | None) -> None:
        """Finish the handshake."""
        ...

    def when_gone(self, callback: Callable[[], None], /) -> None:
        """Call `callback` once the client's transport is gone, and at once where the server does not report it."""
        ...


def is_of_client(error: OSError) -> bool:
    """Return whether an ASGI `send` raised `error` because its client is gone; else a middleware raised it."""
    return error.errno in _CLIENT_ERRNOS and not isinstance(error, TimeoutError)
