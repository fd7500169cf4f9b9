"""`backplane.connection.rate`: what a token bucket lets through."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backplane.connection.rate import TokenBucket
from backplane.errors import ConfigurationError

# Powers of two, and eighths: sums without rounding, so that the promise can be checked to the last digit.
RATES = st.sampled_from([0.25, 0.5, 1.0, 4.0, 64.0])
BURSTS = st.integers(min_value=1, max_value=50)
EIGHTHS = st.integers(min_value=-80, max_value=800)
TAKES = st.lists(st.tuples(EIGHTHS, st.integers(min_value=0, max_value=10)), max_size=60)


def test_burst_then_rate() -> None:
    """The burst passes at once, then one whenever the rate has filled one."""
    bucket = TokenBucket(2.0, 3.0)
    assert [bucket.take(100.0) for _ in range(4)] == [True, True, True, False]
    assert [bucket.take(now) for now in (100.25, 100.5, 100.5, 101.0)] == [False, True, False, True]


def test_refused_take_costs_nothing() -> None:
    """What does not pass takes nothing from what does."""
    bucket = TokenBucket(1.0, 10.0)
    assert [bucket.take(0.0, amount) for amount in (11.0, 6.0, 5.0, 4.0, 1.0)] == [False, True, False, True, False]


def test_silence_fills_no_more_than_the_burst() -> None:
    """A client that was silent for long may send the burst, not what it had saved."""
    bucket = TokenBucket(10.0, 2.0)
    assert bucket.take(0.0)
    assert [bucket.take(3600.0) for _ in range(3)] == [True, True, False]


def test_clock_that_steps_back() -> None:
    """The same stretch of time fills only once, even where the clock goes through it twice."""
    bucket = TokenBucket(1.0, 1.0)
    assert [bucket.take(now) for now in (10.0, 0.0, 9.0, 10.0, 11.0)] == [True, False, False, False, True]


@pytest.mark.parametrize(
    ("rate", "burst"),
    [(0.0, 1.0), (-1.0, 1.0), (1.0, 0.0), (float("inf"), 1.0), (1.0, float("inf")), (1.0, float("nan"))],
)
def test_values_out_of_range(rate: float, burst: float) -> None:
    """A rate or a burst that is not more than 0 and finite is refused."""
    with pytest.raises(ConfigurationError, match="more than 0 and finite"):
        TokenBucket(rate, burst)


@given(rate=RATES, burst=BURSTS, takes=TAKES)
@example(rate=0.5, burst=2, takes=[(-1, 1), (16, 2)])
def test_never_more_than_burst_and_rate(rate: float, burst: int, takes: list[tuple[int, int]]) -> None:
    """Over any window no more passes than the burst and what the rate fills in it."""
    bucket = TokenBucket(rate, burst)
    now, latest = 0.0, float("-inf")
    passed: list[tuple[float, int]] = []  # when, by the furthest the clock has been, and how much
    for eighths, amount in takes:
        now += eighths / 8
        latest = max(latest, now)
        if bucket.take(now, amount):
            passed.append((latest, amount))
    for first, (start, _) in enumerate(passed):
        total = 0
        for end, amount in passed[first:]:
            total += amount
            assert total <= burst + rate * (end - start)


@given(rate=RATES, burst=BURSTS, takes=TAKES)
def test_no_less_either(rate: float, burst: int, takes: list[tuple[int, int]]) -> None:
    """What is refused would have passed the bound in some window: nobody is held back without need."""
    bucket = TokenBucket(rate, burst)
    now = 0.0
    passed: list[tuple[float, int]] = []
    for eighths, amount in takes:
        now += abs(eighths) / 8
        if bucket.take(now, amount):
            passed.append((now, amount))
            continue
        totals = [amount + sum(taken for at, taken in passed if at >= start) for start, _ in [*passed, (now, 0)]]
        starts = [start for start, _ in [*passed, (now, 0)]]
        assert any(total > burst + rate * (now - start) for total, start in zip(totals, starts, strict=True))
