"""Watches the figures of all workers: asks for them every few seconds, keeps the newest, and merges them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from backplane.cluster.topics import STATS
from backplane.control.messages import Selector
from backplane.errors import BackplaneError
from backplane.journal.events import CLUSTER_FAILED
from backplane.option_checks import is_number
from backplane.stats.overview import Overview, channel_overviews, worker_name, worker_overview
from backplane.stats.publisher import INTERVAL_SECONDS, LEASE_SECONDS, WATCH, interval_of
from backplane.stats.snapshot import parse_snapshot
from backplane.stats.verdict import Evidence, problems_of, verdict_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from backplane.cluster.bus import ClusterBus
    from backplane.cluster_types import Worker
    from backplane.control.requests import Requests
    from backplane.journal.journal import Journal
    from backplane.stats.snapshot import WorkerSnapshot

__all__ = ["StatsReader"]

logger: Final = logging.getLogger("backplane.stats.reader")

MAX_CHANNELS: Final = 20
"""How many channels an overview has."""

_ANSWER_SECONDS: Final = 2.0
# The lag is that of so many snapshots: 99 of 100 messages of two seconds can be a single one.
_KEPT: Final = 6
# Control messages and gaps are compared over so many snapshots, a minute in the ordinary case.
_COMPARED: Final = 30
# So many answers of a worker are kept for its clock, which takes a minute to drift by a millisecond.
_CLOCKS: Final = 8
# A snapshot that is older than so many intervals, and the pause for a message, is that of a worker that sends none.
_MISSED_INTERVALS: Final = 3
_GRACE_SECONDS: Final = 1.0
_VANISHED_SECONDS: Final = 60.0
# Another program can invent any number of workers.
_MAX_WORKERS: Final = 2_000


@dataclass(slots=True)
class _Known:
    """What was received of one worker."""

    snapshots: deque[WorkerSnapshot] = field(default_factory=lambda: deque(maxlen=_KEPT))
    compared: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=_COMPARED))
    received_at: float = 0.0
    clocks: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_CLOCKS))

    @property
    def clock_offset(self) -> float | None:
        """How much its clock is ahead, by the answer that came soonest: the others have waited somewhere."""
        return min(self.clocks)[1] if self.clocks else None

    def take(self, snapshot: WorkerSnapshot, now: float) -> None:
        self.snapshots.append(snapshot)
        self.compared.append((snapshot.control_received, snapshot.figure("gaps")))
        self.received_at = now

    def is_fresh(self, now: float) -> bool:
        if not self.snapshots:
            return False
        return now - self.received_at <= _MISSED_INTERVALS * self.snapshots[-1].interval_seconds + _GRACE_SECONDS


class StatsReader:
    """Keeps the figures of all workers up to date while it is held, however many hold it.

    Args:
        bus: The reserved channels.
        requests: Asks the workers.
        workers: Returns the workers that are known, with those that have ended lately.
        knows_all: Returns whether these are all there are.
        is_live: Returns whether the link of this process is live.
        rejected: Returns how many messages were not signed as they should be.
        url: The broker, its password masked.
        own: Takes the snapshot of this worker, for the time in which the link is lost; `None` where it is no worker.
        down_seconds: A worker that is silent for so long has vanished.
        journal: How failures are logged.
    """

    def __init__(
        self,
        bus: ClusterBus,
        requests: Requests,
        *,
        workers: Callable[[], list[Worker]],
        knows_all: Callable[[], bool],
        is_live: Callable[[], bool],
        rejected: Callable[[], int],
        url: str,
        own: Callable[[float], WorkerSnapshot] | None,
        down_seconds: float,
        journal: Journal,
    ) -> None:
        self._bus = bus
        self._requests = requests
        self._workers = workers
        self._knows_all = knows_all
        self._is_live = is_live
        self._rejected = rejected
        self._url = url
        self._own = own
        self._down_seconds = down_seconds
        self._journal = journal
        self._holders = 0
        self._asking: asyncio.Task[None] | None = None
        self._known: dict[str, _Known] = {}
        self._listed: set[str] = set()
        self._alive: dict[str, Worker] = {}
        self._vanished: dict[str, tuple[Worker, float]] = {}
        self._silent: set[str] = set()
        self._refusing: dict[str, str] = {}
        self._changed = asyncio.Event()

    @property
    def interval_seconds(self) -> float:
        """After which time there is something new: it grows with the number of workers."""
        return interval_of(len(self._alive))

    def hold(self) -> None:
        """Begin to ask, for the first of those that hold it."""
        self._holders += 1
        if self._holders == 1:
            self._bus.subscribe_soon(STATS, self, self._changed.set)
            self._asking = asyncio.create_task(self._ask_again_and_again(), name="backplane-stats")

    def release(self) -> None:
        """End what `hold` began, after the last one."""
        self._holders -= 1
        if not self._holders:
            self._bus.unsubscribe(STATS, self)
            assert self._asking is not None  # since `hold`
            self._asking.cancel()
            self._asking = None
            for state in (self._known, self._alive, self._vanished, self._silent, self._refusing):
                state.clear()

    async def until_complete(self, seconds: float, *, snapshots: int) -> None:
        """Wait until every worker that is alive has sent so many snapshots, for `seconds` at most.

        A worker that does not answer is not waited for.
        """
        try:
            async with asyncio.timeout(seconds):
                while not self._is_complete(snapshots):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pass

    # --- called by the bus ---

    def received(self, _topic: str, text: str, /) -> None:
        """Take a snapshot."""
        snapshot = parse_snapshot(text)
        if snapshot is None:
            return
        known = self._known_of(snapshot.worker)
        if known is not None:
            known.take(snapshot, asyncio.get_running_loop().time())
            self._changed.set()

    def gap(self, _topic: str, /) -> None:
        """Snapshots may have been missed: the next ones follow."""

    # ---

    def overview(self) -> Overview:
        """Merge what was received, and compare the workers."""
        now, wall = asyncio.get_running_loop().time(), time.time()
        self._note_workers(wall)
        if self._own is not None and not self._is_live():
            snapshot = self._own(INTERVAL_SECONDS)
            self._known.setdefault(snapshot.worker, _Known()).take(snapshot, now)
        for name in [
            name for name, known in self._known.items() if name not in self._alive and not known.is_fresh(now)
        ]:
            del self._known[name]
        fresh = {
            name: known
            for name, known in self._known.items()
            if known.is_fresh(now) and (name in self._alive or name not in self._listed)
        }
        rows = {
            name: worker_overview(
                known.snapshots, now=wall, age_seconds=now - known.received_at, clock_offset=known.clock_offset
            )
            for name, known in fresh.items()
        }
        names = {name: row.worker for name, row in rows.items()}
        missing = {name: _name(worker) for name, worker in self._alive.items() if name not in fresh}
        evidence = Evidence(
            is_live=self._is_live(),
            url=self._url,
            rejected=self._rejected(),
            workers=tuple(rows.values()),
            missing=tuple(sorted(missing.values())),
            silent={
                missing[name]: worker.last_seen_seconds_ago
                for name, worker in self._alive.items()
                if name in self._silent and name in missing
            },
            refusing={missing[name]: words for name, words in self._refusing.items() if name in missing},
            vanished={_name(worker): wall - at for worker, at in self._vanished.values()},
            settings={names[name]: known.snapshots[-1].settings for name, known in fresh.items()},
            adapters={names[name]: known.snapshots[-1].adapter for name, known in fresh.items()},
            control=_growth_of_control({names[name]: known for name, known in fresh.items()}),
            gaps={names[name]: int(known.compared[-1][1] - known.compared[0][1]) for name, known in fresh.items()},
        )
        problems = problems_of(evidence)
        return Overview(
            at=wall,
            asked=len(fresh) + len(missing),
            answered=len(fresh),
            missing=evidence.missing,
            verdict=verdict_of(problems, evidence),
            problems=problems,
            workers=tuple(sorted(rows.values(), key=lambda row: (row.host, row.pid, row.id))),
            channels=channel_overviews(map(_last_two, fresh.values()), MAX_CHANNELS),
        )

    async def _ask_again_and_again(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                await self._ask()
            except BackplaneError as error:
                words = "the workers could not be asked for their figures: %(reason)s"
                self._journal.log(logger, CLUSTER_FAILED, words, level=logging.DEBUG, reason=error)
            self._changed.set()
            # Without the answer of each it was waited for already.
            await asyncio.sleep(max(_GRACE_SECONDS, LEASE_SECONDS / 2 - (loop.time() - began)))

    async def _ask(self) -> None:
        """Take the lease of all workers, and note which answered, and how far their clocks are apart from ours."""
        self._silent = set()
        asked_at = time.time()
        answers = await self._requests.ask(WATCH, Selector(), {"seconds": LEASE_SECONDS}, _ANSWER_SECONDS)
        self._silent = {worker.id for worker in answers.missing}
        self._refusing = {worker.id: error for worker, error in answers.errors.items()}
        for worker, answer in answers.by_worker.items():
            at = _time_of(answer)
            if at is not None and (known := self._known_of(worker.id)) is not None:
                seconds = answers.seconds[worker]
                known.clocks.append((seconds, at - asked_at - seconds / 2))

    def _known_of(self, worker: str) -> _Known | None:
        known = self._known.get(worker)
        if known is None and len(self._known) < _MAX_WORKERS:
            known = self._known[worker] = _Known()
        return known

    def _note_workers(self, wall: float) -> None:
        """Note which workers are alive now, and which have vanished since the last time."""
        seen = {worker.id: worker for worker in self._workers()}
        self._listed = set(seen)
        for name in self._alive:
            worker = seen.get(name)
            if worker is not None and not worker.is_alive and worker.last_seen_seconds_ago >= self._down_seconds:
                self._vanished[name] = worker, wall - worker.last_seen_seconds_ago
        self._alive = {name: worker for name, worker in seen.items() if worker.is_alive}
        self._vanished = {
            name: (worker, at)
            for name, (worker, at) in self._vanished.items()
            if name not in self._alive and wall - at <= _VANISHED_SECONDS
        }

    def _is_complete(self, snapshots: int) -> bool:
        awaited = [worker.id for worker in self._workers() if worker.is_alive]
        if not self._knows_all() or not awaited:
            return False
        without = self._silent.union(self._refusing)
        return all(
            name in without or ((known := self._known.get(name)) is not None and len(known.snapshots) >= snapshots)
            for name in awaited
        )


def _time_of(answer: Any) -> float | None:
    """Return the time that a worker answered; `None` where another program has answered something else."""
    match answer:
        case {"at": int() | float() as at} if is_number(at):
            return at
        case _:
            return None


def _name(worker: Worker) -> str:
    return worker_name(worker.host, worker.pid, worker.id)


def _last_two(known: _Known) -> tuple[WorkerSnapshot | None, WorkerSnapshot]:
    return (known.snapshots[-2] if len(known.snapshots) > 1 else None), known.snapshots[-1]


def _growth_of_control(known: dict[str, _Known]) -> dict[str, int]:
    """Return how many control messages each worker received within the same number of its snapshots."""
    shared = min((len(each.compared) for each in known.values()), default=0)
    return {name: each.compared[-1][0] - each.compared[-shared][0] for name, each in known.items()} if shared else {}
