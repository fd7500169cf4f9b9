"""A row of the table of metrics, and what it reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from backplane.histogram import Exemplar
    from backplane.metrics.view import View

__all__ = ["Distribution", "Kind", "Metric", "Sample", "Value"]

Kind = Literal["gauge", "counter", "histogram"]
"""What a metric is: a figure that rises and falls, one that only grows, or how often values were how large."""


@dataclass(frozen=True, slots=True)
class Distribution:
    """The value of a histogram.

    Attributes:
        bounds: The largest value of each bucket, ascending, without the last one, which has no bound.
        counts: How many values each bucket got by itself (not cumulative), one more than bounds.
        total: The sum of all values.
        exemplars: By the place in counts, one value there that is part of a trace.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float
    exemplars: Mapping[int, Exemplar] = field(default_factory=dict[int, "Exemplar"])

    def buckets(self) -> Iterator[tuple[str, int]]:
        """Return the bounds as Prometheus writes them, each with how many values were not larger."""
        bounds = (*map(str, self.bounds), "+Inf")
        return zip(bounds, accumulate(self.counts), strict=True)


Value = float | Distribution
"""A number, or the distribution of a histogram."""

Sample = tuple[tuple[str, ...], Value]
"""The values of the labels, in the order of `Metric.labels`, and the value itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric of each worker, whichever way it is read.

    Attributes:
        name: As Prometheus shows it: with the prefix `backplane_`, the unit, and `_total` where it is a counter.
        kind: What it is.
        help: What it counts or measures, in one line.
        read: Returns its samples. Called in any thread, so it only reads what one step of the interpreter reads whole.
        labels: The names of its labels, without `worker`, which each metric has. Never a channel, a client, an address
            or a URL: their number has no bound.
        unit: `seconds`, `bytes`, or nothing for a count.
        alert: When to look at it, in words; nothing where it explains others.
    """

    name: str
    kind: Kind
    help: str
    read: Callable[[View], Iterable[Sample]]
    labels: tuple[str, ...] = ()
    unit: Literal["", "seconds", "bytes"] = ""
    alert: str = ""
