"""What the live page shows of all workers, every few seconds; of this worker alone where it knows no others."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections import deque
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from backplane.cluster_types import Worker
from backplane.errors import ConfigurationError
from backplane.stats.overview import Overview, worker_overview
from backplane.stats.snapshot import WorkerSnapshot
from backplane.stats.verdict import Evidence, problems_of, verdict_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from backplane.core import Backplane

__all__ = ["overviews", "own_worker"]

_EVERY_SECONDS: Final = 2.0
_KEPT: Final = 6


async def overviews(backplane: Backplane) -> AsyncGenerator[dict[str, Any]]:
    """Yield an overview every 2 seconds until the worker drains.

    Each is `Overview.to_json()` with: `broker`, its URL without the password; `link`, the state of this worker's link;
    `is_cluster`, whether other workers are known; `asked_worker`, the id of this one.

    Raises:
        NotStartedError, ClosedError: The backplane is not running.
    """
    try:
        me = (await backplane.workers())[:1]
    except ConfigurationError:
        own = _Own(backplane)
        while not (await backplane.health()).draining:
            yield {**(await own.overview()).to_json(), **_about(backplane), "is_cluster": False, "asked_worker": own.id}
            await asyncio.sleep(_EVERY_SECONDS)
        return
    async with backplane.overviews(interval_seconds=_EVERY_SECONDS) as watched:
        async for overview in watched:
            if (await backplane.health()).draining:
                return
            about = {"is_cluster": True, "asked_worker": me[0].id if me else None}
            yield {**overview.to_json(), **_about(backplane), **about}


def _about(backplane: Backplane) -> dict[str, Any]:
    return {"broker": backplane.url, "link": backplane.state}


def own_worker() -> Worker:
    """Return this worker, where the workers do not know each other."""
    return Worker(id=f"{os.getpid():016x}", host=socket.gethostname(), pid=os.getpid())


class _Own:
    """The figures of this worker, where it knows no others."""

    def __init__(self, backplane: Backplane) -> None:
        self._backplane = backplane
        self._snapshots: deque[WorkerSnapshot] = deque(maxlen=_KEPT)
        self._since = time.time()
        self._worker = own_worker()
        self.id: str = self._worker.id

    async def overview(self) -> Overview:
        """Return them as an overview."""
        now, backplane = time.time(), self._backplane
        health = await backplane.health()
        if not self._snapshots or self._snapshots[-1].state != health.state:
            self._since = now
        snapshot = WorkerSnapshot(
            worker=self.id,
            host=self._worker.host,
            pid=self._worker.pid,
            at=now,
            clock=asyncio.get_running_loop().time(),
            state=health.state,
            state_seconds=now - self._since,
            health=asdict(health),
            statistics=backplane.statistics().as_dict(),
            cpu_seconds=time.process_time(),
        )
        self._snapshots.append(snapshot)
        row = worker_overview(self._snapshots, now=now, age_seconds=0.0, clock_offset=None)
        evidence = Evidence(
            is_live=health.state == "live",
            url=backplane.url,
            rejected=0,
            workers=(row,),
            missing=(),
            silent={},
            refusing={},
            vanished={},
            settings={},
            adapters={},
            control={},
            gaps={row.worker: health.gaps - int(self._snapshots[0].figure("gaps"))},
        )
        problems = problems_of(evidence)
        return Overview(
            at=now,
            asked=1,
            answered=1,
            missing=(),
            verdict=verdict_of(problems, evidence),
            problems=problems,
            workers=(row,),
            channels=(),
        )
