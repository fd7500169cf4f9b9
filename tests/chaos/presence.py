"""Workers with presence in one event loop, whose clients come and go, and what their lists are to be."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from starlette.exceptions import WebSocketException

from backplane import Backplane, Gap, Presence, PresenceChange, Settings
from backplane.testing.loop_client import LoopClient
from tests.chaos.attendances import Attendances, Leave
from tests.chaos.case_table import PRESENCE_FIGURES
from tests.chaos.delay import Delay
from tests.chaos.workload import watched_loop

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence

    import pytest

    from tests.chaos.attendances import Stay

__all__ = ["DEFAULT", "GRACE_SECONDS", "QUICK", "PresenceWorkload", "PresentWorker", "note", "running_presence"]

GRACE_SECONDS: Final = 2.0
QUICK: Final = Settings(
    probe_interval_seconds=0.5,
    max_backoff_seconds=0.5,
    publish_timeout_seconds=0.5,
    subscribe_timeout_seconds=1,
    linger_seconds=0.05,
    worker_heartbeat_seconds=0.5,
    worker_down_seconds=2,
)
"""Another worker counts as ended after two seconds."""
DEFAULT: Final = Settings(
    probe_interval_seconds=0.5,
    max_backoff_seconds=0.5,
    publish_timeout_seconds=0.5,
    subscribe_timeout_seconds=1,
    linger_seconds=0.05,
)
"""Another worker counts as ended after ten seconds, as it does by default."""

_RULES: Final = {"room-*": Presence(grace_seconds=GRACE_SECONDS)}
_PLACES: Final = 24
_ROOMS: Final = 4
_PER_SECOND: Final = 40
_WAIT_SECONDS: Final = 60.0


class PresentWorker:
    """One worker, what it watches, and what it reported.

    Attributes:
        name: Names it.
        backplane: The worker.
        left: What it reported as left.
        joined: How often it reported each user of a room as joined.
        faults: Every number that was missing, and every change that does not follow from what it reported before.
    """

    def __init__(self, name: str, url: str, settings: Settings, rules: Mapping[str, Presence] = _RULES) -> None:
        self.name = name
        self.backplane = Backplane(url, settings=settings, presence=rules, on_gap=_keep_open)
        self.left: list[Leave] = []
        self.joined: Counter[tuple[str, str]] = Counter()
        self.faults: list[str] = []
        self.shown: dict[str, set[str]] = {}

    async def watch(self, room: str) -> None:
        """Watch a room until cancelled."""
        version = 0
        async with self.backplane.watch(room) as presence:
            async for item in presence:
                if not isinstance(item, PresenceChange):
                    self.shown[room] = set(item.users)
                else:
                    if item.version != version + 1 or item.joined.keys() & self.shown[room]:
                        self.faults.append(f"{self.name} has {item} after version {version} in {room}")
                    self.joined.update((room, user) for user in item.joined)
                    self.left += [Leave(self.name, room, user, time.monotonic()) for user in item.left]
                    self.shown[room] = (self.shown[room] | item.joined.keys()).difference(item.left)
                version = item.version

    async def difference(self, truth: Mapping[str, Mapping[str, int]]) -> list[str]:
        """Return in which rooms its list, or what it reported, is not `truth`."""
        wrong: list[str] = []
        views = await asyncio.gather(*map(self.backplane.present, truth))
        for view, (room, expected) in zip(views, truth.items(), strict=True):
            found = {user: shown.connections for user, shown in view.users.items()}
            if view.stale:
                wrong.append(f"{room} at {self.name} is stale")
            elif found != expected:
                wrong.append(f"{room} at {self.name} has {found}, and {dict(expected)} is true")
            elif self.shown.get(room, set()) != set(expected):
                wrong.append(f"{self.name} reported {self.shown.get(room)} in {room}, and {set(expected)} is true")
        return wrong

    async def stale(self, rooms: Iterable[str]) -> bool:
        """Return whether its lists of these rooms are all stale."""
        views = await asyncio.gather(*map(self.backplane.present, rooms))
        return all(view.stale for view in views)


def _keep_open(_: Gap) -> None:
    """Send clients nothing at a gap, and let them stay."""


@dataclass(eq=False, slots=True)
class Place:
    """What one client takes, leaves and takes again.

    Attributes:
        user: Its user.
        room: Its room.
        client: The client; `None` while there is none.
        stay: Its connection, as it is recorded.
    """

    user: str
    room: str
    client: LoopClient | None = None
    stay: Stay | None = None


@dataclass(eq=False, slots=True)
class PresenceWorkload:
    """Workers whose clients come and go.

    Attributes:
        workers: All.
        near: Those that use the link with the fault.
        attendances: What the clients know of themselves.
        rooms: The rooms.
        places: The places of the clients.
    """

    workers: Sequence[PresentWorker]
    near: Sequence[PresentWorker]
    attendances: Attendances = field(default_factory=Attendances)
    rooms: list[str] = field(default_factory=lambda: [f"room-{number}" for number in range(_ROOMS)])
    places: list[Place] = field(default_factory=list[Place])
    _choose: random.Random = field(default_factory=lambda: random.Random(7))

    async def fill(self) -> None:
        """Take all places."""
        self.places = [Place(f"u{n % (_PLACES * 3 // 4)}", self.rooms[n % _ROOMS]) for n in range(_PLACES)]
        for number, place in enumerate(self.places):
            assert await self.open(place, self.workers[number % len(self.workers)])

    async def open(self, place: Place, worker: PresentWorker) -> bool:
        """Take a place at a worker; return whether the worker accepted."""
        with suppress(WebSocketException):
            place.client = await LoopClient(worker.backplane, place.room, user=place.user).open()
            place.stay = self.attendances.open(place.room, place.user, worker.name)
            return True
        place.client = None
        return False

    async def close(self, place: Place) -> None:
        """Leave a place."""
        client, stay = place.client, place.stay
        place.client = place.stay = None
        if client is not None and stay is not None:
            stay.close()
            await client.close()

    async def churn(self, over: asyncio.Event) -> None:
        """Leave and take places at random until `over`; then all are taken that can be."""
        while not over.is_set():
            place = self._choose.choice(self.places)
            if place.client is None:
                await self.open(place, self._choose.choice(self.workers))
            elif self._choose.random() < 0.6:
                await self.close(place)
            with suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), 1 / _PER_SECOND)

    @asynccontextmanager
    async def churning(self) -> AsyncGenerator[None]:
        """Let clients come and go during the block."""
        over = asyncio.Event()
        task = asyncio.create_task(self.churn(over))
        try:
            yield
        finally:
            over.set()
            await task

    def truth(self) -> dict[str, dict[str, int]]:
        """Return the users of each room, and how many connections each has."""
        found = self.attendances.by_room()
        return {room: dict(found.get(room, {})) for room in self.rooms}

    async def true(
        self,
        *,
        seconds: float,
        workers: Sequence[PresentWorker] | None = None,
        more: Mapping[str, Mapping[str, int]] | None = None,
    ) -> float:
        """Wait until every list is true; return how long that took.

        Users without a connection are in the lists for as long as their grace: it is part of the time.

        Args:
            seconds: Within how many, and the delay by the machine.
            workers: Whose lists. Defaults to all.
            more: What is true beside what the clients know.

        Raises:
            AssertionError: Not within so many seconds.
        """
        since, delay = time.monotonic(), Delay()
        while wrong := await self._wrong(workers or self.workers, more or {}):
            late = time.monotonic() - since - delay.seconds > seconds
            assert not late, f"not true after {seconds:g} s: {wrong[:6]} of {len(wrong)}"
            await asyncio.sleep(0.02)
        return time.monotonic() - since

    async def _wrong(self, workers: Sequence[PresentWorker], more: Mapping[str, Mapping[str, int]]) -> list[str]:
        truth = {room: {**users, **more.get(room, {})} for room, users in self.truth().items()}
        return [line for lines in await asyncio.gather(*(one.difference(truth) for one in workers)) for line in lines]

    async def all_stale(self, workers: Sequence[PresentWorker] | None = None) -> None:
        """Wait until the link of each is lost; its lists are stale from then on."""
        for one in workers or self.near:
            async with asyncio.timeout(_WAIT_SECONDS):
                await one.backplane.wait_for_state("degraded")
                assert await one.stale(self.rooms)

    async def all_live(self) -> None:
        """Wait until all links are live."""
        for one in self.workers:
            async with asyncio.timeout(_WAIT_SECONDS):
                await one.backplane.wait_for_state("live")

    async def all_alive(self) -> bool:
        """Return whether every worker takes all others for alive."""
        known = [[other.is_alive for other in await one.backplane.workers()] for one in self.workers]
        return known == [[True] * len(self.workers)] * len(self.workers)

    @property
    def leaves(self) -> list[Leave]:
        """What all have reported as left."""
        return [leave for one in self.workers for leave in one.left]

    def judge(self, *, without: Sequence[str] = (), cut: tuple[float, float] | None = None) -> None:
        """Fail where a number was missing, or a user was reported as left that was back within the grace.

        Args:
            without: Workers that may take others for ended.
            cut: From when to when the links of the workers `near` were cut again and again: what opened there
                meanwhile was known to no other worker before the end.
        """
        faults = [fault for one in self.workers for fault in one.faults]
        leaves = [leave for leave in self.leaves if leave.watcher not in without]
        faults += self.attendances.wrong_leaves(
            leaves, GRACE_SECONDS, cut=dict.fromkeys((one.name for one in self.near), cut)
        )
        assert not faults, "\n".join(faults[:10])


@asynccontextmanager
async def running_presence(
    near: str, far: str | None = None, *, settings: Settings = QUICK, urls: Sequence[str] | None = None
) -> AsyncGenerator[PresenceWorkload]:
    """Run four workers with their clients, of which two use `near`; fail on unhandled and on logged errors.

    Args:
        near: URL through the fault.
        far: URL that bypasses it; the same where all use it.
        settings: Of all workers.
        urls: The URL of each worker, in place of these two.
    """
    each = urls or [near, far or near, near, far or near]
    workers = [PresentWorker(name, url, settings) for name, url in zip("abcd", each, strict=False)]
    workload = PresenceWorkload(workers, [one for one, url in zip(workers, each, strict=True) if url == near])
    async with watched_loop(), AsyncExitStack() as stack:
        for one in workers:
            await stack.enter_async_context(one.backplane)
        watches = [asyncio.create_task(one.watch(room)) for one in workers for room in workload.rooms]
        try:
            await workload.fill()
            await workload.true(seconds=10)
            # A worker lists another one from its first heartbeat on that it receives.
            async with asyncio.timeout(_WAIT_SECONDS):
                while not await workload.all_alive():
                    await asyncio.sleep(0.02)
            yield workload
            for place in workload.places:
                await workload.close(place)
        finally:
            for task in watches:
                task.cancel()
            await asyncio.wait(watches)
            for place in workload.places:
                if place.client is not None:
                    await place.client.close()


def note(
    request: pytest.FixtureRequest,
    case: str,
    broker: str,
    *,
    clients: int = _PLACES,
    complete: float | None = None,
    fault: float | None = None,
    end: float | None = None,
    own: float | None = None,
    left: int,
) -> None:
    """Add a line to the table of presence."""
    times = ("-" if seconds is None else f"{seconds:.1f}" for seconds in (complete, fault, end, own))
    request.node.user_properties.append((PRESENCE_FIGURES, (case, broker, str(clients), *times, str(left))))
