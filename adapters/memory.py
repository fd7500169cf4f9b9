"""`memory://`: one process, no broker.

The reference implementation of the contract, and the default for development and tests.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from pydantic import Field

from backplane.broadcaster import Broadcaster, Capabilities, Options
from backplane.errors import BrokerUnavailableError

if TYPE_CHECKING:
    from collections.abc import Collection

    from backplane.broadcaster import BrokerUrl, Sink

__all__ = ["MemoryBroadcaster", "MemoryOptions"]


class MemoryOptions(Options):
    """Options of `memory://`."""

    max_payload_bytes: int = Field(default=16 * 1024 * 1024, gt=0)
    """Largest payload, in bytes."""


class MemoryBroadcaster(Broadcaster):
    """Delivers within the process: two `Backplane("memory://")` do not hear each other."""

    options_class = MemoryOptions
    options: MemoryOptions

    def __init__(self, url: BrokerUrl, options: MemoryOptions) -> None:
        super().__init__(url, options)
        self._channels: set[str] = set()
        self._sink: Sink | None = None

    @property
    def capabilities(self) -> Capabilities:
        """What this adapter can do."""
        return Capabilities(
            brokered=False,
            reach="process",
            publish_returns="delivered",
            max_payload_bytes=self.options.max_payload_bytes,
        )

    async def start(self, sink: Sink) -> None:
        """Take the sink; there is nothing to connect to."""
        self._sink = sink

    async def stop(self) -> None:
        """Forget the sink and every channel."""
        self._sink = None
        self._channels.clear()

    async def publish(self, channel: str, payload: bytes) -> None:
        """Deliver at once, then let other tasks run: a publisher in a loop must not starve those who send."""
        sink = self._require_sink()
        if channel in self._channels:
            sink.deliver(channel, payload)
        await asyncio.sleep(0)

    async def subscribe(self, channels: Collection[str]) -> None:
        """Start to deliver `channels`."""
        self._require_sink()
        self._channels.update(channels)

    async def unsubscribe(self, channels: Collection[str]) -> None:
        """Stop to deliver `channels`."""
        self._require_sink()
        self._channels.difference_update(channels)

    async def describe(self) -> str:
        """Say that there is no broker."""
        self._require_sink()
        return "the memory of this process"

    def _require_sink(self) -> Sink:
        if self._sink is None:
            raise BrokerUnavailableError("the adapter is stopped", adapter="memory")
        return self._sink
