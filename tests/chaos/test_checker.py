"""The checker finds each planted fault, and none in a correct record."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.chaos.checker import GAP, Event, Outcome, check

if TYPE_CHECKING:
    from collections.abc import Sequence

OK: list[Outcome] = ["ok"] * 6


def a(*numbers: int) -> list[Event]:
    """Messages of publisher a."""
    return [("a", number) for number in numbers]


@pytest.mark.parametrize(
    ("outcomes", "seen"),
    [
        (OK, a(0, 1, 2, 3, 4, 5)),
        (OK, [*a(0, 1), GAP, *a(4, 5)]),
        (OK, [GAP, *a(3, 4, 5)]),
        (OK, [*a(0, 1, 2), GAP, *a(3, 4, 5)]),
        (["ok", "unavailable", "unknown", "refused", "ok"], a(0, 4)),
        (["ok", "unavailable", "unknown", "refused", "ok"], a(0, 2, 4)),
        (["ok", "unavailable"], a(0)),
    ],
    ids=["all", "gap", "gap-first", "gap-without-loss", "never-published", "unknown-arrived", "unavailable-last"],
)
def test_a_correct_record_passes(outcomes: Sequence[Outcome], seen: Sequence[Event]) -> None:
    """A contiguous series, or a gap between the neighbours of what is missing, is no fault."""
    assert check({"a": outcomes}, seen, max_gaps=1).faults == []


@pytest.mark.parametrize(
    ("seen", "fault"),
    [
        (a(0, 1, 3, 4, 5), "a 2 missing without a gap"),
        (a(1, 2, 3, 4, 5), "a 0 missing without a gap"),
        ([GAP, *a(0, 1, 3, 4, 5)], "a 2 missing without a gap"),
        ([*a(0, 1, 3), GAP, *a(4, 5)], "a 2 missing without a gap"),
        (a(0, 1, 2, 2, 3, 4, 5), "a 2 arrived twice"),
        ([*a(0, 1, 2), GAP, *a(2, 3, 4, 5)], "a 2 arrived twice"),
        (a(0, 1, 2, 3, 4, 5, 0), "a 0 arrived twice"),
        (a(0, 2, 1, 3, 4, 5), "a 1 arrived after 2"),
        ([*a(0, 1), GAP, GAP, *a(4, 5)], "2 gaps received, for 1 outages at most"),
        (a(0, 1, 2, 3), "a 4, 5 missing at the end"),
        ([*a(0, 1, 2, 3), GAP], "a 4, 5 missing at the end"),
        ([], "a 0, 1, 2, 3, 4, ... (6) missing at the end"),
        (a(0, 1, 2, 3, 4, 5, 6), "a 6 arrived and was never published"),
    ],
)
def test_a_planted_fault_is_found(seen: Sequence[Event], fault: str) -> None:
    """A loss, a duplicate, a swap, a gap too late, too early or too many, and a missing end are each found."""
    assert fault in check({"a": OK}, seen, max_gaps=1).faults


@pytest.mark.parametrize("outcome", ["unavailable", "refused"])
def test_a_message_that_was_certainly_not_published_must_not_arrive(outcome: Outcome) -> None:
    """A message whose publish failed with certainty is a fault when it arrives."""
    faults = check({"a": ["ok", outcome, "ok"]}, a(0, 1, 2), max_gaps=0).faults
    assert faults == [f"a 1 arrived and was {outcome}"]


def test_a_gap_must_lie_between_the_neighbours_of_the_missing_message() -> None:
    """A gap between other messages does not excuse a missing message elsewhere."""
    seen: list[Event] = [("a", 0), ("b", 0), GAP, ("b", 2), ("a", 1), ("a", 3), ("b", 3)]
    faults = check({"a": OK[:4], "b": OK[:4]}, seen, max_gaps=1).faults
    assert faults == ["a 2 missing without a gap"]


def test_one_gap_covers_the_losses_of_all_publishers() -> None:
    """One outage is one gap, however many publishers lost messages in it."""
    seen: list[Event] = [("a", 0), ("b", 0), GAP, ("b", 2), ("a", 3)]
    result = check({"a": OK[:4], "b": OK[:3]}, seen, max_gaps=1)
    assert (result.faults, result.gaps, result.lost) == ([], 1, 3)


def test_a_gap_does_not_excuse_a_loss_of_a_lossless_adapter() -> None:
    """An adapter that promises to lose nothing must not, gap or not."""
    faults = check({"a": OK}, [*a(0, 1), GAP, *a(3, 4, 5)], max_gaps=1, lossless=True).faults
    assert faults == ["a 2 lost by an adapter that promises to lose nothing"]
