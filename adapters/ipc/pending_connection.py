"""An accepted connection whose peer is not known yet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from backplane.adapters.ipc import wire

if TYPE_CHECKING:
    import socket

    from backplane.adapters.ipc.link import PeerLink
    from backplane.adapters.ipc.node_state import NodeState

__all__ = ["PendingCallbacks", "PendingConnection"]


class PendingCallbacks(Protocol):
    """Callbacks of a pending connection."""

    def identify(self, connection: PendingConnection, name: str, /) -> None:
        """The other side listens on the socket `name`.

        Raises:
            WireError: No peer can have this name.
        """

    def pending_ended(self, connection: PendingConnection, /) -> None:
        """The connection ended before a HELLO."""


class PendingConnection:
    """Owner of an accepted link until its HELLO arrives; then a `SubscriberConnection` owns it.

    Args:
        state: State of the node.
        sock: The accepted socket.
        callbacks: Notified of the HELLO, or of the end.

    Attributes:
        link: The link.
    """

    __slots__ = ("_callbacks", "link")

    def __init__(self, state: NodeState, sock: socket.socket, callbacks: PendingCallbacks) -> None:
        self._callbacks = callbacks
        self.link: PeerLink = state.open_link(sock, self)

    def received(self, kind: int, key: bytes, payload: bytes) -> None:
        """Accept a HELLO and no other frame."""
        wire.check_hello(kind, payload)
        self._callbacks.identify(self, key.decode(errors="replace"))

    def drained(self) -> None:
        """Do nothing: nothing is sent on a pending connection."""

    def ended(self, *, complete: bool, valid: bool) -> None:
        """Report the end."""
        self._callbacks.pending_ended(self)
