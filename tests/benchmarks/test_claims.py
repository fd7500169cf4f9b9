"""README.md and benchmarks/README.md claim what the committed results hold, to the letter."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from benchmarks.harness.result import Outcome, Report, Section
from benchmarks.harness.run import Run
from benchmarks.report.claims import (
    DOCS,
    PAGE,
    README,
    ClaimsError,
    claims,
    documented,
    newest,
    plot,
    rewrite,
    short_claims,
    written_claims,
)

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.harness.candidate import Kind

MACHINE = {
    "cores": 2,
    "processor": "A processor",
    "python": "CPython 3.11.7",
    "when": "2026-01-02T03:04:05+00:00",
    "commit": "0123456789abcdef",
    "dirty": False,
}


def outcome(name: str, kind: Kind, *cpu: float, invalid: int = 0) -> Outcome:
    """Return a candidate with these figures; the first repetitions are invalid."""
    runs = [
        Run(
            figures={"cpu_us_per_delivery": each, "last_p99_ms": 10 * each},
            invalid=["the client itself was saturated"] * (number < invalid),
        )
        for number, each in enumerate(cpu)
    ]
    return Outcome(name=name, kind=kind, runs=runs)


def made(*more: Outcome) -> Report:
    """Return a result of both scenarios."""
    outcomes = [
        outcome("floor: send() in C", "floor", 1, 2, 4),
        outcome("backplane redis", "backplane", 5, 10, 20),
        outcome("backplane redis lane", "backplane", 2, 4, 8),
        *more,
    ]
    settings = {"workers": 1, "loop": "uvloop", "connections": 1000, "rate": 20.0, "payload": 128, "repetitions": 3}
    return Report(
        machine=MACHINE,
        sections=[
            Section(scenario=name, title=name, settings=settings, outcomes=outcomes)
            for name in ("fanout", "saturation")
        ],
    )


def saved(report: Report, folder: Path) -> Path:
    """Write it as a release."""
    report.save(folder / "0.9.0.json")
    return folder / "0.9.0.json"


def row(block: str, name: str) -> list[str]:
    """Return the cells of a candidate."""
    (line,) = [line for line in block.splitlines() if line.startswith(f"| {name} |")]
    return line.strip("| ").split(" | ")


def test_the_readme_claims_what_the_newest_result_holds() -> None:
    """The block in README.md is what `python -m benchmarks claims` writes, and empty before there is a result."""
    assert written_claims() == short_claims(newest()), "run: python -m benchmarks claims"


def test_the_page_claims_what_the_newest_result_holds() -> None:
    """The block in benchmarks/README.md has every candidate, as `python -m benchmarks claims` writes it."""
    assert written_claims(PAGE) == claims(newest()), "run: python -m benchmarks claims"


def test_the_short_form_has_three_rows(tmp_path: Path) -> None:
    """The README has the lane, the plain path and one competitor, in this order, with the figures of the full table."""
    report = made(outcome("encode/broadcaster", "competitor", 20, 40, 80), outcome("Another", "competitor", 1, 1, 1))
    result = saved(report, tmp_path)
    block = short_claims(result)
    rows = [line.strip("| ").split(" | ") for line in block.splitlines() if line.startswith("| ")][2:]
    assert rows == [
        ["backplane redis lane", "4.00 µs", "0.10", "40.00 ms"],
        ["backplane redis", "10.00 µs", "0.25", "100.00 ms"],
        ["encode/broadcaster", "40.00 µs", "\N{EN DASH}", "400.00 ms"],
    ]
    assert row(claims(result), "backplane redis lane")[1] == rows[0][1]
    assert short_claims(None) == ""


def test_the_plot_shows_the_figures_of_the_result() -> None:
    """The committed plot holds the number of each bar as the result has it."""
    if (result := newest()) is not None:
        assert numbers(result.with_suffix(".svg").read_text()) == numbers(plot(result))


def numbers(svg: str) -> list[str]:
    """Return the texts of a plot; where they stand depends on the version of what drew it."""
    return [line.split(">")[-2].split("<")[0].strip() for line in svg.splitlines() if "</text>" in line]


def test_ratios_are_of_medians_within_turns(tmp_path: Path) -> None:
    """Each candidate stands there with its median, its ratio to the floor and to the competitor, and its time."""
    block = claims(saved(made(outcome("encode/broadcaster", "competitor", 20, 40, 80)), tmp_path))
    assert row(block, "backplane redis") == ["backplane redis", "10.00 µs", "5.00", "0.25", "100.00 ms"]
    assert row(block, "backplane redis lane") == ["backplane redis lane", "4.00 µs", "2.00", "0.10", "40.00 ms"]
    assert row(block, "encode/broadcaster") == ["encode/broadcaster", "40.00 µs", "20.00", "\N{EN DASH}", "400.00 ms"]
    assert "x floor: send() in C | x encode/broadcaster" in block
    assert "p99 to the last of 1,000 sockets at 20/s" in block
    assert "commit `0123456`;" in block
    assert "medians of 3 turns" in block


def test_what_stalled_sockets_cost_is_of_the_section_with_the_most(tmp_path: Path) -> None:
    """The sentence has the medians of plain and lane, and is not there without a valid run of both."""
    report = made()
    assert "stop reading" not in claims(saved(report, tmp_path))
    ours = ("backplane redis", "backplane redis lane")
    for stalled, times in ((2, 9.0), (50, 1.25)):
        runs = [Run(figures={"times_alone": each * times}) for each in (1, 2, 3)]
        settings = {"connections": 450, "rate": 50.0, "payload": 65536, "seconds": 60.0, "repetitions": 3}
        outcomes = [Outcome(name=name, kind="backplane", runs=runs) for name in ours]
        report.sections.append(
            Section(scenario="slow", title="slow", settings={**settings, "stalled": stalled}, outcomes=outcomes)
        )
    block = claims(saved(report, tmp_path))
    assert "Where 50 of 500 sockets stop reading, at 50 messages of 65,536 B per second" in block
    assert "is 2.50 times what it is without those, on the direct lane 2.50 times" in block


def test_what_is_not_in_it_is_named(tmp_path: Path) -> None:
    """A candidate without a valid run has no row and is named below; an invalid run counts in no median."""
    none = outcome("Broken", "competitor", 1, 1, 1, invalid=3)
    one = outcome("encode/broadcaster", "competitor", 1, 40, 80, invalid=1)
    block = claims(saved(made(none, one, Outcome(name="Absent", kind="competitor", failed="not installed")), tmp_path))
    assert "| Broken" not in block
    assert "Not in it: Broken (no valid run), Absent (did not run)." in block
    assert row(block, "encode/broadcaster")[1] == "60.00 µs"


def test_a_result_with_a_history_states_what_it_costs_and_spares(tmp_path: Path) -> None:
    """Each adapter has a row, of all sections alike; what an adapter does not have is left open."""
    whole = {
        "publish_times": 1.5,
        "broker_times": 9.0,
        "storm_ms": 2000.0,
        "storm_reads": 10.0,
        "repair_missed_ms": 700.0,
    }
    settings = {"connections": 5000, "channels": 10, "repaired": 10_000, "payload": 128, "repetitions": 1}
    report = made()
    for name, figures in (("backplane redis", whole), ("backplane memory", {"publish_times": 2.0})):
        outcomes = [Outcome(name=name, kind="backplane", runs=[Run(figures=figures)])]
        report.sections.append(Section(scenario="history", title="", settings=settings, outcomes=outcomes))
    other = [Outcome(name="backplane ipc", kind="backplane", runs=[Run(figures=whole)])]
    report.sections.append(Section(scenario="history", title="", settings={**settings, "repaired": 50}, outcomes=other))
    result = saved(report, tmp_path)
    block = claims(result)
    assert row(block, "backplane memory") == ["backplane memory", "2.00 x", *["–"] * 7, "–, –"]  # noqa: RUF001
    assert "| backplane redis | 1.50 x | 9.00 x | – |" in block  # noqa: RUF001
    assert "backplane ipc" not in block
    assert "cost Redis 10 reads." in short_claims(result)


def with_presence() -> Report:
    """Return a result whose presence was measured on another machine, on two adapters."""
    figures = {"presence_extra_percent": 0.75, "left_seconds": 13.2, "present_watched_ms": 9.0}
    settings = {"connections": 10_000, "channels": 500, "seconds": 20.0, "repetitions": 1}
    outcomes = [
        Outcome(name=name, kind="backplane", runs=[Run(figures={**figures, **more})])
        for name, more in (("backplane ipc", {"left_seconds": 14.0}), ("backplane redis", {}))
    ]
    report = made()
    machine = {**MACHINE, "processor": "Another processor"}
    report.sections.append(
        Section(scenario="presence", title="", settings=settings, outcomes=outcomes, machine=machine)
    )
    return report


def test_a_result_with_presence_states_what_it_costs_and_where_it_was_measured(tmp_path: Path) -> None:
    """Each adapter has a row, below the machine of this section; the README has one sentence, and no line more."""
    result = saved(with_presence(), tmp_path)
    block = claims(result)
    assert row(block, "backplane ipc")[:2] == ["backplane ipc", "0.75 % of a core"]
    assert row(block, "backplane ipc")[-1] == "14.0 s"
    assert "(10 s without a heartbeat, 5 s of grace), on 2 cores of Another processor, CPython 3.11.7," in block
    assert "Presence of 10,000 connections in 500 rooms takes 0.75 % of a core of each of 4 workers." in short_claims(
        result
    )
    assert "presence" not in claims(saved(made(), tmp_path))


def with_clients_handed_over() -> Report:
    """Return a result with the memory of two numbers of clients, and with idle ones."""
    report = made()
    handed_over = {"kib_per_connection": 2.4, "tasks_per_connection": 0.0, "idle_cpu_percent": 1.5, "stall_ms": 9.0}
    for scenario, connections, workers in (("memory", 5000, 1), ("memory", 50_000, 4), ("idle", 50_000, 1)):
        outcomes = [Outcome(name="Node ws", kind="competitor", runs=[Run(figures={"kib_per_connection": 4.5})])]
        outcomes.append(
            Outcome(name="backplane redis handed over", kind="backplane", runs=[Run(figures=dict(handed_over))])
        )
        settings = {
            "connections": connections,
            "workers": workers,
            "seconds": 75.0,
            "heartbeat": 30.0,
            "drain": 30.0,
            "in_memory": 32_000 if scenario == "idle" else 0,
        }
        report.sections.append(Section(scenario=scenario, title="", settings=settings, outcomes=outcomes))
        handed_over["kib_per_connection"] = 2.6
    return report


def test_a_result_with_clients_handed_over_states_what_they_cost(tmp_path: Path) -> None:
    """Memory has a column for each number of clients, idle clients a table; a result without them has neither."""
    block = claims(saved(with_clients_handed_over(), tmp_path))
    assert "|  | 5,000 clients | 50,000 clients on 4 workers | tasks per client |" in block
    assert "| backplane redis handed over | 2.4 KiB | 2.6 KiB | 0.00 |" in block
    assert "| Node ws | 4.5 KiB | 4.5 KiB | – |" in block  # noqa: RUF001
    assert (
        "50,000 clients of one room in one worker that only answer a ping every 30 s, 32,000 of them without" in block
    )
    assert "| backplane redis handed over | 1.50 % of a core | 9.00 ms |" in block
    assert "without what the kernel takes" not in claims(saved(made(), tmp_path))


def test_the_documentation_claims_what_the_newest_result_holds() -> None:
    """Each table of a scenario in the documentation is as `python -m benchmarks claims` writes it."""
    pages = [path.read_text() for path in DOCS.rglob("*.md")]
    for scenario in ("history", "presence"):
        assert any(f"<!-- claims {scenario} -->\n" in text for text in pages)
    assert [documented(text, newest()) for text in pages] == pages, "run: python -m benchmarks claims"


def test_a_page_gets_the_table_of_its_scenario(tmp_path: Path) -> None:
    """Writing it twice changes nothing, and without a result there is none."""
    page = tmp_path / "page.md"
    empty = "before\n<!-- claims presence -->\n<!-- end -->\nafter\n"
    page.write_text(empty.replace("<!-- end", "old\n<!-- end"))
    result = saved(with_presence(), tmp_path)
    once = documented(page.read_text(), result)
    assert once.startswith("before\n<!-- claims presence -->\nWhat presence costs each of 4 workers")
    assert once.endswith(" |\n<!-- end -->\nafter\n")
    assert "old" not in once
    assert documented(once, result) == once
    assert documented(once, None) == empty
    with pytest.raises(KeyError):
        documented("<!-- claims weather -->\n<!-- end -->\n", result)


def test_a_result_of_changed_files_is_marked(tmp_path: Path) -> None:
    """The claims of a result that was measured with uncommitted changes name them."""
    report = made()
    report.machine = {**MACHINE, "dirty": True}
    assert "`0123456` and changes" in claims(saved(report, tmp_path))


def test_writing_twice_changes_nothing(tmp_path: Path) -> None:
    """Each block is put between its marks, the rest stays, and the plot stands beside the result."""
    readme, page = tmp_path / "README.md", tmp_path / "page.md"
    for document in (readme, page):
        document.write_text("before\n<!-- claims -->\nold\n<!-- end -->\nafter\n<!-- end -->\n")
    result = saved(made(), tmp_path)
    rewrite(result, readme, page, tmp_path)
    once = [document.read_text() for document in (readme, page)]
    for text in once:
        assert text.startswith("before\n<!-- claims -->\n|")
        assert text.endswith("\n<!-- end -->\nafter\n<!-- end -->\n")
        assert "old" not in text
    assert "| floor: send() in C |" not in once[0]
    assert "| floor: send() in C |" in once[1]
    assert "10.00" in (tmp_path / "0.9.0.svg").read_text()
    rewrite(result, readme, page, tmp_path)
    assert [document.read_text() for document in (readme, page)] == once
    rewrite(None, readme, page, tmp_path)
    assert written_claims(readme) == written_claims(page) == ""


@pytest.mark.parametrize("text", ["nothing\n", "<!-- claims -->\n", "<!-- claims -->\n<!-- end -->\n" * 2])
def test_missing_marks_are_reported(text: str, tmp_path: Path) -> None:
    """Where a document has no place for claims, or two, both are left alone, and the error names the marks to write."""
    good, bad = tmp_path / "good.md", tmp_path / "bad.md"
    good.write_text("<!-- claims -->\n<!-- end -->\n")
    bad.write_text(text)
    for readme, page in ((bad, good), (good, bad)):
        with pytest.raises(ClaimsError, match="write <!-- claims --> and <!-- end -->"):
            rewrite(saved(made(), tmp_path), readme, page, tmp_path)
    assert bad.read_text() == text
    assert good.read_text() == "<!-- claims -->\n<!-- end -->\n"


def test_a_result_without_the_scenarios_claims_nothing(tmp_path: Path) -> None:
    """A result with no saturation of backplane on Redis is refused."""
    with pytest.raises(ClaimsError, match="no valid saturation"):
        claims(saved(Report(machine=MACHINE), tmp_path))


def test_the_newest_release_counts(tmp_path: Path) -> None:
    """0.10.0 is newer than 0.9.1; what is named otherwise is no release."""
    for name in ("0.9.1", "0.10.0", "today"):
        (tmp_path / f"{name}.json").touch()
    found = newest(tmp_path)
    assert found is not None
    assert found.name == "0.10.0.json"
    assert newest(README.parent / "docs") is None
