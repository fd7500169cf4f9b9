"""The figures of this worker, as it sends them to a process that watches."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from hashlib import sha256
from heapq import nlargest
from typing import TYPE_CHECKING, Final

from backplane.channels import RESERVED_PREFIX
from backplane.fanout.traffic import LAG_SECONDS
from backplane.stats.snapshot import ChannelFigures, WorkerSnapshot
from backplane.worker.process import resident_bytes

if TYPE_CHECKING:
    from backplane.worker.runtime import Runtime

__all__ = ["MAX_CHANNELS", "shared_settings", "take_snapshot"]

MAX_CHANNELS: Final = 20
"""How many channels a snapshot has."""


def take_snapshot(runtime: Runtime, interval_seconds: float) -> WorkerSnapshot:
    """Return the figures of a worker of a cluster, and after how many seconds the next ones follow."""
    lags = runtime.traffic.written_self, runtime.traffic.written_other
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
        channels=tuple(_top_channels(runtime)),
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


def _top_channels(runtime: Runtime) -> list[ChannelFigures]:
    """Return the channels with the most subscribers, and those with the most messages since they are counted."""
    sizes = {name: count for name, count in runtime.hub.audiences() if not name.startswith(RESERVED_PREFIX)}
    counted = runtime.traffic.of_channels or {}
    busiest = nlargest(MAX_CHANNELS // 2, ((counts[0], name) for name, counts in counted.items() if name in sizes))
    largest = nlargest(MAX_CHANNELS, ((count, name) for name, count in sizes.items()))
    names = dict.fromkeys([name for _, name in (*busiest, *largest)])
    return [_channel(name, sizes[name], counted.get(name)) for name in list(names)[:MAX_CHANNELS]]


def _channel(name: str, subscribers: int, counts: list[int] | None) -> ChannelFigures:
    messages, size_bytes = counts or (0, 0)
    return ChannelFigures(name=name, subscribers=subscribers, messages=messages, size_bytes=size_bytes)
