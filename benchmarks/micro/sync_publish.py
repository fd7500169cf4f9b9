"""Publishing from synchronous code to Redis, beside redis-py's own blocking PUBLISH, in turns.

The process keeps to one core. A publish of ours passes between two threads; where they may run on two cores, waking an
idle one costs 50 µs or nothing, as the scheduler places them, and this lottery hides everything else.
"""

from __future__ import annotations

import os
import threading
from statistics import median
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

import redis

from backplane.sync import SyncBackplane
from benchmarks.micro.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["run"]

_DATA = "x" * 200
_CALLS = 300


def run(url: str, rounds: int, threads: int) -> list[Figure]:
    """Return the median time of a call, one value per round, of so many threads at once; the floor is redis-py's."""
    bare: Any = redis.Redis.from_url(url)  # pyright: ignore[reportUnknownMemberType]
    candidates: dict[str, Callable[[], object]] = {}
    figures: list[Figure] = []
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with SyncBackplane(url) as backplane:
        candidates["floor: redis-py"] = lambda: bare.publish("bench", _DATA)
        candidates["SyncBackplane"] = lambda: backplane.publish("bench", _DATA)
        figures = [Figure(name) for name in candidates]
        for publish in candidates.values():
            publish()  # connects
        for _ in range(rounds):
            for figure, publish in zip(figures, candidates.values(), strict=True):
                figure.microseconds.append(_median_microseconds(publish, threads))
    bare.close()
    return figures


def _median_microseconds(publish: Callable[[], object], threads: int) -> float:
    taken: list[int] = []

    def call() -> None:
        for _ in range(_CALLS):
            started = perf_counter_ns()
            publish()
            taken.append(perf_counter_ns() - started)

    callers = [threading.Thread(target=call) for _ in range(threads)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    return median(taken) / 1000
