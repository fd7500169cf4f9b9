"""Hundreds of WebSocket clients in one process, and publishers for them.

A message is `<publisher> <sequence>`. A publisher counts from 0, and a client that has received its last message has
received all of them, or has lost some.
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

__all__ = ["Client", "ClientGroup", "HttpPublisher", "open_clients", "open_publisher", "publish_from_outside"]

_T = TypeVar("_T")

# Generous, as two cores serve everything. A test fails when a wait takes longer.
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
    """One WebSocket client and what it has received.

    Attributes:
        pid: The worker that serves it.
        received: The sequences in the order of their arrival, by publisher, since it connected.
        close_code: The code with which the server closed it, set by `receive_until_closed`; else 0.
    """

    def __init__(self, url: str) -> None:
        self.pid = 0
        self.close_code = 0
        self.received: defaultdict[str, list[int]] = defaultdict(list)
        self._url = url
        self._socket: ClientConnection | None = None

    async def open(self) -> None:
        """Connect, and receive until the worker has sent its pid."""
        self.pid = 0
        self.received = defaultdict(list)
        self._socket = await connect(
            self._url, compression=None, ping_interval=None, open_timeout=_SECONDS, close_timeout=2
        )
        while not self.pid:
            self._record(await self._socket.recv())

    async def reopen(self) -> None:
        """Disconnect, and connect again and again until a worker answers."""
        await self.close()
        while not self.pid:
            with suppress(OSError, EOFError, WebSocketException):
                await self.open()

    async def close(self) -> None:
        """Disconnect, where it is connected."""
        self.pid = 0
        if self._socket is not None:
            await self._socket.close()

    async def publish(self, name: str, count: int) -> None:
        """Publish a series through this socket, without waiting for a reply."""
        assert self._socket is not None
        for sequence in range(count):
            await self._socket.send(f"{name} {sequence}")

    async def receive(self, counts: Mapping[str, int]) -> None:
        """Receive until the last message of each publisher in `counts` has arrived.

        Raises:
            ConnectionClosed: The connection ended.
        """
        assert self._socket is not None
        missing = set(self.missing(counts))
        while missing:
            name, sequence = self._record(await self._socket.recv())
            if sequence + 1 >= counts.get(name, sys.maxsize):
                missing.discard(name)

    async def receive_until_closed(self) -> None:
        """Receive until the connection ends."""
        assert self._socket is not None
        try:
            while True:
                self._record(await self._socket.recv())
        except ConnectionClosed as error:
            self.close_code = error.rcvd.code if error.rcvd else 1006

    def missing(self, counts: Mapping[str, int]) -> list[str]:
        """Return the publishers whose last message was not received."""
        return [name for name, count in counts.items() if max(self.received[name], default=-1) + 1 < count]

    def _record(self, text: str | bytes) -> tuple[str, int]:
        name, _, number = str(text).partition(" ")
        if name == "pid":
            self.pid = int(number)
        else:
            self.received[name].append(int(number))
        return name, int(number)


class ClientGroup:
    """Clients of one room."""

    def __init__(self, clients: Iterable[Client]) -> None:
        self.clients = list(clients)

    @property
    def pids(self) -> Counter[int]:
        """How many clients each worker serves."""
        return Counter(client.pid for client in self.clients)

    def on(self, pids: Collection[int]) -> ClientGroup:
        """Return those that the workers `pids` serve."""
        return ClientGroup(client for client in self.clients if client.pid in pids)

    async def receive_until_closed(self) -> None:
        """Receive until every connection has ended."""
        async with asyncio.timeout(_SECONDS):
            await _all(client.receive_until_closed() for client in self.clients)

    async def spread(self, *, workers: int) -> None:
        """Reconnect a quarter of the clients at a time, until so many workers serve them."""
        async with asyncio.timeout(_SECONDS):
            while len(self.pids) < workers:
                await _all(client.reopen() for client in self.clients[::4])

    async def move_to(self, pid: int) -> ClientGroup:
        """Reconnect all until the worker `pid` serves some of them; return those."""
        async with asyncio.timeout(_SECONDS):
            while pid not in self.pids:
                await _all(client.reopen() for client in self.clients)
        return self.on([pid])

    async def receive(self, counts: Mapping[str, int]) -> None:
        """Receive until every client has the last message of each publisher in `counts`.

        Raises:
            AssertionError: Not in time; names the publishers that each client misses.
        """
        try:
            async with asyncio.timeout(_SECONDS):
                await _all(client.receive(counts) for client in self.clients)
        except TimeoutError:
            missing = {number: client.missing(counts) for number, client in enumerate(self.clients)}
            raise AssertionError(
                f"not received to the end: { {n: names for n, names in missing.items() if names} }"
            ) from None

    async def reopen_when_closed(self) -> list[Mapping[str, list[int]]]:
        """Receive until each connection ends, and reconnect it; return what each had received before."""

        async def reopen(client: Client) -> Mapping[str, list[int]]:
            await client.receive_until_closed()
            received = client.received
            await client.reopen()
            return received

        async with asyncio.timeout(_SECONDS):
            return await _all(reopen(client) for client in self.clients)

    def delivery_errors(self, counts: Mapping[str, int]) -> list[str]:
        """Return a line for each client that did not receive a publisher in `counts` whole, once and in order."""
        return [
            f"client {number} on worker {client.pid} received {name} as {client.received[name]}"
            for number, client in enumerate(self.clients)
            for name, count in counts.items()
            if client.received[name] != list(range(count))
        ]


@asynccontextmanager
async def open_clients(url: str, size: int) -> AsyncGenerator[ClientGroup]:
    """Connect `size` clients to `url`, and close them at the end."""
    group = ClientGroup(Client(url) for _ in range(size))
    try:
        async with asyncio.timeout(_SECONDS):
            await _all(client.open() for client in group.clients)
        yield group
    finally:
        await _all(client.close() for client in group.clients)


class HttpPublisher:
    """A series of messages over one HTTP connection, each sent after the response to the one before.

    An HTTP client library would replace a lost connection by one to another worker without reporting it.

    Attributes:
        pid: The worker that serves the connection.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, room: str, name: str) -> None:
        self.pid = 0
        self.name = name
        self._reader = reader
        self._writer = writer
        self._path = f"/rooms/{room}"

    async def open(self) -> None:
        """Ask for the worker's pid."""
        self.pid = await self._request("GET /pid")

    async def publish(self, sequences: Iterable[int]) -> None:
        """Publish each of `sequences`.

        Raises:
            ConnectionError, EOFError: The worker ended.
        """
        for sequence in sequences:
            assert await self._request(f"POST {self._path}", f"{self.name} {sequence}") == self.pid

    async def close(self) -> None:
        """Close the connection."""
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()

    async def _request(self, request: str, body: str = "") -> int:
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
    """Connect to a worker that is not in `without`."""
    async with AsyncExitStack() as stack:
        while True:
            publisher = HttpPublisher(*await asyncio.open_connection("127.0.0.1", port), room, name)
            stack.push_async_callback(publisher.close)
            await publisher.open()
            if publisher.pid not in without:
                break
        yield publisher


async def publish_from_outside(broker_url: str, room: str, name: str, count: int) -> None:
    """Publish a series from a process that is not a web worker."""
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
