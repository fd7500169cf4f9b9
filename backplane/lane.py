"""The direct lane: a way to write to an accepted WebSocket without ASGI.

A server that offers it puts a `Lane` into the scope of each WebSocket, at `scope["extensions"]["backplane.lane"]`. A
published message is then one frame, built once, and one write to each socket. Everything else (handshake, receiving,
closing) remains with ASGI, until the connection is handed over (`Lane.hand_over`): from then on it needs neither ASGI
nor a task. `backplane.server` implements the lane for Uvicorn; docs/operations/direct-lane.md describes what another
server has to do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "EXTENSION",
    "TRANSPORT",
    "ClientTransport",
    "HandedOverLane",
    "Lane",
    "LaneReceiver",
    "LaneWriter",
    "abort",
    "when_gone",
]

EXTENSION: Final = "backplane.lane"
"""Key of the `Lane` in `scope["extensions"]`."""

TRANSPORT: Final = "backplane.transport"
"""Key of the `ClientTransport` in `scope["extensions"]`, of WebSockets and of HTTP requests."""


class ClientTransport(Protocol):
    """The transport of one client, as its server knows it. It can outlive the handler of the application by seconds."""

    def when_gone(self, callback: Callable[[], None], /) -> None:
        """Call `callback` once, when the transport is closed; at once if it is.

        For an HTTP request that is answered completely, on a connection that is kept alive: at once.
        """
        ...

    def abort(self) -> None:
        """Close the transport at once and drop what the server has buffered, for a client that does not read it."""
        ...


def abort(scope: Mapping[str, Any]) -> bool:
    """Abort the transport of the client of `scope`; return whether its server offers that."""
    transport: ClientTransport | None = scope.get("extensions", {}).get(TRANSPORT)
    if transport is None:
        return False
    transport.abort()
    return True


def when_gone(scope: Mapping[str, Any], callback: Callable[[], None]) -> None:
    """Call `callback` once the transport of `scope` is closed, or at once if the server does not report that."""
    transport: ClientTransport | None = scope.get("extensions", {}).get(TRANSPORT)
    if transport is None:
        callback()
    else:
        transport.when_gone(callback)


class LaneWriter(Protocol):
    """Callbacks of the party that writes to a lane.

    The server calls both methods in its event loop; neither may raise.
    """

    def lane_writable(self, writable: bool, /) -> None:
        """Take notice of whether `lane.write` may be called from now on.

        With `True` it may. What is waiting must be written before this returns: an ASGI `send` that the application
        awaits continues after it, and its message comes later than those.

        With `False` it may not. The server can call this from within `lane.write`; it has then accepted that frame.
        """
        ...

    def lane_closed(self) -> None:
        """Take notice, once, that the connection has left the state OPEN: nothing may be written any more."""
        ...


class LaneReceiver(Protocol):
    """Callbacks of the party that receives from a lane that was handed over.

    The server calls both methods in its event loop; neither may raise.
    """

    def message_arrived(self) -> None:
        """Take notice that messages have arrived, to be fetched with `HandedOverLane.take` in this call or later.

        Not called from within `take`.
        """
        ...

    def receiving_ended(self) -> None:
        """Take notice, once, that no message will arrive any more. Those that wait can still be fetched."""
        ...


class Lane(Protocol):
    """The writing side of one WebSocket, owned by its server.

    Not thread-safe: to be used in the server's event loop. No method waits.
    """

    @property
    def write(self) -> Callable[[bytes], object]:
        """Write whole frames, one or several. This is the method of the transport itself, without any check.

        To be called only by the attached writer, after `lane_writable(True)`, not after `lane_writable(False)`, and not
        after `lane_closed`. It does nothing before `attach` and after the end; do not keep the returned method beyond
        the end.
        """
        ...

    @property
    def writable(self) -> bool:
        """Whether the transport accepts more at the moment; `False` after the end."""
        ...

    @property
    def reading(self) -> bool:
        """Whether the server reads from the client at the moment.

        A server stops reading from a client whose messages the application does not receive. `last_received_at` does
        not advance then, which shows nothing about the client.
        """
        ...

    @property
    def last_received_at(self) -> float:
        """When bytes were last received from the client, of whatever kind, a pong included.

        By the event loop's clock, in seconds.
        """
        ...

    @property
    def buffered_bytes(self) -> int:
        """How many bytes the server has buffered, because the operating system has not accepted them yet."""
        ...

    @property
    def deflate_window_bits(self) -> int | None:
        """Size of the window for compressed frames that connections share (`backplane.fanout.frames.compress_frame`).

        `None` if permessage-deflate was not negotiated, or without `server_no_context_takeover`: only uncompressed
        frames may be written then.
        """
        ...

    @property
    def close_code(self) -> int | None:
        """The code with which the server has closed, by itself or for the application; `None` if it has not.

        It is 1009 after a message above the limit of `limit_messages`.
        """
        ...

    def attach(self, user: LaneWriter, /) -> None:
        """Give the lane to `user`, once, after the handshake was accepted.

        Calls `user.lane_writable` with the present state, and at every change from then on; or only `user.lane_closed`
        if the connection is closing or closed.

        Raises:
            LifecycleError: The handshake was not accepted yet, or the lane has a writer.
        """
        ...

    def limit_messages(self, max_bytes: int, /) -> None:
        """Refuse messages of the client above `max_bytes` with code 1009, before they are assembled or decompressed.

        May be called before the handshake is accepted. A lower limit of the server's own remains in force.
        """
        ...

    def ping(self) -> None:
        """Send a ping, whose pong sets `last_received_at`. Does nothing while not writable: it would only be queued."""
        ...

    def close(self) -> None:
        """Close without a close frame, for a client that reads none, although its handler may go on.

        What the server has buffered is still sent for as long as the client reads; then the connection is aborted.
        """
        ...

    def abort(self) -> None:
        """Abort the connection and drop what the server has buffered, for a client that has vanished.

        `lane_closed` is called in a later pass of the event loop.
        """
        ...

    def hand_over(self, receiver: LaneReceiver, /) -> HandedOverLane | None:
        """Take the connection from ASGI: it goes on when the application's task ends, and needs none.

        To be called once, after `attach`, in the application's task. The writer stays attached. From now on what the
        application sends or receives by ASGI finds a client that is gone.

        Args:
            receiver: What is notified of the client's messages.

        Returns:
            The lane that replaces this one. `None` where the server cannot do it for this client, and nothing has
            changed then: the connection is not open, has no writer, or the client has sent something already.
        """
        ...


class HandedOverLane(Lane, ClientTransport, Protocol):
    """Both sides of a WebSocket that its server has handed over."""

    def take(self) -> str | bytes | None:
        """Return the client's next message; `None` where none waits.

        While 64 messages or 64 KiB wait the server reads nothing more from the client.
        """
        ...

    def close_with(self, code: int, reason: str, /) -> None:
        """Send a close frame, and end the lane.

        What was written before is sent first. The client has 5 s to answer; then the connection is closed, as it is if
        it stops reading. Does nothing where a close frame was sent or received before.
        """
        ...
