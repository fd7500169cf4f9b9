"""`compare` reports what changed, and nothing that did not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from benchmarks.harness.result import Outcome, Report, Section
from benchmarks.harness.run import Run
from benchmarks.report.claims import newest
from benchmarks.report.compare import CRITERION, compared, verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.harness.candidate import Kind

CPU = "cpu_us_per_delivery"
SETTINGS = {"connections": 500, "rate": 20.0}


def outcome(name: str, kind: Kind, figures: Sequence[float], *, lost: float = 0, invalid: int = 0) -> Outcome:
    """Return a candidate with one figure for each repetition, the first of which are invalid."""
    runs = [
        Run(figures={CPU: figure, "lost": lost}, invalid=["the client itself was saturated"] * (number < invalid))
        for number, figure in enumerate(figures)
    ]
    return Outcome(name=name, kind=kind, runs=runs)


def report(*outcomes: Outcome, repetitions: int = 3) -> Report:
    """Return a report of one scenario."""
    settings = {**SETTINGS, "repetitions": repetitions}
    section = Section(scenario="saturation", title="as ever", settings=settings, outcomes=list(outcomes))
    return Report(machine={}, sections=[section])


def ours(*figures: float, floor: Sequence[float] = (), lost: float = 0, invalid: int = 0) -> Report:
    """Return a report of one candidate, beside a floor where there is one."""
    outcomes = [outcome("floor", "floor", floor)] if floor else []
    return report(
        *outcomes, outcome("ours", "backplane", figures, lost=lost, invalid=invalid), repetitions=len(figures)
    )


@pytest.mark.parametrize(("repetitions", "expected"), [(3, 0.08), (4, 0.02), (5, 0.01)])
def test_identical_distributions_are_the_same(repetitions: int, expected: float) -> None:
    """Of two thousand figures from one distribution, three times as wide as its limit, hardly any is called changed."""
    random = np.random.default_rng(7)
    pairs = np.exp(0.3 * random.standard_normal((2000, 2, repetitions))).tolist()
    changed = sum(verdict(CPU, *pair) in ("better", "worse") for pair in pairs)
    assert changed / 2000 <= expected


@pytest.mark.parametrize("factor", [2, 0.5])
def test_a_planted_factor_of_two_is_found(factor: float) -> None:
    """A figure that doubled is worse and one that halved is better, with three repetitions that spread by a tenth."""
    found = compared(ours(10, 10.5, 11), ours(*(factor * each for each in (10.8, 10, 11))))
    (change,) = found.changes
    assert change.verdict == ("worse" if factor > 1 else "better")
    assert (change.where, change.figure, change.reference) == ("saturation: ours", CPU, "")


def test_a_slower_machine_is_no_change() -> None:
    """Where both hold a floor, ratios to it are compared: a machine at half the speed changes nothing."""
    found = compared(ours(10, 11, 12, floor=(5, 5.5, 6)), ours(20, 22, 25, floor=(10, 11, 12.5)))
    assert found.changes == []
    assert dict(found.counts) == {"within spread": 1}


def test_a_change_beside_a_floor_is_found_on_another_machine() -> None:
    """On a machine at half the speed, twice the ratio to the floor is found as twice, not as four times."""
    found = compared(ours(10, 11, 12, floor=(5, 5.5, 6)), ours(40, 44, 50, floor=(10, 11, 12.5)))
    (change,) = found.changes
    assert (change.before.median, change.after.median, change.reference) == (2, 4, "floor")


def test_two_repetitions_are_inconclusive() -> None:
    """With fewer than three valid repetitions on a side a figure is inconclusive, however far apart they are."""
    assert verdict(CPU, [1, 1], [9, 9, 9]) == "inconclusive"
    found = compared(ours(10, 10, 10), ours(90, 90, 90, invalid=1))
    assert (found.changes, dict(found.counts)) == ([], {"inconclusive": 1})


def test_less_than_a_tenth_is_no_change() -> None:
    """Repetitions that hardly spread do not make two hundredths a finding."""
    assert verdict(CPU, [10, 10, 10], [10.2, 10.2, 10.2]) == "within spread"


def test_more_deliveries_are_better() -> None:
    """Where higher is better, more is better."""
    assert verdict("deliveries_per_second", [10, 10, 10], [20, 20, 20]) == "better"


def test_a_loss_where_none_was_is_reported_at_once() -> None:
    """A loss needs no repetitions."""
    assert compared(ours(10), ours(10, lost=3)).faults == ["saturation: ours: 3 lost, none before"]


def test_what_is_not_compared_is_reported() -> None:
    """A candidate that only one result has, one without a valid run, and other settings are reported, not left out."""
    one = report(outcome("gone", "competitor", [1]), outcome("broken", "competitor", [1, 1, 1]))
    other = report(outcome("new", "competitor", [1]), outcome("broken", "competitor", [1, 1, 1], invalid=3))
    reported = " ".join(compared(one, other).alone)
    assert all(name in reported for name in ("gone", "new", "broken"))
    other.sections[0].settings["connections"] = 20
    found = compared(one, other)
    assert found.candidates == 0
    assert len(found.alone) == 2
    assert "connections 20" in " ".join(found.alone)


def test_a_committed_result_can_be_compared() -> None:
    """The newest committed result has every candidate of its own again, and nothing in it has changed."""
    result = newest()
    assert result is not None
    found = compared(Report.load(result), Report.load(result))
    assert found.candidates > 100
    assert (found.changes, found.faults) == ([], [])
    assert found.counts["within spread"] > 100


def test_how_often_was_repeated_does_not_keep_results_apart() -> None:
    """Three repetitions are compared with five."""
    assert compared(ours(1, 1, 1), ours(1, 1, 1, 1, 1)).candidates == 1


def test_the_criterion_holds_its_numbers() -> None:
    """What is printed below a comparison holds the limits it goes by."""
    assert "10%" in CRITERION
    assert "Below 3 valid" in CRITERION
