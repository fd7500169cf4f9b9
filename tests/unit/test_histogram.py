"""`backplane.histogram`: each value is counted once, within the smallest bound that it does not exceed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from backplane.histogram import Histogram


def test_bounds_are_inclusive() -> None:
    """A value that equals a bound is within it, as Prometheus counts; what is above all bounds is counted last."""
    histogram = Histogram(0.1, 1.0)
    for value in (0.0, 0.1, 0.2, 1.0, 1.1, 50.0):
        histogram.observe(value)
    assert (histogram.bounds, histogram.counts, histogram.count) == ((0.1, 1.0), [2, 2, 2], 6)
    assert histogram.total == 52.4


@given(st.lists(st.floats(0, 100)))
def test_counts_add_up(values: list[float]) -> None:
    """Whatever the values are, the counts add up to their number, and each bound has those up to it."""
    histogram = Histogram(0.5, 1.0, 10.0)
    for value in values:
        histogram.observe(value)
    assert histogram.count == len(values)
    for place, bound in enumerate(histogram.bounds):
        assert sum(histogram.counts[: place + 1]) == sum(value <= bound for value in values)
