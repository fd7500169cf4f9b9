"""What a connection needs of a web framework's WebSocket; `backplane.websocket` is Starlette's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from backplane.ending import Ending
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

    async def close(self, code: int, reason: str) -> None:
        """Close; a client that is gone is no error."""
        ...

    def ending(self, error: BaseException, /) -> Ending | None:
        """Return what an error of the web framework means to an accepted client; `None` for any other error."""
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
    def address_key(self) -> bytes | None:
        """Key of the client's address; `None` where the server does not know it."""
        ...

    async def left(self) -> None:
        """Return when the client has left. Only before `accept`, and not at the same time."""
        ...

    async def refuse(self, refused: Ending) -> BaseException:
        """Answer the handshake with an HTTP error, and return what the handler is to raise.

        The framework takes it for handled and logs no traceback, or answers it itself where the error is its own.
        """
        ...

    async def refuse_after_accept(self, refused: Ending, subprotocol: str | None) -> BaseException:
        """Do the same by accepting and closing, with a code and words that a page can read."""
        ...

    async def accept(self, subprotocol: str | None, headers: Iterable[tuple[bytes, bytes]] | None) -> None:
        """Finish the handshake."""
        ...

    def when_gone(self, callback: Callable[[], None], /) -> None:
        """Call `callback` once the client's transport is gone, and at once where the server does not report it."""
        ...
