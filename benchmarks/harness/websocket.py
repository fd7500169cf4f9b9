"""The least a WebSocket client needs: its handshake, frames both ways, and what a product's clients send in them."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

__all__ = [
    "CENTRIFUGE",
    "CLOSE",
    "PING",
    "PLAIN",
    "PONG",
    "SDK",
    "SDK_PROTOBUF",
    "SOCKET_IO",
    "Dialect",
    "Frame",
    "client_frame",
    "frames",
    "request",
]

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10

_KEY = "AAAAAAAAAAAAAAAAAAAAAA=="


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of the server's; `compressed` is RSV1 (RFC 7692)."""

    opcode: int
    compressed: bool
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How clients of a product join and publish.

    Attributes:
        listen_path: Where a client that receives `{channel}` connects.
        publish_path: Where a client that only publishes connects.
        envelope: What a publisher sends, around `{text}`.
        opcode: Of the frames of both sides.
        greeting: What a client sends first; empty for none.
        greeted: Matches the start of the server's answer to that, which ends the handshake.
        pings: The server's ping where it is a message, and the answer of the client.
        publishing: What clients that only publish send, where that is of another dialect.
    """

    listen_path: str
    publish_path: str
    envelope: str = "{text}"
    opcode: int = TEXT
    greeting: bytes = b""
    greeted: re.Pattern[bytes] | None = None
    pings: tuple[bytes, bytes] | None = None
    publishing: Dialect | None = None

    @property
    def of_publishers(self) -> Dialect:
        """The dialect of clients that only publish."""
        return self.publishing or self

    def frame(self, text: str) -> bytes:
        """Return the frame that publishes `text`."""
        before, after = self.envelope.split("{text}")
        return client_frame(f"{before}{text}{after}".encode(), self.opcode)


PLAIN = Dialect(listen_path="/ws/{channel}", publish_path="/publish")
"""The dialect of the applications of this folder."""

SOCKET_IO = Dialect(
    listen_path="/socket.io/?EIO=4&transport=websocket&channel={channel}",
    publish_path="/socket.io/?EIO=4&transport=websocket",
    envelope='42["publish","{text}"]',
    greeting=b"40",
    greeted=re.compile(b"40"),
    pings=(b"2", b"3"),
)
"""Engine.IO 4 and Socket.IO 5."""

CENTRIFUGE = Dialect(
    listen_path="/ws?channel={channel}",
    publish_path="/ws",
    envelope='{"send":{"data":"{text}"}}',
    greeting=b'{"id":1,"connect":{}}',
    greeted=re.compile(b'{"id":1,"connect":'),
    pings=(b"{}", b"{}"),
)
"""The JSON protocol of Centrifugal, version 2; the server subscribes a client that connects."""

SDK = replace(CENTRIFUGE, listen_path="/sdk/{channel}", publishing=PLAIN)
"""The same protocol, of the application of this folder."""

SDK_PROTOBUF = replace(
    SDK,
    listen_path="/sdk/{channel}?cf_protocol=protobuf",
    opcode=BINARY,
    greeting=b"\x04\x08\x01\x22\x00",
    greeted=re.compile(rb".{1,2}\x08\x01\x2a", re.DOTALL),
    pings=(b"\x00", b"\x00"),
)
"""The same in Protobuf: each message follows its length, of one or two bytes."""


def request(path: str, port: int, *, deflate: bool = False) -> bytes:
    """Return the handshake. The answer's accept key is not checked: every server is started by the harness."""
    extension = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n" if deflate else ""
    return (
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {_KEY}\r\nSec-WebSocket-Version: 13\r\n{extension}\r\n"
    ).encode()


def client_frame(payload: bytes, opcode: int = TEXT) -> bytes:
    """Return a masked frame; the mask is 0, which leaves the payload as it is."""
    size = len(payload)
    if size < 126:
        head = bytes((0x80 | opcode, 0x80 | size))
    elif size < 65536:
        head = bytes((0x80 | opcode, 0x80 | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((0x80 | opcode, 0x80 | 127)) + size.to_bytes(8, "big")
    return head + bytes(4) + payload


def frames(data: bytes) -> tuple[list[Frame], bytes]:
    """Return the whole frames at the start of `data`, and the rest."""
    found: list[Frame] = []
    at = 0
    while len(data) - at >= 2:
        size, start = data[at + 1], at + 2
        if size >= 126:
            wide = 2 if size == 126 else 8
            if len(data) < start + wide:
                break
            size = int.from_bytes(data[start : start + wide], "big")
            start += wide
        if len(data) < start + size:
            break
        found.append(Frame(data[at] & 15, bool(data[at] & 0x40), data[start : start + size]))
        at = start + size
    return found, data[at:]
