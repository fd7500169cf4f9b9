"""A WebSocket client that may break the protocol: it writes bytes, and reads frames of the server (RFC 6455)."""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from typing import TYPE_CHECKING, NamedTuple, Self

from tests.examples.example_server import SECONDS

if TYPE_CHECKING:
    from types import TracebackType

    from tests.examples.example_server import ExampleServer

__all__ = ["BINARY", "CLOSE", "CONTINUATION", "PING", "TEXT", "RawClient", "close_frame", "frame"]

CONTINUATION, TEXT, BINARY, CLOSE, PING = 0, 1, 2, 8, 9

_MASK = b"\x12\x34\x56\x78"


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    reserved: int = 0,
    masked: bool = True,
    claimed_length: int | None = None,
) -> bytes:
    """Return a frame, masked as a client must or not; `claimed_length` is a false length in its header."""
    length = len(payload) if claimed_length is None else claimed_length
    mask_bit = 0x80 if masked else 0
    head = bytes([(0x80 if fin else 0) | reserved << 4 | opcode])
    if length < 126:
        head += bytes([mask_bit | length])
    elif length < 65536:
        head += bytes([mask_bit | 126]) + struct.pack("!H", length)
    else:
        head += bytes([mask_bit | 127]) + struct.pack("!Q", length)
    if not masked:
        return head + payload
    repeated = (_MASK * (len(payload) // 4 + 1))[: len(payload)]
    mixed = int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")
    return head + _MASK + mixed.to_bytes(len(payload), "big")


def close_frame(code: int, reason: bytes = b"") -> bytes:
    """Return a close frame with any code."""
    return frame(CLOSE, struct.pack("!H", code) + reason)


class _Received(NamedTuple):
    opcode: int
    payload: bytes


class RawClient:
    """One connection after its handshake."""

    def __init__(self, server: ExampleServer, path: str, headers: dict[str, str]) -> None:
        self._socket = socket.create_connection(("127.0.0.1", server.port), timeout=SECONDS)
        self._received = b""
        self._is_over = False
        more = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.send(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n{more}\r\n".encode()
        )
        while b"\r\n\r\n" not in self._received:
            self._read()
        head, _, self._received = self._received.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 "), head

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        """Write, and read meanwhile, so that neither side blocks the other; what the server does not read is lost."""
        rest = memoryview(data)
        while rest and not self._is_over:
            readable, writable, _ = select.select([self._socket], [self._socket], [], SECONDS)
            assert readable or writable, "the server neither reads nor writes"
            if readable:
                self._read()
            if writable:
                try:
                    rest = rest[self._socket.send(rest[:65536], socket.MSG_DONTWAIT) :]
                except OSError:  # the server has closed
                    return

    def cut(self) -> None:
        """Reset the connection."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    def end_writing(self) -> None:
        """End the outgoing direction of the connection with a FIN."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:  # the server has closed already
            os.fstat(self._socket.fileno())

    def received_close_code(self) -> int | None:
        """Read until the server closes; return its close code, `None` if it sent none.

        The server's close frame is not answered: some servers then wait ten seconds before they cut the connection.
        """
        deadline = time.monotonic() + SECONDS
        while not (closes := [payload for opcode, payload in self._frames() if opcode == CLOSE]) and not self._is_over:
            assert time.monotonic() < deadline, "the server does not close"
            self._read()
        return struct.unpack("!H", closes[0][:2])[0] if closes and closes[0] else None

    def _read(self) -> None:
        try:
            data = self._socket.recv(1 << 20)
        except ConnectionError:
            data = b""
        self._is_over = not data
        self._received += data

    def _frames(self) -> list[_Received]:
        frames: list[_Received] = []
        data = memoryview(self._received)
        while len(data) >= 2:
            length, start = data[1], 2
            if length == 126:
                length, start = struct.unpack("!H", data[2:4])[0], 4
            elif length == 127:
                length, start = struct.unpack("!Q", data[2:10])[0], 10
            if len(data) < start + length:  # the rest has not arrived yet
                break
            frames.append(_Received(data[0] & 0x0F, bytes(data[start : start + length])))
            data = data[start + length :]
        return frames
