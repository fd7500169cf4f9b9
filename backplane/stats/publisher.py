"""The lease: a worker sends its figures only while a process watches, which asks for it again every few seconds."""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING, Any, Final

from backplane.cluster.topics import STATS
from backplane.option_checks import check_number

if TYPE_CHECKING:
    from collections.abc import Callable

    from backplane.cluster.bus import ClusterBus
    from backplane.control.messages import Command
    from backplane.stats.snapshot import WorkerSnapshot

__all__ = ["INTERVAL_SECONDS", "LEASE_SECONDS", "WATCH", "StatsPublisher", "interval_of"]

WATCH: Final = "watch"
"""The command by which a process asks for snapshots."""

LEASE_SECONDS: Final = 10.0
"""For how long a process asks for snapshots at a time; it asks again twice as often."""

INTERVAL_SECONDS: Final = 2.0
"""The time between two snapshots of a worker, where there are few workers."""

_MOST_LEASE_SECONDS: Final = 60.0
# Above it the time between two snapshots grows, so that those that watch receive no more than 25 a second.
_MANY_WORKERS: Final = 50
_JITTER: Final = 0.1
# The first snapshots of all workers are spread over so long for each of them.
_SPREAD_SECONDS: Final = 0.01


def interval_of(workers: int) -> float:
    """Return the time between two snapshots of one of so many workers."""
    return INTERVAL_SECONDS * max(1.0, workers / _MANY_WORKERS)


class StatsPublisher:
    """Sends snapshots of this worker while a lease stands; without one it has no timer and sends nothing.

    However many processes watch, a worker sends each snapshot once.

    Args:
        bus: Where they are sent.
        take: Returns a snapshot, after how many seconds the next one follows given.
        workers: Returns how many workers there are.
        on_watched: Called with whether a lease stands, when that changes.
    """

    def __init__(
        self,
        bus: ClusterBus,
        take: Callable[[float], WorkerSnapshot],
        workers: Callable[[], int],
        on_watched: Callable[[bool], None],
    ) -> None:
        self._bus = bus
        self._take = take
        self._workers = workers
        self._on_watched = on_watched
        self._watched_until = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_watched(self) -> bool:
        """Whether a lease stands."""
        return self._timer is not None

    async def watch(self, command: Command) -> dict[str, Any]:
        """Take a lease, and answer with the time by the clock of this host, at which the command was received.

        Raises:
            ConfigurationError: `seconds` is no number more than 0.
        """
        received_at = time.time()
        seconds: Any = command.arguments.get("seconds")
        check_number("seconds", seconds)
        loop = asyncio.get_running_loop()
        until = loop.time() + min(seconds, _MOST_LEASE_SECONDS)
        self._watched_until = max(self._watched_until, until)
        if self._timer is None:
            self._on_watched(True)
            workers = self._workers()
            delay = random.uniform(0, min(_SPREAD_SECONDS * workers, interval_of(workers)))  # noqa: S311
            self._timer = loop.call_later(delay, self._send)
        return {"at": received_at}

    def stop(self) -> None:
        """Send nothing more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _send(self) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() >= self._watched_until:
            self._timer = None
            self._on_watched(False)
            return
        interval = interval_of(self._workers())
        jitter = random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311
        self._timer = loop.call_later(interval * jitter, self._send)
        snapshot = self._take(interval)
        if snapshot.state == "live":  # without a link it would only wait for one
            self._bus.send_soon(STATS, snapshot.encode())
