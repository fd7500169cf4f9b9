"""This process among its peers: it publishes to each of them itself, without a broker."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Final

from backplane.adapters.ipc import wire
from backplane.adapters.ipc.log import HistoryLog
from backplane.adapters.ipc.node_state import NodeState
from backplane.adapters.ipc.peer import Peer
from backplane.adapters.ipc.pending_connection import PendingConnection
from backplane.concurrency.timeouts import PatientTimeout
from backplane.errors import BrokerUnavailableError
from backplane.journal.events import PEER_LOST, PEER_REFUSED
from backplane.journal.writing import write
from backplane.unix_sockets.listener import Listener
from backplane.unix_sockets.sockets import foreign_peer, is_socket_name, list_sockets

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Collection
    from pathlib import Path

    from backplane.broadcaster import Sink
    from backplane.history_rules import HistoryRules

__all__ = ["IpcNode"]

logger: Final = logging.getLogger("backplane.adapters.ipc.node")

_FLUSH_SECONDS: Final = 0.5


class IpcNode:
    """The listener, the peers and the pending connections of this process, from a start to a stop.

    Everything but the waits of `open`, `subscribe` and `close` is synchronous, and there is no task.

    Args:
        folder: The folder that holds the sockets of the application.
        sink: Receives messages and gaps.
        peer_timeout_seconds: How long a peer that does not answer is waited for.
        max_payload_bytes: Largest payload.
        max_peer_backlog_bytes: How many bytes may wait for one peer.
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
        self._peer_timeout_seconds = peer_timeout_seconds
        self._state = NodeState(
            folder, sink, max_payload_bytes=max_payload_bytes, max_peer_backlog_bytes=max_peer_backlog_bytes
        )
        self._peers: dict[str, Peer] = {}
        self._pending: set[PendingConnection] = set()
        try:
            self._listener = Listener(self._state.loop, folder, self._accept)
        except OSError as error:
            raise BrokerUnavailableError(
                f"cannot listen in {str(folder)!r}: {error.strerror}", adapter="ipc"
            ) from error
        self._state.own_name = self._listener.name

    @property
    def peer_count(self) -> int:
        """How many other processes are known, without those known to be dead."""
        return sum(not peer.dead for peer in self._peers.values())

    # -- the contract ------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Find the peers, connect to them, and wait until each has sent its subscriptions."""
        # The listener exists already: of two processes that start at once, the one that lists later finds the other.
        for name in self._list_sockets():
            if name != self._listener.name and name not in self._peers:
                self._add_peer(name).publisher.connect()
        found = list(self._peers.values())
        await self._wait(lambda: not any(self._is_alive(peer) and peer.is_connecting for peer in found))
        for peer in found:
            if self._is_alive(peer):
                peer.stop_waiting()

    def publish(self, channel: str, payload: bytes) -> None:
        """Send to every peer that has subscribed to `channel`, then deliver here."""
        state, key = self._state, channel.encode()
        state.published += 1
        if subscribers := state.subscribers.of(key):
            message = wire.frame(wire.MESSAGE, key, payload)
            for subscriber in subscribers:
                subscriber.send(message)
        if key in state.channels or state.prefixes.covers(key):
            (state.sink if state.log is None else state.log).deliver(channel, payload)

    def use_history(self, rules: HistoryRules, *, max_bytes: int) -> None:
        """Keep the messages of channels with these rules, and read them from the log.

        Raises:
            BrokerError: The folder of the log cannot be used.
            BrokerUnavailableError: The disk is full, or this process is out of file descriptors.
        """
        state = self._state
        if state.log is None and rules:
            state.log = HistoryLog(state.folder, rules, state.sink, state.journal, self._announce, max_bytes=max_bytes)

    @property
    def log(self) -> HistoryLog:
        """The log.

        Raises:
            BrokerUnavailableError: It is not in use.
        """
        if self._state.log is None:
            raise BrokerUnavailableError("no channel has a history: `prepare` was not called", adapter="ipc")
        return self._state.log

    async def subscribe(self, channels: Collection[str]) -> None:
        """Subscribe to `channels`; return when every peer that answers in time has confirmed."""
        keys = {channel.encode(): channel for channel in channels}
        if not keys:
            return
        if self._state.log is not None:
            await self._state.log.join(keys)
            if self._state.closing:
                raise BrokerUnavailableError("stopped while subscribing", adapter="ipc")
        self._state.channels.update(keys)
        await self._request(keys)

    async def subscribe_prefixes(self, prefixes: Collection[str]) -> None:
        """Subscribe to every channel that begins with one of `prefixes`, as `subscribe` does to channels."""
        encoded = [prefix.encode() for prefix in prefixes]
        if not encoded:
            return
        if self._state.log is not None:
            await self._state.log.join_prefixes(encoded)
            if self._state.closing:
                raise BrokerUnavailableError("stopped while subscribing", adapter="ipc")
        self._state.prefixes.add(encoded)
        await self._request([wire.PREFIX + prefix for prefix in encoded])

    def unsubscribe_prefixes(self, prefixes: Collection[str]) -> None:
        """Unsubscribe from `prefixes`, as `unsubscribe` does from channels."""
        encoded = [prefix.encode() for prefix in prefixes]
        if not encoded:
            return
        self._state.prefixes.remove(encoded)
        if self._state.log is not None:
            self._state.log.prefixes.remove(encoded)
        for peer in self._peers.values():
            peer.publisher.request([wire.PREFIX + prefix for prefix in encoded], wanted=False)

    async def _request(self, keys: Collection[bytes]) -> None:
        """Subscribe to `keys` at every peer; return when each that answers in time has confirmed."""
        tickets = {peer: peer.publisher.request(keys, wanted=True) for peer in self._peers.values()}

        def unconfirmed() -> list[Peer]:
            return [
                peer for peer, ticket in tickets.items() if self._is_alive(peer) and peer.publisher.is_awaited(ticket)
            ]

        if not await self._wait(lambda: self._state.closing or not unconfirmed()):
            for peer in unconfirmed():
                words = "peer %(peer)s has not confirmed a subscription in time, going on without it"
                write(logger, PEER_LOST, words, peer=peer.name)
                peer.publisher.stop_waiting()
        if self._state.closing:
            raise BrokerUnavailableError("stopped while subscribing", adapter="ipc")

    def unsubscribe(self, channels: Collection[str]) -> None:
        """Unsubscribe from `channels`: nothing is delivered from now on, and no confirmation is waited for."""
        keys = [channel.encode() for channel in channels]
        if not keys:
            return
        for key in keys:
            self._state.channels.pop(key, None)
            if self._state.log is not None:
                self._state.log.leave(key)
        for peer in self._peers.values():
            peer.publisher.request(keys, wanted=False)

    async def close(self) -> None:
        """Send BYE to every peer; peers that read are given half a second to take what was published."""
        self._stop_listening()
        subscribers = [peer.subscriber for peer in self._peers.values()]
        for subscriber in subscribers:
            subscriber.send_bye()
        try:
            await self._wait(lambda: not any(each.backlog_bytes for each in subscribers), _FLUSH_SECONDS)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Close everything now."""
        self._stop_listening()
        for peer in self._peers.values():
            peer.close()
        self._peers.clear()

    def _announce(self, key: bytes, payload: bytes, end: int) -> None:
        """Notify the subscribers of a new record in the log; send the message to those that do not read the log."""
        state = self._state
        state.published += 1
        message: bytes | None = None
        notice = wire.nudge_frame(end)
        for subscriber in state.subscribers.of(key):
            if subscriber.reads(key):
                subscriber.nudge(notice)
            else:
                message = message or wire.frame(wire.MESSAGE, key, payload)
                subscriber.send(message)

    # -- internals ---------------------------------------------------------------------------------------------------

    def _stop_listening(self) -> None:
        """Accept no connection any more, open none, and deliver nothing."""
        self._state.closing = True
        self._state.changed.set()
        self._state.channels.clear()
        self._state.prefixes.clear()
        self._listener.close()
        if self._state.log is not None:
            self._state.log.close()
        self._state.journal.flush()
        for peer in self._peers.values():
            peer.publisher.cancel_retry()
        for connection in self._pending:
            connection.link.close()
        self._pending.clear()

    async def _wait(self, is_done: Callable[[], bool], seconds: float | None = None) -> bool:
        """Wait until `is_done`, which is called again after every change; return whether it was in time."""
        changed = self._state.changed
        try:
            # While this process itself was paused it read no answer: such a pause is not counted.
            async with PatientTimeout(self._peer_timeout_seconds if seconds is None else seconds):
                while not is_done():
                    changed.clear()
                    await changed.wait()
        except TimeoutError:
            return is_done()
        return True

    def _is_alive(self, peer: Peer) -> bool:
        return self._peers.get(peer.name) is peer and not peer.dead

    def _add_peer(self, name: str) -> Peer:
        peer = self._peers[name] = Peer(self._state, name, self._remove_peer)
        return peer

    def _remove_peer(self, peer: Peer) -> None:
        if self._peers.get(peer.name) is peer:
            del self._peers[peer.name]

    def _list_sockets(self) -> list[str]:
        folder = self._state.folder
        try:
            return list_sockets(folder)
        except OSError as error:
            raise BrokerUnavailableError(f"cannot list {str(folder)!r}: {error.strerror}", adapter="ipc") from error

    # -- accepted connections ----------------------------------------------------------------------------------------

    def _accept(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the connection has ended already; the link will report that
            if (user := foreign_peer(connection)) is not None:
                words = "refused a connection of user %(user)d"
                self._state.journal.log(logger, PEER_REFUSED, words, user=user)
                return connection.close()
        self._pending.add(PendingConnection(self._state, connection, self))

    def identify(self, connection: PendingConnection, name: str) -> None:
        """Take the connection of the peer that listens on the socket `name`, and connect to it if needed.

        Raises:
            wire.WireError: No peer can have this name.
        """
        if not is_socket_name(name) or name == self._listener.name:
            raise wire.WireError(f"{name[:64]!r} is not the name of a peer's socket")
        self._pending.discard(connection)
        peer = self._peers.get(name) or self._add_peer(name)
        peer.accept(connection.link)

    def pending_ended(self, connection: PendingConnection) -> None:
        """Forget a connection that ended before its HELLO."""
        self._pending.discard(connection)
