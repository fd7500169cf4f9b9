"""All metrics of this worker as one value that JSON can hold: what workers answer each other."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any, Final

from backplane.histogram import Exemplar
from backplane.metrics.metric import Distribution
from backplane.metrics.table import METRICS
from backplane.metrics.view import view_of

if TYPE_CHECKING:
    from backplane.metrics.metric import Metric, Sample, Value
    from backplane.metrics.view import Measured, View

__all__ = ["parse_snapshot", "samples_in", "snapshot", "snapshot_of"]

_MAX_TRACE_ID: Final = 32


def snapshot(backplane: Measured) -> dict[str, Any]:
    """Return every metric of the worker of `backplane` now. Safe in any thread, and while it is not started.

    Returns:
        `worker`, the id of the process as text; `at`, the time in seconds since the epoch; and `metrics`: by the name
        of each a list of samples, each a list of the values of its labels and its value. The value of a histogram is
        `{"bounds": [...], "counts": [...], "total": ...}` as in `Distribution`, and where there are any
        `"exemplars": [[place, trace_id, value, at], ...]`.
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


def parse_snapshot(text: bytes, worker: str) -> dict[str, Any]:
    """Return the snapshot that another process sent.

    Args:
        text: What it sent.
        worker: Which process sent it, whatever it states itself.

    Raises:
        ValueError: This is none.
    """
    try:
        found = json.loads(text)
        taken = {"worker": worker, "at": float(found["at"]), "metrics": dict(found["metrics"])}
        for metric in METRICS:
            samples_in(taken, metric)
    except (KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError(f"not what a worker measures: {error!r}") from error
    return taken


def samples_in(taken: dict[str, Any], metric: Metric) -> list[Sample]:
    """Return what a snapshot holds of `metric`: nothing where it is of a version that does not measure it.

    Raises:
        KeyError, TypeError, ValueError: It does not hold samples, or not with these labels.
    """
    samples: list[Sample] = []
    for labels, value in taken["metrics"].get(metric.name, ()):
        if len(labels) != len(metric.labels) or not all(isinstance(label, str) for label in labels):
            raise ValueError(f"the labels of {metric.name} are {metric.labels}")
        samples.append((tuple(labels), _value_of(value, metric)))
    return samples


def _value_of(value: Any, metric: Metric) -> Value:
    if metric.kind != "histogram":
        if not isinstance(value, int | float):
            raise TypeError(f"{metric.name} is a number")
        return value
    bounds, counts = tuple(map(float, value["bounds"])), tuple(map(int, value["counts"]))
    if len(counts) != len(bounds) + 1 or list(bounds) != sorted(bounds):
        raise ValueError(f"the bounds and the counts of {metric.name} do not fit")
    exemplars = {
        int(place): Exemplar(_trace_id(trace), float(found), float(at))
        for place, trace, found, at in value.get("exemplars", ())
    }
    return Distribution(bounds, counts, float(value["total"]), exemplars)


def _trace_id(value: Any) -> str:
    if not (isinstance(value, str) and len(value) <= _MAX_TRACE_ID):
        raise ValueError(f"no id of a trace: {value!r:.50}")
    return value


def _json_of(value: Value) -> Any:
    if isinstance(value, Distribution):
        found: dict[str, Any] = {"bounds": list(value.bounds), "counts": list(value.counts), "total": value.total}
        if value.exemplars:
            found["exemplars"] = [[place, *exemplar] for place, exemplar in value.exemplars.items()]
        return found
    return value
