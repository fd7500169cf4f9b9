"""Floor where no C compiler is: `os.write` to each socket from Python. One process, one epoll, no broker.

`python -m benchmarks.servers.floor_write PORT`; does what `floor_send.c` does.
"""

from __future__ import annotations

import os
import select
import socket
import sys
from collections import defaultdict

_ANSWER = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"


class Server:
    """Serves until killed."""

    def __init__(self, port: int) -> None:
        self._listening = socket.create_server(("127.0.0.1", port), backlog=4096)
        self._poll = select.epoll()
        self._poll.register(self._listening, select.EPOLLIN)
        self._sockets: dict[int, socket.socket] = {}
        self._rooms: defaultdict[bytes, dict[int, None]] = defaultdict(dict)
        self._held: dict[int, bytes] = {}
        self._upgraded: set[int] = set()

    def run(self) -> None:
        """Serve."""
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor == self._listening.fileno():
                    self._accept()
                elif data := _received(self._sockets[descriptor]):
                    self._take(descriptor, self._held.pop(descriptor, b"") + data)
                else:
                    self._leave(descriptor)

    def _accept(self) -> None:
        client, _ = self._listening.accept()
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sockets[client.fileno()] = client
        self._poll.register(client, select.EPOLLIN)

    def _leave(self, descriptor: int) -> None:
        for room in self._rooms.values():
            room.pop(descriptor, None)
        self._upgraded.discard(descriptor)
        self._sockets.pop(descriptor).close()

    def _take(self, descriptor: int, data: bytes) -> None:
        if descriptor not in self._upgraded:
            head, mark, data = data.partition(b"\r\n\r\n")
            if not mark:
                self._held[descriptor] = head
                return
            path = head.split(b" ", 2)[1]
            os.write(descriptor, _ANSWER)
            self._upgraded.add(descriptor)
            if path != b"/publish":
                self._rooms[path.rpartition(b"/")[2]][descriptor] = None
        while len(data) >= 6:
            size, at = data[1] & 127, 2
            if size >= 126:
                at = 4 if size == 126 else 10
                size = int.from_bytes(data[2:at], "big")
            if len(data) < at + 4 + size:
                break
            if data[0] & 15 == 1:
                self._fan_out(data[2:at] if at > 2 else b"", data[1] & 127, data[at + 4 : at + 4 + size])
            data = data[at + 4 + size :]
        if data:
            self._held[descriptor] = data

    def _fan_out(self, size: bytes, short: int, text: bytes) -> None:
        frame = bytes((0x81, short)) + size + text
        for descriptor in self._rooms[text[8:12]]:
            os.write(descriptor, frame)


def _received(client: socket.socket) -> bytes:
    try:
        return client.recv(262_144)
    except OSError:
        return b""


if __name__ == "__main__":
    Server(int(sys.argv[1])).run()
