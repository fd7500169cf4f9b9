"""One other process, in both directions.

A pair of processes holds two connections, each opened by the one that wants to hear: its `Feed`, which at the other end
is an `Audience`.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from typing import TYPE_CHECKING, Final

from backplane.adapters.ipc import wire

if TYPE_CHECKING:
    from asyncio import TimerHandle
    from collections.abc import Collection, Iterable

    from backplane.adapters.ipc.link import Link

__all__ = ["Audience", "Feed", "Interest", "Ledger", "Peer"]

logger = logging.getLogger("backplane.adapters.ipc")

_ACK: Final = wire.frame(wire.ACK, payload=b"\0")
_ACK_WITH_GAP: Final = wire.frame(wire.ACK, payload=b"\1")
_BEHIND: Final = wire.frame(wire.BEHIND)
_BYE: Final = wire.frame(wire.BYE)
_CAUGHT_UP: Final = wire.frame(wire.CAUGHT_UP)
_READY: Final = wire.frame(wire.READY)
_WELCOME: Final = wire.frame(wire.WELCOME)


class Ledger:
    """What one peer has been told of our channels, and what it has confirmed. No I/O.

    Only the last word on each channel is kept, and one chunk is under way at a time: a peer that does not read costs no
    more than the number of channels.

    Attributes:
        missed: Channels of which messages may be missing until the peer has confirmed them.
    """

    __slots__ = ("_asked", "_confirmed", "_pending", "_under_way", "missed")

    def __init__(self) -> None:
        self.missed: set[bytes] = set()
        self._asked = 0
        self._confirmed = 0
        self._pending: dict[bytes, tuple[bool, int]] = {}
        self._under_way: list[tuple[bytes, bool]] = []

    @property
    def all_told(self) -> bool:
        """Whether nothing waits to be sent."""
        return not self._pending

    @property
    def all_confirmed(self) -> bool:
        """Whether the peer has confirmed everything."""
        return self._confirmed == self._asked

    def want(self, keys: Iterable[bytes], *, wanted: bool) -> int:
        """Note a change; return the ticket under which `has_confirmed` knows it."""
        self._asked += 1
        for key in keys:
            self._pending.pop(key, None)  # to the end: the dictionary is in the order of the tickets
            self._pending[key] = (wanted, self._asked)
            if not wanted:
                self.missed.discard(key)
        return self._asked

    def restart(self, keys: Collection[bytes]) -> None:
        """Start again, with a peer that knows nothing."""
        self._under_way = []
        self._asked += 1
        # Every ticket that is still open is confirmed by all of these, and by no part of them.
        self._pending = dict.fromkeys(keys, (True, self._confirmed + 1))
        if not keys:
            self._confirmed = self._asked

    def next_chunk(self) -> list[tuple[bytes, bool]]:
        """Take what is to be sent now; nothing while a chunk is under way."""
        if self._under_way:
            return []
        size = 0
        for key, (wanted, _) in self._pending.items():
            size += wire.interest_size(key)
            if size > wire.MAX_INTEREST_BYTES:
                break
            self._under_way.append((key, wanted))
        for key, _ in self._under_way:
            del self._pending[key]
        return self._under_way

    def doubt(self) -> None:
        """Note that messages of all that is not confirmed may be missing, for nobody waits for it any more."""
        self.missed.update(key for key, wanted in self._under_way if wanted)
        self.missed.update(key for key, (wanted, _) in self._pending.items() if wanted)

    def confirm(self, *, with_gap: bool) -> set[bytes]:
        """Note that the peer has confirmed the chunk under way; return its channels that may have lost messages."""
        wanted = {key for key, wanted in self._under_way if wanted}
        gone = wanted if with_gap else wanted & self.missed
        self.missed -= gone
        self._under_way = []
        self._confirmed = next(iter(self._pending.values()))[1] - 1 if self._pending else self._asked
        return gone

    def has_confirmed(self, ticket: int) -> bool:
        """Whether the peer has confirmed everything up to `ticket`."""
        return self._confirmed >= ticket


class Feed:
    """Our connection to a peer: it tells the peer our channels and brings its messages.

    Attributes:
        ledger: What the peer knows of our channels.
        link: The connection, while there is one.
        welcomed: The peer has understood us, on this connection.
        late: It let a wait run out, and is not waited for until it has confirmed everything.
        lost: The last connection ended without a goodbye, and no other has been welcomed since.
        torn: A message was lost for certain, for a connection ended inside of it.
        dials: Connections opened since the last one that was welcomed.
    """

    __slots__ = ("_said_ready", "dials", "late", "ledger", "link", "lost", "torn", "welcomed")

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.link: Link | None = None
        self.welcomed = False
        self.late = False
        self.lost = False
        self.torn = False
        self.dials = 0
        self._said_ready = False

    def open(self, link: Link, own_name: str, keys: Collection[bytes], *, behind: bool) -> None:
        """Introduce ourselves on a new connection, and say again all that the peer has to know."""
        self.link = link
        self.welcomed = False
        self._said_ready = False
        self.dials += 1
        link.send(wire.hello_frame(own_name))
        if behind:
            link.send(_BEHIND)
        self.ledger.restart(keys)
        self.tell()

    def tell(self) -> None:
        """Send the next chunk of our interest, if none is under way."""
        if self.link is None:
            return
        if chunk := self.ledger.next_chunk():
            self.link.send(wire.interest_frame(chunk))
        if not self._said_ready and self.ledger.all_told:
            self._said_ready = True
            self.link.send(_READY)

    def welcome(self, keys: Collection[bytes]) -> None:
        """Note that the peer understood us. What a lost connection may have cost is told with its confirmations."""
        self.welcomed = True
        self.dials = 0
        if self.lost:
            self.lost = self.torn = False
            self.ledger.missed.update(keys)
        self._catch_up()

    def want(self, keys: Collection[bytes], *, wanted: bool) -> int:
        """Ask for channels, or no longer; return the ticket under which the ledger knows it."""
        ticket = self.ledger.want(keys, wanted=wanted)
        if self.late:
            self.ledger.doubt()
        self.tell()
        return ticket

    def go_on_without(self) -> None:
        """Wait no longer: what the peer has not confirmed yet may have missed messages when it does."""
        self.late = True
        self.ledger.doubt()

    def confirm(self, *, with_gap: bool) -> set[bytes]:
        """Note a confirmation; return the channels of which messages may be missing."""
        gone = self.ledger.confirm(with_gap=with_gap)
        self.tell()
        self._catch_up()
        return gone

    def end(self, *, complete: bool) -> None:
        """Note that the connection is over."""
        if self.welcomed:
            self.lost = True
            self.torn = self.torn or not complete
        self.link = None
        self.welcomed = False

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self.link is not None:
            self.link.close()
            self.link = None

    def say_behind(self, *, behind: bool) -> None:
        """Tell the peer whether bytes for it wait in our memory, where they would die with us."""
        if self.link is not None:
            self.link.send(_BEHIND if behind else _CAUGHT_UP)

    def _catch_up(self) -> None:
        if self.ledger.all_confirmed:
            self.late = False
            self.ledger.missed.clear()


class Audience:
    """A peer's connection to us: it tells us its channels, and we write our messages to it.

    Attributes:
        link: The connection, while there is one.
        ready: It has told everything it wants, on this connection.
        cut: It was too far behind; nothing goes out on this connection any more, and what comes in is old.
        owes: Its last word was that bytes for us wait in its memory.
        told_behind: Our last word to it was that.
        given_up_at: How much we had published when a wait for it ran out; `None` when none has.
    """

    __slots__ = ("cut", "given_up_at", "link", "owes", "ready", "told_behind")

    def __init__(self) -> None:
        self.link: Link | None = None
        self.ready = False
        self.cut = False
        self.owes = False
        self.told_behind = False
        self.given_up_at: int | None = None

    @property
    def backlog_bytes(self) -> int:
        """What waits for it in our memory."""
        return self.link.backlog_bytes if self.link is not None else 0

    def open(self, link: Link) -> None:
        """Take its new connection, and say that it was understood."""
        self.link = link
        self.cut = False
        self.owes = False
        link.send(_WELCOME)

    def confirm(self, published: int) -> None:
        """Confirm a change of its interest, and say whether that came too late for what we published."""
        if self.link is not None:
            missed = self.given_up_at is not None and self.given_up_at != published
            self.link.send(_ACK_WITH_GAP if missed else _ACK)

    def is_over_bound(self, size_bytes: int, max_backlog_bytes: int) -> bool:
        """Whether `size_bytes` more would wait behind others for longer than the bound allows."""
        link = self.link
        if link is None or not link.backlog_bytes or link.backlog_bytes + size_bytes <= max_backlog_bytes:
            return False
        link.flush()
        return bool(link.backlog_bytes) and link.backlog_bytes + size_bytes > max_backlog_bytes

    def say_goodbye(self) -> None:
        """Say that this was all."""
        if self.link is not None:
            self.link.send(_BYE)

    def end(self) -> None:
        """Send nothing more, but go on reading: it may have said already that bytes for us wait."""
        if self.link is not None:
            self.link.end_writing()
        self.cut = True
        self.ready = False

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self.link is not None:
            self.link.close()
            self.link = None
        self.ready = False


class Peer:
    """Another process of the application.

    Attributes:
        name: Name of its socket.
        feed: Our connection to it.
        audience: Its connection to us.
        dead: It refused our connection. It is forgotten when its own has ended too.
        retry: The next try to connect, where the last one could not even be made.
    """

    __slots__ = ("audience", "dead", "feed", "name", "retry")

    def __init__(self, name: str) -> None:
        self.name = name
        self.feed = Feed()
        self.audience = Audience()
        self.dead = False
        self.retry: TimerHandle | None = None


class Interest:
    """Which peers want which channel, to be asked both ways."""

    __slots__ = ("_channels", "_peers")

    def __init__(self) -> None:
        self._peers: dict[bytes, tuple[Peer, ...]] = {}
        self._channels: defaultdict[Peer, set[bytes]] = defaultdict(set)

    def of(self, key: bytes) -> tuple[Peer, ...]:
        """Return the peers that want a channel; what is returned does not change while it is gone through."""
        return self._peers.get(key, ())

    def add(self, peer: Peer, key: bytes) -> None:
        """Note that `peer` wants a channel."""
        if key not in self._channels[peer]:
            self._channels[peer].add(key)
            self._peers[key] = (*self.of(key), peer)

    def remove(self, peer: Peer, key: bytes) -> None:
        """Note that `peer` no longer wants a channel."""
        if key in self._channels[peer]:
            self._channels[peer].discard(key)
            self._remove(peer, key)

    def drop(self, peer: Peer) -> None:
        """Forget `peer`."""
        for key in self._channels.pop(peer, ()):
            self._remove(peer, key)

    def _remove(self, peer: Peer, key: bytes) -> None:
        left = tuple(other for other in self._peers[key] if other is not peer)
        if left:
            self._peers[key] = left
        else:
            del self._peers[key]
