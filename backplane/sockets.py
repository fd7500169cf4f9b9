"""What a connection needs of a web framework's WebSocket; `backplane.websocket` is Starlette's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable
    from contextlib import AbstractAsyncContextManager

    from backplane.lane import Lane

__all__ = ["ServerSocket", "Socket"]


class Socket(Protocol):
    """An accepted WebSocket, or one about to be."""

    @property
    def lane(self) -> Lane | None:
        """The server's direct lane, where it has one."""
        ...

    async def send(self, data: str | bytes) -> None:
        """Send one message; waits while the client does not read.

        Raises:
            SocketGoneError: It is gone.
        """
        ...

    async def receive(self) -> str | bytes | None:
        """Return the client's next message, or `None` at its end."""
        ...

    def read_ahead(self, on_end: Callable[[], None], /) -> Coroutine[Any, Any, None] | None:
        """Return what receives the messages that `receive` returns later, and calls `on_end` when the client is gone.

        `None` where that is under way.
        """
        ...

    async def close(self, code: int, reason: str) -> None:
        """Close; a client that is gone is no error."""
        ...


class ServerSocket(Socket, Protocol):
    """A WebSocket whose handshake is not answered yet."""

    @property
    def origin(self) -> str | None:
        """The page the client says it is on; `None` for what is no browser."""
        ...

    @property
    def host(self) -> str | None:
        """The host the client wanted to reach."""
        ...

    @property
    def client_host(self) -> str:
        """The client's address, as the server knows it."""
        ...

    def refusing_on_error(self) -> AbstractAsyncContextManager[None]:
        """Answer the handshake with an HTTP error if the block raises one of ours, and let the error go on."""
        ...

    async def accept(self, subprotocol: str | None, headers: Iterable[tuple[bytes, bytes]] | None) -> None:
        """Finish the handshake."""
        ...

    def when_gone(self, callback: Callable[[], None], /) -> None:
        """Call `callback` once the client's transport is gone, and at once where the server does not report it."""
        ...
