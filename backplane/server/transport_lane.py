"""The writing side of a lane: what does not depend on the server that owns the transport."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from backplane.lane import LaneWriter
    from backplane.server.transport import BoundedTransport

__all__ = ["TransportLane"]

_PING: Final = b"\x89\x00"


class TransportLane:
    """The part of a `backplane.lane.Lane` that its transport decides.

    Args:
        transport: The transport of the client.
        now: The time, by the event loop's clock.

    Attributes:
        last_received_at: When bytes were last received from the client, by the event loop's clock.
        writable: Whether the transport accepts more.
        write: The method of the transport once there is a writer; does nothing before and after the end.
    """

    __slots__ = ("_ended", "_transport", "_writer", "last_received_at", "writable", "write")

    def __init__(self, transport: BoundedTransport | asyncio.Transport, now: float) -> None:
        self._transport = transport
        self._writer: LaneWriter | None = None
        self._ended = False
        self.last_received_at: float = now
        self.writable: bool = True
        self.write: Callable[[bytes], object] = _discard

    @property
    def reading(self) -> bool:
        """Whether the server reads from the client at the moment."""
        reading: bool = self._transport.is_reading()
        return reading

    @property
    def buffered_bytes(self) -> int:
        """How many bytes the server has buffered."""
        size: int = self._transport.get_write_buffer_size()
        return size

    def ping(self) -> None:
        """Send a ping, unless it would only be queued."""
        if self.writable:
            self.write(_PING)

    def close(self) -> None:
        """Close without a close frame."""
        self.end()
        self._transport.close()

    def abort(self) -> None:
        """Abort the connection."""
        self._transport.abort()

    def set_writable(self, writable: bool) -> bool:
        """Let the writer stop, or write what waited; return whether the transport takes more, or needs not any more."""
        if not self._ended:
            self.writable = writable
            if self._writer is not None:
                self._writer.lane_writable(writable)
        return self.writable or self._ended

    def end(self) -> None:
        """Write nothing more, and notify the writer of the end. Calling it again changes nothing."""
        if self._ended:
            return
        self._ended = True
        self.writable = False
        self.write = _discard
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.lane_closed()


def _discard(_: bytes) -> None:
    """Ignore a write to a lane that is not open."""
