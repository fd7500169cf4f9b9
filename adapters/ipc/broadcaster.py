"""`ipc://name`: the processes of one host, joined without a broker.

Each process is a tiny broker for what it publishes itself. It listens on a Unix socket in a private folder, connects to
the socket of every other process there, tells it which channels it wants, and is written those messages. There is no
server, no leader and no thread; a process that dies leaves a socket behind which the next one to meet it removes.
"""

from __future__ import annotations

import asyncio
from pathlib import Path  # noqa: TC003  # pydantic reads the annotation at runtime
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, field_validator

from backplane.adapters.ipc.folder import open_folder
from backplane.adapters.ipc.node import IpcNode
from backplane.broadcaster import Broadcaster, Capabilities, Options
from backplane.errors import BrokerUnavailableError, ConfigurationError, PayloadTooLargeError

if TYPE_CHECKING:
    from collections.abc import Collection

    from backplane.broadcaster import BrokerUrl, Sink

__all__ = ["IpcBroadcaster", "IpcOptions"]


class IpcOptions(Options):
    """Options of `ipc://`."""

    directory: Path | None = None
    """Where the folder of the application stands, as an absolute path; created if need be. Defaults to `backplane` in
    `$XDG_RUNTIME_DIR`, or else to `backplane-<uid>` in the temporary directory. Processes meet only where it is the
    same: a service with a private `/tmp` or another user needs it."""

    peer_timeout_seconds: float = Field(default=1.0, gt=0)
    """How long a peer that does not answer (stopped, or its event loop blocked) holds up a start or a subscription."""

    max_payload_bytes: int = Field(default=16 * 1024 * 1024, gt=0, lt=2**32)
    """Largest payload, in bytes. The same in every process: a peer takes no larger one than its own."""

    max_peer_backlog_bytes: int = Field(default=8 * 1024 * 1024, gt=0)
    """How much may wait in memory for one peer that does not read fast enough, in bytes, beyond what the kernel holds.
    A single larger message may wait alone. A peer further behind is cut, and reports a gap when it is back."""

    @field_validator("directory")
    @classmethod
    def _absolute(cls, directory: Path | None) -> Path | None:
        if directory is not None and not directory.is_absolute():
            raise ValueError(f"an absolute path, not {str(directory)!r}")
        return directory


class IpcBroadcaster(Broadcaster):
    """Reaches every process of this host that has the same name in its URL, the same folder and the same user.

    Guarantees, beyond the contract:

    - What `publish` took is with the kernel for every peer that reads: killing the publisher right after loses nothing
      of it. If a publisher dies with bytes that a slow peer had not taken, that peer reports a gap.
    - No peer is ever waited for, but for `peer_timeout_seconds` once in `start` and `subscribe`. One that was not there
      in time reports a gap for what it may have missed, and so does this process for what it may have missed of it.
    - A peer that leaves by `stop`, or dies with nothing left to say, causes no gap.
    - A child that is forked from a process holds none of its sockets, and does not keep it alive for the others.

    Not guaranteed: any order between two publishers.

    `lost` is never called, for there is no single link that could be. A socket that someone removes from the folder is
    not missed by the peers that know it, but new ones cannot find it; its sticky bit tells systemd-tmpfiles to leave it
    alone.
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
        self._exchange: IpcNode | None = None

    @property
    def capabilities(self) -> Capabilities:
        """What this adapter can do."""
        return Capabilities(
            brokered=False,
            reach="host",
            publish_returns="delivered",
            max_payload_bytes=self.options.max_payload_bytes,
        )

    async def start(self, sink: Sink) -> None:
        """Listen, and meet every process that is there.

        When it returns, the first publish reaches all of them. One that does not answer within `peer_timeout_seconds`
        is met when it does, and reports a gap if something was published before.

        Raises:
            ConfigurationError: The path of the folder is too long for a Unix socket.
            BrokerError: The folder cannot be used, or is open to other users.
            BrokerUnavailableError: The socket cannot be made: out of file descriptors, or the disk is full.
        """
        options = self.options
        exchange = IpcNode(
            open_folder(self._application, options.directory),
            sink,
            peer_timeout_seconds=options.peer_timeout_seconds,
            max_payload_bytes=options.max_payload_bytes,
            max_peer_backlog_bytes=options.max_peer_backlog_bytes,
        )
        try:
            await exchange.open()
        except BaseException:
            exchange.abandon()
            raise
        self._exchange = exchange

    async def stop(self) -> None:
        """Say goodbye and close. Peers that read get all that was published; half a second is given to slow ones."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            await exchange.close()

    async def publish(self, channel: str, payload: bytes) -> None:
        """Write `payload` to every process that wants `channel`, and deliver it here.

        All of it is done at once, then other tasks get a turn: a publisher in a loop must not starve those who send. No
        peer is waited for; one further behind than `max_peer_backlog_bytes` is cut.

        Raises:
            PayloadTooLargeError: `payload` is larger than `max_payload_bytes`.
            BrokerUnavailableError: Not started.
        """
        if len(payload) > self.options.max_payload_bytes:
            raise PayloadTooLargeError(len(payload), self.options.max_payload_bytes)
        self._started().publish(channel, payload)
        await asyncio.sleep(0)

    async def subscribe(self, channels: Collection[str]) -> None:
        """Tell every process which `channels` are wanted, and wait for the confirmation of each.

        One that does not confirm within `peer_timeout_seconds` is not waited for again until it does; when it does, a
        gap is reported for these channels.

        Raises:
            BrokerUnavailableError: Not started, or stopped meanwhile.
        """
        await self._started().subscribe(channels)

    async def unsubscribe(self, channels: Collection[str]) -> None:
        """Drop `channels` at once, without waiting for any process.

        Raises:
            BrokerUnavailableError: Not started.
        """
        self._started().unsubscribe(channels)

    async def describe(self) -> str:
        """Say how many other processes are met."""
        count = self._started().peer_count
        return f"Unix sockets, {count} other process{'' if count == 1 else 'es'}"

    def _started(self) -> IpcNode:
        if self._exchange is None:
            raise BrokerUnavailableError("not started", adapter="ipc")
        return self._exchange
