"""State of the node that its connections share."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from backplane.adapters.ipc import wire
from backplane.adapters.ipc.link import PeerLink
from backplane.adapters.ipc.subscriber_index import Subscriber, SubscriberIndex
from backplane.journal.journal import Journal
from backplane.message import ALL
from backplane.patterns import Prefixes

if TYPE_CHECKING:
    import socket
    from collections.abc import Collection
    from pathlib import Path

    from backplane.adapters.ipc.link import PeerLinkOwner
    from backplane.adapters.ipc.log import HistoryLog
    from backplane.broadcaster import Sink

__all__ = ["NodeState"]


class NodeState:
    """What the connections of one node have in common, from its start to its stop.

    Args:
        folder: The folder that holds the sockets of the application.
        sink: Receives messages and gaps.
        max_payload_bytes: Largest payload.
        max_peer_backlog_bytes: How many bytes may wait for one peer.

    Attributes:
        loop: The running event loop.
        own_name: Name of the socket on which this process listens; set before the first connection.
        channels: The channels to which this process has subscribed, by their key on the wire.
        prefixes: The prefixes of channels to which it has subscribed, in UTF-8.
        log: The log from which this process reads the channels that have a history; `None` without rules.
        subscribers: The peers that have subscribed to what this process publishes.
        published: How many messages this process has published.
        changed: Set at each change that a waiting `IpcNode` call may wait for.
        closing: The node stops; a connection that ends is not replaced.
        journal: Logs what a foreign process can cause.
    """

    __slots__ = (
        "changed",
        "channels",
        "closing",
        "folder",
        "journal",
        "log",
        "loop",
        "max_payload_bytes",
        "max_peer_backlog_bytes",
        "own_name",
        "prefixes",
        "published",
        "sink",
        "subscribers",
    )

    def __init__(self, folder: Path, sink: Sink, *, max_payload_bytes: int, max_peer_backlog_bytes: int) -> None:
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self.folder: Path = folder
        self.own_name: str = ""
        self.sink: Sink = sink
        self.max_payload_bytes: int = max_payload_bytes
        self.max_peer_backlog_bytes: int = max_peer_backlog_bytes
        self.channels: dict[bytes, str] = {}
        self.prefixes: Prefixes[bytes] = Prefixes()
        self.log: HistoryLog | None = None
        self.subscribers: SubscriberIndex[Subscriber] = SubscriberIndex()
        self.published: int = 0
        self.changed: asyncio.Event = asyncio.Event()
        self.closing: bool = False
        self.journal: Journal = Journal()

    def open_link(self, sock: socket.socket, owner: PeerLinkOwner) -> PeerLink:
        """Return a link over `sock`, whose frames go to `owner`."""
        return PeerLink(self.loop, sock, owner, self.max_payload_bytes, self.journal)

    @property
    def prefix_keys(self) -> list[bytes]:
        """The prefixes to which this process has subscribed, by their key on the wire."""
        return [wire.PREFIX + prefix for prefix in self.prefixes]

    @property
    def keys(self) -> list[bytes]:
        """Everything to which this process has subscribed, by its key on the wire."""
        return [*self.channels, *self.prefix_keys]

    def report_gap(self, keys: Collection[bytes], reason: str) -> None:
        """Report that messages of `keys` may be missing; what is no longer subscribed to is left out."""
        if any(key[:1] == wire.PREFIX and key[1:] in self.prefixes for key in keys):
            return self.sink.gap(ALL, reason)  # of which channels is not known
        incomplete = [self.channels[key] for key in keys if key in self.channels]
        if incomplete:
            self.sink.gap(ALL if len(incomplete) == len(self.channels) and not self.prefixes else incomplete, reason)
