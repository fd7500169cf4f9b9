"""How results are shown: medians and ratios of what is valid, and a page that needs no network."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from benchmarks.harness.machine import description
from benchmarks.harness.result import Outcome, Report, Section
from benchmarks.harness.run import Run
from benchmarks.report.claims import RESULTS, newest
from benchmarks.report.page import write_page
from benchmarks.report.plots import over_time
from benchmarks.report.table import NO_VALID_RUN, faults, ratio, table

if TYPE_CHECKING:
    from pathlib import Path


def outcome(name: str, *figures: float, lost: float = 0, invalid: str = "") -> Outcome:
    """Return a candidate with one median latency for each repetition."""
    runs = [
        Run(
            figures={"latency_p50_ms": figure, "last_p99_ms": figure, "lost": lost},
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
    """Medians and ratios are of valid runs, each with that of its own turn, and the table has their number."""
    section = report(mixed("floor", 1, 2, None, 4), mixed("ours", 3, None, 300, 12)).sections[0]
    ours = section.outcomes[1]
    assert ours.values("latency_p50_ms") == [3, 300, 12]
    assert ours.ratios("latency_p50_ms", section.outcomes[0]) == [3, 3]
    shown = printed(section)
    assert "3 of 4" in shown
    assert "INVALID: ours: 1 of 4 runs left out: the client itself was saturated" in shown


def test_a_scenario_without_a_valid_run_is_marked(tmp_path: Path) -> None:
    """Neither the terminal nor the page has figures; both state that there is no valid run."""
    made = report(mixed("ours", None, None))
    assert NO_VALID_RUN in printed(made.sections[0])
    assert "0 of 2" in printed(made.sections[0])
    assert "1,000" not in printed(made.sections[0])
    page = write_page(made, tmp_path / "result.html").read_text()
    assert NO_VALID_RUN in page
    assert "1,000" not in page


def test_losses_of_invalid_runs_count() -> None:
    """What was lost in a run that does not count otherwise is a loss."""
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


def test_a_result_of_another_format_is_refused(tmp_path: Path) -> None:
    """A file of an earlier format is not misread: the error names both formats."""
    (tmp_path / "old.json").write_text('{"format": 1, "machine": {}, "sections": []}')
    with pytest.raises(ValueError, match="is of format 1, this reads 2"):
        Report.load(tmp_path / "old.json")


def test_figures_keep_two_digits_more_than_are_shown(tmp_path: Path) -> None:
    """A figure is rounded in the file, and one that a run does not have is not there after reading either."""
    outcomes = [outcome("ours", 1.23456789)]
    outcomes[0].runs.append(Run(figures={"deliveries_per_second": 1234.5678}))
    report(*outcomes).save(tmp_path / "result.json")
    first, second = Report.load(tmp_path / "result.json").sections[0].outcomes[0].runs
    assert first.figures == {"latency_p50_ms": 1.2346, "last_p99_ms": 1.2346, "lost": 0}
    assert second.figures == {"deliveries_per_second": 1234.57}


def test_committed_results_are_small() -> None:
    """Everything in benchmarks/results, pages and plots included, is at most 320 kB."""
    sizes = {path.name: path.stat().st_size for path in RESULTS.iterdir()}
    assert sum(sizes.values()) <= 320_000, sizes


def test_the_committed_page_is_that_of_the_committed_result(tmp_path: Path) -> None:
    """The page in benchmarks/results is what `python -m benchmarks page` writes of the newest result."""
    result = newest()
    assert result is not None
    page = write_page(Report.load(result), tmp_path / "page.html").read_text()
    assert result.with_suffix(".html").read_text() == page, f"run: python -m benchmarks page {result}"


def test_deliveries_over_time_keep_their_shape() -> None:
    """Each change of the deliveries is a point of the plot, and what is level between two of them is one line."""
    found = outcome("ours", 1)
    found.runs[0].slices = [10] * 20 + [0] * 20 + [10] * 20
    (path,) = re.findall(r'stroke="#0072b2" d="M([^"h]*)"', over_time(report(found).sections[0]))
    heights = [int(level) for level in path.split()[1::2]]
    assert heights[0] == heights[1] == heights[4] == heights[5] < heights[2] == heights[3] == 210
    assert len(heights) == 6


def test_a_figure_over_a_setting_needs_a_candidate_in_two_sections(tmp_path: Path) -> None:
    """A candidate that was measured at two rates has a line over the rate; without one there is no such plot."""
    for other, plotted in (("ours", True), ("theirs", False)):
        made, beside = report(outcome("ours", 1, 2)), report(outcome(other, 3, 4)).sections[0]
        beside.settings["rate"] = 50.0
        made.sections.append(beside)
        page = write_page(made, tmp_path / "result.html").read_text()
        assert ("fanout: to last socket p99 over rate" in page) is plotted


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


def test_a_section_that_was_measured_apart_keeps_its_machine(tmp_path: Path) -> None:
    """It is saved, loaded and shown with the section; sections of a scenario can be dropped for others."""
    whole = report(outcome("ours", 1))
    apart = Section(scenario="storm", title="storm: apart", settings={}, outcomes=[], machine=description())
    apart.machine["processor"] = "Another processor"
    whole.sections.append(apart)
    whole.save(tmp_path / "whole.json")
    loaded = Report.load(tmp_path / "whole.json")
    assert [each.machine for each in loaded.sections] == [{}, apart.machine]
    text = write_page(loaded, tmp_path / "whole.html").read_text()
    assert text.index("storm: apart") < text.index("Another processor")
    loaded.drop(["storm"])
    assert [each.scenario for each in loaded.sections] == ["fanout"]
