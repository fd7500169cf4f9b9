"""All metrics of this worker as one value that JSON can hold: what workers answer each other."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from backplane.metrics.metric import Distribution
from backplane.metrics.table import METRICS
from backplane.metrics.view import view_of

if TYPE_CHECKING:
    from backplane.metrics.metric import Value
    from backplane.metrics.view import Measured, View

__all__ = ["snapshot", "snapshot_of"]


def snapshot(backplane: Measured) -> dict[str, Any]:
    """Return every metric of the worker of `backplane` now. Safe in any thread, and while it is not started.

    Returns:
        `worker`, the id of the process as text; `at`, the time in seconds since the epoch; and `metrics`: by the name
        of each a list of samples, each a list of the values of its labels and its value. The value of a histogram is
        `{"bounds": [...], "counts": [...], "total": ...}` as in `Distribution`.
    """
    return snapshot_of(view_of(backplane))


def snapshot_of(view: View) -> dict[str, Any]:
    """Return every metric of the worker that `view` shows; see `snapshot`."""
    return {
        "worker": str(os.getpid()),
        "at": time.time(),
        "metrics": {
            metric.name: [[list(labels), _json_of(value)] for labels, value in metric.read(view)] for metric in METRICS
        },
    }


def _json_of(value: Value) -> Any:
    if isinstance(value, Distribution):
        return {"bounds": list(value.bounds), "counts": list(value.counts), "total": value.total}
    return value
