"""The figures of this worker, as it sends them to a process that watches."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import asdict
from hashlib import sha256
from heapq import nlargest
from pathlib import Path
from typing import TYPE_CHECKING, Final

from backplane.channels import RESERVED_PREFIX
from backplane.stats.snapshot import ChannelFigures, WorkerSnapshot

if TYPE_CHECKING:
    from backplane.worker.runtime import Runtime

__all__ = ["MAX_CHANNELS", "shared_settings", "take_snapshot"]

MAX_CHANNELS: Final = 20
"""How many channels a snapshot has."""

_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


def take_snapshot(runtime: Runtime, interval_seconds: float) -> WorkerSnapshot:
    """Return the figures of a worker of a cluster, and after how many seconds the next ones follow."""
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
        cpu_seconds=time.process_time(),
        resident_bytes=_resident_bytes(),
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
    """Return the channels with the most subscribers."""
    sizes = (
        (subscribers, channel)
        for channel, subscribers in runtime.hub.audiences()
        if not channel.startswith(RESERVED_PREFIX)
    )
    return [ChannelFigures(name=channel, subscribers=count) for count, channel in nlargest(MAX_CHANNELS, sizes)]


def _resident_bytes() -> int | None:
    try:
        return int(Path("/proc/self/statm").read_bytes().split()[1]) * _PAGE_BYTES
    except OSError:  # not Linux
        return None
