"""Confirmed publishes per second through the core, with one worker and with eight in one process, and a single one.

All workers receive every message; the one that publishes is one of them. So the figures hold the CPU of publishing, of
the client library and of receiving once for each worker, and a process that runs eight has eight times the links.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from benchmarks.harness.run import Run

if TYPE_CHECKING:
    from benchmarks.harness.run import Options
    from benchmarks.harness.server import Server

__all__ = ["COLUMNS", "WORKERS", "run"]

WORKERS: Final = (1, 8)
"""How many workers there are in the process, in turn."""

COLUMNS: Final = (
    *(f"publishes_per_second_{workers}" for workers in WORKERS),
    *(f"cpu_us_per_publish_{workers}" for workers in WORKERS),
    "publish_p50_ms",
    "publish_p99_ms",
)
"""The figures of the table."""

_FAULTS: Final = ("lost", "duplicates", "gaps")


def run(server: Server, options: Options) -> Run:
    """Publish with `outstanding` publishes in flight to one worker and to eight, then one publish after another."""
    found = Run(figures=dict.fromkeys(_FAULTS, 0.0))
    amounts = {"size": options.payload, "warm_up": options.warm_up_seconds, "seconds": options.seconds}
    for workers in WORKERS:
        if workers > 1 and server.candidate.scheme == "memory":
            found.notes.append("one worker: memory:// reaches no other")
            continue
        flood = server.ask("flood", workers=workers, outstanding=options.outstanding, **amounts)
        found.figures[f"publishes_per_second_{workers}"] = flood["per_second"]
        found.figures[f"cpu_us_per_publish_{workers}"] = flood["cpu"] * 1e6
        for fault in _FAULTS:
            found.figures[fault] += flood[fault]
    taken = np.array(server.ask("single", workers=1, **amounts)) * 1e3
    found.figures["publish_p50_ms"], found.figures["publish_p99_ms"] = map(float, np.percentile(taken, (50, 99)))
    return found
