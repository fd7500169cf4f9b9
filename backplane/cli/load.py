"""The clients of `backplane bench`: many sockets that receive, one that publishes, and a count of every message."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from contextlib import AsyncExitStack
from math import ceil
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Load", "LoadError"]

_START_SECONDS: Final = 30.0
_GRACE_SECONDS: Final = 3.0
_PROBE: Final = -1
_AT_ONCE: Final = 32
_MESSAGE_BYTES: Final = 128
_BUSY: Final = 0.9


class LoadError(Exception):
    """Nothing could be measured; the message gives the reason."""


class Load:
    """The clients, all in this process. Each message carries the time at which it was due; latency counts from that."""

    def __init__(self, connections: int, rate: float, seconds: float) -> None:
        self._connections, self._rate, self._count = connections, rate, ceil(rate * seconds)
        self._mark = os.urandom(4).hex()  # messages of another measurement on this broker are ignored
        self._workers: Counter[str] = Counter()
        self._ready: set[int] = set()
        self._latencies: list[float] = []
        self._last: dict[int, float] = {}
        self._received: Counter[int] = Counter()
        self._duplicated = 0
        self._late_seconds = self._busy = 0.0

    async def run(self, port: int, workers: int) -> None:
        """Connect, wait until every socket receives, and publish.

        Raises:
            LoadError: A client is refused or cut, or receives nothing in time.
        """
        from websockets.exceptions import WebSocketException

        try:
            await _wait_for_workers(port, workers)
            await self._run(port)
        except (OSError, TimeoutError, WebSocketException) as error:
            raise LoadError(str(error) or f"not all of {workers} workers answered in time") from error

    def figures(self) -> dict[str, Any]:
        """Return the figures; `problem` is empty if there is none."""
        lost = self._count * self._connections - sum(self._received.values())
        whole = [self._last[each] for each, received in self._received.items() if received == self._connections]
        return {
            "sockets_per_worker": sorted(self._workers.values()),
            "messages": self._count,
            "deliveries": len(self._latencies),
            "lost": lost,
            "duplicated": self._duplicated,
            "latency_seconds": _percentiles(self._latencies),
            "last_socket_seconds": _percentiles(whole),
            "client_cpu_percent": round(self._busy * 100),
            "problem": self._problem(lost),
        }

    def _problem(self, lost: int) -> str:
        if self._busy > _BUSY:
            return "the figures are invalid: the one client process could not keep up; lower --connections"
        if self._late_seconds > max(1 / self._rate, 0.02):
            return f"the figures are invalid: this machine sent {self._late_seconds:.2f} s late; lower --rate"
        return f"{lost:,} deliveries lost, {self._duplicated:,} duplicated" if lost or self._duplicated else ""

    async def _run(self, port: int) -> None:
        async with AsyncExitStack() as stack:
            clients: list[Any] = []
            while (left := self._connections - len(clients)) > 0:
                entering = (stack.enter_async_context(_client(port, "/receive")) for _ in range(min(_AT_ONCE, left)))
                clients += await asyncio.gather(*entering)
            publisher = await stack.enter_async_context(_client(port, "/publish"))
            receiving = asyncio.gather(*(self._receive(number, each) for number, each in enumerate(clients)))
            publishing = asyncio.ensure_future(self._publish(publisher))
            try:
                # Receiving ends by itself only when a socket is cut.
                await asyncio.wait((receiving, publishing), return_when=asyncio.FIRST_COMPLETED)
                await (publishing if publishing.done() else receiving)
            finally:
                for task in (receiving, publishing):
                    task.cancel()
                await asyncio.gather(receiving, publishing, return_exceptions=True)

    async def _receive(self, number: int, client: Any) -> None:
        seen: set[int] = set()
        while True:
            word, _, rest = (await client.recv()).partition(" ")
            if word == "worker":
                self._workers[rest] += 1
            elif word == self._mark:
                due, sequence = float(rest.split()[1]), int(rest.split()[0])
                self._take(number, sequence, time.monotonic() - due, again=sequence in seen)
                seen.add(sequence)

    def _take(self, number: int, sequence: int, latency: float, *, again: bool) -> None:
        if sequence == _PROBE:
            self._ready.add(number)
            return
        self._latencies.append(latency)
        self._duplicated += again
        if not again:
            self._received[sequence] += 1
            self._last[sequence] = max(latency, self._last.get(sequence, 0.0))

    async def _publish(self, publisher: Any) -> None:
        """Wait until all receive, send each message when it is due, and wait for those in flight."""
        deadline = time.monotonic() + _START_SECONDS
        while missing := self._connections - len(self._ready):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{missing} of {self._connections} sockets receive nothing of what is published")
            await publisher.send(self._text(_PROBE, 0.0))
            await asyncio.sleep(0.2)
        began, used = time.monotonic(), time.process_time()
        for sequence in range(self._count):
            due = began + sequence / self._rate
            await asyncio.sleep(due - time.monotonic())
            self._late_seconds = max(self._late_seconds, time.monotonic() - due)
            await publisher.send(self._text(sequence, due))
        await asyncio.sleep(began + self._count / self._rate - time.monotonic())
        self._busy = (time.process_time() - used) / (time.monotonic() - began)
        most, changed = -1, time.monotonic()
        while most < self._count * self._connections and time.monotonic() - changed < _GRACE_SECONDS:
            if len(self._latencies) > most:
                most, changed = len(self._latencies), time.monotonic()
            await asyncio.sleep(0.05)

    def _text(self, sequence: int, due: float) -> str:
        return f"{self._mark} {sequence} {due!r} ".ljust(_MESSAGE_BYTES, "x")


def _client(port: int, path: str) -> Any:
    from websockets.asyncio.client import connect

    # No compression: it would measure zlib. No proxy: this is loopback. No queue limit: no server may wait for us.
    return connect(f"ws://127.0.0.1:{port}{path}", compression=None, proxy=None, max_queue=None)


async def _wait_for_workers(port: int, workers: int) -> None:
    """Connect until each worker has answered."""
    answered: set[str] = set()
    async with AsyncExitStack() as stack, asyncio.timeout(_START_SECONDS):
        while len(answered) < workers:
            client = await stack.enter_async_context(_client(port, "/receive"))
            answered.add(await client.recv())


def _percentiles(values: Sequence[float]) -> dict[str, float] | None:
    ordered = sorted(values)
    shares = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {name: ordered[ceil(len(ordered) * share) - 1] for name, share in shares.items()} if ordered else None
