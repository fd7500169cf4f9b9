"""Client sockets by the thousand: opened many at once, and read by epoll into one piece of memory."""

from __future__ import annotations

import resource
import select
import socket
import time
import zlib
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from benchmarks.harness.websocket import CLOSE, PING, PONG, Dialect, client_frame, frames, request

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Client", "HandshakeError", "allow_many_files", "connect"]

_OPEN_SECONDS: Final = 60.0


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
    other_texts: list[bytes] = field(default_factory=list[bytes])
    _upgraded: bool = False
    _inflate: Any = None

    def texts(self, data: bytes) -> list[bytes]:
        """Take what arrived, answer pings, and return the texts in it."""
        found, self.rest = frames(self.rest + data)
        texts: list[bytes] = []
        for frame in found:
            if frame.opcode == PING:
                self.sock.send(client_frame(frame.payload, PONG))
            elif frame.opcode == CLOSE:
                self.closed = int.from_bytes(frame.payload[:2], "big")
            elif self.dialect.pings and frame.payload == self.dialect.pings[0]:
                self.sock.send(client_frame(self.dialect.pings[1]))
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
                self.sock.send(client_frame(self.dialect.greeting))
        if not self.dialect.greeted:
            self.rest = data
            return True
        return any(text.startswith(self.dialect.greeted) for text in self.texts(data))

    def _inflated(self, payload: bytes) -> bytes:
        # A window that is kept also reads what was compressed without one.
        self._inflate = self._inflate or zlib.decompressobj(-15)
        inflated: bytes = self._inflate.decompress(payload + b"\x00\x00\xff\xff")
        return inflated


def allow_many_files() -> None:
    """Raise the number of sockets that this process and those it starts may open, as far as the system allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def connect(
    port: int,
    paths: Sequence[str],
    dialect: Dialect,
    *,
    at_once: int = 64,
    deflate: bool = False,
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
        receive_bytes: Size of the kernel's buffer for what is received; 0 leaves it alone.
        may_fail: Leave out those that are refused.

    Raises:
        HandshakeError: One is refused; or not connected within a minute, whether it may fail or not.
    """
    poll = select.epoll()
    waiting, opening, opened = list(enumerate(paths))[::-1], dict[int, Client](), list[Client]()
    deadline = time.monotonic() + _OPEN_SECONDS
    while waiting or opening:
        while waiting and len(opening) < at_once:
            client = _start(port, *waiting.pop(), dialect, receive_bytes)
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
                f"{len(opening) + len(waiting)} of {len(paths)} were not connected after {_OPEN_SECONDS:g} s"
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


def _start(port: int, number: int, path: str, dialect: Dialect, receive_bytes: int) -> Client:
    sock = socket.socket()
    if receive_bytes:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    started = time.monotonic()
    sock.connect_ex(("127.0.0.1", port))
    return Client(number, path, dialect, sock, started)
