"""What a link is to this process, and so what may be said on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backplane.adapters.ipc import wire

if TYPE_CHECKING:
    from backplane.adapters.ipc.link import Link
    from backplane.adapters.ipc.node import IpcNode
    from backplane.adapters.ipc.peer import Peer

__all__ = ["PendingConnection", "PublisherConnection", "SubscriberConnection"]


class PendingConnection:
    """Owner of an accepted connection that has not said whose it is."""

    __slots__ = ("_exchange",)

    def __init__(self, exchange: IpcNode) -> None:
        self._exchange = exchange

    def received(self, link: Link, kind: int, key: bytes, payload: bytes) -> None:
        """Take its HELLO and nothing else."""
        wire.check_hello(kind, payload)
        self._exchange.introduce(link, key.decode(errors="replace"))

    def drained(self, link: Link) -> None:
        """Nothing is sent to a stranger."""

    def ended(self, link: Link, *, complete: bool, valid: bool) -> None:
        """Forget it."""
        self._exchange.stranger_ended(link)


class SubscriberConnection:
    """Owner of a peer's connection to us."""

    __slots__ = ("_exchange", "_peer")

    def __init__(self, exchange: IpcNode, peer: Peer) -> None:
        self._exchange = exchange
        self._peer = peer

    def received(self, link: Link, kind: int, key: bytes, payload: bytes) -> None:
        """Take its interest, and its word on what waits for us."""
        if kind == wire.INTEREST:
            self._exchange.change_interest(self._peer, wire.read_interest(payload))
        elif kind == wire.READY:
            self._exchange.make_ready(self._peer)
        elif kind == wire.BEHIND:
            self._peer.audience.owes = True
        elif kind == wire.CAUGHT_UP:
            self._peer.audience.owes = False
        else:
            raise wire.WireError(f"a frame of kind {kind} from one who listens")

    def drained(self, link: Link) -> None:
        """Take back that bytes wait for it."""
        self._exchange.catch_up(self._peer)

    def ended(self, link: Link, *, complete: bool, valid: bool) -> None:
        """Forget its interest."""
        self._exchange.audience_ended(self._peer, complete=complete, valid=valid)


class PublisherConnection:
    """Owner of our connection to a peer."""

    __slots__ = ("_channels", "_deliver", "_exchange", "_peer")

    def __init__(self, exchange: IpcNode, peer: Peer) -> None:
        self._exchange = exchange
        self._peer = peer
        self._channels = exchange.channels
        self._deliver = exchange.sink.deliver

    def received(self, link: Link, kind: int, key: bytes, payload: bytes) -> None:
        """Deliver a message, or take what concerns the connection."""
        if kind == wire.MESSAGE:
            channel = self._channels.get(key)
            if channel is not None:
                self._deliver(channel, payload)
        elif kind == wire.ACK:
            self._exchange.confirmed(self._peer, with_gap=payload != b"\0")
        elif kind == wire.WELCOME:
            self._exchange.welcomed(self._peer)
        elif kind == wire.BYE:
            self._exchange.farewell(self._peer)
        else:
            raise wire.WireError(f"a frame of kind {kind} from one who publishes")

    def drained(self, link: Link) -> None:
        """What we say to a peer seldom waits, and nobody waits for it."""

    def ended(self, link: Link, *, complete: bool, valid: bool) -> None:
        """Connect again, if the peer is alive."""
        self._exchange.feed_ended(self._peer, complete=complete, valid=valid)
