"""A peer's connection to us: receives its subscriptions, sends it our messages."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from backplane.adapters.ipc import wire
from backplane.journal.events import PEER_LOST
from backplane.journal.writing import write
from backplane.patterns import Prefixes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from backplane.adapters.ipc.link import PeerLink
    from backplane.adapters.ipc.node_state import NodeState
    from backplane.adapters.ipc.publisher_connection import PublisherConnection

__all__ = ["SubscriberConnection"]

logger: Final = logging.getLogger("backplane.adapters.ipc.subscriber_connection")

_ACK: Final = wire.frame(wire.ACK, payload=wire.NO_GAP)
_ACK_WITH_GAP: Final = wire.frame(wire.ACK, payload=wire.GAP)
_BYE: Final = wire.frame(wire.BYE)
_WELCOME: Final = wire.frame(wire.WELCOME, payload=wire.TAKES_PREFIXES)

_MAX_BACKLOG_WITH_NUDGES_BYTES: Final = 64 * 1024


class SubscriberConnection:
    """Connection of a peer in its role as a subscriber; replaced when the peer connects again.

    Args:
        state: State of the node.
        name: Name of the peer's socket.
        publisher: Our connection to the same peer, on which it is notified of a backlog here.
        ended: Called when the link has ended and the node is not closing.

    Attributes:
        link: The present link, if there is one.
        ready: The peer has sent all its subscriptions, on this link.
        peer_has_backlog: The peer's last notice was that bytes for us wait in its memory.
    """

    __slots__ = (
        "_cut",
        "_log_keys",
        "_log_prefixes",
        "_name",
        "_nudge",
        "_on_ended",
        "_published_at_timeout",
        "_publisher",
        "_state",
        "link",
        "peer_has_backlog",
        "ready",
    )

    def __init__(self, state: NodeState, name: str, publisher: PublisherConnection, ended: Callable[[], None]) -> None:
        self.link: PeerLink | None = None
        self.ready: bool = False
        self.peer_has_backlog: bool = False
        self._state = state
        self._name = name
        self._publisher = publisher
        self._on_ended = ended
        self._log_keys: set[bytes] = set()  # the channels that it reads from the log
        self._log_prefixes: Prefixes[bytes] = Prefixes()  # and the prefixes of such channels
        self._nudge: bytes | None = None  # the last notice, while many bytes wait
        self._cut = False  # its backlog was too large: nothing is sent on this link, and what arrives is outdated
        self._published_at_timeout: int | None = None  # `published` when a wait for `ready` timed out

    @property
    def backlog_bytes(self) -> int:
        """How many bytes wait for the peer in our memory."""
        return self.link.backlog_bytes if self.link is not None else 0

    # -- opening and closing -----------------------------------------------------------------------------------------

    def open(self, link: PeerLink) -> None:
        """Use `link`, on which the peer has sent its HELLO, in place of the one before.

        A peer connects again only after its last connection has ended, even if that end is not read here yet.
        """
        self._state.subscribers.remove_all(self)
        self.close()
        link.owner = self
        self.link = link
        self._log_keys.clear()
        self._log_prefixes.clear()
        self._nudge = None
        self._cut = False
        self.peer_has_backlog = False
        link.send(_WELCOME)

    def close(self) -> None:
        """Close the link, if there is one."""
        if self.link is not None:
            self.link.close()
            self.link = None
        self.ready = False

    # -- sending -----------------------------------------------------------------------------------------------------

    def send(self, message: bytes) -> None:
        """Send a MESSAGE frame, or end the connection of a peer whose backlog would exceed its bound."""
        if self._exceeds_bound(len(message)):
            self._cut_off()
        elif self.link is not None:
            self.link.send(message)
            if self.link.backlog_bytes and not self._publisher.backlog_announced:
                self._publisher.announce_backlog(waiting=True)

    def reads(self, key: bytes) -> bool:
        """Whether the peer reads this channel from the log."""
        return key in self._log_keys or self._log_prefixes.covers(key)

    def nudge(self, notice: bytes) -> None:
        """Notify the peer of a record in the log.

        Such a notice is no message: it counts neither as a backlog nor against the bound. Where many bytes wait for the
        peer, the last notice is sent after them, and stands for all before it.
        """
        link = self.link
        if link is None:
            return
        if link.backlog_bytes > _MAX_BACKLOG_WITH_NUDGES_BYTES:
            self._nudge = notice
        else:
            link.send(notice)

    def send_bye(self) -> None:
        """Notify the peer that no message follows."""
        if self.link is not None:
            self.link.send(_BYE)

    def stop_waiting(self) -> None:
        """Wait no longer until the peer is ready: what is published from now on may not reach it."""
        self._published_at_timeout = self._state.published

    def _exceeds_bound(self, size_bytes: int) -> bool:
        """Whether `size_bytes` more would exceed the bound, after the kernel has taken what it can."""
        link = self.link
        if link is None or not link.backlog_bytes:
            return False
        bound = self._state.max_peer_backlog_bytes
        if link.backlog_bytes + size_bytes <= bound:
            return False
        link.flush()
        return bool(link.backlog_bytes) and link.backlog_bytes + size_bytes > bound

    def _cut_off(self) -> None:
        """Send nothing more, but read on: a notice about the peer's own backlog may still be in the socket."""
        bound = self._state.max_peer_backlog_bytes
        words = "cut peer %(peer)s, for which more than %(bytes)d bytes would wait"
        write(logger, PEER_LOST, words, peer=self._name, bytes=bound)
        self._state.subscribers.remove_all(self)
        if self.link is not None:
            self.link.end_writing()
        self._cut = True
        self.ready = False
        self._state.changed.set()

    # -- the link ----------------------------------------------------------------------------------------------------

    def received(self, kind: int, key: bytes, payload: bytes) -> None:
        """Process the peer's subscriptions, or its notice about a backlog."""
        if kind == wire.SUBSCRIPTIONS:
            self._change(wire.read_subscriptions(payload))
        elif kind == wire.READY:
            self._set_ready()
        elif kind == wire.BACKLOG:
            self.peer_has_backlog = True
        elif kind == wire.NO_BACKLOG:
            self.peer_has_backlog = False
        else:
            raise wire.WireError(f"unexpected frame of kind {kind} from a subscriber")

    def drained(self) -> None:
        """Notify the peer that nothing waits for it any more.

        Not before it is ready. A peer that was cut and has connected again learns of its loss only from our ACK frames;
        until it has read them, the announced backlog is what makes it report a gap if this process dies.
        """
        if self._publisher.backlog_announced and self.ready and not self.backlog_bytes:
            self._publisher.announce_backlog(waiting=False)
        self._state.changed.set()
        if self._nudge is not None and self.link is not None:
            notice, self._nudge = self._nudge, None
            self.link.send(notice)

    def ended(self, *, complete: bool, valid: bool) -> None:
        """Drop the peer's subscriptions; if it is alive it connects again."""
        self._state.subscribers.remove_all(self)
        self.link = None
        self.ready = False
        # A frame that was cut off may have been the notice that bytes for us wait.
        self.peer_has_backlog = self.peer_has_backlog or (valid and not complete)
        self._state.changed.set()
        if not self._state.closing:
            self._on_ended()

    def _change(self, changes: Iterable[tuple[bytes, int]]) -> None:
        """Apply changes of the peer's subscriptions and confirm them."""
        if self._cut or self.link is None:
            return
        subscribers = self._state.subscribers
        for key, wanted in changes:
            if key[:1] == wire.PREFIX:
                self._change_prefix(key[1:], wanted)
            elif wanted:
                subscribers.add(self, key)
                if wanted == wire.READ_FROM_LOG:
                    self._log_keys.add(key)
                else:
                    self._log_keys.discard(key)
            else:
                self._log_keys.discard(key)
                subscribers.remove(self, key)
        # Published between the timeout and now, a message may have been one of these channels.
        missed = self._published_at_timeout is not None and self._published_at_timeout != self._state.published
        self.link.send(_ACK_WITH_GAP if missed else _ACK)

    def _change_prefix(self, prefix: bytes, wanted: int) -> None:
        if wanted == wire.READ_FROM_LOG:
            self._log_prefixes.add([prefix])
        else:
            self._log_prefixes.remove([prefix])
        if wanted:
            self._state.subscribers.add_prefix(self, prefix)
        else:
            self._state.subscribers.remove_prefix(self, prefix)

    def _set_ready(self) -> None:
        """Note that the peer has sent all its subscriptions."""
        if self._cut:
            return
        self.ready = True
        self._published_at_timeout = None
        self.drained()
