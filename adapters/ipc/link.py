"""One Unix stream socket on the event loop, read and written without a task.

A plain socket with `add_reader` instead of an asyncio transport, for three guarantees a transport does not give:

- Data passed to `send` is with the kernel when it returns, unless the peer does not read. uvloop collects it until the
  end of the pass.
- A write to a peer that has died does not stop the reading: the kernel still holds what that peer sent before, and all
  of it is read. A transport discards it.
- Data that waits here is offered to the kernel by every further `send`, not only in the next pass of the event loop: a
  long burst reaches a peer that reads.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Final, Protocol

from backplane.adapters.ipc.wire import Decoder, WireError
from backplane.concurrency.fork import close_in_children
from backplane.journal.events import PEER_REFUSED

if TYPE_CHECKING:
    import asyncio

    from backplane.journal.journal import Journal

__all__ = ["PeerLink", "PeerLinkOwner"]

logger: Final = logging.getLogger("backplane.adapters.ipc.link")

_READ_BYTES: Final = 256 * 1024
_SEND_BUFFER_BYTES: Final = 1024 * 1024  # the kernel limits it to net.core.wmem_max
_MAX_JOINED: Final = 256  # buffers of one sendmsg; the kernel takes up to 1024


class PeerLinkOwner(Protocol):
    """Callbacks of a link. `received` may raise `WireError`; the others must not raise."""

    def received(self, kind: int, key: bytes, payload: bytes, /) -> None:
        """A whole frame was received."""

    def drained(self) -> None:
        """The kernel has taken the last byte that waited."""

    def ended(self, *, complete: bool, valid: bool) -> None:
        """The link has ended and is closed; called once, and not after `close`.

        Args:
            complete: It ended between two frames.
            valid: False if this process ended it, because it received a malformed frame.
        """


class PeerLink:
    """A connected, non-blocking socket that passes each received frame to its owner. Closed once, by either side.

    Args:
        loop: The running event loop.
        sock: The socket, which the link owns from now on.
        owner: Receives the callbacks; may be replaced.
        max_payload_bytes: Largest payload of a frame.
        journal: Logs connections that do not speak the protocol.
    """

    __slots__ = ("_decoder", "_journal", "_loop", "_sock", "_waiting", "_writable", "backlog_bytes", "closed", "owner")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        owner: PeerLinkOwner,
        max_payload_bytes: int,
        journal: Journal,
    ) -> None:
        self.owner: PeerLinkOwner = owner
        self._journal = journal
        self.backlog_bytes: int = 0
        self.closed: bool = False
        self._loop = loop
        self._sock = sock
        self._decoder = Decoder(max_payload_bytes)
        self._waiting: deque[bytes | memoryview] = deque()
        self._writable = True
        close_in_children(sock)
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        loop.add_reader(sock, self._read)

    def send(self, data: bytes) -> None:
        """Pass `data` to the kernel and keep what it does not take. Does nothing on a link that has ended."""
        if not self._writable:
            return
        if self._waiting:
            self._keep(data)
            self.flush()
            return
        try:
            sent = self._sock.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self._stop_writing()
            return
        if sent < len(data):
            self._keep(memoryview(data)[sent:] if sent else data)
            self._loop.add_writer(self._sock, self.flush)

    def flush(self) -> None:
        """Pass waiting data to the kernel until it takes no more; notify the owner when nothing waits."""
        if not self._waiting:
            return
        try:
            while self._waiting:
                self._forget(self._sock.sendmsg(list(islice(self._waiting, _MAX_JOINED))))
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._stop_writing()
            return
        self._loop.remove_writer(self._sock)
        self.owner.drained()

    def end_writing(self) -> None:
        """Drop what waits and end the stream to the other side, but read on until it ends its own."""
        if self._writable:
            self._stop_writing()
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close now; what waits is lost. A second call does nothing."""
        if self.closed:
            return
        self._stop_writing()
        self.closed = True
        if not self._loop.is_closed():
            self._loop.remove_reader(self._sock)
        self._sock.close()

    def _keep(self, data: bytes | memoryview) -> None:
        self._waiting.append(data)
        self.backlog_bytes += len(data)

    def _forget(self, sent: int) -> None:
        self.backlog_bytes -= sent
        while sent:
            head = self._waiting[0]
            if sent < len(head):
                self._waiting[0] = memoryview(head)[sent:]
                return
            sent -= len(head)
            self._waiting.popleft()

    def _stop_writing(self) -> None:
        self._writable = False
        if self._waiting and not self._loop.is_closed():
            self._loop.remove_writer(self._sock)
        self._waiting.clear()
        self.backlog_bytes = 0

    def _read(self) -> None:
        if self.closed:
            return
        try:
            data = self._sock.recv(_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:  # a reset: the kernel has returned everything that was sent before it
            data = b""
        if not data:
            self._end(complete=not self._decoder.inside_frame, valid=True)
            return
        try:
            for kind, key, payload in self._decoder.feed(data):
                self.owner.received(kind, key, payload)
                if self.closed:
                    return
        except WireError as error:
            words = "dropped a connection that does not speak the protocol: %(reason)s"
            self._journal.log(logger, PEER_REFUSED, words, reason=error)
            self._end(complete=False, valid=False)

    def _end(self, *, complete: bool, valid: bool) -> None:
        self.close()
        self.owner.ended(complete=complete, valid=valid)
