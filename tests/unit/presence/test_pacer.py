"""`backplane.presence.pacer`: deliveries per second are bounded, and each channel has its turn."""

from __future__ import annotations

import pytest

from backplane.presence.pacer import Pacer


def test_the_ordinary_case_waits_for_nothing() -> None:
    """A few messages at once are within the burst."""
    pacer = Pacer()
    assert [pacer.reserve(4, 10.0) for _ in range(20)] == [10.0] * 20
    assert pacer.lag(10.0) == 0
    assert pacer.reserve(4, 20.0) == 20.0


def test_above_a_thousand_deliveries_a_second_each_waits_for_its_turn() -> None:
    """News grow older, the load does not."""
    pacer = Pacer()
    times = [pacer.reserve(10, 0.0) for _ in range(1_000)]
    assert times == sorted(times)
    assert times[-1] == pytest.approx(9.9, abs=0.02)
    assert pacer.lag(0.0) == pytest.approx(9.9)
