"""What the live page shows of all workers, as JSON."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from backplane.errors import ConfigurationError

if TYPE_CHECKING:
    from backplane.cluster_types import Worker
    from backplane.core import Backplane

__all__ = ["overview"]


async def overview(backplane: Backplane) -> dict[str, Any]:
    """Return the workers that this one knows, and its own figures."""
    health = await backplane.health()
    try:
        workers = [_known(worker) for worker in await backplane.workers()]
        is_cluster = True
    except ConfigurationError:
        workers, is_cluster = [{"worker": "this worker", "id": "this", "connections": health.connections}], False
    own = {
        "state": health.state,
        "draining": health.draining,
        "generation": health.generation,
        "channels": health.channels,
        "subscriptions": health.subscriptions,
        "slow": health.slow_subscribers,
        "waiting_bytes": health.waiting_bytes,
        "gaps": health.gaps,
        "is_asked": True,
    }
    if workers:
        workers[0] |= own
    verdict = f"The link to the broker of this worker is {health.state}."
    return {
        "at": time.time(),
        "asked": len(workers),
        "answered": len(workers),
        "missing": [],
        "verdict": verdict,
        "problems": [],
        "workers": workers,
        "channels": [],
        "broker": backplane.url,
        "link": health.state,
        "is_cluster": is_cluster,
    }


def _known(worker: Worker) -> dict[str, Any]:
    return {
        "worker": f"{worker.host}/{worker.pid}-{worker.id[:4]}",
        "id": worker.id,
        "host": worker.host,
        "pid": worker.pid,
        "version": worker.version,
        "state": "live" if worker.is_alive else "ended",
        "started_at": worker.started_at,
        "connections": worker.connections,
    }
