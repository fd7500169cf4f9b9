"""What a person sees: medians and ratios of what is valid, and a page that needs no network."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console

from benchmarks.harness import histogram
from benchmarks.harness.machine import description
from benchmarks.harness.result import Outcome, Report, Section
from benchmarks.harness.run import Run
from benchmarks.report.page import write_page
from benchmarks.report.table import NO_VALID_RUN, faults, ratio, table

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


def mixed(name: str, *figures: float | None) -> Outcome:
    """Return a candidate whose runs are valid but for those that are `None`, which found 1000."""
    found = outcome(name, *(1000 if figure is None else figure for figure in figures))
    for run, figure in zip(found.runs, figures, strict=True):
        run.invalid = ["the client itself was saturated"] if figure is None else []
    return found


def test_invalid_runs_are_in_no_figure_but_counted() -> None:
    """Medians and ratios are of valid runs, each with that of its own turn, and the table tells how many those are."""
    section = report(mixed("floor", 1, 2, None, 4), mixed("ours", 3, None, 300, 12)).sections[0]
    ours = section.outcomes[1]
    assert ours.values("latency_p50_ms") == [3, 300, 12]
    assert ours.ratios("latency_p50_ms", section.outcomes[0]) == [3, 3]
    shown = printed(section)
    assert "3 of 4" in shown
    assert "INVALID: ours: 1 of 4 runs left out: the client itself was saturated" in shown


def test_a_scenario_without_a_valid_run_says_so(tmp_path: Path) -> None:
    """No figures stand there, neither in the terminal nor in the page, but that there are none."""
    made = report(mixed("ours", None, None))
    assert NO_VALID_RUN in printed(made.sections[0])
    assert "0 of 2" in printed(made.sections[0])
    assert "1,000" not in printed(made.sections[0])
    page = write_page(made, tmp_path / "result.html").read_text()
    assert NO_VALID_RUN in page
    assert "1,000" not in page


def test_losses_of_invalid_runs_count() -> None:
    """What was lost in a run that is worth nothing otherwise was lost."""
    section = report(outcome("ours", 1, lost=3, invalid="the client itself was saturated")).sections[0]
    assert faults(section, section.outcomes[0]) == "3 lost"


def printed(section: Section) -> str:
    """Return the table as a terminal shows it."""
    console = Console(width=300, record=True, file=io.StringIO())
    console.print(table(section))
    return console.export_text()


def test_a_report_survives_its_json(tmp_path: Path) -> None:
    """What is read is what was written."""
    written = report(outcome("ours", 1.0, 2.0), Outcome(name="other", kind="competitor", failed="it fell over"))
    written.save(tmp_path / "result.json")
    assert Report.load(tmp_path / "result.json") == written


def test_the_page_stands_alone(tmp_path: Path) -> None:
    """The page loads nothing, shows the failed and the invalid, and plots."""
    made = report(
        outcome("ours", 1.0, 2.0),
        outcome("late", 1.0, 2.0, invalid="the client itself was saturated"),
        Outcome(name="<other>", kind="competitor", failed="it fell over"),
    )
    page = write_page(made, tmp_path / "result.html").read_text()
    assert not re.search(r"(src|href)=\"(?!#)", page.replace("xlink:href", "href"))
    assert "<script" not in page
    assert "&lt;other&gt;: did not run: it fell over" in page
    assert "late: invalid: 2 of 2 runs left out: the client itself was saturated" in page
    assert page.count("<svg") == 2
