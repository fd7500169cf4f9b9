"""The direct lane: a way around ASGI for what a server writes to an accepted WebSocket.

A server that offers it puts a `Lane` into the scope of each WebSocket, `scope["extensions"]["backplane.lane"]`. What is
published is then a frame, built once, and one write to each socket; everything else (handshake, receiving, closing)
stays with ASGI. `backplane.server` has it for Uvicorn, docs/direct-lane.md says what another server has to do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["EXTENSION", "TRANSPORT", "ClientTransport", "Lane", "LaneWriter", "abort", "when_gone"]

EXTENSION: Final = "backplane.lane"
"""Where the lane is in `scope["extensions"]`."""

TRANSPORT: Final = "backplane.transport"
"""Where a `ClientTransport` is in `scope["extensions"]`: of WebSockets and of HTTP requests."""


class ClientTransport(Protocol):
    """What a server knows of one client's transport, which can outlive the application's part by seconds."""

    def when_gone(self, callback: Callable[[], None], /) -> None:
        """Call `callback` once, when the transport is gone; at once if it is.

        For an HTTP request that was answered in full on a connection that goes on: at once.
        """
        ...

    def abort(self) -> None:
        """Cut the connection and drop what the server holds, for a client that does not take it."""
        ...


def abort(scope: Mapping[str, Any]) -> bool:
    """Cut the client of `scope` off; return whether its server offers that."""
    transport: ClientTransport | None = scope.get("extensions", {}).get(TRANSPORT)
    if transport is None:
        return False
    transport.abort()
    return True


def when_gone(scope: Mapping[str, Any], callback: Callable[[], None]) -> None:
    """Call `callback` once the client of `scope` is gone, and at once where the server does not report it."""
    transport: ClientTransport | None = scope.get("extensions", {}).get(TRANSPORT)
    if transport is None:
        callback()
    else:
        transport.when_gone(callback)


class LaneWriter(Protocol):
    """Who writes to a lane. Both methods are called on the server's event loop; neither may raise."""

    def lane_writable(self, writable: bool, /) -> None:
        """Learn whether `lane.write` may be called from now on.

        `True`: it may. What waited is to be written before this returns, for an awaited ASGI `send` goes on behind it.
        `False`: it may not. This can come out of `lane.write` itself, whose frame the server has taken all the same.
        """
        ...

    def lane_closed(self) -> None:
        """Learn, once, that the connection has left the state OPEN: nothing may be written any more."""
        ...


class Lane(Protocol):
    """The writing side of one WebSocket, owned by its server.

    Not safe to use from another thread. Nothing of it waits.
    """

    @property
    def write(self) -> Callable[[bytes], object]:
        """Write whole frames, one or several: the transport's own method, with no check of its own.

        To be called only by an attached user that was last told that it may, and not after `lane_closed`. It does
        nothing before `attach` and after the end; do not keep what it returned beyond that.
        """
        ...

    @property
    def writable(self) -> bool:
        """Whether the transport takes more; `False` after the end."""
        ...

    @property
    def reading(self) -> bool:
        """Whether the server reads at the moment.

        A server stops reading a client whose messages the application does not receive. `last_received_at` stands still
        then, which shows nothing about the client.
        """
        ...

    @property
    def last_received_at(self) -> float:
        """When the client's last bytes came, of whatever kind, a pong too: by the event loop's clock, in seconds."""
        ...

    @property
    def buffered_bytes(self) -> int:
        """How many bytes the server holds that the system has not taken."""
        ...

    @property
    def deflate_window_bits(self) -> int | None:
        """Size of the window for compressed frames that connections share (`backplane.fanout.frames.compress_frame`).

        `None` where permessage-deflate was not negotiated, or without `server_no_context_takeover`: there, frames may
        only be written as they are.
        """
        ...

    @property
    def close_code(self) -> int | None:
        """With which code the server has closed, of its own accord or for the application; `None` if it has not.

        1009 where a message was above `limit_messages`.
        """
        ...

    def attach(self, user: LaneWriter, /) -> None:
        """Give the lane to `user`, once, after the handshake was accepted.

        Calls `user.lane_writable` with what is so now, and at every change; or only `user.lane_closed`, if the
        connection is closing or gone.

        Raises:
            LifecycleError: The handshake was not accepted yet, or the lane has a user.
        """
        ...

    def limit_messages(self, max_bytes: int, /) -> None:
        """Refuse messages of the client above `max_bytes` with code 1009, before they are assembled or inflated.

        May be called before the handshake is accepted. A lower limit of the server's own remains.
        """
        ...

    def ping(self) -> None:
        """Send a ping, whose pong sets `last_received_at`. Does nothing while not writable: it would only wait too."""
        ...

    def close(self) -> None:
        """Close without a close frame, for a client that takes none, while its handler may go on.

        What the server holds is still sent for as long as the client takes it; then the connection is cut.
        """
        ...

    def abort(self) -> None:
        """Cut the connection and drop what the server holds, for a client that has vanished.

        `lane_closed` comes in a later pass of the event loop.
        """
        ...
