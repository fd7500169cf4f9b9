"""Client sockets by the thousand: opened many at once, and read by epoll into one piece of memory."""

from __future__ import annotations

import errno
import select
import socket
import time
import zlib
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from benchmarks.harness.capacity import local_address
from benchmarks.harness.websocket import CLOSE, PING, PONG, Dialect, client_frame, frames, request

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Client", "HandshakeError", "connect", "open_seconds"]

_OPEN_SECONDS: Final = 60.0
_SLOWEST_PER_SECOND: Final = 200

# Linux: the port is chosen when the destination is known, so that two destinations can have the same one.
_IP_BIND_ADDRESS_NO_PORT: Final = 24


class HandshakeError(Exception):
    """The server did not accept a client; holds its answer."""


@dataclass(slots=True, eq=False)
class Client:
    """One WebSocket.

    Attributes:
        number: Its place among those that were opened with it.
        path: Where it is connected.
        seconds: How long its handshake took.
        rest: What arrived after the last whole frame.
        unread: How many bytes of the frame that `rest` begins have not been read and need not be kept.
        closed: The code it was closed with; 0 where the connection ended without one, `None` while open.
        pings: How many pings of the server it has answered.
        other_texts: The last texts that are not messages of this run.
    """

    number: int
    path: str
    dialect: Dialect
    sock: socket.socket
    started: float
    seconds: float = 0.0
    rest: bytes = b""
    unread: int = 0
    closed: int | None = None
    pings: int = 0
    other_texts: list[bytes] = field(default_factory=list[bytes])
    _upgraded: bool = False
    _inflate: Any = None

    def texts(self, data: bytes) -> list[bytes]:
        """Take what arrived, answer pings and a close (RFC 6455, section 5.5), and return the texts in it."""
        found, self.rest = frames(self.rest + data)
        texts: list[bytes] = []
        for frame in found:
            if frame.opcode == PING:
                self.pings += 1
                self._answer(client_frame(frame.payload, PONG))
            elif frame.opcode == CLOSE:
                self.closed = int.from_bytes(frame.payload[:2], "big")
                self._answer(client_frame(frame.payload[:2], CLOSE))
            elif self.dialect.pings and frame.payload == self.dialect.pings[0]:
                self.pings += 1
                self._answer(client_frame(self.dialect.pings[1], self.dialect.opcode))
            else:
                texts.append(self._inflated(frame.payload) if frame.compressed else frame.payload)
        return texts

    def opened(self) -> bool:
        """Take the next part of the server's answer; returns whether the client is connected.

        Raises:
            HandshakeError: It is refused.
        """
        data = self.sock.recv(65536)
        if not data:
            raise HandshakeError(f"{self.path}: closed during the handshake: {self.rest[:200]!r}")
        if not self._upgraded:
            head, mark, rest = (self.rest + data).partition(b"\r\n\r\n")
            if not mark:
                self.rest = head
                return False
            if not head.startswith(b"HTTP/1.1 101"):
                raise HandshakeError(f"{self.path}: {head.splitlines()[0].decode()} {rest[:200]!r}")
            self._upgraded, self.rest, data = True, b"", rest
            if self.dialect.greeting:
                self.sock.send(client_frame(self.dialect.greeting, self.dialect.opcode))
        greeted = self.dialect.greeted
        if greeted is None:
            self.rest = data
            return True
        return any(greeted.match(text) for text in self.texts(data))

    def _answer(self, frame: bytes) -> None:
        with suppress(OSError):  # the server has gone; a read finds that
            self.sock.send(frame)

    def _inflated(self, payload: bytes) -> bytes:
        # A window that is kept also reads what was compressed without one.
        self._inflate = self._inflate or zlib.decompressobj(-15)
        inflated: bytes = self._inflate.decompress(payload + b"\x00\x00\xff\xff")
        return inflated


def open_seconds(count: int) -> float:
    """Return within how many seconds so many clients must be connected."""
    return _OPEN_SECONDS + count / _SLOWEST_PER_SECOND


def connect(
    port: int,
    paths: Sequence[str],
    dialect: Dialect,
    *,
    at_once: int = 64,
    deflate: bool = False,
    addresses: int = 1,
    receive_bytes: int = 0,
    may_fail: bool = False,
) -> list[Client]:
    """Open a WebSocket for each of `paths`, `at_once` at a time; in their order.

    Args:
        port: Where the server is.
        paths: One for each.
        dialect: What its clients send.
        at_once: How many handshakes are under way at a time.
        deflate: Whether to offer compression.
        addresses: Over how many addresses of the loopback they are spread (`harness.capacity`).
        receive_bytes: Size of the kernel's buffer for what is received; 0 leaves it alone.
        may_fail: Leave out those that are refused.

    Raises:
        HandshakeError: One is refused; or not connected within `open_seconds`, whether it may fail or not.
    """
    poll = select.epoll()
    waiting, opening, opened = list(enumerate(paths))[::-1], dict[int, Client](), list[Client]()
    seconds = open_seconds(len(paths))
    deadline = time.monotonic() + seconds
    while waiting or opening:
        while waiting and len(opening) < at_once:
            number, path = waiting.pop()
            address = local_address(number, addresses) if addresses > 1 else ""
            client = Client(number, path, dialect, _start(port, address, receive_bytes), time.monotonic())
            opening[client.sock.fileno()] = client
            poll.register(client.sock, select.EPOLLOUT)
        for descriptor, _ in poll.poll(1.0):
            client = opening[descriptor]
            try:
                is_open = _continue_handshake(client, poll, request(client.path, port, deflate=deflate))
            except (HandshakeError, OSError):
                if not may_fail:
                    raise
                del opening[descriptor]
                client.sock.close()
                continue
            if is_open:
                client.seconds = time.monotonic() - client.started
                poll.unregister(descriptor)
                opened.append(opening.pop(descriptor))
        if time.monotonic() > deadline:
            raise HandshakeError(
                f"{len(opening) + len(waiting)} of {len(paths)} were not connected after {seconds:g} s"
            )
    poll.close()
    return sorted(opened, key=lambda client: client.number)


def _continue_handshake(client: Client, poll: select.epoll, opening: bytes) -> bool:
    """Take the next step of a handshake; returns whether it is done."""
    if client.seconds:
        return client.opened()
    client.seconds = -1.0  # the request is sent
    poll.modify(client.sock, select.EPOLLIN)
    if error := client.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        raise HandshakeError(f"{client.path}: connect failed with errno {error}")
    client.sock.send(opening)
    return False


def _start(port: int, address: str, receive_bytes: int) -> socket.socket:
    """Return a socket that connects, from `address` if there is one."""
    sock = socket.socket()
    if receive_bytes:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if address:
        sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
        sock.bind((address, 0))
    if sock.connect_ex(("127.0.0.1", port)) == errno.EADDRNOTAVAIL:
        raise HandshakeError(f"{address or '127.0.0.1'} has no port left: use more --addresses")
    return sock
