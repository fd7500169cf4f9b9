"""Floor: `transport.write` to each socket on a bare event loop, fed by a minimal Redis client.

`python -m benchmarks.servers.bare_uvloop PORT`; with `BACKPLANE_URL=redis://...` what a client sends goes
through Redis, else it is written at once. Of the WebSocket protocol it reads what the harness's clients send.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections import defaultdict
from typing import Any, cast
from urllib.parse import urlsplit

import uvloop

from benchmarks.harness.websocket import CLOSE, PING
from benchmarks.servers.stall import watch

_ANSWER = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"

_rooms: defaultdict[bytes, dict[asyncio.WriteTransport, None]] = defaultdict(dict)


class Redis(asyncio.Protocol):
    """One connection: what is published in one pass of the loop goes out in one write."""

    def __init__(self) -> None:
        import hiredis

        self._reader = hiredis.Reader()
        self._waiting: list[bytes] = []
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Pass messages on; the answers to commands are dropped."""
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not False:
            if isinstance(reply, list):
                parts = cast("list[bytes]", reply)
                if parts[0] == b"pmessage":
                    fan_out(parts[3])

    def command(self, *parts: bytes) -> None:
        """Send a command at the end of this pass of the loop."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._flush)
        self._waiting.append(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts))

    def _flush(self) -> None:
        self._transport.write(b"".join(self._waiting))
        self._waiting.clear()


class Socket(asyncio.Protocol):
    """One client."""

    publishing: Redis | None = None

    def __init__(self) -> None:
        self._transport: Any = None
        self._room: dict[asyncio.WriteTransport, None] | None = None
        self._upgraded = False
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """Leave."""
        if self._room is not None:
            self._room.pop(self._transport, None)

    def data_received(self, data: bytes) -> None:
        """Answer the handshake, then publish what the client sends."""
        self._data += data
        if not self._upgraded:
            head, mark, rest = self._data.partition(b"\r\n\r\n")
            if not mark:
                return
            self._upgraded, self._data = True, rest
            path = head.split(b" ", 2)[1]
            self._transport.write(_ANSWER)
            if path != b"/publish":
                self._room = _rooms[path.rpartition(b"/")[2]]
                self._room[self._transport] = None
        while (text := self._next_text()) is not None:
            if self.publishing is None:
                fan_out(text)
            else:
                self.publishing.command(b"PUBLISH", b"bench:" + text[8:12], text)

    def _next_text(self) -> bytes | None:
        """Return the next text; its mask is 0."""
        data = self._data
        if len(data) < 2:
            return None
        size, at = data[1] & 127, 2
        if size >= 126:
            wide = 2 if size == 126 else 8
            size, at = int.from_bytes(data[2 : 2 + wide], "big"), 2 + wide
        if len(data) < at + 4 + size:
            return None
        self._data = data[at + 4 + size :]
        if data[0] & 15 == CLOSE:
            self._transport.close()
            return None
        return None if data[0] & 15 == PING else data[at + 4 : at + 4 + size]


def fan_out(text: bytes) -> None:
    """Write one frame to every socket of the channel."""
    size = len(text)
    head = bytes((0x81, size)) if size < 126 else b"\x81\x7e" + size.to_bytes(2, "big")
    if size > 65535:
        head = b"\x81\x7f" + size.to_bytes(8, "big")
    frame = head + text
    for transport in _rooms[text[8:12]]:
        transport.write(frame)


async def main(port: int) -> None:
    """Serve until killed."""
    loop = asyncio.get_running_loop()
    url = urlsplit(os.environ.get("BACKPLANE_URL", ""))
    if url.scheme == "redis" and url.hostname:
        _, Socket.publishing = await loop.create_connection(Redis, url.hostname, url.port or 6379)
        _, subscriber = await loop.create_connection(Redis, url.hostname, url.port or 6379)
        subscriber.command(b"PSUBSCRIBE", b"bench:*")
    server = await loop.create_server(Socket, "127.0.0.1", port, backlog=4096)
    watch()
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
