"""Hundreds of WebSocket clients in one process, and the publishers they hear.

A message is `<publisher> <sequence>`. A publisher counts from 0, and a client that has heard its last message has heard
all of them, or has missed some.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections import Counter, defaultdict
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, WebSocketException

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection, Coroutine, Iterable, Mapping

    from websockets.asyncio.client import ClientConnection

__all__ = ["Audience", "Client", "HttpPublisher", "open_audience", "open_publisher", "publish_from_outside"]

_T = TypeVar("_T")

# Generous: two cores serve everything. A wait that ends by it fails its test.
_SECONDS = 60

_OUTSIDE = """
import asyncio, sys
from backplane import Backplane

async def main(room, publisher, count):
    async with Backplane() as backplane:
        for sequence in range(int(count)):
            await backplane.publish(room, f"{publisher} {sequence}")

asyncio.run(main(*sys.argv[1:]))
"""


class Client:
    """One WebSocket client and what it has heard.

    Attributes:
        pid: The worker that serves it.
        heard: The sequences in the order of their arrival, by publisher, since it connected.
        close_code: With which code the server closed it, as long as `hear_until_cut` has seen it; else 0.
    """

    def __init__(self, url: str) -> None:
        self.pid = 0
        self.close_code = 0
        self.heard: defaultdict[str, list[int]] = defaultdict(list)
        self._url = url
        self._socket: ClientConnection | None = None

    async def open(self) -> None:
        """Connect, and read until the worker has said who it is."""
        self.pid = 0
        self.heard = defaultdict(list)
        self._socket = await connect(self._url, compression=None, ping_interval=None, close_timeout=2)
        while not self.pid:
            self._take(await self._socket.recv())

    async def reopen(self) -> None:
        """Leave, and connect again and again until a worker answers."""
        await self.close()
        while not self.pid:
            with suppress(OSError, EOFError, WebSocketException):
                await self.open()

    async def close(self) -> None:
        """Leave, where it is connected."""
        self.pid = 0
        if self._socket is not None:
            await self._socket.close()

    async def publish(self, name: str, count: int) -> None:
        """Publish a series through this socket, without waiting for any answer."""
        assert self._socket is not None
        for sequence in range(count):
            await self._socket.send(f"{name} {sequence}")

    async def hear(self, counts: Mapping[str, int]) -> None:
        """Read until the last message of each publisher in `counts` is heard.

        Raises:
            ConnectionClosed: The server went away.
        """
        assert self._socket is not None
        missing = set(self.lacks(counts))
        while missing:
            name, sequence = self._take(await self._socket.recv())
            if sequence + 1 >= counts.get(name, sys.maxsize):
                missing.discard(name)

    async def hear_until_cut(self) -> None:
        """Read until the server goes away."""
        assert self._socket is not None
        try:
            while True:
                self._take(await self._socket.recv())
        except ConnectionClosed as error:
            self.close_code = error.rcvd.code if error.rcvd else 1006

    def lacks(self, counts: Mapping[str, int]) -> list[str]:
        """Return the publishers whose last message was not heard."""
        return [name for name, count in counts.items() if max(self.heard[name], default=-1) + 1 < count]

    def _take(self, text: str | bytes) -> tuple[str, int]:
        name, _, number = str(text).partition(" ")
        if name == "pid":
            self.pid = int(number)
        else:
            self.heard[name].append(int(number))
        return name, int(number)


class Audience:
    """Clients of one room."""

    def __init__(self, clients: Iterable[Client]) -> None:
        self.clients = list(clients)

    @property
    def pids(self) -> Counter[int]:
        """How many clients each worker serves."""
        return Counter(client.pid for client in self.clients)

    def on(self, pids: Collection[int]) -> Audience:
        """Return the part of it that the workers `pids` serve."""
        return Audience(client for client in self.clients if client.pid in pids)

    async def hear_until_cut(self) -> None:
        """Read until the server has cut every client."""
        async with asyncio.timeout(_SECONDS):
            await _all(client.hear_until_cut() for client in self.clients)

    async def spread(self, *, workers: int) -> None:
        """Reconnect a quarter of it at a time, until so many workers serve it."""
        async with asyncio.timeout(_SECONDS):
            while len(self.pids) < workers:
                await _all(client.reopen() for client in self.clients[::4])

    async def move_to(self, pid: int) -> Audience:
        """Reconnect all of it until the worker `pid` serves a part; return that part."""
        async with asyncio.timeout(_SECONDS):
            while pid not in self.pids:
                await _all(client.reopen() for client in self.clients)
        return self.on([pid])

    async def hear(self, counts: Mapping[str, int]) -> None:
        """Read until every client has heard the last message of each publisher in `counts`.

        Raises:
            AssertionError: Not in time; says who lacks whom.
        """
        try:
            async with asyncio.timeout(_SECONDS):
                await _all(client.hear(counts) for client in self.clients)
        except TimeoutError:
            lacking = {number: client.lacks(counts) for number, client in enumerate(self.clients)}
            raise AssertionError(
                f"not heard to the end: { {n: names for n, names in lacking.items() if names} }"
            ) from None

    async def reopen_when_cut(self) -> list[Mapping[str, list[int]]]:
        """Read until the server cuts each client, and reconnect it; return what each had heard before."""

        async def reopen(client: Client) -> Mapping[str, list[int]]:
            await client.hear_until_cut()
            heard = client.heard
            await client.reopen()
            return heard

        async with asyncio.timeout(_SECONDS):
            return await _all(reopen(client) for client in self.clients)

    def misheard(self, counts: Mapping[str, int]) -> list[str]:
        """Say which clients did not hear each publisher in `counts` whole, once and in order; a few words for each."""
        return [
            f"client {number} on worker {client.pid} heard {name} as {client.heard[name]}"
            for number, client in enumerate(self.clients)
            for name, count in counts.items()
            if client.heard[name] != list(range(count))
        ]


@asynccontextmanager
async def open_audience(url: str, size: int) -> AsyncGenerator[Audience]:
    """Connect `size` clients to `url`, and close them on leaving."""
    audience = Audience(Client(url) for _ in range(size))
    try:
        async with asyncio.timeout(_SECONDS):
            await _all(client.open() for client in audience.clients)
        yield audience
    finally:
        await _all(client.close() for client in audience.clients)


class HttpPublisher:
    """A series of messages over one HTTP connection, each sent when the one before is answered.

    An HTTP client library would hide a lost connection behind a new one, to another worker.

    Attributes:
        pid: The worker at the other end.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, room: str, name: str) -> None:
        self.pid = 0
        self.name = name
        self._reader = reader
        self._writer = writer
        self._path = f"/rooms/{room}"

    async def open(self) -> None:
        """Learn which worker it is."""
        self.pid = await self._ask("GET /pid")

    async def publish(self, sequences: Iterable[int]) -> None:
        """Publish each of `sequences`.

        Raises:
            ConnectionError, EOFError: The worker went away.
        """
        for sequence in sequences:
            assert await self._ask(f"POST {self._path}", f"{self.name} {sequence}") == self.pid

    async def close(self) -> None:
        """Close the connection."""
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()

    async def _ask(self, request: str, body: str = "") -> int:
        self._writer.write(f"{request} HTTP/1.1\r\nHost: test\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
        length = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
        assert head.startswith("HTTP/1.1 200 "), head
        assert length, head
        return int(await self._reader.readexactly(int(length[1])))


@asynccontextmanager
async def open_publisher(
    port: int, room: str, name: str, *, without: Collection[int] = ()
) -> AsyncGenerator[HttpPublisher]:
    """Connect to any worker that is not in `without`."""
    async with AsyncExitStack() as stack:
        while True:
            publisher = HttpPublisher(*await asyncio.open_connection("127.0.0.1", port), room, name)
            stack.push_async_callback(publisher.close)
            await publisher.open()
            if publisher.pid not in without:
                break
        yield publisher


async def publish_from_outside(broker_url: str, room: str, name: str, count: int) -> None:
    """Publish a series from a process that is no web worker."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _OUTSIDE, room, name, str(count)), env={**os.environ, "BACKPLANE_URL": broker_url}
    )
    try:
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _all(coroutines: Iterable[Coroutine[None, None, _T]]) -> list[_T]:
    """Run all; the first error cancels the rest."""
    async with asyncio.TaskGroup() as tasks:
        started = [tasks.create_task(coroutine) for coroutine in coroutines]
    return [task.result() for task in started]
