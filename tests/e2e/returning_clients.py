"""Thousands of WebSocket clients that come back at once with positions: a program of its own.

It reads a plan as JSON from its standard input: the port, and for each client its path and the last text it receives
before it has its rest. It prints a line when all have theirs, waits until each has received `end`, and prints what each
received as JSON.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
from typing import Any

import uvloop

_SECONDS = 90
# Handshakes under way at a time: the kernel resets what is more than the servers' backlog takes.
_AT_ONCE = 1_000
_TEXT = 0x81
_PING = 0x89
_PONG = b"\x8a\x80\0\0\0\0"


class ReturningClient(asyncio.Protocol):
    """One client: only what is needed to receive texts (RFC 6455).

    Attributes:
        texts: What was published and received.
        events: Its joins and gaps.
        is_open: Done when its handshake is answered.
        has_rest: Done when it has the last text of its rest.
        has_end: Done when it has `end`.
    """

    def __init__(self, port: int, path: str, last: str) -> None:
        loop = asyncio.get_running_loop()
        self.texts: list[str] = []
        self.events: list[Any] = []
        self.is_open: asyncio.Future[None] = loop.create_future()
        self.has_rest: asyncio.Future[None] = loop.create_future()
        self.has_end: asyncio.Future[None] = loop.create_future()
        self._request = (
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        ).encode()
        self._last = last
        self._rest = b""
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        """Send the handshake."""
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Take the answer to the handshake, and frames."""
        data = self._rest + data
        if not self.is_open.done():
            head, mark, data = data.partition(b"\r\n\r\n")
            if not mark:
                self._rest = head
                return
            assert head.startswith(b"HTTP/1.1 101 "), head
            self.is_open.set_result(None)
        while len(data) >= 2:
            assert data[0] in (_TEXT, _PING), data[:200]
            start, length = 2, data[1]
            if length == 126:
                start, length = 4, int.from_bytes(data[2:4])
            if len(data) < start + length:
                break
            if data[0] == _PING:
                self._transport.write(_PONG)
            else:
                self._receive(json.loads(data[start : start + length]))
            data = data[start + length :]
        self._rest = data

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail what waits."""
        for waiting in (self.is_open, self.has_rest, self.has_end):
            if not waiting.done():
                waiting.set_exception(exc or ConnectionError(f"closed after {self.texts}"))

    def _receive(self, message: Any) -> None:
        if "event" in message:
            self.events.append((message["event"], message.get("resumed")))
        if "text" in message:
            self.texts.append(message["text"])
            if message["text"] == self._last and not self.has_rest.done():
                self.has_rest.set_result(None)
            if message["text"] == "end" and not self.has_end.done():
                self.has_end.set_result(None)


async def main() -> None:
    """Run the plan."""
    plan = json.load(sys.stdin)
    loop, port = asyncio.get_running_loop(), plan["port"]
    clients = [ReturningClient(port, path, last) for path, last in plan["clients"]]

    at_once = asyncio.Semaphore(_AT_ONCE)

    async def connect(client: ReturningClient) -> None:
        async with at_once:
            await loop.create_connection(lambda: client, "127.0.0.1", port)
            await client.is_open
        await client.has_rest

    async with asyncio.timeout(_SECONDS):
        await asyncio.gather(*map(connect, clients))
        _write_line("rest received")
        await asyncio.gather(*(client.has_end for client in clients))
    _write_line(json.dumps([(client.texts, client.events) for client in clients]))


def _write_line(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    uvloop.run(main())
