"""Latencies as HDR histograms (three significant digits), filled from arrays and merged over processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["HIGHEST", "SIZE", "Summary", "counts_of", "summary"]

HIGHEST: Final = 120_000_000
"""Two minutes, in microseconds; a longer time counts as this."""

# The library records one value at a time, in Python. The same buckets, computed for an array: 2,048 of width 1, then
# 1,024 of twice the width each time.
_HALF_BITS = 10
SIZE: Final = (HIGHEST.bit_length() - _HALF_BITS + 1) << _HALF_BITS

Summary = dict[str, float]
"""Milliseconds by name: p50, p90, p99, p99.9, max."""

_PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9}


def counts_of(microseconds: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many values fall into each bucket."""
    values = np.clip(microseconds, 0, HIGHEST)
    _, exponents = np.frexp(values.astype(np.float64))
    buckets = np.maximum(exponents.astype(np.int64) - _HALF_BITS - 1, 0)
    return np.bincount((buckets << _HALF_BITS) + (values >> buckets), minlength=SIZE)


def summary(counts: NDArray[np.int64], name: str) -> Summary:
    """Return the percentiles of merged counts, in milliseconds, each called `<name>_p50_ms` and so on; none of none."""
    if not counts.any():
        return {}
    histogram = _histogram(counts)
    found = {key: histogram.get_value_at_percentile(value) for key, value in _PERCENTILES.items()}
    found["max"] = histogram.get_max_value()
    return {f"{name}_{key}_ms": round(value / 1000, 3) for key, value in found.items()}


def _histogram(counts: NDArray[np.int64]) -> Any:
    histogram: Any = HdrHistogram(1, HIGHEST, 3)
    filled = np.flatnonzero(counts)
    for value, count in zip(_values(filled).tolist(), counts[filled].tolist(), strict=True):
        histogram.record_value(min(value, HIGHEST), count)
    return histogram


def _values(indexes: NDArray[np.int64]) -> NDArray[np.int64]:
    buckets: NDArray[np.int64] = np.maximum((indexes >> _HALF_BITS) - 1, 0)
    values: NDArray[np.int64] = (indexes - (buckets << _HALF_BITS)) << buckets
    return values
