"""`memory://`: one process, no broker.

The reference implementation of the contract, and the default for development and tests.
"""

from __future__ import annotations

import asyncio
import os
from threading import Lock
from typing import TYPE_CHECKING, ClassVar, Final

from pydantic import Field

from backplane.broadcaster import Broadcaster, Capabilities, Options
from backplane.errors import BrokerUnavailableError
from backplane.message import ALL

if TYPE_CHECKING:
    from collections.abc import Collection

    from backplane.broadcaster import BrokerUrl, Sink

__all__ = ["MemoryBroadcaster", "MemoryOptions"]

# What waits for an event loop that is busy, or does not run; a message counts more than its payload.
_MAX_WAITING_BYTES: Final = 64 * 1024 * 1024
_MESSAGE_BYTES: Final = 128

# Those that are started in this process. A dict, because its operations are safe in threads.
_started: dict[MemoryBroadcaster, None] = {}

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_started.clear)  # their event loops do not run there


class MemoryOptions(Options):
    """Options of `memory://`."""

    max_payload_bytes: int = Field(default=16 * 1024 * 1024, gt=0)
    """Largest payload, in bytes."""


class MemoryBroadcaster(Broadcaster):
    """Delivers to all of this process that have the same name, `memory://` or `memory://name`, in any event loop.

    Those of the publisher's event loop have the message when `publish` returns. To those of another event loop it is
    handed over, in order; where more than 64 MiB wait for an event loop that is busy, the rest is dropped, with a gap.
    """

    options_class: ClassVar[type[Options]] = MemoryOptions
    options: MemoryOptions

    def __init__(self, url: BrokerUrl, options: MemoryOptions) -> None:
        super().__init__(url, options)
        self._name = url.netloc + url.path
        self._channels: set[str] = set()
        self._sink: Sink | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: list[tuple[str, bytes] | None] = []  # from other event loops; `None` for what was dropped
        self._waiting_bytes = 0
        self._waiting_lock = Lock()

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
        for other in tuple(_started):
            if other._loop is None or other._loop.is_closed():  # it ended without `stop`
                _started.pop(other, None)
        self._take_waiting()  # what came too late for an earlier start
        self._sink = sink
        self._loop = asyncio.get_running_loop()
        _started[self] = None

    async def stop(self) -> None:
        """Forget the sink and every channel."""
        _started.pop(self, None)
        self._sink = self._loop = None
        self._channels.clear()

    async def publish(self, channel: str, payload: bytes) -> None:
        """Deliver at once, then let other tasks run: a publisher in a loop must not starve those who send."""
        self._require_sink()
        for other in tuple(_started):
            if other._name == self._name and channel in other._channels:
                other._take(channel, payload, self._loop)
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

    def _take(self, channel: str, payload: bytes, publishers_loop: asyncio.AbstractEventLoop | None) -> None:
        sink, loop = self._sink, self._loop
        if sink is None or loop is None:  # it stops, in another thread
            return
        if loop is publishers_loop:
            return sink.deliver(channel, payload)
        with self._waiting_lock:
            self._wait(channel, payload)
            if len(self._waiting) > 1:
                return
        try:
            loop.call_soon_threadsafe(self._deliver_waiting)
        except RuntimeError:  # the event loop has ended without `stop`
            _started.pop(self, None)

    def _wait(self, channel: str, payload: bytes) -> None:
        self._waiting_bytes += len(payload) + _MESSAGE_BYTES
        if self._waiting_bytes <= _MAX_WAITING_BYTES or not self._waiting:
            self._waiting.append((channel, payload))
        elif self._waiting[-1] is not None:
            self._waiting.append(None)

    def _take_waiting(self) -> list[tuple[str, bytes] | None]:
        with self._waiting_lock:
            waiting, self._waiting = self._waiting, []
            self._waiting_bytes = 0
        return waiting

    def _deliver_waiting(self) -> None:
        for item in self._take_waiting():
            if self._sink is None:
                return
            if item is None:
                self._sink.gap(ALL, "this event loop took no messages for long, and more waited than may")
            elif item[0] in self._channels:
                self._sink.deliver(*item)

    def _require_sink(self) -> Sink:
        if self._sink is None:
            raise BrokerUnavailableError("the adapter is stopped", adapter="memory")
        return self._sink
