"""One connection through a `FaultProxy`: both sides of it, and what a fault does to the bytes between them."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, cast

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Faults", "PassingWay", "ProxiedConnection", "Way"]

Way = Literal["both", "to_broker", "to_client"]
"""Which bytes a fault concerns: those of either side, the client's, or the broker's."""

PassingWay = Literal["to_broker", "to_client"]
"""Where bytes are going."""

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
# What a delayed or slow side holds at most; then it stops reading, as TCP's window would stop the sender.
_MAX_WAITING_BYTES: Final = 65_536
_PIECE_SECONDS: Final = 0.02


@dataclass(slots=True)
class Faults:
    """The faults in force, for all connections of a proxy."""

    refusing: bool = False
    way: Way | None = None
    after: Callable[[bytes], bool] | None = None
    swallowed: asyncio.Event = field(default_factory=asyncio.Event)
    cut_trigger: Callable[[bytes], bool] | None = None
    change: Callable[[PassingWay, bytes], bytes] | None = None
    recorded: dict[PassingWay, bytearray] = field(default_factory=dict[PassingWay, bytearray])
    latency_seconds: float = 0.0
    bytes_per_second: float = float("inf")

    @property
    def is_slow(self) -> bool:
        """Whether bytes are delayed or throttled."""
        return self.latency_seconds > 0 or self.bytes_per_second != float("inf")

    def silence(self, way: Way, after: Callable[[bytes], bool] | None) -> None:
        """Swallow bytes, as `FaultProxy.silence`."""
        self.way, self.after = way, after
        self.swallowed.clear()

    def reset(self) -> None:
        """End every fault."""
        self.refusing, self.way, self.after, self.cut_trigger, self.change = False, None, None, None, None
        self.latency_seconds, self.bytes_per_second = 0.0, float("inf")


class ProxiedConnection:
    """One connection through the proxy: the client's side and the broker's.

    Attributes:
        silenced: Whether a silence applies to it.
        bytes_left: How many more bytes of the broker pass before the connection ends; `None` for no limit.
    """

    def __init__(self, faults: Faults, on_end: Callable[[ProxiedConnection], None]) -> None:
        self.client: ConnectionSide = ConnectionSide(self, faults)
        self.broker: ConnectionSide = ConnectionSide(self, faults)
        self.ended: asyncio.Event = asyncio.Event()
        self.aborted: bool = False
        self.silenced: bool = faults.way is not None and faults.after is None
        self.bytes_left: int | None = None
        self._faults = faults
        self._on_end = on_end
        self._connecting: asyncio.Task[None] | None = None

    def connect(self, host: str, port: int) -> None:
        """Connect to the broker, in a task."""
        self._connecting = asyncio.create_task(self._connect(host, port))

    def other(self, side: ConnectionSide) -> ConnectionSide:
        """Return the opposite side."""
        return self.broker if side is self.client else self.client

    def passing(self, side: ConnectionSide, data: bytes) -> bytes:
        """Return what passes of the bytes that `side` received."""
        if self._swallows(side, data):
            self._faults.swallowed.set()
            return b""
        faults, way = self._faults, self._way_from(side)
        if way == "to_broker" and faults.cut_trigger is not None and faults.cut_trigger(data):
            asyncio.get_running_loop().call_soon(self.abort)
            return b""
        if faults.change is not None:
            data = faults.change(way, data)
        if way in faults.recorded:
            faults.recorded[way] += data
        if side is self.client or self.bytes_left is None:
            return data
        self.bytes_left -= len(data)
        if self.bytes_left > 0:
            return data
        asyncio.get_running_loop().call_soon(self.finish)
        return data[: len(data) + self.bytes_left]

    def heal(self) -> None:
        """End the faults of this connection; where it lost bytes, end the connection."""
        if self.silenced:
            self.abort()
        self.bytes_left = None
        for side in (self.client, self.broker):
            side.release("stall")
            side.hurry()

    def abort(self) -> None:
        """End both sides with RST; one that is still connecting ends once it is connected."""
        if self.aborted:
            return
        self.aborted = True
        for side in (self.client, self.broker):
            side.abort()
        self.check_ended()

    def finish(self) -> None:
        """End both sides with FIN, after what was written."""
        for side in (self.client, self.broker):
            if side.transport is None:
                return self.abort()
            side.transport.close()

    def check_ended(self) -> None:
        """Report the end once both sides are closed."""
        if self.aborted and self._connecting is None and self.client.is_closed and self.broker.is_closed:
            self._on_end(self)
            self.ended.set()

    async def _connect(self, host: str, port: int) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: self.broker, host, port)
        except OSError:
            self.abort()
        finally:
            self._connecting = None
            self.check_ended()

    def _swallows(self, side: ConnectionSide, data: bytes) -> bool:
        faults = self._faults
        if faults.way is None:
            return False
        if side is self.client and faults.after is not None and faults.after(data):
            self.silenced = True
        return self.silenced and faults.way in ("both", self._way_from(side))

    def _way_from(self, side: ConnectionSide) -> PassingWay:
        return "to_broker" if side is self.client else "to_client"


class ConnectionSide(asyncio.Protocol):
    """One of the two sides; what it receives is written to the other."""

    def __init__(self, connection: ProxiedConnection, faults: Faults) -> None:
        self.transport: asyncio.Transport | None = None
        self.is_closed: bool = True
        self._connection = connection
        self._faults = faults
        self._queue: deque[tuple[float, bytes]] = deque()  # received and not yet written, each with its time
        self._queued_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._holds: set[str] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.is_closed = False
        if self._connection.aborted:
            self.abort()
            return
        self._connection.other(self).send_due()

    def data_received(self, data: bytes) -> None:
        data = self._connection.passing(self, data)
        target = self._connection.other(self).transport
        if not data:
            return
        if target is not None and not self._queue and not self._faults.is_slow:
            target.write(data)
        else:
            self._enqueue(data)

    def pause_writing(self) -> None:
        self._connection.other(self).hold("full")

    def resume_writing(self) -> None:
        self._connection.other(self).release("full")

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._connection.abort()
        self._connection.check_ended()

    def hold(self, reason: str) -> None:
        """Read nothing more until `release` has been called for each reason."""
        self._holds.add(reason)
        if self.transport is not None:
            self.transport.pause_reading()

    def release(self, reason: str) -> None:
        if reason in self._holds:
            self._holds.remove(reason)
            if self.transport is not None and not self._holds and not self.transport.is_closing():
                self.transport.resume_reading()

    def abort(self) -> None:
        if self.transport is not None:
            if not self.transport.is_closing():
                _reset_on_close(self.transport)
            self.transport.abort()

    def hurry(self) -> None:
        """Write the queue at once."""
        self._queue = deque((0.0, piece) for _, piece in self._queue)
        self.send_due()

    def send_due(self) -> None:
        """Write what is due, and set a timer for the rest."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        target = self._connection.other(self).transport
        if target is None or target.is_closing():
            return
        loop = asyncio.get_running_loop()
        while self._queue and self._queue[0][0] <= loop.time():
            _, piece = self._queue.popleft()
            self._queued_bytes -= len(piece)
            target.write(piece)
        if self._queued_bytes <= _MAX_WAITING_BYTES:
            self.release("queue")
        if self._queue:
            self._timer = loop.call_at(self._queue[0][0], self.send_due)

    def _enqueue(self, data: bytes) -> None:
        faults = self._faults
        earliest = asyncio.get_running_loop().time() + faults.latency_seconds
        size = max(1, int(min(faults.bytes_per_second * _PIECE_SECONDS, len(data))))
        for start in range(0, len(data), size):
            piece = data[start : start + size]
            due = max(earliest, self._queue[-1][0] if self._queue else 0.0) + len(piece) / faults.bytes_per_second
            self._queue.append((due, piece))
        self._queued_bytes += len(data)
        if self._queued_bytes > _MAX_WAITING_BYTES:
            self.hold("queue")
        self.send_due()


def _reset_on_close(transport: asyncio.Transport) -> None:
    """Make the system send RST: without unread data, an event loop's own `abort` sends FIN."""
    with socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
