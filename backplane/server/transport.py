"""What one client may cost its server: how long it is waited for, and how much is read for it in advance.

`transport.close()` waits for a buffer that a client who reads nothing never empties, and a server that has enough of a
client's messages has parsed up to 256 KiB of them already, as a hundred times as many objects. Both are asyncio's way
and none of the server's options, so both are bounded here, between the transport and a server's protocol.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BoundedProtocol", "BoundedTransport"]

# After a close: a client that takes less than this in that time is cut. Both loops and TLS hold up to 512 KiB for it.
_LINGER_SECONDS: Final = 3.0
_LINGER_BYTES: Final = 16 * 1024

# What is parsed at once: 680 of the smallest frames, 230 of the smallest requests.
_SLICE_BYTES: Final = 4 * 1024


class _Owner(Protocol):
    def parse(self) -> None: ...
    def transport_closes(self) -> None: ...


class BoundedTransport:
    """A client's transport, to which a close is the end within a time and a pause of reading a pause of parsing too.

    Everything else is the transport's own; `write` is its bound method, so that a message costs nothing here.

    Attributes:
        owner: The protocol that parses; `None` once another one than ours has taken over.
        paused: Whether the owner asked for nothing more.
    """

    __slots__ = ("_closing", "_inner", "_loop", "_lost", "_reads", "_unsent", "_when_gone", "owner", "paused", "write")

    def __init__(self, inner: asyncio.Transport, loop: asyncio.AbstractEventLoop, owner: _Owner) -> None:
        self.owner: _Owner | None = owner
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
        """Parse what was read before, and go on reading if that was not enough."""
        self.paused = False
        if self.owner is None:
            self.read_on()
        else:
            self.owner.parse()

    def read_on(self) -> None:
        """Read again, unless the owner has enough, or the end has come."""
        if not (self.paused or self._reads or self._lost or self._inner.is_closing()):
            self._reads = True
            self._inner.resume_reading()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Hand the client on, as an upgrade does; one of ours has become the owner before."""
        if protocol is not cast("object", self.owner):
            self.owner = None
        self._inner.set_protocol(protocol)

    def close(self) -> None:
        """Close when what is written has been taken; abort once the client stops taking it."""
        if self.owner is not None:
            self.owner.transport_closes()
        if self._closing is None and not self._lost:
            self._inner.close()
            self._unsent = self._inner.get_write_buffer_size()
            self._closing = self._loop.call_later(_LINGER_SECONDS, self._look)

    def abort(self) -> None:
        """Cut, and drop what is not sent."""
        self._inner.abort()

    def when_gone(self, callback: Callable[[], None], /) -> None:
        """Call `callback` once, when the connection is lost; at once if it is."""
        if self._lost:
            callback()
        else:
            self._when_gone.append(callback)

    def lose(self) -> None:
        """Take note that the connection is lost: the owner's part."""
        self._lost = True
        self.owner = None  # a cycle would keep both until the garbage collector comes
        if self._closing is not None:
            self._closing.cancel()
        callbacks, self._when_gone = self._when_gone, []
        for callback in callbacks:
            callback()

    def _look(self) -> None:
        unsent = self._inner.get_write_buffer_size()
        if 0 < unsent <= self._unsent - _LINGER_BYTES:
            self._unsent = unsent
            self._closing = self._loop.call_later(_LINGER_SECONDS, self._look)
        else:  # with TLS also where all was taken but the goodbye
            self._inner.abort()


class BoundedProtocol(asyncio.Protocol):
    """To be put before a protocol of Uvicorn's: gives it a `BoundedTransport`, and parses for it a slice at a time."""

    loop: asyncio.AbstractEventLoop
    client_transport: BoundedTransport | None = None
    _parsing = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._unparsed = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wrap the transport, unless an upgrade hands on one that is."""
        if isinstance(transport, BoundedTransport):
            transport.owner = self
            self.client_transport = transport
        else:
            self.client_transport = BoundedTransport(cast("asyncio.Transport", transport), self.loop, self)
        super().connection_made(cast("asyncio.Transport", self.client_transport))

    def data_received(self, data: bytes) -> None:
        """Parse, or keep for later what the application is not ready for: no more than was read at once."""
        self._unparsed += data
        self.parse()

    def eof_received(self) -> None:
        """End: the event loop would close its own transport, which waits for ever."""
        super().eof_received()
        if self.client_transport is not None:
            self.client_transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of the transport, which is gone."""
        self._unparsed.clear()
        if self.client_transport is not None:
            self.client_transport.lose()
        super().connection_lost(exc)

    def parse(self) -> None:
        """Parse what was read, until the application has enough; read on if it has not."""
        transport = self.client_transport
        if self._parsing or transport is None:  # out of what is parsed: the loop below goes on
            return
        self._parsing = True
        try:
            while self._unparsed and not transport.paused:
                piece = bytes(self._unparsed[:_SLICE_BYTES])
                del self._unparsed[:_SLICE_BYTES]
                self.parse_slice(piece)
                if transport.owner is not self or transport.is_closing():
                    return self._unparsed.clear()
        finally:
            self._parsing = False
        return transport.read_on()

    def parse_slice(self, data: bytes) -> None:
        """Parse one slice, as the protocol does."""
        super().data_received(data)

    def transport_closes(self) -> None:
        """Do what has to be done before the transport is closed."""
