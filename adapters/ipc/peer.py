"""One other process of the application, in both directions."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from backplane.adapters.ipc.publisher_connection import PublisherConnection
from backplane.adapters.ipc.subscriber_connection import SubscriberConnection
from backplane.journal.events import PEER_LOST
from backplane.journal.writing import write

if TYPE_CHECKING:
    from collections.abc import Callable

    from backplane.adapters.ipc.link import PeerLink
    from backplane.adapters.ipc.node_state import NodeState

__all__ = ["Peer"]

logger: Final = logging.getLogger("backplane.adapters.ipc.peer")


class Peer:
    """A peer from its discovery to its end.

    A pair of processes has two connections, each opened by the process that subscribes on it. A peer that stops sends
    BYE. One that dies is found when its socket refuses a connection; it is forgotten, and what died with it is
    reported, once everything that it had sent has been read.

    Args:
        state: State of the node.
        name: Name of the peer's socket.
        forget: Called once when the peer is gone, to remove it from the node's peers.

    Attributes:
        name: Name of its socket.
        publisher: Our connection to it, on which it publishes.
        subscriber: Its connection to us, on which it subscribes.
        dead: Its socket refused a connection.
    """

    __slots__ = ("_forget", "_state", "dead", "name", "publisher", "subscriber")

    def __init__(self, state: NodeState, name: str, forget: Callable[[Peer], None]) -> None:
        self.name: str = name
        self.publisher: PublisherConnection = PublisherConnection(state, name, self)
        self.subscriber: SubscriberConnection = SubscriberConnection(
            state, name, self.publisher, self._subscriber_ended
        )
        self.dead: bool = False
        self._state = state
        self._forget = forget

    @property
    def is_connecting(self) -> bool:
        """Whether it is being connected: there is a link to it, but not yet a working one in each direction."""
        return self.publisher.link is not None and not (self.publisher.welcomed and self.subscriber.ready)

    def accept(self, link: PeerLink) -> None:
        """Take a link on which the peer has sent its HELLO, and connect to the peer as well."""
        self.subscriber.open(link)
        self.dead = False
        if not self.publisher.is_open_or_retrying:
            self.publisher.connect_anew()

    def stop_waiting(self) -> None:
        """Go on without a peer that is not connected in time; it reports a gap for what it misses, and so do we."""
        if self.is_connecting:
            write(logger, PEER_LOST, "peer %(peer)s does not answer, starting without it", peer=self.name)
        if not self.publisher.welcomed:
            self.publisher.stop_waiting()
        if not self.subscriber.ready:
            self.subscriber.stop_waiting()

    def close(self) -> None:
        """Close both connections."""
        self.publisher.close()
        self.subscriber.close()

    # -- what its connections report ---------------------------------------------------------------------------------

    def peer_left(self) -> None:
        """Forget the peer, which has sent all its messages; report what was lost on an earlier link, if any."""
        self._end()
        publisher = self.publisher
        missed = self._state.keys if publisher.lost else publisher.ledger.missed
        self._state.report_gap(missed, f"peer {self.name} left while it could not be reached")
        if not publisher.lost:
            self._report_unserved()

    def peer_died(self) -> None:
        """Note that the peer's socket refuses connections."""
        self.dead = True
        self._forget_dead_peer()

    def _subscriber_ended(self) -> None:
        if self.dead:
            self._forget_dead_peer()
        elif not self.publisher.is_open_or_retrying:
            self.publisher.connect()

    def _forget_dead_peer(self) -> None:
        """Forget a dead peer once all that it sent has been read, and report what died with it."""
        if self.subscriber.link is not None:  # its last bytes may hold a notice that messages for us wait
            return
        self._end()
        publisher = self.publisher
        is_incomplete = publisher.ended_mid_frame or self.subscriber.peer_has_backlog
        missed = self._state.keys if is_incomplete else publisher.ledger.missed
        self._state.report_gap(missed, f"peer {self.name} died with messages for us")
        if not is_incomplete:
            self._report_unserved()

    def _report_unserved(self) -> None:
        if self.publisher.lacks_prefixes:
            reason = f"peer {self.name} ran a release that sends nothing for patterns"
            self._state.report_gap(self._state.prefix_keys, reason)

    def _end(self) -> None:
        self._forget(self)
        self._state.subscribers.remove_all(self.subscriber)
        self.close()
        self._state.changed.set()
