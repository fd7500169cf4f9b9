"""Snapshots of workers as tests write them."""

from __future__ import annotations

from typing import Any

from backplane.stats.snapshot import WorkerSnapshot

__all__ = ["ADA", "BOB", "EVE", "snapshot"]

ADA, BOB, EVE = "aaaa000000000000", "bbbb000000000000", "eeee000000000000"


def snapshot(worker: str = ADA, clock: float = 100.0, **figures: Any) -> WorkerSnapshot:
    """Return a snapshot of a worker that is well."""
    chosen: dict[str, Any] = {
        "host": "web-1",
        "pid": 31,
        "version": "0.3",
        "state": "live",
        "adapter": "redis",
        "settings": "same",
        "at": 1_000.0 + clock,
        "state_seconds": 60.0,
    }
    return WorkerSnapshot(worker=worker, clock=clock, **(chosen | figures))
