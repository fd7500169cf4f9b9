"""The figures of this worker, as it sends them to a process that watches."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from hashlib import sha256
from typing import TYPE_CHECKING

from backplane.fanout.lags import LAG_SECONDS
from backplane.stats.snapshot import WorkerSnapshot
from backplane.worker.process import resident_bytes

if TYPE_CHECKING:
    from backplane.stats.snapshot import ChannelFigures
    from backplane.worker.runtime import Runtime

__all__ = ["shared_settings", "take_snapshot"]


def take_snapshot(runtime: Runtime, channels: tuple[ChannelFigures, ...], interval_seconds: float) -> WorkerSnapshot:
    """Return the figures of a worker of a cluster and of its channels, and after how many seconds the next follow."""
    lags = runtime.traffic.own.written, runtime.traffic.others.written
    worker, now = runtime.members().own(), asyncio.get_running_loop().time()
    return WorkerSnapshot(
        worker=worker.id,
        host=worker.host,
        pid=worker.pid,
        version=worker.version,
        started_at=worker.started_at,
        at=time.time(),
        clock=now,
        interval_seconds=interval_seconds,
        adapter=runtime.scheme,
        state=runtime.supervisor.state,
        state_seconds=now - runtime.state_changed_at,
        settings=sha256(repr(sorted(shared_settings(runtime).items())).encode()).hexdigest()[:16],
        health=asdict(runtime.health()),
        statistics={name: count for name, count in runtime.count().as_dict().items() if count},
        control_received=runtime.members().control_received,
        lag_bounds=LAG_SECONDS,
        lag_counts=tuple(map(sum, zip(*(histogram.counts for histogram in lags), strict=True))),
        cpu_seconds=time.process_time(),
        resident_bytes=resident_bytes(),
        channels=channels,
    )


def shared_settings(runtime: Runtime) -> dict[str, str]:
    """Return what every worker should have alike, by the name that the application writes."""
    settings = runtime.settings
    return {
        "worker_heartbeat_seconds": f"{settings.worker_heartbeat_seconds:g}",
        "worker_down_seconds": f"{settings.worker_down_seconds:g}",
        "wire_format": runtime.wire_format,
        "history": repr(list(runtime.history_rules or ())),
        "presence": repr(list(runtime.members().rules)),
    }
