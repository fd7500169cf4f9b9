"""This process among its peers: a tiny broker for what it publishes itself."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Final

from backplane.adapters.ipc import wire
from backplane.adapters.ipc.folder import connect_socket, foreign_peer, is_socket_name, list_sockets, remove_stale
from backplane.adapters.ipc.link import Link
from backplane.adapters.ipc.listener import Listener
from backplane.adapters.ipc.peer import Interest, Peer
from backplane.adapters.ipc.role import PendingConnection, PublisherConnection, SubscriberConnection
from backplane.concurrency.timeouts import PatientTimeout
from backplane.errors import BrokerUnavailableError
from backplane.log_bursts import LogBursts
from backplane.message import ALL

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Collection, Iterable
    from pathlib import Path

    from backplane.broadcaster import Sink

__all__ = ["IpcNode"]

logger = logging.getLogger("backplane.adapters.ipc")

_MAX_DIALS: Final = 3  # connections in a row that end before a welcome
_RETRY_SECONDS: Final = 1.0
_GOODBYE_SECONDS: Final = 0.5


class IpcNode:
    """Holds all that lives between a start and a stop.

    Everything but the waits of `open`, `subscribe` and `close` is synchronous, and there is no task.

    Args:
        folder: Where the sockets are.
        sink: Who hears of messages and gaps.
        peer_timeout_seconds: How long a peer that does not answer is waited for.
        max_payload_bytes: Largest payload.
        max_peer_backlog_bytes: How much may wait for one peer.
    """

    def __init__(
        self,
        folder: Path,
        sink: Sink,
        *,
        peer_timeout_seconds: float,
        max_payload_bytes: int,
        max_peer_backlog_bytes: int,
    ) -> None:
        self.channels: dict[bytes, str] = {}
        self.sink = sink
        self._bursts = LogBursts()
        self._folder = folder
        self._peer_timeout_seconds = peer_timeout_seconds
        self._max_payload_bytes = max_payload_bytes
        self._max_peer_backlog_bytes = max_peer_backlog_bytes
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._peers: dict[str, Peer] = {}
        self._strangers: set[Link] = set()
        self._broker_subscriptions = Interest()
        self._published = 0
        self._door = Listener(self._loop, folder, self._meet)
        self._closing = False

    @property
    def peer_count(self) -> int:
        """How many other processes are known and not known to be dead."""
        return sum(not peer.dead for peer in self._peers.values())

    # -- the contract ------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Find the others, and wait until each has told what it wants."""
        # We listen already: of two that start at once, the later to list finds the other.
        for name in list_sockets(self._folder):
            if name != self._door.name and name not in self._peers:
                peer = self._peers[name] = Peer(name)
                self._dial(peer)
        found = list(self._peers.values())
        await self._wait(lambda: not any(self._is_awaited(peer) for peer in found), self._peer_timeout_seconds)
        for peer in found:
            if self._is_known(peer):
                self._go_on_without(peer)

    def publish(self, channel: str, payload: bytes) -> None:
        """Write to every peer that wants `channel`, then deliver here."""
        key = channel.encode()
        self._published += 1
        if peers := self._broker_subscriptions.of(key):
            message = wire.frame(wire.MESSAGE, key, payload)
            for peer in peers:
                self._send(peer, message)
        if key in self.channels:
            self.sink.deliver(channel, payload)

    async def subscribe(self, channels: Collection[str]) -> None:
        """Take `channels`; return when every peer that answers in time has confirmed."""
        keys = {channel.encode(): channel for channel in channels}
        if not keys:
            return
        self.channels.update(keys)
        tickets = {peer: peer.feed.want(keys, wanted=True) for peer in self._peers.values()}

        def unconfirmed() -> list[Peer]:
            return [
                peer
                for peer, ticket in tickets.items()
                if self._is_known(peer) and not peer.feed.late and not peer.feed.ledger.has_confirmed(ticket)
            ]

        if not await self._wait(lambda: self._closing or not unconfirmed(), self._peer_timeout_seconds):
            for peer in unconfirmed():
                logger.warning("peer %s has not confirmed a subscription in time, going on without it", peer.name)
                peer.feed.go_on_without()
            self._changed.set()
        if self._closing:
            raise BrokerUnavailableError("stopped while subscribing", adapter="ipc")

    def unsubscribe(self, channels: Collection[str]) -> None:
        """Drop `channels` at once; the peers learn of it by and by."""
        keys = [channel.encode() for channel in channels]
        if not keys:
            return
        for key in keys:
            self.channels.pop(key, None)
        for peer in self._peers.values():
            peer.feed.want(keys, wanted=False)

    async def close(self) -> None:
        """Say goodbye; what was published is given half a second to get to peers that read."""
        self._leave()
        audiences = [peer.audience for peer in self._peers.values()]
        for audience in audiences:
            audience.say_goodbye()
        try:
            await self._wait(lambda: not any(audience.backlog_bytes for audience in audiences), _GOODBYE_SECONDS)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Close everything now."""
        self._leave()
        for peer in self._peers.values():
            peer.feed.close()
            peer.audience.close()
        self._peers.clear()

    def _leave(self) -> None:
        self._closing = True
        self._changed.set()
        self.channels.clear()
        self._door.close()
        self._bursts.flush()
        for peer in self._peers.values():
            if peer.retry is not None:
                peer.retry.cancel()
        for link in self._strangers:
            link.close()
        self._strangers.clear()

    # -- waiting -----------------------------------------------------------------------------------------

    async def _wait(self, is_done: Callable[[], bool], seconds: float) -> bool:
        """Wait until `is_done`, which is asked again after every change; return whether it was in time."""
        try:
            async with PatientTimeout(seconds):  # a pause of ours is no silence of theirs
                while not is_done():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return is_done()
        return True

    def _is_known(self, peer: Peer) -> bool:
        return self._peers.get(peer.name) is peer and not peer.dead

    def _is_awaited(self, peer: Peer) -> bool:
        if not self._is_known(peer) or peer.feed.link is None:
            return False
        return not (peer.feed.welcomed and peer.audience.ready)

    def _go_on_without(self, peer: Peer) -> None:
        if self._is_awaited(peer):
            logger.warning("peer %s does not answer, starting without it", peer.name)
        if not peer.feed.welcomed:
            peer.feed.go_on_without()
        if not peer.audience.ready:
            peer.audience.given_up_at = self._published

    def _report(self, keys: Collection[bytes], reason: str) -> None:
        lost = [self.channels[key] for key in keys if key in self.channels]
        if lost:
            self.sink.gap(ALL if len(lost) == len(self.channels) else lost, reason)

    # -- those who want to hear us -----------------------------------------------------------------------

    def _meet(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):  # it has ended, as the link will find
            if (user := foreign_peer(connection)) is not None:
                self._bursts.log(logger, logging.WARNING, "refused a connection of user %d", user)
                return connection.close()
        self._strangers.add(self._link(connection, PendingConnection(self)))

    def stranger_ended(self, link: Link) -> None:
        """Forget a connection that never said whose it was."""
        self._strangers.discard(link)

    def introduce(self, link: Link, name: str) -> None:
        """Take the connection of the peer that listens on the socket `name`, and connect back if need be.

        Raises:
            wire.WireError: No peer can have this name.
        """
        if not is_socket_name(name) or name == self._door.name:
            raise wire.WireError(f"{name[:64]!r} is not the name of a peer's socket")
        self._strangers.discard(link)
        peer = self._peers.get(name)
        if peer is None:
            peer = self._peers[name] = Peer(name)
        # A peer opens a second connection only after the end of its first, which we have not read yet.
        self._broker_subscriptions.drop(peer)
        peer.audience.close()
        peer.audience.open(link)
        link.owner = SubscriberConnection(self, peer)
        peer.dead = False
        if peer.feed.link is None and peer.retry is None:
            peer.feed.dials = 0
            self._dial(peer)

    def change_interest(self, peer: Peer, changes: Iterable[tuple[bytes, bool]]) -> None:
        """Note what a peer wants and no longer wants, and confirm it."""
        if peer.audience.cut:
            return
        for key, wanted in changes:
            if wanted:
                self._broker_subscriptions.add(peer, key)
            else:
                self._broker_subscriptions.remove(peer, key)
        peer.audience.confirm(self._published)

    def make_ready(self, peer: Peer) -> None:
        """Note that a peer has told all it wants."""
        if peer.audience.cut:
            return
        peer.audience.ready = True
        peer.audience.given_up_at = None
        self.catch_up(peer)
        self._changed.set()

    def catch_up(self, peer: Peer) -> None:
        """Take back that bytes for a peer wait here, if none do.

        Not before it is ready: a peer that was cut and is new again still has to be told of its loss by our
        confirmations, and would forget it if we died before.
        """
        audience = peer.audience
        if audience.told_behind and audience.ready and not audience.backlog_bytes:
            audience.told_behind = False
            peer.feed.say_behind(behind=False)
        self._changed.set()

    def audience_ended(self, peer: Peer, *, complete: bool, valid: bool) -> None:
        """Forget what a peer wanted; it comes again if it is alive."""
        self._broker_subscriptions.drop(peer)
        peer.audience.link = None
        peer.audience.ready = False
        # The word that bytes for us wait may be the one that was cut off.
        peer.audience.owes = peer.audience.owes or (valid and not complete)
        self._changed.set()
        if self._closing:
            return
        if peer.dead:
            self._bury(peer)
        elif peer.feed.link is None and peer.retry is None:
            self._dial(peer)

    def _send(self, peer: Peer, message: bytes) -> None:
        audience = peer.audience
        if audience.is_over_bound(len(message), self._max_peer_backlog_bytes):
            self._cut(peer)
        elif audience.link is not None:
            audience.link.send(message)
            if audience.link.backlog_bytes and not audience.told_behind:
                audience.told_behind = True
                peer.feed.say_behind(behind=True)

    def _cut(self, peer: Peer) -> None:
        logger.warning("cut peer %s, which is more than %d bytes behind", peer.name, self._max_peer_backlog_bytes)
        self._broker_subscriptions.drop(peer)
        peer.audience.end()
        self._changed.set()

    # -- those whom we want to hear ----------------------------------------------------------------------

    def _dial(self, peer: Peer) -> None:
        peer.retry = None
        path = self._folder / peer.name
        try:
            sock = connect_socket(path)
        except (ConnectionRefusedError, FileNotFoundError):
            remove_stale(path)
            peer.dead = True
            self._bury(peer)
        except OSError as error:
            logger.warning("cannot connect to peer %s (%s), trying again in a second", peer.name, error.strerror)
            peer.feed.go_on_without()
            self._changed.set()
            peer.retry = self._loop.call_later(_RETRY_SECONDS, self._dial, peer)
        else:
            link = self._link(sock, PublisherConnection(self, peer))
            peer.feed.open(link, self._door.name, self.channels, behind=peer.audience.told_behind)

    def welcomed(self, peer: Peer) -> None:
        """Note that a peer has understood us."""
        peer.feed.welcome(self.channels)
        self._changed.set()

    def confirmed(self, peer: Peer, *, with_gap: bool) -> None:
        """Note what a peer has confirmed, and report what it says or we know to be missing before."""
        self._report(peer.feed.confirm(with_gap=with_gap), f"peer {peer.name} could not be reached for a while")
        self._changed.set()

    def farewell(self, peer: Peer) -> None:
        """Forget a peer that has said it all."""
        self._forget(peer)
        missed = self.channels if peer.feed.lost else peer.feed.ledger.missed
        self._report(missed, f"peer {peer.name} left while it could not be reached")

    def feed_ended(self, peer: Peer, *, complete: bool, valid: bool) -> None:
        """Connect again to a peer that ended our connection without a goodbye: it is dead, or it has cut us."""
        had_understood = peer.feed.welcomed
        peer.feed.end(complete=complete)
        if self._closing:
            return
        if peer.feed.dials >= _MAX_DIALS or not (valid or had_understood):
            logger.warning("peer %s does not take our connection, ignoring it until it connects again", peer.name)
            peer.feed.go_on_without()
            self._changed.set()
            return
        self._dial(peer)

    def _bury(self, peer: Peer) -> None:
        """Forget a dead peer once all it said has been read, and report what died with it."""
        if peer.audience.link is not None:
            return
        self._forget(peer)
        missed = self.channels if peer.feed.torn or peer.audience.owes else peer.feed.ledger.missed
        self._report(missed, f"peer {peer.name} died with messages for us")

    def _link(self, connection: socket.socket, role: PendingConnection | PublisherConnection) -> Link:
        return Link(self._loop, connection, role, self._max_payload_bytes, self._bursts)

    def _forget(self, peer: Peer) -> None:
        if self._peers.get(peer.name) is peer:
            del self._peers[peer.name]
        self._broker_subscriptions.drop(peer)
        peer.feed.close()
        peer.audience.close()
        self._changed.set()
