"""Subscribers join a channel with a history while a thousand messages per second are published to it."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Final

import pytest

from backplane import Backlog, Backplane, Gap, History, Settings
from tests.chaos.case_table import JOIN_FIGURES
from tests.chaos.workload import watched_loop

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]

ROOM: Final = "kept-room"
KEPT_MESSAGES: Final = 1000
RULES: Final = {"kept-*": History(max_messages=KEPT_MESSAGES)}
# Generous: what is tested is not how long it takes.
PATIENT: Final = Settings(publish_timeout_seconds=20, subscribe_timeout_seconds=20, recall_timeout_seconds=10)
PER_SECOND: Final = 1000
BURST: Final = 20
AT_ONCE: Final = 8
# How many live messages are received after what a join gives back.
LIVE: Final = 12


class Stream:
    """A publisher of consecutive numbers at a steady rate, as far as the machine allows.

    Attributes:
        published: How many it has published.
        began_at: When, by the monotonic clock.
    """

    def __init__(self, backplane: Backplane) -> None:
        self._backplane = backplane
        self.published = 0
        self.began_at = time.monotonic()

    async def run(self) -> None:
        """Publish until cancelled."""
        loop = asyncio.get_running_loop()
        self.began_at = time.monotonic()
        due = loop.time()
        while True:
            numbers = range(self.published, self.published + BURST)
            self.published += BURST
            await asyncio.gather(*(self._backplane.publish(ROOM, str(number)) for number in numbers))
            due = max(due + BURST / PER_SECOND, loop.time() - 0.1)
            await asyncio.sleep(max(0.0, due - loop.time()))

    @property
    def per_second(self) -> float:
        """Its rate up to now."""
        return self.published / (time.monotonic() - self.began_at)


class Visitor:
    """A client that joins, receives for a while, leaves, and comes back with its last position.

    Attributes:
        joins: How often it has joined.
        late: How often it came back when what it missed was no longer kept, and was notified of that.
        faults: What was not as promised.
    """

    def __init__(self, workers: list[Backplane], chance: random.Random) -> None:
        self.joins = self.late = 0
        self.faults: list[str] = []
        self._workers = workers
        self._chance = chance
        self._last = -1
        self._position: str | None = None

    async def run(self, count: int) -> None:
        """Join so many times."""
        for _ in range(count):
            rewind = self._chance.choice([0, 1, 5, 50, 300])
            if self._chance.random() < 0.3:
                self._last, self._position = -1, None  # a first visit
            await self._visit(rewind)
            await asyncio.sleep(self._chance.choice([0, 0, 0.01, 0.1]))

    async def _visit(self, rewind: int) -> None:
        """Join once; the numbers follow each other, from the last one on where there was a visit before."""
        backlog = Backlog(max_messages=100_000, max_bytes=64 * 1024 * 1024)
        worker, since, numbers = self._chance.choice(self._workers), self._position, list[int]()
        gap = ""
        async with worker.subscribe(ROOM, since=since, rewind=rewind, backlog=backlog) as messages:
            async for item in messages:
                if isinstance(item, Gap):
                    gap = item.reason
                    continue
                numbers.append(int(str(item.data)))
                self._position = str(item.position)
                if len(numbers) >= LIVE + (rewind if since is None else 0):
                    break
        self.joins += 1
        expected = self._last + 1
        if since is None or gap:
            expected = numbers[0]
        if numbers != list(range(expected, expected + len(numbers))):
            self.faults.append(f"{numbers[:5]}... after {self._last}, with since={since} and rewind={rewind}")
        if gap and numbers[0] + rewind - self._last <= KEPT_MESSAGES:
            self.faults.append(f"a gap between {self._last} and {numbers[0]}: {gap}")
        self.late += bool(gap)
        self._last = numbers[-1]


@pytest.fixture(params=["memory", "ipc", "redis", "nats", "kafka"])
def url(request: pytest.FixtureRequest) -> str:
    """The URL of each adapter, in turn."""
    if request.param == "memory":
        return "memory://joins"
    if request.param == "ipc":
        return str(request.getfixturevalue("ipc_url"))
    if request.param == "nats":
        return str(request.getfixturevalue("private_nats")(jetstream=True).url)
    return str(request.getfixturevalue(f"{request.param}_broker").own_url)


@pytest.mark.parametrize("joins", [80, pytest.param(504, marks=pytest.mark.full)])
async def test_joins_have_neither_a_hole_nor_a_repetition(joins: int, url: str, request: pytest.FixtureRequest) -> None:
    """What is given back, by a position or by `rewind`, continues in the live messages."""
    workers = [Backplane(url, settings=PATIENT, history=RULES) for _ in range(3)]
    async with watched_loop(), workers[0], workers[1], workers[2], asyncio.TaskGroup() as group:
        stream = Stream(workers[0])
        publishing = group.create_task(stream.run())
        visitors = [Visitor(workers[-2:], random.Random(number)) for number in range(AT_ONCE)]
        async with asyncio.timeout(250), asyncio.TaskGroup() as visits:
            for visitor in visitors:
                visits.create_task(visitor.run(joins // AT_ONCE))
        rate = stream.per_second
        publishing.cancel()
    faults = [fault for visitor in visitors for fault in visitor.faults]
    late = sum(one.late for one in visitors)
    figures = (sum(one.joins for one in visitors), round(rate), late, len(faults))
    row = ("by position and by rewind", url.partition(":")[0], *map(str, figures))
    request.node.user_properties.append((JOIN_FIGURES, row))
    assert faults == []
    assert sum(visitor.joins for visitor in visitors) == joins
    assert rate > PER_SECOND / 10
    # NATS before 2.11 reads one message per request, hardly faster than they are published here.
    assert late == 0 or url.startswith("nats")
