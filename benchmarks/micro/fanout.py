"""Publish, hub, outbox and connection over real sockets, beside bare loops over the same ones.

Every socket is one end of a Unix socket pair; its other end is emptied between the measurements. What a WebSocket
server adds per message is left out on both sides.
"""

from __future__ import annotations

import asyncio
import socket
from time import process_time_ns
from typing import TYPE_CHECKING

import uvloop

from backplane import Backplane
from backplane.connection.driver import ConnectionDriver
from backplane.fanout.backlog import Backlog
from backplane.fanout.outbox import Outbox
from benchmarks.micro.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

__all__ = ["interleaved_over_sockets", "run"]

_DATA = b"x" * 128


class TransportSocket:
    """The least a `backplane.connection.socket.Socket` can be: one write."""

    lane = None
    sent = 0

    def __init__(self, transport: asyncio.WriteTransport) -> None:
        self.transport = transport

    async def send(self, data: str | bytes) -> None:
        """Write."""
        TransportSocket.sent += 1
        self.transport.write(data if isinstance(data, bytes) else data.encode())

    def is_gone(self, error: Exception) -> bool:
        """Take every error for the client's end."""
        return True

    async def receive(self) -> None:
        """Return at once: these clients send nothing."""

    def on_bypass(self, receive: object, /) -> None:
        """Do nothing: there is no other way to receive."""

    def hand_over(self, _: object, /) -> None:
        """Do nothing: there is no server."""

    def read_ahead(self, on_message: Callable[[float], None], on_end: Callable[[], None], /) -> None:
        """Do nothing: these clients send nothing."""

    async def close(self, code: int, reason: str) -> None:
        """Close."""
        self.transport.close()

    def ending(self, _: BaseException, /) -> None:
        """Do nothing: there is no framework."""


def run(count: int, rounds: int) -> list[Figure]:
    """Return the figures per delivery; the floor is `transport.write` in a loop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_measure(count, rounds))


async def _measure(count: int, rounds: int) -> list[Figure]:
    sockets, clients = await _open(count)
    backplane = Backplane("memory://")
    await backplane.start()
    for each in sockets:
        await _join(backplane, each)

    async def write_loop() -> None:
        for each in sockets:
            each.transport.write(_DATA)

    async def await_loop() -> None:
        for each in sockets:
            await each.send(_DATA)

    async def publish() -> None:
        expected = TransportSocket.sent + count
        await backplane.publish("room", _DATA)
        while TransportSocket.sent < expected:  # noqa: ASYNC110  # an event per socket would be measured too
            await asyncio.sleep(0)

    candidates: dict[str, Callable[[], Coroutine[None, None, None]]] = {
        "floor: transport.write in a loop": write_loop,
        "await send() in a loop": await_loop,
        "backplane.publish on memory://": publish,
    }
    try:
        return await interleaved_over_sockets(candidates, rounds, count, lambda: _empty(clients))
    finally:
        await backplane.stop()
        for each, client in zip(sockets, clients, strict=True):
            each.transport.close()
            client.close()
        await asyncio.sleep(0)


async def _open(count: int) -> tuple[list[TransportSocket], list[socket.socket]]:
    sockets: list[TransportSocket] = []
    clients: list[socket.socket] = []
    for _ in range(count):
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=ours)
        sockets.append(TransportSocket(transport))
        clients.append(theirs)
    return sockets, clients


async def _join(backplane: Backplane, own: TransportSocket) -> None:
    running = backplane._runtime  # pyright: ignore[reportPrivateUsage]
    assert running is not None
    backlog = Backlog(max_bytes=1_000_000, max_messages=1_000)
    driver = ConnectionDriver(own, running.hub, Outbox(backlog))
    await driver.join("room")
    driver.accepted()


async def interleaved_over_sockets(
    candidates: dict[str, Callable[[], Coroutine[None, None, None]]],
    rounds: int,
    count: int,
    clean: Callable[[], None],
) -> list[Figure]:
    """Run the candidates in turn, `rounds` times, each for `count` sockets, which `clean` empties; the first: floor."""
    figures = {name: Figure(name) for name in candidates}
    for _ in range(rounds):
        for name, run_once in candidates.items():
            started = process_time_ns()
            await run_once()
            await asyncio.sleep(0)  # uvloop writes at the end of its pass
            figures[name].microseconds.append((process_time_ns() - started) / 1000 / count)
            clean()
    return list(figures.values())


def _empty(clients: list[socket.socket]) -> None:
    for client in clients:
        if client.recv(65536) != _DATA:
            raise AssertionError("a socket did not get the message once")
