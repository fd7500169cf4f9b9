"""`ipc://name`: the processes of one host, joined without a broker.

Each process sends what it publishes to the others itself. It listens on a Unix socket in a private folder, connects to
the socket of every other process there, sends it its subscriptions, and receives the messages of those channels. There
is no server, no leader and no thread. A process that dies leaves its socket in the folder, where the next process that
tries to connect to it removes it.

Messages of channels that have a history are written to a log in that folder instead, which each process reads: see
`log.py`.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path  # noqa: TC003  # pydantic reads the annotation at runtime
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, field_validator

from backplane.adapters.ipc.folder import open_folder
from backplane.adapters.ipc.node import IpcNode
from backplane.broadcaster import Broadcaster, Capabilities, Options
from backplane.errors import BrokerError, BrokerUnavailableError, ConfigurationError, PayloadTooLargeError
from backplane.option_checks import most_alike
from backplane.unix_sockets.folder import neighbours

if TYPE_CHECKING:
    from collections.abc import Collection

    from backplane.broadcaster import BrokerUrl, Recalled, Sink
    from backplane.history_rules import History, HistoryRules
    from backplane.message import Position, Receipt

__all__ = ["IpcBroadcaster", "IpcOptions"]


class IpcOptions(Options):
    """Options of `ipc://`."""

    directory: Path | None = None
    """Absolute path of the directory that holds the folder of the application; created if it does not exist. Defaults
    to `backplane` in `$XDG_RUNTIME_DIR`, or else to `backplane-<uid>` in the temporary directory. Processes find each
    other only if it is the same for all: set it for a service with a private `/tmp`."""

    peer_timeout_seconds: float = Field(default=1.0, gt=0)
    """How long a start or a subscription waits for a peer that does not answer (stopped, or its event loop blocked)."""

    max_payload_bytes: int = Field(default=16 * 1024 * 1024, gt=0, lt=2**32)
    """Largest payload, in bytes. Give every process the same value: a peer refuses payloads larger than its own."""

    max_peer_backlog_bytes: int = Field(default=8 * 1024 * 1024, gt=0)
    """How many bytes may wait in memory for one peer that does not read fast enough, beyond what the kernel holds. One
    larger message may wait alone. A peer whose backlog would exceed this is cut, and reports a gap when it has
    connected again."""

    max_history_bytes: int = Field(default=64 * 1024 * 1024, ge=1024 * 1024)
    """How large the log may be that holds the history of all channels of the host, in bytes; the oldest messages are
    removed first. It exceeds this by up to 4 MiB and one message. Give every process the same value."""

    @field_validator("directory")
    @classmethod
    def _absolute(cls, directory: Path | None) -> Path | None:
        if directory is not None and not directory.is_absolute():
            raise ValueError(f"must be an absolute path, not {str(directory)!r}")
        return directory


class IpcBroadcaster(Broadcaster):
    """Reaches every process of this host with the same name in its URL, the same folder and the same user.

    Guarantees, beyond the contract:

    - When `publish` returns, the kernel has the message for every peer that reads: if the publisher is killed right
      after, nothing is lost. If it dies with bytes that a slow peer had not taken, that peer reports a gap.
    - No call waits for a peer, except `start` and `subscribe`, each once and for at most `peer_timeout_seconds`. A peer
      that did not answer in time reports a gap for messages that it may have missed, and so does this process.
    - A peer that leaves by `stop`, or dies with an empty backlog, causes no gap.
    - A child that is forked from a process holds none of its sockets, so peers notice when the parent dies.

    - Messages of a channel with a history have one order, the same for every process, and are kept until the host is
      started again, whichever processes end.

    Not guaranteed: any order between two publishers on a channel without a history.

    `lost` is never called, because there is no single link that could be lost. If the socket of a process is removed
    from the folder, peers that are connected to it keep their connections, but new processes cannot find it. Its sticky
    bit makes systemd-tmpfiles leave it alone.
    """

    options_class: ClassVar[type[Options]] = IpcOptions
    options: IpcOptions

    def __init__(self, url: BrokerUrl, options: IpcOptions) -> None:
        super().__init__(url, options)
        self._application = url.netloc + url.path
        if not self._application.strip("/"):
            raise ConfigurationError("ipc:// needs a name that all processes of the application share: ipc://myapp")
        if url.username or url.password:
            raise ConfigurationError(
                "ipc:// takes neither user nor password: the folder belongs to the user of the process"
            )
        self._node: IpcNode | None = None

    @property
    def capabilities(self) -> Capabilities:
        """What this adapter can do."""
        return Capabilities(
            brokered=False,
            reach="host",
            publish_returns="delivered",
            max_payload_bytes=self.options.max_payload_bytes,
            keeps="host",
            deduplicates=True,
            patterns=True,
        )

    async def start(self, sink: Sink) -> None:
        """Listen, and connect to every process in the folder, in both directions.

        When it returns, the first publish reaches all of them. One that does not answer within `peer_timeout_seconds`
        is connected when it does, and reports a gap if something was published before.

        Raises:
            ConfigurationError: The path of the folder is too long for a Unix socket.
            BrokerError: The folder cannot be used, or is open to other users.
            BrokerUnavailableError: The socket cannot be created: out of file descriptors, or the disk is full.
        """
        options = self.options
        node = IpcNode(
            open_folder(self._application, options.directory),
            sink,
            peer_timeout_seconds=options.peer_timeout_seconds,
            max_payload_bytes=options.max_payload_bytes,
            max_peer_backlog_bytes=options.max_peer_backlog_bytes,
        )
        try:
            await node.open()
        except BaseException:
            node.abandon()
            raise
        self._node = node

    async def stop(self) -> None:
        """Send BYE to every peer and close; a peer has half a second to take what was published and waits for it."""
        node, self._node = self._node, None
        if node is not None:
            await node.close()

    async def publish(self, channel: str, payload: bytes) -> None:
        """Send `payload` to every process that has subscribed to `channel`, and deliver it here.

        All of this happens before the first await, and then other tasks run once: a publisher in a loop must not starve
        the tasks that send to clients. No peer is waited for; one whose backlog would exceed `max_peer_backlog_bytes`
        is cut.

        Raises:
            PayloadTooLargeError: `payload` is larger than `max_payload_bytes`.
            BrokerUnavailableError: Not started.
        """
        if len(payload) > self.options.max_payload_bytes:
            raise PayloadTooLargeError(len(payload), self.options.max_payload_bytes)
        self._started().publish(channel, payload)
        await asyncio.sleep(0)

    async def subscribe(self, channels: Collection[str]) -> None:
        """Subscribe to `channels` at every process, and wait until each has confirmed.

        A process that does not confirm within `peer_timeout_seconds` is not waited for again until it does; then a gap
        is reported for these channels.

        Raises:
            BrokerUnavailableError: Not started, or stopped meanwhile.
        """
        await self._started().subscribe(channels)

    async def unsubscribe(self, channels: Collection[str]) -> None:
        """Unsubscribe from `channels` at once, without waiting for a confirmation.

        Raises:
            BrokerUnavailableError: Not started.
        """
        self._started().unsubscribe(channels)

    async def subscribe_prefixes(self, prefixes: Collection[str]) -> None:
        """Subscribe to every channel that begins with one of `prefixes` at every process, as `subscribe` does.

        A process of a release without prefixes sends only what is published to subscribed channels. It is logged, and
        a gap is reported when it ends.

        Raises:
            BrokerUnavailableError: Not started, or stopped meanwhile.
        """
        await self._started().subscribe_prefixes(prefixes)

    async def unsubscribe_prefixes(self, prefixes: Collection[str]) -> None:
        """Unsubscribe from `prefixes` at once, without waiting for a confirmation.

        Raises:
            BrokerUnavailableError: Not started.
        """
        self._started().unsubscribe_prefixes(prefixes)

    async def prepare(self, rules: HistoryRules) -> None:
        """Open the log, and make it if this is the first process of the host that keeps messages.

        Raises:
            BrokerError: The folder of the log cannot be used.
            BrokerUnavailableError: Not started, the disk is full, or this process is out of file descriptors.
        """
        self._started().use_history(rules, max_bytes=self.options.max_history_bytes)

    async def keep(self, channel: str, payload: bytes, rule: History, *, key: bytes | None = None) -> Receipt:
        """Write `payload` to the log, notify the processes that read the channel from it, and deliver it here.

        The write is done before the first await, unless there is a key. A message is removed with the oldest segment of
        the log, whatever `rule` is: what is read again is limited by it.

        Raises:
            PayloadTooLargeError: `payload` is larger than `max_payload_bytes`.
            PublishError: The log cannot be written to, because the disk is full for example; no process receives the
                message.
            BrokerUnavailableError: Not started, not prepared, or stopped meanwhile.
        """
        if len(payload) > self.options.max_payload_bytes:
            raise PayloadTooLargeError(len(payload), self.options.max_payload_bytes)
        return await self._started().log.keep(channel.encode(), payload, key or b"")

    async def recall(
        self, channel: str, rule: History, *, after: Position | None, limit: int, max_bytes: int
    ) -> Recalled:
        """Read from the history of `channel`, in slices of 2 ms.

        Raises:
            BrokerUnavailableError: Not started, not prepared, stopped meanwhile, or the log cannot be read.
        """
        log = self._started().log
        return await log.recall(channel.encode(), rule, after=after, limit=limit, max_bytes=max_bytes)

    async def describe(self) -> str:
        """Return how many other processes are connected."""
        count = self._started().peer_count
        return f"Unix sockets, {count} other process{'' if count == 1 else 'es'}"

    async def others(self, channel: str, most: int) -> list[Broadcaster]:
        """Return adapters with the names of other applications of this user; `channel` is not looked for."""
        folder = open_folder(self._application, self.options.directory)
        try:
            names = await asyncio.to_thread(neighbours, folder)
        except OSError as error:
            raise BrokerError(f"the folders beside {str(folder)!r} cannot be listed: {error}", adapter="ipc") from error
        return [
            IpcBroadcaster(replace(self.url, netloc=name, path=""), self.options)
            for name in most_alike(self._application, names, most)
        ]

    def _started(self) -> IpcNode:
        if self._node is None:
            raise BrokerUnavailableError("not started", adapter="ipc")
        return self._node
