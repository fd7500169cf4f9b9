"""Our connection to a peer: sends it our subscriptions, receives its messages."""

from __future__ import annotations

import logging
from contextvars import Context
from typing import TYPE_CHECKING, Final, Protocol

from backplane.adapters.ipc import wire
from backplane.adapters.ipc.ledger import Ledger
from backplane.journal.events import PEER_LOST
from backplane.journal.writing import write
from backplane.unix_sockets.sockets import connect_socket, remove_stale

if TYPE_CHECKING:
    import socket
    from asyncio import TimerHandle
    from collections.abc import Callable, Collection

    from backplane.adapters.ipc.link import PeerLink
    from backplane.adapters.ipc.node_state import NodeState

__all__ = ["PublisherCallbacks", "PublisherConnection"]

logger: Final = logging.getLogger("backplane.adapters.ipc.publisher_connection")

_MAX_ATTEMPTS: Final = 3  # connections in a row that end before a WELCOME
_RETRY_SECONDS: Final = 1.0

_BACKLOG: Final = wire.frame(wire.BACKLOG)
_NO_BACKLOG: Final = wire.frame(wire.NO_BACKLOG)
_READY: Final = wire.frame(wire.READY)


class PublisherCallbacks(Protocol):
    """Callbacks of a publisher connection."""

    def peer_left(self) -> None:
        """The peer stops, and has sent all its messages."""

    def peer_died(self) -> None:
        """The peer's socket refuses connections, or is gone."""


class PublisherConnection:
    """Connection to a peer in its role as a publisher; opened anew while the peer lives.

    The object outlives its links: what the peer has confirmed and what may be missing counts across them.

    Args:
        state: State of the node.
        name: Name of the peer's socket.
        callbacks: Notified of the peer's end.

    Attributes:
        ledger: Our channels, as far as the peer knows them.
        link: The present link, if there is one.
        welcomed: The peer has understood our HELLO, on this link.
        lost: The last link ended without a BYE, and no other has been welcomed since.
        ended_mid_frame: A link ended inside a frame, so a message was certainly lost.
        backlog_announced: The peer was last notified that bytes for it wait in our memory.
        lacks_prefixes: The peer runs a release that takes a prefix for the name of a channel.
    """

    __slots__ = (
        "_attempts",
        "_callbacks",
        "_channels",
        "_deliver",
        "_has_warned",
        "_late",
        "_name",
        "_nudged_to",
        "_ready_sent",
        "_retry",
        "_state",
        "_wrote_to",
        "backlog_announced",
        "ended_mid_frame",
        "lacks_prefixes",
        "ledger",
        "link",
        "lost",
        "welcomed",
    )

    def __init__(self, state: NodeState, name: str, callbacks: PublisherCallbacks) -> None:
        self.ledger: Ledger = Ledger()
        self.link: PeerLink | None = None
        self.welcomed: bool = False
        self.lost: bool = False
        self.ended_mid_frame: bool = False
        self.backlog_announced: bool = False
        self.lacks_prefixes: bool = False
        self._state = state
        self._channels = state.channels
        self._deliver: Callable[[str, bytes], None] = state.sink.deliver
        self._nudged_to = 0  # up to this offset the log has something new; 0 if it was read
        self._wrote_to = 0  # up to this offset the peer has written
        self._name = name
        self._callbacks = callbacks
        self._has_warned = False
        self._late = False  # a wait for the peer timed out; it is not waited for until it has confirmed everything
        self._ready_sent = False
        self._attempts = 0  # links opened since the last one that was welcomed
        self._retry: TimerHandle | None = None

    @property
    def is_open_or_retrying(self) -> bool:
        """Whether there is a link or a timer that will open one."""
        return self.link is not None or self._retry is not None

    # -- opening and closing -----------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Connect to the peer's socket.

        Where the peer has died, `peer_died` is called before this returns. Where this process lacks the means (file
        descriptors, for example), it is tried again every second, and messages of the peer may be missing until then.
        """
        self._retry = None
        path = self._state.folder / self._name
        try:
            sock = connect_socket(path)
        except (ConnectionRefusedError, FileNotFoundError):
            remove_stale(path)
            self._callbacks.peer_died()
        except OSError as error:
            words = "cannot connect to peer %(peer)s (%(reason)s), trying again in a second"
            write(logger, PEER_LOST, words, peer=self._name, reason=error.strerror)
            self.stop_waiting()
            self._retry = self._state.loop.call_later(_RETRY_SECONDS, self.connect)
        else:
            self._open(sock)

    def connect_anew(self) -> None:
        """Connect to a peer that has just connected to us; earlier attempts do not count."""
        self._attempts = 0
        self.connect()

    def close(self) -> None:
        """Close the link and stop trying to open one."""
        self.cancel_retry()
        if self.link is not None:
            self.link.close()
            self.link = None

    def cancel_retry(self) -> None:
        """Stop trying to open a link."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    def _open(self, sock: socket.socket) -> None:
        self.link = self._state.open_link(sock, self)
        self.welcomed = False
        self._ready_sent = False
        self._attempts += 1
        self.link.send(wire.hello_frame(self._state.own_name))
        if self.backlog_announced:  # on an earlier link, which the peer may not have read to its end
            self.link.send(_BACKLOG)
        self.ledger.restart(self._state.keys)
        self._send_subscriptions()

    # -- sending -----------------------------------------------------------------------------------------------------

    def request(self, keys: Collection[bytes], *, wanted: bool) -> int:
        """Subscribe the peer's messages of `keys`, or unsubscribe; return the ticket for `is_awaited`."""
        ticket = self.ledger.request(keys, wanted=wanted)
        if self._late:
            self.ledger.mark_possible_loss()
        self._send_subscriptions()
        self._warn_of_prefixes()
        return ticket

    def is_awaited(self, ticket: int) -> bool:
        """Whether the confirmation of `ticket` is still worth waiting for."""
        return not self._late and not self.ledger.has_confirmed(ticket)

    def stop_waiting(self) -> None:
        """Wait for no confirmation any more: channels that are unconfirmed now may have missed messages by then."""
        self._late = True
        self.ledger.mark_possible_loss()
        self._state.changed.set()

    def announce_backlog(self, *, waiting: bool) -> None:
        """Notify the peer whether bytes for it wait in our memory, where they would be lost if this process died."""
        self.backlog_announced = waiting
        if self.link is not None:
            self.link.send(_BACKLOG if waiting else _NO_BACKLOG)

    def _send_subscriptions(self) -> None:
        """Send the next chunk of changes, if none is in flight, and READY once after the last one."""
        if self.link is None:
            return
        if chunk := self.ledger.next_chunk():
            log = self._state.log
            if log is None:
                self.link.send(wire.subscriptions_frame(chunk))
            else:
                kept, read = log.channels, wire.READ_FROM_LOG
                changes = [
                    (key, read if wanted and (key in kept or key[:1] == wire.PREFIX) else wanted)
                    for key, wanted in chunk
                ]
                self.link.send(wire.subscriptions_frame(changes))
        if not self._ready_sent and self.ledger.all_sent:
            self._ready_sent = True
            self.link.send(_READY)

    # -- the link ----------------------------------------------------------------------------------------------------

    def received(self, kind: int, key: bytes, payload: bytes) -> None:
        """Deliver a message, or process a frame that concerns the connection."""
        if kind == wire.MESSAGE:
            channel = self._channels.get(key)
            if channel is not None:
                self._deliver(channel, payload)
            elif self._state.prefixes.covers(key):
                self._deliver(key.decode(errors="replace"), payload)
        elif kind == wire.NUDGE:
            self._take_nudge(wire.read_nudge(payload))
        elif kind == wire.ACK:
            self._confirm(with_gap=payload != wire.NO_GAP)
        elif kind == wire.WELCOME:
            self._welcome(payload)
        elif kind == wire.BYE:
            self._callbacks.peer_left()
        else:
            raise wire.WireError(f"unexpected frame of kind {kind} from a publisher")

    def drained(self) -> None:
        """Do nothing: no call waits for what is sent here to leave."""

    def ended(self, *, complete: bool, valid: bool) -> None:
        """Connect again: without a BYE the peer is dead, or it has cut this connection because of its backlog."""
        was_welcomed, self.welcomed = self.welcomed, False
        self.link = None
        if was_welcomed:
            self.lost = True
            self.ended_mid_frame = self.ended_mid_frame or not complete
        if self._state.closing:
            return
        if self._attempts < _MAX_ATTEMPTS and (valid or was_welcomed):
            self.connect()
            return
        words = "peer %(peer)s does not take our connection, ignoring it until it connects again"
        write(logger, PEER_LOST, words, peer=self._name)
        self.stop_waiting()

    def _take_nudge(self, offset: int) -> None:
        """Read the log up to `offset`: before the next message of this peer, or in the next pass of the event loop.

        Not further, because a message of the peer that was published before the next record may follow. Notices that
        arrive together cost one read.
        """
        if not self._nudged_to:
            self._deliver = self._deliver_after_log
            self._state.loop.call_soon(self._read_log, context=Context())
        self._nudged_to = self._wrote_to = max(offset, self._nudged_to)

    def _read_log(self) -> None:
        offset, self._nudged_to = self._nudged_to, 0
        log = self._state.log
        if offset and log is not None and not self._state.closing:
            log.read_to(offset)
        if log is None or not log.is_reading:
            self._deliver = self._state.sink.deliver

    def _deliver_after_log(self, channel: str, payload: bytes) -> None:
        self._read_log()
        log = self._state.log
        if log is None:
            self._deliver(channel, payload)
        else:
            log.deliver(channel, payload, after=self._wrote_to)

    def _welcome(self, understood: bytes) -> None:
        """Note that the peer has understood our HELLO.

        What was lost with the link before is reported channel by channel, with the confirmations: only then is the
        gap reported before the first message of the new link.
        """
        self.welcomed = True
        self._attempts = 0
        if self.lost:
            self.lost = self.ended_mid_frame = False
            self.ledger.missed.update(self._state.keys)
        self.lacks_prefixes = not understood.startswith(wire.TAKES_PREFIXES)
        self._warn_of_prefixes()
        self._end_lateness()
        self._state.changed.set()

    def _warn_of_prefixes(self) -> None:
        """Warn, once for each peer, of one that does not send what is published on channels of a prefix."""
        if self.lacks_prefixes and not self._has_warned and self._state.prefixes:
            self._has_warned = True
            words = "peer %(peer)s runs a release that sends nothing for patterns: they miss what it publishes"
            write(logger, PEER_LOST, words, peer=self._name)

    def _confirm(self, *, with_gap: bool) -> None:
        """Note that the peer has confirmed a chunk, and report the gap that the peer or this process knows of."""
        incomplete = self.ledger.confirm(with_gap=with_gap)
        self._send_subscriptions()
        self._end_lateness()
        self._state.report_gap(incomplete, f"peer {self._name} could not be reached for a while")
        self._state.changed.set()

    def _end_lateness(self) -> None:
        if self.ledger.all_confirmed:
            self._late = False
            self.ledger.missed.clear()
