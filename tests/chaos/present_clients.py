"""Thousands of light WebSocket clients in one process, each a user in a room that comes and goes."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from tests.chaos.attendances import Attendances

if TYPE_CHECKING:
    from collections.abc import Collection, Coroutine

    from tests.chaos.attendances import Stay

__all__ = ["Crowd", "Visitor"]

_OPENING: Final = 40
_OPEN_SECONDS: Final = 8.0
_PING: Final = 0x89
_CLOSE: Final = 0x88
_TEXT: Final = 0x81


class Socket(asyncio.Protocol):
    """One WebSocket client that reads the worker's pid, answers pings, and takes note of the end.

    RFC 6455: the handshake is section 4.1, frames are section 5.2. Nothing that is received is longer than 125 bytes.

    Attributes:
        pid: The worker, once its first message has arrived.
        ended: Set when the connection has ended; its result is the close code.
    """

    def __init__(self, path: str) -> None:
        loop = asyncio.get_running_loop()
        self.pid: asyncio.Future[int] = loop.create_future()
        self.ended: asyncio.Future[int] = loop.create_future()
        self._path = path
        self._received = b""
        self._is_open = False
        self._code = 1006
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the handshake."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(
            f"GET {self._path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )

    def data_received(self, data: bytes) -> None:
        """Read the answer to the handshake, then frames."""
        self._received += data
        if not self._is_open:
            head, found, rest = self._received.partition(b"\r\n\r\n")
            if not found:
                return
            if b" 101 " not in head.partition(b"\r\n")[0]:
                self.abort()
                return
            self._is_open, self._received = True, rest
        while len(self._received) >= 2 and len(self._received) >= 2 + self._received[1]:
            kind, size = self._received[:2]
            payload, self._received = self._received[2 : 2 + size], self._received[2 + size :]
            if kind == _TEXT and not self.pid.done():
                self.pid.set_result(int(payload))
            elif kind == _PING:
                self._send(0x8A, payload)
            elif kind == _CLOSE:
                self._code = int.from_bytes(payload[:2], "big")
                self._send(_CLOSE, payload)

    def connection_lost(self, exc: Exception | None) -> None:
        """Take note of the end."""
        if not self.ended.done():
            self.ended.set_result(self._code)
        if not self.pid.done():
            self.pid.cancel()

    def close(self) -> None:
        """Close in order; the transport ends when the server ends it, or now if it does not answer."""
        self._send(_CLOSE, b"\x03\xe8")

    def abort(self) -> None:
        """End at once."""
        if self._transport is not None:
            self._transport.abort()

    def _send(self, kind: int, payload: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(bytes((kind, 0x80 | len(payload), 0, 0, 0, 0)) + payload)


class Visitor:
    """One place in a room, which a client of a user takes, leaves, and takes again.

    Attributes:
        user: The user.
        room: The room.
        pid: The worker that serves it; 0 while it is not connected.
        wants_back: Whether it connects again when its connection ends.
        closed: How often its connection ended otherwise than by itself, by close code.
    """

    def __init__(self, crowd: Crowd, user: str, room: str) -> None:
        self.user = user
        self.room = room
        self.pid = 0
        self.wants_back = True
        self.closed: Counter[int] = Counter()
        self._crowd = crowd
        self._stay: Stay | None = None
        self._socket: Socket | None = None

    async def open(self) -> None:
        """Connect until a worker has answered."""
        loop = asyncio.get_running_loop()
        path = f"/ws/{self.room}?user={self.user}"
        async with self._crowd.opening:
            while not self.pid:
                with suppress(OSError, TimeoutError):
                    _, socket = await loop.create_connection(lambda: Socket(path), "127.0.0.1", self._crowd.port)
                    try:
                        async with asyncio.timeout(_OPEN_SECONDS):
                            await asyncio.wait([socket.pid])
                            if not socket.pid.cancelled():
                                self._opened(socket, socket.pid.result())
                    finally:
                        if not self.pid:
                            socket.abort()
                if not self.pid:
                    if self._crowd.is_over:
                        return
                    await asyncio.sleep(0.1)

    def close(self, *, abort: bool = False) -> None:
        """Disconnect; where it is not connected, nothing."""
        if self._socket is not None and self._stay is not None:
            self._stay.close()
            self.pid = 0
            socket, self._socket = self._socket, None
            if abort:
                socket.abort()
            else:
                socket.close()
                asyncio.get_running_loop().call_later(2, socket.abort)

    def lose(self) -> None:
        """Take note that its connection has ended, or that the worker of it does not run."""
        if self._stay is not None:
            self._stay.close()

    def found(self) -> None:
        """Take note that the worker of its connection runs again."""
        self._stay = self._crowd.attendances.open(self.room, self.user, self.pid)

    def _opened(self, socket: Socket, pid: int) -> None:
        self._socket, self.pid = socket, pid
        self._stay = self._crowd.attendances.open(self.room, self.user, pid)
        if pid in self._crowd.stopped:
            self._stay.close()
        socket.ended.add_done_callback(lambda ended: self._ended(socket, ended.result()))

    def _ended(self, socket: Socket, code: int) -> None:
        if self._socket is not socket:
            return
        self.lose()
        self.pid, self._socket = 0, None
        self.closed[code] += 1
        if self.wants_back and not self._crowd.is_over:
            self._crowd.spawn(self._return())

    async def _return(self) -> None:
        await asyncio.sleep(random.uniform(0, self._crowd.pause_seconds))
        await self.open()


class Crowd:
    """The clients of one process.

    Args:
        port: Where the servers are.
        clients: How many clients there are; three quarters as many users.
        rooms: In how many rooms.
        pause_seconds: How long one that was cut stays away at most.

    Attributes:
        attendances: What they know of themselves.
        visitors: The clients.
        stopped: Workers that do not run: the others do not know of their clients.
        is_over: No client connects any more.
    """

    def __init__(self, port: int, *, clients: int, rooms: int, pause_seconds: float) -> None:
        self.port = port
        self.pause_seconds = pause_seconds
        self.attendances = Attendances()
        self.opening = asyncio.Semaphore(_OPENING)
        self.stopped: set[int] = set()
        self.is_over = False
        self.rooms = [f"room-{number}" for number in range(rooms)]
        users = clients * 3 // 4 // rooms * rooms
        self.visitors = [Visitor(self, f"u{n % users}", self.rooms[n % rooms]) for n in range(clients)]
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        """Run in a task until `end`."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def open_all(self) -> None:
        """Connect all."""
        await asyncio.gather(*(visitor.open() for visitor in self.visitors))

    async def churn(self, over: asyncio.Event, *, per_second: float, seed: int, spared: Collection[int] = ()) -> None:
        """Disconnect and connect clients at random until `over`: some of them are back at once, others after a while.

        Args:
            over: Ends it.
            per_second: How many are disconnected per second.
            seed: Of what is drawn.
            spared: The clients of these workers stay as they are.
        """
        choose = random.Random(seed)
        while not over.is_set():
            visitor = choose.choice(self.visitors)
            if visitor.pid and visitor.pid not in spared:
                visitor.close(abort=choose.random() < 0.5)
                self.spawn(self._come_back(visitor, choose.uniform(0, 2 * self.pause_seconds)))
            with suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), 1 / per_second)

    async def settled(self) -> None:
        """Wait until no client is about to connect."""
        while self._tasks:
            await asyncio.wait(tuple(self._tasks))

    def stop(self, pid: int) -> list[Visitor]:
        """Take note that a worker does not run any more; return its clients."""
        self.stopped.add(pid)
        clients = [visitor for visitor in self.visitors if visitor.pid == pid]
        for visitor in clients:
            visitor.lose()
        return clients

    def resume(self, pid: int) -> None:
        """Take note that a worker runs again."""
        self.stopped.discard(pid)
        for visitor in self.visitors:
            if visitor.pid == pid:
                visitor.found()

    def truth(self) -> dict[str, dict[str, int]]:
        """Return the users of each room, and how many connections each has."""
        found = self.attendances.by_room()
        return {room: dict(found.get(room, {})) for room in self.rooms}

    async def end(self) -> None:
        """Disconnect all."""
        self.is_over = True
        for task in tuple(self._tasks):
            task.cancel()
        for visitor in self.visitors:
            visitor.close(abort=True)
        while self._tasks:
            await asyncio.wait(tuple(self._tasks))
        await asyncio.sleep(0)

    @staticmethod
    async def _come_back(visitor: Visitor, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await visitor.open()
