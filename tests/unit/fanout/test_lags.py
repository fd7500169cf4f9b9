"""`backplane.fanout.lags`: two histograms that count what they have in common once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.fanout.lags import LAG_SECONDS, Lags
from backplane.histogram import Exemplar, Histogram

SECONDS = st.sampled_from([0.0, *LAG_SECONDS, 0.0005, 0.003, 0.7, 20.0])


@given(st.lists(st.tuples(SECONDS, SECONDS, st.booleans())))
def test_each_is_what_it_would_be_alone(values: list[tuple[float, float, bool]]) -> None:
    """With one slice both stages have the same lag; with more the first one is earlier, in the same bucket or not."""
    lags, received, written = Lags(), Histogram(*LAG_SECONDS), Histogram(*LAG_SECONDS)
    for one, two, is_sliced in values:
        lag, received_lag = max(one, two), min(one, two) if is_sliced else None
        lags.count(lag, received_lag)
        written.observe(lag)
        received.observe(lag if received_lag is None else received_lag)
    assert (lags.written.counts, lags.received.counts) == (written.counts, received.counts)
    assert (lags.written.total, lags.received.total) == pytest.approx((written.total, received.total))


def test_a_copy() -> None:
    """What was read does not change with what is counted after it."""
    lags = Lags()
    before = lags.received
    lags.count(0.5, 0.002)
    lags.note("f" * 32, 0.5, 0.002, 1.0)
    assert (before.count, before.exemplars, lags.received.count) == (0, {}, 1)
    assert lags.received.exemplars == {1: Exemplar("f" * 32, 0.002, 1.0)}
    assert lags.written.exemplars == {8: Exemplar("f" * 32, 0.5, 1.0)}


def test_the_last_one_of_a_bucket() -> None:
    """A bucket has one exemplar, the newest."""
    lags = Lags()
    for number in range(3):
        lags.note(f"{number}", 0.4, None, float(number))
    assert lags.written.exemplars == lags.received.exemplars == {8: Exemplar("2", 0.4, 2.0)}
