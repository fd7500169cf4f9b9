"""What a person sees: medians, ratios, changes beyond the spread, and a page that needs no network."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.harness import histogram
from benchmarks.harness.machine import description
from benchmarks.harness.result import Outcome, Report, Section
from benchmarks.harness.run import Run
from benchmarks.report import compare
from benchmarks.report.page import write_page
from benchmarks.report.table import faults, ratio

if TYPE_CHECKING:
    from pathlib import Path


def outcome(name: str, *figures: float, lost: float = 0, invalid: str = "") -> Outcome:
    """Return a candidate with one median latency for each repetition."""
    latencies = histogram.encoded(histogram.counts_of(np.array([100, 200, 4000])))
    runs = [
        Run(
            figures={"latency_p50_ms": figure, "last_p99_ms": figure, "lost": lost},
            histogram=latencies,
            invalid=[invalid] if invalid else [],
        )
        for figure in figures
    ]
    return Outcome(name=name, kind="backplane", runs=runs)


def report(*outcomes: Outcome) -> Report:
    """Return a report of one scenario."""
    section = Section(scenario="fanout", title="fanout: as ever", settings={"rate": 20.0}, outcomes=list(outcomes))
    return Report(machine=description(), sections=[section])


def test_ratios_are_taken_within_a_turn() -> None:
    """What drifts over the repetitions meets both and leaves the ratio alone."""
    drifting = report(outcome("floor", 1, 2, 4), outcome("ours", 3, 6, 12)).sections[0]
    assert ratio(drifting, drifting.outcomes[1]).startswith("3.00 (3.00")


def test_faults_are_summed_over_the_runs() -> None:
    """Two runs that lost three each lost six."""
    section = report(outcome("ours", 1, 1, lost=3)).sections[0]
    assert faults(section, section.outcomes[0]) == "6 lost"


def test_only_what_is_beyond_the_spread_has_changed() -> None:
    """Ranges that meet are the same; ranges apart are better or worse."""
    before = report(outcome("steady", 1.0, 1.2), outcome("slower", 2.0, 2.2), outcome("faster", 3.0, 3.3))
    after = report(outcome("steady", 1.1, 1.3), outcome("slower", 4.0, 4.2), outcome("faster", 2.0, 2.2))
    changes, same = compare.changes(before, after)
    verdicts = {(change.where, change.figure): change.verdict for change in changes}
    assert verdicts["fanout: slower", "latency_p50_ms"] == "worse"
    assert verdicts["fanout: faster", "latency_p50_ms"] == "better"
    assert not [change for change in changes if change.where == "fanout: steady"]
    assert same > 0


def test_a_report_survives_its_json(tmp_path: Path) -> None:
    """What is read is what was written."""
    written = report(outcome("ours", 1.0, 2.0), Outcome(name="other", kind="peer", failed="it fell over"))
    written.save(tmp_path / "result.json")
    assert Report.load(tmp_path / "result.json") == written


def test_the_page_stands_alone(tmp_path: Path) -> None:
    """The page loads nothing, shows the failed and the invalid, and plots."""
    made = report(
        outcome("ours", 1.0, 2.0, invalid="the client itself was saturated"),
        Outcome(name="<other>", kind="peer", failed="it fell over"),
    )
    page = write_page(made, tmp_path / "result.html").read_text()
    assert not re.search(r"(src|href)=\"(?!#)", page.replace("xlink:href", "href"))
    assert "<script" not in page
    assert "&lt;other&gt;: did not run: it fell over" in page
    assert "invalid: the client itself was saturated" in page
    assert page.count("<svg") == 2
