"""`backplane.broker.backoff`: the pauses between two tries to open the link."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backplane.broker.backoff import Backoff

if TYPE_CHECKING:
    import pytest


def test_pauses_are_between_zero_and_the_bound() -> None:
    """Each pause is drawn between 0 and a bound that doubles from 0.1 s up to the cap."""
    for _ in range(200):
        backoff = Backoff(0.3)
        for bound in (0.1, 0.2, 0.3, 0.3):
            assert 0 <= backoff.next() <= bound


def test_cap_below_the_first_bound() -> None:
    """A cap below the first bound holds for the first pause too."""
    assert all(Backoff(0.001).next() <= 0.001 for _ in range(200))


def test_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a reset the bounds begin with the smallest one again."""

    def largest(_: float, high: float) -> float:
        return high

    monkeypatch.setattr("backplane.broker.backoff.random.uniform", largest)
    backoff = Backoff(10)
    assert [backoff.next(), backoff.next()] == [0.1, 0.2]
    backoff.reset()
    assert [backoff.next(), backoff.next()] == [0.1, 0.2]
