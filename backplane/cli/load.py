"""The clients of `backplane bench`: many sockets that hear, one that speaks, and what became of each message."""

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
    """Nothing could be measured; says why."""


class Load:
    """The clients, all in this process; each message carries when it was due, and latency counts from then."""

    def __init__(self, connections: int, rate: float, seconds: float) -> None:
        self._connections, self._rate, self._count = connections, rate, ceil(rate * seconds)
        self._mark = os.urandom(4).hex()  # whoever else measures on this broker is not heard
        self._workers: Counter[str] = Counter()
        self._ready: set[int] = set()
        self._latencies: list[float] = []
        self._last: dict[int, float] = {}
        self._heard: Counter[int] = Counter()
        self._doubled = 0
        self._late_seconds = self._busy = 0.0

    async def run(self, port: int, workers: int) -> None:
        """Connect, wait until every socket hears, and talk.

        Raises:
            LoadError: A client is not let in or is cut, or hears nothing in time.
        """
        from websockets.exceptions import WebSocketException

        try:
            await _wait_for_workers(port, workers)
            await self._run(port)
        except (OSError, TimeoutError, WebSocketException) as error:
            raise LoadError(str(error) or f"not all of {workers} workers answered in time") from error

    def figures(self) -> dict[str, Any]:
        """Return what was found; `problem` is empty where all is well."""
        lost = self._count * self._connections - sum(self._heard.values())
        whole = [self._last[each] for each, heard in self._heard.items() if heard == self._connections]
        return {
            "sockets_per_worker": sorted(self._workers.values()),
            "messages": self._count,
            "deliveries": len(self._latencies),
            "lost": lost,
            "duplicated": self._doubled,
            "latency_seconds": _percentiles(self._latencies),
            "last_socket_seconds": _percentiles(whole),
            "client_cpu_percent": round(self._busy * 100),
            "problem": self._problem(lost),
        }

    def _problem(self, lost: int) -> str:
        if self._busy > _BUSY:
            return "the figures are worth nothing: the one client process could not keep up; lower --connections"
        if self._late_seconds > max(1 / self._rate, 0.02):
            return f"the figures are worth nothing: this machine sent {self._late_seconds:.2f} s late; lower --rate"
        return f"{lost:,} deliveries lost, {self._doubled:,} doubled" if lost or self._doubled else ""

    async def _run(self, port: int) -> None:
        async with AsyncExitStack() as stack:
            clients: list[Any] = []
            while (left := self._connections - len(clients)) > 0:
                entering = (stack.enter_async_context(_client(port, "/hear")) for _ in range(min(_AT_ONCE, left)))
                clients += await asyncio.gather(*entering)
            talker = await stack.enter_async_context(_client(port, "/say"))
            hearing = asyncio.gather(*(self._hear(number, each) for number, each in enumerate(clients)))
            talking = asyncio.ensure_future(self._talk(talker))
            try:
                # Hearing ends by itself only when a socket is cut.
                await asyncio.wait((hearing, talking), return_when=asyncio.FIRST_COMPLETED)
                await (talking if talking.done() else hearing)
            finally:
                for task in (hearing, talking):
                    task.cancel()
                await asyncio.gather(hearing, talking, return_exceptions=True)

    async def _hear(self, number: int, client: Any) -> None:
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
        self._doubled += again
        if not again:
            self._heard[sequence] += 1
            self._last[sequence] = max(latency, self._last.get(sequence, 0.0))

    async def _talk(self, talker: Any) -> None:
        """Wait until all hear, send each message when it is due, and wait for what is on its way."""
        deadline = time.monotonic() + _START_SECONDS
        while missing := self._connections - len(self._ready):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{missing} of {self._connections} sockets hear nothing of what is published")
            await talker.send(self._text(_PROBE, 0.0))
            await asyncio.sleep(0.2)
        began, used = time.monotonic(), time.process_time()
        for sequence in range(self._count):
            due = began + sequence / self._rate
            await asyncio.sleep(due - time.monotonic())
            self._late_seconds = max(self._late_seconds, time.monotonic() - due)
            await talker.send(self._text(sequence, due))
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

    # No compression: it would measure zlib. No proxy: it is this machine. No limit: nobody may wait for this process.
    return connect(f"ws://127.0.0.1:{port}{path}", compression=None, proxy=None, max_queue=None)


async def _wait_for_workers(port: int, workers: int) -> None:
    """Knock until each worker has answered."""
    answered: set[str] = set()
    async with AsyncExitStack() as stack, asyncio.timeout(_START_SECONDS):
        while len(answered) < workers:
            client = await stack.enter_async_context(_client(port, "/hear"))
            answered.add(await client.recv())


def _percentiles(values: Sequence[float]) -> dict[str, float] | None:
    ordered = sorted(values)
    shares = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {name: ordered[ceil(len(ordered) * share) - 1] for name, share in shares.items()} if ordered else None
