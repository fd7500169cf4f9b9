"""How the rows of the table read a worker: one figure, figures by a label, a histogram."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backplane.metrics.metric import Distribution

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from backplane.histogram import Histogram
    from backplane.metrics.metric import Sample, Value
    from backplane.metrics.view import View

__all__ = ["by_label", "distribution", "figure", "figures", "histogram", "one"]


def one(read: Callable[[View], Value | None]) -> Callable[[View], Iterable[Sample]]:
    """Return what reads the one sample of a metric without labels; `None` is no sample."""

    def samples(view: View) -> Iterable[Sample]:
        value = read(view)
        return () if value is None else (((), value),)

    return samples


def figure(name: str) -> Callable[[View], Iterable[Sample]]:
    """Return what reads one figure of `Statistics`."""
    return lambda view: (((), getattr(view.statistics, name)),)


def figures(names: Mapping[str, str]) -> Callable[[View], Iterable[Sample]]:
    """Return what reads the figure of `Statistics` with this name for each value of the one label."""
    return lambda view: [((value,), getattr(view.statistics, name)) for value, name in names.items()]


def by_label(read: Callable[[View], Iterable[tuple[str, int]]]) -> Callable[[View], Iterable[Sample]]:
    """Return what reads a sample for each value of the one label."""
    return lambda view: [((value,), count) for value, count in read(view)]


def histogram(read: Callable[[View], Histogram]) -> Callable[[View], Iterable[Sample]]:
    """Return what reads a histogram without labels."""
    return lambda view: (((), distribution(read(view))),)


def distribution(of: Histogram) -> Distribution:
    """Return what a histogram has counted so far."""
    return Distribution(of.bounds, tuple(of.counts), of.total, dict(of.exemplars))
