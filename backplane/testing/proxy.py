"""A TCP proxy that breaks links in the ways networks do."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, Self, cast
from urllib.parse import urlsplit, urlunsplit

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FaultProxy", "PassingWay", "Way"]

Way = Literal["both", "to_broker", "to_client"]
"""Which bytes a fault concerns: those of either side, the client's, or the broker's."""

PassingWay = Literal["to_broker", "to_client"]
"""Where bytes are going."""

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
# What a thin or slow way holds at most; behind it the sender is held up, as the windows of TCP would.
_MAX_WAITING_BYTES: Final = 65_536
_PIECE_SECONDS: Final = 0.02


class FaultProxy:
    """Stands between an adapter and its broker, in the event loop of the test.

        async with FaultProxy("redis://localhost:6379") as proxy:
            backplane = Backplane(proxy.url)

    Args:
        url: Where the broker is; host and port must stand in it.
        port: Where to listen. Defaults to any free port; a broker that tells its clients where it is, as Kafka does,
            must tell them this one.

    Raises:
        ValueError: No port stands in the URL.
    """

    def __init__(self, url: str, port: int = 0) -> None:
        self._port = port
        self._target = urlsplit(url)
        self._address = _address(url)
        self._server: asyncio.Server | None = None
        self._pairs: set[_Pair] = set()
        self._faults = _Faults()

    @property
    def url(self) -> str:
        """The broker's URL with this proxy's address in it."""
        assert self._server is not None, "enter the proxy first"
        port = self._server.sockets[0].getsockname()[1]
        userinfo, at, _ = self._target.netloc.rpartition("@")
        return urlunsplit(self._target._replace(netloc=f"{userinfo}{at}127.0.0.1:{port}"))

    @property
    def links(self) -> int:
        """How many connections stand."""
        return len(self._pairs)

    def cut(self) -> None:
        """End every connection at once, with RST."""
        for pair in list(self._pairs):
            pair.abort()

    def finish(self) -> None:
        """End every connection in the orderly way, with FIN, as a server does that shuts down."""
        for pair in list(self._pairs):
            pair.finish()

    def cut_after(self, size_bytes: int) -> None:
        """End each connection that stands when `size_bytes` more have come from the broker: in the middle of a frame.

        What came before reaches the client, then FIN.
        """
        for pair in self._pairs:
            pair.bytes_left = size_bytes

    def refuse(self) -> None:
        """End every connection, and each new one as soon as it is made."""
        self._faults.refusing = True
        self.cut()

    def cut_on(self, picks: Callable[[bytes], bool]) -> None:
        """End, with RST, each connection on which the client sends something that `picks` says yes to.

        What a broker does that closes the connection over a command. The bytes do not reach it.
        """
        self._faults.deadly = picks

    def lead_to(self, url: str) -> None:
        """Lead new connections to the broker at `url`, as after a failover behind a name; `heal` leaves it so.

        Those that stand stay where they lead.
        """
        self._address = _address(url)

    def rewrite(self, change: Callable[[PassingWay, bytes], bytes]) -> None:
        """Let pass what `change(way, data)` makes of each piece of bytes, as somebody on the way could alter it."""
        self._faults.change = change

    def record(self) -> None:
        """Keep what passes from now on, for `recorded`; what was kept before is dropped."""
        self._faults.recorded = {"to_broker": bytearray(), "to_client": bytearray()}

    def recorded(self, way: PassingWay) -> bytes:
        """Return what has passed one way, over all connections, since `record`."""
        return bytes(self._faults.recorded[way])

    def silence(self, way: Way = "both", *, after: Callable[[bytes], bool] | None = None) -> None:
        """Swallow everything from now on, on new connections too: half open, as behind a dead middlebox.

        With `cut` behind it, every connection is accepted and then silent.

        Args:
            way: Which bytes are swallowed.
            after: Picks connections: only those on which the client sends something that this says yes to, from these
                bytes on. Without it, all. `silence("to_client", after=lambda sent: b"PUBLISH" in sent)` swallows the
                replies of a Redis to what is published, and leaves its subscribers alone.
        """
        self._faults.silence(way, after)
        if after is None:
            for pair in self._pairs:
                pair.silenced = True

    async def swallowed(self) -> None:
        """Wait until a silenced link has swallowed something."""
        await self._faults.swallowed.wait()

    def slow(self, *, latency_seconds: float = 0.0, bytes_per_second: float = float("inf")) -> None:
        """Let bytes pass later, or no faster, each way of each connection for itself."""
        self._faults.latency_seconds = latency_seconds
        self._faults.bytes_per_second = bytes_per_second

    def stall(self) -> None:
        """Stop reading from the broker on the connections that stand, so that its output buffers fill.

        The broker cuts such a client sooner or later, and the client hears nothing of it.
        """
        for pair in self._pairs:
            pair.broker.hold("stall")

    def heal(self) -> None:
        """End every fault. Connections that were silenced have lost bytes and end; the others go on."""
        self._faults.reset()
        for pair in list(self._pairs):
            pair.heal()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._accept, "127.0.0.1", self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        while self._pairs:
            await next(iter(self._pairs)).ended.wait()
        await self._server.wait_closed()

    def _accept(self) -> _End:
        pair = _Pair(self._faults, self._pairs.discard)
        self._pairs.add(pair)
        if self._faults.refusing:
            asyncio.get_running_loop().call_soon(pair.abort)
        else:
            pair.connect(*self._address)
        return pair.client


@dataclass(slots=True)
class _Faults:
    """What happens to every connection at present."""

    refusing: bool = False
    way: Way | None = None
    after: Callable[[bytes], bool] | None = None
    swallowed: asyncio.Event = field(default_factory=asyncio.Event)
    deadly: Callable[[bytes], bool] | None = None
    change: Callable[[PassingWay, bytes], bytes] | None = None
    recorded: dict[PassingWay, bytearray] = field(default_factory=dict[PassingWay, bytearray])
    latency_seconds: float = 0.0
    bytes_per_second: float = float("inf")

    @property
    def is_slow(self) -> bool:
        return self.latency_seconds > 0 or self.bytes_per_second != float("inf")

    def silence(self, way: Way, after: Callable[[bytes], bool] | None) -> None:
        self.way, self.after = way, after
        self.swallowed.clear()

    def reset(self) -> None:
        self.refusing, self.way, self.after, self.deadly, self.change = False, None, None, None, None
        self.latency_seconds, self.bytes_per_second = 0.0, float("inf")


class _Pair:
    """One connection through the proxy: the client's end and the broker's.

    Attributes:
        silenced: A silence concerns it.
        bytes_left: How many bytes of the broker may still pass, where they are counted.
    """

    def __init__(self, faults: _Faults, on_end: Callable[[_Pair], None]) -> None:
        self.client = _End(self, faults)
        self.broker = _End(self, faults)
        self.ended = asyncio.Event()
        self.aborted = False
        self.silenced = faults.way is not None and faults.after is None
        self.bytes_left: int | None = None
        self._faults = faults
        self._on_end = on_end
        self._connecting: asyncio.Task[None] | None = None

    def connect(self, host: str, port: int) -> None:
        self._connecting = asyncio.create_task(self._connect(host, port))

    def other(self, end: _End) -> _End:
        return self.broker if end is self.client else self.client

    def passing(self, end: _End, data: bytes) -> bytes:
        """Return what may pass of the bytes that came at `end`."""
        if self._swallows(end, data):
            self._faults.swallowed.set()
            return b""
        faults, way = self._faults, self._way_from(end)
        if way == "to_broker" and faults.deadly is not None and faults.deadly(data):
            asyncio.get_running_loop().call_soon(self.abort)
            return b""
        if faults.change is not None:
            data = faults.change(way, data)
        if way in faults.recorded:
            faults.recorded[way] += data
        if end is self.client or self.bytes_left is None:
            return data
        self.bytes_left -= len(data)
        if self.bytes_left > 0:
            return data
        asyncio.get_running_loop().call_soon(self.finish)
        return data[: len(data) + self.bytes_left]

    def heal(self) -> None:
        if self.silenced:
            self.abort()
        self.bytes_left = None
        for end in (self.client, self.broker):
            end.release("stall")
            end.hurry()

    def abort(self) -> None:
        """End both ends with RST; one that is still being made ends as soon as it is."""
        if self.aborted:
            return
        self.aborted = True
        for end in (self.client, self.broker):
            end.abort()
        self.check_ended()

    def finish(self) -> None:
        """End both ends with FIN, behind what was written."""
        for end in (self.client, self.broker):
            if end.transport is None:
                return self.abort()
            end.transport.close()

    def check_ended(self) -> None:
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

    def _swallows(self, end: _End, data: bytes) -> bool:
        faults = self._faults
        if faults.way is None:
            return False
        if end is self.client and faults.after is not None and faults.after(data):
            self.silenced = True
        return self.silenced and faults.way in ("both", self._way_from(end))

    def _way_from(self, end: _End) -> PassingWay:
        return "to_broker" if end is self.client else "to_client"


class _End(asyncio.Protocol):
    """One of the two ends; what it receives goes out at the other."""

    def __init__(self, pair: _Pair, faults: _Faults) -> None:
        self.transport: asyncio.Transport | None = None
        self.is_closed = True
        self._pair = pair
        self._faults = faults
        self._line: deque[tuple[float, bytes]] = deque()  # what came and has not gone out, with the time for it
        self._line_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._holds: set[str] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.is_closed = False
        if self._pair.aborted:
            self.abort()
            return
        self._pair.other(self).send_due()

    def data_received(self, data: bytes) -> None:
        data = self._pair.passing(self, data)
        target = self._pair.other(self).transport
        if not data:
            return
        if target is not None and not self._line and not self._faults.is_slow:
            target.write(data)
        else:
            self._line_up(data)

    def pause_writing(self) -> None:
        self._pair.other(self).hold("full")

    def resume_writing(self) -> None:
        self._pair.other(self).release("full")

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._pair.abort()
        self._pair.check_ended()

    def hold(self, reason: str) -> None:
        """Read nothing more, until `release` has been called for every reason."""
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
        """Send at once what lines up."""
        self._line = deque((0.0, piece) for _, piece in self._line)
        self.send_due()

    def send_due(self) -> None:
        """Send what is due, and come back for the rest."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        target = self._pair.other(self).transport
        if target is None or target.is_closing():
            return
        loop = asyncio.get_running_loop()
        while self._line and self._line[0][0] <= loop.time():
            _, piece = self._line.popleft()
            self._line_bytes -= len(piece)
            target.write(piece)
        if self._line_bytes <= _MAX_WAITING_BYTES:
            self.release("line")
        if self._line:
            self._timer = loop.call_at(self._line[0][0], self.send_due)

    def _line_up(self, data: bytes) -> None:
        faults = self._faults
        earliest = asyncio.get_running_loop().time() + faults.latency_seconds
        size = max(1, int(min(faults.bytes_per_second * _PIECE_SECONDS, len(data))))
        for start in range(0, len(data), size):
            piece = data[start : start + size]
            due = max(earliest, self._line[-1][0] if self._line else 0.0) + len(piece) / faults.bytes_per_second
            self._line.append((due, piece))
        self._line_bytes += len(data)
        if self._line_bytes > _MAX_WAITING_BYTES:
            self.hold("line")
        self.send_due()


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    if parts.port is None:
        raise ValueError("a FaultProxy needs host and port in the URL: it knows no broker's default")
    return parts.hostname or "127.0.0.1", parts.port


def _reset_on_close(transport: asyncio.Transport) -> None:
    """Make the system send RST; an event loop's own `abort` sends FIN where nothing unread waits."""
    with socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
