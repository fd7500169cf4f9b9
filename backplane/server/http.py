"""Uvicorn's HTTP protocol, bounded: `uvicorn app:app --http backplane.server.http:BoundedHTTPProtocol`.

The same implementation as Uvicorn's `auto`, httptools where it is installed and h11 elsewhere, with four bounds that
neither has: the head of a request is limited in time and in size; a client that does not read the end of a response,
such as an event stream, is cut; and a warning that a client can repeat, such as that of an invalid request, is logged
once for a burst.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from backplane.errors import MissingDependencyError
from backplane.journal.events import SERVER_CLIENT
from backplane.journal.journal import Journal
from backplane.lane import TRANSPORT
from backplane.server.transport import BoundedProtocol

try:
    from uvicorn.protocols.http.auto import AutoHTTPProtocol
    from uvicorn.protocols.http.h11_impl import H11Protocol
except ImportError as _error:
    raise MissingDependencyError(f"this protocol needs uvicorn ({_error}): pip install 'uvicorn>=0.52.4'") from _error

if TYPE_CHECKING:
    import asyncio
    import logging
    from collections.abc import Callable

    _Auto = H11Protocol  # `AutoHTTPProtocol` is chosen at import
else:
    _Auto = AutoHTTPProtocol

__all__ = ["BoundedH11Protocol", "BoundedHTTPProtocol"]

# From the connection, or the first byte of a later request, to the end of its head. nginx: 60, centrifuge: 15.
_HEAD_SECONDS: Final = 15.0
_HEAD_BYTES: Final = 64 * 1024


class _BoundedLogger:
    """Uvicorn's logger. Its warnings are all about clients: bursts of them are logged as one line with a count."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._journal = Journal(burst=1)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._logger, name)

    def warning(self, message: str, *args: object) -> None:
        self._journal.log(self._logger, SERVER_CLIENT, "%(reason)s", reason=message % args if args else message)


_loggers: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, _BoundedLogger]] = WeakKeyDictionary()


class _Bounded(BoundedProtocol):
    """A mixin for one of Uvicorn's HTTP protocols."""

    logger: Any
    transport: asyncio.Transport
    cycle: Any
    send_400_response: Callable[[str], None]
    _head_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the time limit of the first request's head."""
        super().connection_made(transport)
        if self.loop not in _loggers:
            _loggers[self.loop] = _BoundedLogger(self.logger)
        self.logger = _loggers[self.loop]
        self._head_timer = self.loop.call_later(_HEAD_SECONDS, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the time limit."""
        self._head_is_complete()
        super().connection_lost(exc)

    def parse_slice(self, data: bytes) -> None:
        """Parse, and stop the time limit once a head is complete."""
        before = self.cycle
        super().parse_slice(data)
        transport = self.client_transport
        if transport is None or transport.owner is not self:  # an upgrade handed it to a WebSocket protocol
            return self._head_is_complete()
        if self.cycle is not before:
            # Its task exists and has not run yet: the scope can still be changed.
            self.cycle.scope.setdefault("extensions", {})[TRANSPORT] = _Exchange(self.cycle, transport.when_gone)
            return self._head_is_complete()
        if before is None or before.response_complete:
            self._head_bytes += len(data)
            if self._head_timer is None:
                self._head_timer = self.loop.call_later(_HEAD_SECONDS, self.transport.close)
            if self._head_bytes > _HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response("Request header fields too large.")
        return None

    def _head_is_complete(self) -> None:
        self._head_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class BoundedHTTPProtocol(_Bounded, _Auto):
    """Uvicorn's default implementation of HTTP, with bounds on what a client may cost."""


class BoundedH11Protocol(_Bounded, H11Protocol):
    """Uvicorn's implementation on h11, with the same bounds."""


class _Exchange:
    """The `backplane.lane.ClientTransport` of one request; its connection may serve others after it."""

    __slots__ = ("_cycle", "_when_gone")

    def __init__(self, cycle: Any, when_gone: Callable[[Callable[[], None]], None]) -> None:
        self._cycle = cycle
        self._when_gone = when_gone

    def abort(self) -> None:
        self._cycle.transport.abort()

    def when_gone(self, callback: Callable[[], None], /) -> None:
        if self._cycle.response_complete and self._cycle.keep_alive:
            callback()
        else:
            self._when_gone(callback)
