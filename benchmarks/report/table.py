"""The terminal: progress while it runs, and a table of each scenario."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.console import Group
from rich.table import Table
from rich.text import Text

from benchmarks.harness.figures import FAULTS, FIGURES
from benchmarks.scenarios.catalog import SCENARIOS

if TYPE_CHECKING:
    from rich.console import RenderableType

    from benchmarks.harness.result import Outcome, Section, Spread

__all__ = ["NO_VALID_RUN", "cell", "faults", "ratio", "table", "valid_runs", "why"]

NO_VALID_RUN: Final = "NO VALID RUN: this scenario has no figures."


def table(section: Section) -> RenderableType:
    """Return a scenario's table with its remarks below."""
    scenario = SCENARIOS[section.scenario]
    found = Table(title=section.title, title_justify="left", title_style="bold")
    found.add_column("candidate", no_wrap=True)
    for name in scenario.columns:
        figure = FIGURES[name]
        found.add_column(f"{figure.title}{f' {figure.unit}' if figure.unit else ''}", justify="right", overflow="fold")
    reference = section.reference
    found.add_column(f"x {reference.name if reference else ''}", justify="right", overflow="fold")
    found.add_column("valid runs", justify="right")
    found.add_column("faults", overflow="fold")
    for outcome in section.outcomes:
        found.add_row(*_row(section, outcome))
    return Group(found, *_remarks(section))


def cell(figure: str, spread: Spread | None) -> str:
    """Return a median with its spread."""
    if spread is None:
        return "\N{EN DASH}"
    digits = FIGURES[figure].digits
    text = f"{spread.median:,.{digits}f}"
    half = (spread.high - spread.low) / 2
    return f"{text} ±{half:,.{digits}f}" if half else text


def ratio(section: Section, outcome: Outcome) -> str:
    """Return the scenario's first figure as a multiple of the reference's."""
    reference = section.reference
    if reference is None or outcome is reference or outcome.failed:
        return ""
    spread = outcome.ratio(SCENARIOS[section.scenario].columns[0], reference)
    return f"{spread.median:.2f} ({spread.low:.2f}\N{EN DASH}{spread.high:.2f})" if spread else "\N{EN DASH}"


def valid_runs(outcome: Outcome) -> str:
    """Return how many runs the figures are taken from."""
    return f"{len(outcome.valid)} of {len(outcome.runs)}"


def faults(section: Section, outcome: Outcome) -> str:
    """Return what went wrong with messages and sockets, over all runs: a loss counts in an invalid run too."""
    sums = {FIGURES[name].title: sum(run.figures.get(name, 0) for run in outcome.runs) for name in FAULTS}
    return ", ".join(f"{count:,.0f} {title}" for title, count in sums.items() if count) or "none"


def why(failure: str) -> str:
    """Return a failure in one line: its beginning, and the last line of its log."""
    lines = [line.strip(" |+-") for line in failure.splitlines()]
    lines = [line for line in lines if line]
    return lines[0] if len(lines) < 2 else f"{lines[0][:200]} {lines[-1][:200]}"


def _row(section: Section, outcome: Outcome) -> list[Text | str]:
    columns = SCENARIOS[section.scenario].columns
    if outcome.failed:
        return [outcome.name, Text("did not run", style="red"), *[""] * (len(columns) + 2)]
    wrong = faults(section, outcome)
    harmless = wrong == "none" or SCENARIOS[section.scenario].faults_allowed
    return [
        outcome.name,
        *(cell(name, outcome.spread(name)) for name in columns),
        ratio(section, outcome),
        Text(valid_runs(outcome), style="bold red" if outcome.invalid else ""),
        Text(wrong, style="" if harmless else "bold red"),
    ]


def _remarks(section: Section) -> list[RenderableType]:
    remarks: list[RenderableType] = []
    if section.reference is None:
        remarks.append(Text(NO_VALID_RUN, style="bold red"))
    for outcome in section.outcomes:
        if outcome.failed:
            remarks.append(Text(f"DID NOT RUN: {outcome.name}: {why(outcome.failed)}", style="red"))
        if outcome.invalid:
            remarks.append(Text(f"INVALID: {outcome.name}: {'; '.join(outcome.invalid)}", style="bold red"))
        notes = dict.fromkeys(note for run in outcome.runs for note in run.notes)
        remarks += [Text(f"{outcome.name}: {note}", style="dim") for note in list(notes)[:4]]
    return remarks
