"""What a history costs: publish and delivery with and without it, clients that resume, and repair after a lost link.

Kept and plain channels are measured in turn in one run, by the same processes, so a drift of the machine affects both.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from statistics import median
from threading import Thread
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import quote

from backplane.testing import FaultProxy
from benchmarks.harness.run import Run
from benchmarks.harness.server import Server, cpu_seconds, families, listeners, serving
from benchmarks.harness.sockets import connect
from benchmarks.servers import stall
from tests.brokers.process import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from benchmarks.harness.candidate import Candidate
    from benchmarks.harness.run import Options
    from benchmarks.harness.sockets import Client

__all__ = ["run"]

_BURST: Final = 4_000
_LEAST_ROUNDS: Final = 3
_KEPT: Final = "kept-"
_PLAIN: Final = "plain-"
_BEFORE: Final = 30
_MISSED: Final = 20
"""What each client of the storm has missed."""
_AT_ONCE: Final = 1_000
"""How many handshakes are under way at a time: more than the server's backlog takes would be reset by the kernel."""
_REPAIRED_MISSED: Final = 3
_CUT: Final = ("redis", "nats")
"""Adapters whose links a proxy can cut, and whose channels the hub then repairs."""
_UNCUT: Final = {
    "memory": "no repair: there is no link that could be lost",
    "ipc": "no repair: there is no link that could be lost, each worker reads the log of the host",
    "kafka": "no repair: the adapter itself goes on at its offset, and the hub is never in doubt",
}


@dataclass(frozen=True, slots=True)
class _Published:
    """What one publish took of the publisher, of the broker, and of the clock, in seconds."""

    cpu: float
    broker: float
    wall: float


def run(server: Server, options: Options) -> Run:
    """Measure what a history costs, then the storm, then the repair; `server` receives, another one publishes."""
    found = Run()
    scheme = server.candidate.scheme
    with _publisher(server) as publisher:
        _measure_costs(server, publisher, options, found)
        _measure_storms(server, publisher, options, found)
        if scheme in _CUT:
            with _Proxy(server.candidate.broker_url) as proxy:
                _measure_repair(server.candidate, publisher, proxy, options, found)
        else:
            found.notes.append(_UNCUT.get(scheme, "no repair: nothing is built here that cuts its links"))
    return found


@contextmanager
def _publisher(server: Server) -> Generator[Server]:
    """Yield what publishes: the same application in a process of its own, where that can reach the receiver."""
    if server.candidate.environment["BACKPLANE_URL"].startswith("memory:"):
        yield server
        return
    with serving(server.candidate) as other:
        yield other


# What a history costs.


def _measure_costs(server: Server, publisher: Server, options: Options, found: Run) -> None:
    """Publish journal to a kept and to a plain channel in turn, and compare what they cost."""
    names = {"plain": f"{_PLAIN}cost", "kept": f"{_KEPT}cost"}
    published: dict[str, list[_Published]] = {kind: [] for kind in names}
    received: dict[str, list[float]] = {kind: [] for kind in names}
    for name in names.values():
        server.ask("consume", name=name, channels=1)
    broker = listeners(server.candidate.broker_url)
    for name in names.values():  # as a warm-up
        _publish(server, publisher, f"{name}0", options, broker)
    deadline, rounds = time.monotonic() + options.seconds, 0
    while rounds < _LEAST_ROUNDS or time.monotonic() < deadline:
        for kind in list(names)[:: 1 if rounds % 2 else -1]:
            channel = f"{names[kind]}0"
            published[kind].append(_publish(server, publisher, channel, options, broker))
            if publisher is not server:
                received[kind].append(_receive(server, publisher, channel, options))
        rounds += 1
    found.figures["gaps"] = server.ask("noted")["gaps"]
    for figure, values in (("publish", "cpu"), ("broker", "broker"), ("wall", "wall")):
        if figure != "broker" or broker:
            each = {kind: [getattr(one, values) for one in published[kind]] for kind in names}
            _compare(found, figure, each)
    if publisher is server:
        found.notes.append("one process publishes and delivers: what a publish takes has its delivery in it")
        return
    _compare(found, "receive", received)
    differences = [kept - plain for kept, plain in zip(received["kept"], received["plain"], strict=True)]
    found.figures["receive_extra_us"] = median(differences) * 1e6
    del found.figures["receive_times"]


def _compare(found: Run, figure: str, values: dict[str, list[float]]) -> None:
    """Add the medians, and the median of the ratios within a turn."""
    for kind, each in values.items():
        found.figures[f"{figure}_{kind}_us"] = median(each) * 1e6
    ratios = [kept / plain for kept, plain in zip(values["kept"], values["plain"], strict=True) if plain]
    found.figures[f"{figure}_times"] = median(ratios)


def _publish(server: Server, publisher: Server, channel: str, options: Options, broker: list[int]) -> _Published:
    """Publish a burst while it is received, and wait until it is."""
    server.ask("expect", count=_BURST)
    before = cpu_seconds(families(broker))
    took = publisher.ask(f"publish/{channel}", count=_BURST, size=options.payload)
    _until_received(server, channel)
    used = cpu_seconds(families(broker)) - before
    return _Published(took["cpu"], used / _BURST, took["wall"])


def _receive(server: Server, publisher: Server, channel: str, options: Options) -> float:
    """Publish a burst while the receiver is stopped, and return what it takes for each message once it goes on.

    So it finds as many messages at each read, whatever their publishing takes: a receiver that waits for the next
    message wakes up once for each, and would cost more where they come more slowly.
    """
    server.ask("expect", count=_BURST)
    with _stopped(server):
        publisher.ask(f"publish/{channel}", count=_BURST, size=options.payload)
    return _until_received(server, channel) / _BURST


@contextmanager
def _stopped(server: Server) -> Generator[None]:
    """Stop a process that the harness has started, for the time of the block."""
    os.kill(server.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.process.pid, signal.SIGCONT)


def _until_received(server: Server, channel: str) -> float:
    """Wait for the last message of a burst, and return the processor time from its beginning to that, in seconds."""
    found: dict[str, float] = {}

    def is_received() -> bool:
        found.update(server.ask("noted"))
        return bool(found["cpu"])

    time.sleep(0.05)  # what is asked meanwhile costs the receiver
    wait_until(is_received, f"{channel} is received", seconds=30)
    return found["cpu"]


# The storm.


def _measure_storms(server: Server, publisher: Server, options: Options, found: Run) -> None:
    """Let all clients come back at once, without a history and then with one, and compare."""
    plain = [f"/ws/{_PLAIN}room{index % options.channels}" for index in range(options.connections)]
    found.figures["storm_plain_ms"], found.figures["storm_plain_stall_ms"] = _storm(server, plain, 0, found)
    positions = publisher.ask(
        "fill",
        name=f"{_KEPT}room",
        channels=options.channels,
        count=_BEFORE + _MISSED,
        size=options.payload,
        after=_BEFORE,
    )
    reads = server.ask("noted")["recalls"]
    kept = [
        f"/ws/{_KEPT}room{index % options.channels}?since={quote(positions[index % options.channels])}"
        for index in range(options.connections)
    ]
    found.figures["storm_ms"], found.figures["storm_stall_ms"] = _storm(server, kept, _MISSED, found)
    found.figures["storm_reads"] = server.ask("noted")["recalls"] - reads


def _storm(server: Server, paths: Sequence[str], missed: int, found: Run) -> tuple[float, float]:
    """Open a client for each path; return when each has what it missed, and the longest stall, in ms."""
    stall.reset(server.stalls)
    started = time.monotonic()
    clients = connect(server.port, paths, server.candidate.dialect, at_once=_AT_ONCE)
    texts = _read(clients, missed)
    took = (time.monotonic() - started) * 1000
    longest = (stall.longest(server.stalls) or 0) * 1000
    expected = [str(_BEFORE + number) for number in range(missed)]
    figures = found.figures
    for each in texts:
        numbers = [text.rstrip(b"x").decode() for text in each]
        figures["lost"] = figures.get("lost", 0) + len(set(expected) - set(numbers))
        figures["duplicates"] = figures.get("duplicates", 0) + len(numbers) - len(set(numbers))
        figures["reordered"] = figures.get("reordered", 0) + (numbers != sorted(numbers, key=int))
        figures["astray"] = figures.get("astray", 0) + len(set(numbers) - set(expected))
    figures["closed"] = figures.get("closed", 0) + sum(client.closed is not None for client in clients)
    for client in clients:
        client.sock.close()
    wait_until(lambda: not server.ask("noted")["connections"], "the server has noticed that they left", seconds=60)
    return took, longest


def _read(clients: Sequence[Client], count: int) -> list[list[bytes]]:
    """Read until each client has `count` texts, or nothing comes any more; return what each has."""
    texts = [client.texts(b"") if client.rest else [] for client in clients]
    waiting = {client.sock.fileno(): index for index, client in enumerate(clients) if len(texts[index]) < count}
    poll = select.epoll()
    for descriptor in waiting:
        poll.register(descriptor, select.EPOLLIN)
    while waiting and (ready := poll.poll(5.0)):
        for descriptor, _ in ready:
            index = waiting[descriptor]
            client = clients[index]
            data = b""
            with suppress(OSError):
                data = client.sock.recv(1 << 18)
            texts[index] += client.texts(data)
            if not data or client.closed is not None or len(texts[index]) >= count:
                client.closed = 0 if not data and client.closed is None else client.closed
                poll.unregister(descriptor)
                del waiting[descriptor]
    poll.close()
    return texts


# Repair.


class _Proxy:
    """A `FaultProxy` in a thread of its own, whose calls are made from here."""

    def __init__(self, url: str) -> None:
        self._proxy = FaultProxy(url)
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._proxy.__aenter__(), self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._proxy.__aexit__(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def url(self) -> str:
        """The broker's, over this proxy."""
        return self._proxy.url

    def refuse(self) -> None:
        """Cut every connection, and each new one."""
        self._do(self._proxy.refuse)

    def heal(self) -> None:
        """Let new connections pass."""
        self._do(self._proxy.heal)

    def _do(self, act: Callable[[], None]) -> None:
        async def acted() -> None:
            act()

        asyncio.run_coroutine_threadsafe(acted(), self._loop).result(10)


def _measure_repair(candidate: Candidate, publisher: Server, proxy: _Proxy, options: Options, found: Run) -> None:
    """Cut the link of a worker with many kept channels, of which some or no messages are missed, and let it return.

    The worker's subscriber is in its process, as its handlers are; the publisher and the proxy are not. A full garbage
    collection that the joins before have made due is done before the first cut (`history_app.consume`): what counts is
    what a repair leads to, and `repair_gc_ms` has the longest collection during it.
    """
    proxied = replace(candidate, environment={**candidate.environment, "BACKPLANE_URL": proxy.url})
    with serving(proxied, stalls=options.stalls) as server:
        server.ask("consume", name=f"{_KEPT}many", channels=options.repaired)
        for figure, missed in (("repair", 0), ("repair_missed", _REPAIRED_MISSED)):
            before = server.ask("noted")
            proxy.refuse()
            wait_until(lambda: server.ask("noted")["in_doubt"] == options.repaired, "the link is lost", seconds=30)
            if missed:
                publisher.ask(
                    "fill",
                    name=f"{_KEPT}many",
                    channels=options.repaired,
                    count=missed,
                    size=options.payload,
                    after=0,
                )
            server.ask("noted")  # from here on the longest collection counts
            stall.reset(server.stalls)
            healed = time.monotonic()
            proxy.heal()
            proven = server.ask("proven")
            found.figures[f"{figure}_ms"] = (proven - healed) * 1000
            found.figures[f"{figure}_gc_ms"] = server.ask("noted")["collected"] * 1000
            if (longest := stall.longest(server.stalls)) is not None:
                found.figures[f"{figure}_stall_ms"] = longest * 1000
            wanted = missed * options.repaired
            received = _receives(server, int(before["received"]), wanted)
            after = server.ask("noted")
            found.figures["lost"] += max(wanted - received, 0)
            found.figures["duplicates"] += max(received - wanted, 0)
            found.figures["gaps"] += after["gaps"] - before["gaps"]


def _receives(server: Server, before: int, wanted: int) -> int:
    """Wait until as many messages as wanted were received, or they do not come; return how many were."""

    def received() -> int:
        return int(server.ask("noted")["received"]) - before

    with suppress(TimeoutError):
        wait_until(lambda: received() >= wanted, "what was missed is received", seconds=10)
    return received()
