"""Bounds on what one client costs its server: the time of a close, and the data read in advance.

`transport.close()` waits until its buffer is empty, which it never is for a client that does not read; and a server
that pauses reading has already parsed up to 256 KiB into objects of a hundred times that size. Both follow from
asyncio, and the server has no option for either. So both are bounded here, between transport and protocol.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BoundedProtocol", "BoundedTransport", "Unparsed"]

# After a close a client that reads less than this in that time is cut. Both event loops and TLS buffer up to 512 KiB.
_LINGER_SECONDS: Final = 3.0
_LINGER_BYTES: Final = 16 * 1024

# What is parsed at once: 680 of the smallest frames, 230 of the smallest requests.
_SLICE_BYTES: Final = 4 * 1024


class _ParsingProtocol(Protocol):
    def parse(self) -> None: ...
    def parse_slice(self, data: bytes, /) -> None: ...
    def transport_closes(self) -> None: ...


class BoundedTransport:
    """A client's transport: its close ends in bounded time, and while reading is paused nothing is parsed.

    All else is delegated to the transport; `write` is its bound method, so that a message has no extra call.

    Attributes:
        owner: The protocol that parses; `None` once another protocol, not ours, has taken over.
        paused: Whether the owner has paused reading.
    """

    __slots__ = ("_closing", "_inner", "_loop", "_lost", "_reads", "_unsent", "_when_gone", "owner", "paused", "write")

    def __init__(self, inner: asyncio.Transport, loop: asyncio.AbstractEventLoop, owner: _ParsingProtocol) -> None:
        self.owner: _ParsingProtocol | None = owner
        self.paused: bool = False
        self.write: Callable[[bytes | bytearray | memoryview[Any]], None] = inner.write
        self._inner = inner
        self._loop = loop
        self._closing: asyncio.TimerHandle | None = None
        self._unsent = 0
        self._lost = False
        self._reads = True
        self._when_gone: list[Callable[[], None]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def pause_reading(self) -> None:
        """Read nothing more, and parse nothing more of what was read."""
        self.paused = True
        self._reads = False
        self._inner.pause_reading()

    def resume_reading(self) -> None:
        """Parse what was read before, and then read again unless the owner pauses."""
        self.paused = False
        if self.owner is None:
            self.read_on()
        else:
            self.owner.parse()

    def read_on(self) -> None:
        """Read again, unless the owner has paused or the transport is closing."""
        if not (self.paused or self._reads or self._lost or self._inner.is_closing()):
            self._reads = True
            self._inner.resume_reading()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Change the protocol, as an upgrade does; a protocol of ours has made itself the owner before."""
        if protocol is not cast("object", self.owner):
            self.owner = None
        self._inner.set_protocol(protocol)

    def close(self) -> None:
        """Close once the buffer is empty; abort when the client stops reading."""
        if self.owner is not None:
            self.owner.transport_closes()
        if self._closing is None and not self._lost:
            self._inner.close()
            self._unsent = self._inner.get_write_buffer_size()
            self._closing = self._loop.call_later(_LINGER_SECONDS, self._check_progress)

    def abort(self) -> None:
        """Close at once and drop the buffer."""
        self._inner.abort()

    def when_gone(self, callback: Callable[[], None], /) -> None:
        """Call `callback` once the connection is lost; at once if it is lost already."""
        if self._lost:
            callback()
        else:
            self._when_gone.append(callback)

    def connection_lost(self) -> None:
        """Mark the connection as lost; the owner calls it."""
        self._lost = True
        self.owner = None  # a reference cycle would keep both until a garbage collection
        if self._closing is not None:
            self._closing.cancel()
        callbacks, self._when_gone = self._when_gone, []
        for callback in callbacks:
            callback()

    def _check_progress(self) -> None:
        unsent = self._inner.get_write_buffer_size()
        if 0 < unsent <= self._unsent - _LINGER_BYTES:
            self._unsent = unsent
            self._closing = self._loop.call_later(_LINGER_SECONDS, self._check_progress)
        else:  # with TLS, also where only the peer's close_notify is missing
            self._inner.abort()


class Unparsed:
    """The bytes of a client that are read and not parsed: at most one read, and more while the owner has paused."""

    __slots__ = ("_data", "_is_parsing")

    def __init__(self) -> None:
        self._data = bytearray()
        self._is_parsing = False

    def __len__(self) -> int:
        return len(self._data)

    def append(self, data: bytes) -> None:
        """Add what was read."""
        self._data += data

    def clear(self) -> None:
        """Drop all of it."""
        self._data.clear()

    def parse(self, transport: BoundedTransport, owner: _ParsingProtocol) -> None:
        """Let `owner` parse slice by slice until it pauses, then read again if it has not."""
        if self._is_parsing:  # called while parsing: the loop below goes on
            return
        self._is_parsing = True
        try:
            while self._data and not transport.paused:
                piece = bytes(self._data[:_SLICE_BYTES])
                del self._data[:_SLICE_BYTES]
                owner.parse_slice(piece)
                if transport.owner is not owner or transport.is_closing():
                    return self._data.clear()
        finally:
            self._is_parsing = False
        return transport.read_on()


class BoundedProtocol(asyncio.Protocol):
    """A mixin for a protocol of Uvicorn: gives it a `BoundedTransport`, and feeds it one slice at a time."""

    loop: asyncio.AbstractEventLoop
    client_transport: BoundedTransport | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._unparsed = Unparsed()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wrap the transport, unless it was wrapped before an upgrade."""
        if isinstance(transport, BoundedTransport):
            transport.owner = self
            self.client_transport = transport
        else:
            self.client_transport = BoundedTransport(cast("asyncio.Transport", transport), self.loop, self)
        super().connection_made(cast("asyncio.Transport", self.client_transport))

    def data_received(self, data: bytes) -> None:
        """Parse, or keep for later while the owner has paused: at most one read."""
        self._unparsed.append(data)
        self.parse()

    def eof_received(self) -> None:
        """Close the bounded transport: the event loop would close its own, without a time limit."""
        super().eof_received()
        if self.client_transport is not None:
            self.client_transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Release the transport."""
        self._unparsed.clear()
        if self.client_transport is not None:
            self.client_transport.connection_lost()
        super().connection_lost(exc)

    def parse(self) -> None:
        """Parse what was read until the protocol pauses, then read again if it has not."""
        if self.client_transport is not None:
            self._unparsed.parse(self.client_transport, self)

    def parse_slice(self, data: bytes) -> None:
        """Parse one slice, as the protocol does."""
        super().data_received(data)

    def transport_closes(self) -> None:
        """Called before the transport is closed."""
