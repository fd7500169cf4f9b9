"""One Unix stream socket on the event loop, read and written without a task.

A plain socket with `add_reader` instead of an asyncio transport, for three guarantees a transport does not give:

- What `send` was given is with the kernel when it returns, unless the peer does not read (uvloop would gather it
  first).
- A write to a peer that has died does not end the reading: the kernel still holds what that peer sent before, and every
  byte of it is read first. A transport drops it.
- What waits here is tried again by every further `send`, not only when the event loop comes round: a long burst goes
  out to a peer that reads.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Final, Protocol

from backplane.adapters.ipc.wire import Decoder, WireError
from backplane.adapters.shared.fork import close_in_children

if TYPE_CHECKING:
    import asyncio

    from backplane.log_bursts import LogBursts

__all__ = ["Link", "LinkOwner"]

logger = logging.getLogger("backplane.adapters.ipc")

_READ_BYTES: Final = 256 * 1024
_SEND_BUFFER_BYTES: Final = 1024 * 1024  # the kernel cuts it down to net.core.wmem_max
_MAX_JOINED: Final = 256  # buffers of one sendmsg; the kernel takes up to 1024


class LinkOwner(Protocol):
    """Who hears of what happens on a link. `received` may raise `WireError`; nothing else may raise."""

    def received(self, link: Link, kind: int, key: bytes, payload: bytes) -> None:
        """One whole frame has come."""
        ...

    def drained(self, link: Link) -> None:
        """The last byte that had waited is with the kernel."""
        ...

    def ended(self, link: Link, *, complete: bool, valid: bool) -> None:
        """The link is over and closed; called once, and not after `close`.

        Args:
            link: The link.
            complete: It ended between two frames.
            valid: It was not ended here because of what came.
        """
        ...


class Link:
    """A connected, non-blocking socket, whose owner is told of frames. Closed exactly once, by either side.

    Args:
        loop: The running event loop.
        sock: The socket, which the link owns from now on.
        owner: Who is told.
        max_payload_bytes: Largest payload of a frame.
        bursts: How what does not speak the protocol is logged.
    """

    __slots__ = ("_bursts", "_decoder", "_loop", "_sock", "_waiting", "_writable", "backlog_bytes", "closed", "owner")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        owner: LinkOwner,
        max_payload_bytes: int,
        bursts: LogBursts,
    ) -> None:
        self.owner = owner
        self._bursts = bursts
        self.backlog_bytes = 0
        self.closed = False
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
        """Give `data` to the kernel, or keep what it does not take. Does nothing on a link that has ended."""
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
        """Give the kernel as much of what waits as it takes, and tell the owner when that was all."""
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
        self.owner.drained(self)

    def end_writing(self) -> None:
        """Drop what waits and tell the other side that no more will come, but go on reading to its end."""
        if self._writable:
            self._stop_writing()
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close now; what waits is lost. Doing it again does nothing."""
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
        except OSError:  # a reset; the kernel hands out everything sent before it first
            data = b""
        if not data:
            self._end(complete=not self._decoder.inside_frame, valid=True)
            return
        try:
            for kind, key, payload in self._decoder.feed(data):
                self.owner.received(self, kind, key, payload)
                if self.closed:
                    return
        except WireError as error:
            words = "dropped a connection that does not speak the protocol: %s"
            self._bursts.log(logger, logging.WARNING, words, error)
            self._end(complete=False, valid=False)

    def _end(self, *, complete: bool, valid: bool) -> None:
        self.close()
        self.owner.ended(self, complete=complete, valid=valid)
