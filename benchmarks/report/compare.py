"""What changed between two results beyond the spread of their repetitions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.table import Table

from benchmarks.harness.figures import FIGURES
from benchmarks.scenarios.catalog import SCENARIOS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.harness.result import Outcome, Report, Section, Spread

__all__ = ["Change", "as_table", "changes"]


@dataclass(frozen=True, slots=True)
class Change:
    """One figure that is another now.

    Attributes:
        where: Scenario and candidate.
        figure: Its title; with `x` before it where it is a ratio to the reference.
        verdict: `better`, `worse`, or `other` where neither way is better.
    """

    where: str
    figure: str
    before: Spread
    after: Spread
    verdict: str


def changes(before: Report, after: Report) -> tuple[list[Change], int]:
    """Return the changes, and how many figures are the same; ratios count besides the figures themselves.

    A figure has changed when the ranges of its repetitions do not meet.
    """
    found: list[Change] = []
    same = 0
    for old, new, section in _pairs(before, after):
        for name, one, other in _figures(old, new, section):
            if one.low <= other.high and other.low <= one.high:
                same += 1
            else:
                found.append(Change(f"{section[1].scenario}: {new.name}", name, one, other, _verdict(name, one, other)))
    return found, same


def as_table(found: list[Change]) -> Table:
    """Return the changes for a terminal."""
    table = Table(title="Beyond the spread", title_justify="left")
    for column in ("where", "figure", "before", "after", "change", ""):
        table.add_column(column, overflow="fold")
    for each in found:
        change = f"{(each.after.median / each.before.median - 1) * 100:+.1f} %" if each.before.median else "from 0"
        style = {"better": "green", "worse": "bold red"}.get(each.verdict, "")
        table.add_row(
            each.where, each.figure, _range(each.before), _range(each.after), change, each.verdict, style=style
        )
    return table


def _pairs(before: Report, after: Report) -> Iterator[tuple[Outcome, Outcome, tuple[Section, Section]]]:
    old_sections = {section.title: section for section in before.sections}
    for new_section in after.sections:
        old_section = old_sections.get(new_section.title)
        if old_section is None:
            continue
        old = {outcome.name: outcome for outcome in old_section.outcomes}
        for outcome in new_section.outcomes:
            if outcome.name in old:
                yield old[outcome.name], outcome, (old_section, new_section)


def _figures(old: Outcome, new: Outcome, section: tuple[Section, Section]) -> Iterator[tuple[str, Spread, Spread]]:
    for name in FIGURES:
        one, other = old.spread(name), new.spread(name)
        if one and other:
            yield name, one, other
    first = SCENARIOS[section[1].scenario].columns[0]
    references = section[0].reference, section[1].reference
    if references[0] and references[1] and references[0].name == references[1].name != new.name:
        one, other = old.ratio(first, references[0]), new.ratio(first, references[1])
        if one and other:
            yield f"x {first}", one, other


def _verdict(name: str, before: Spread, after: Spread) -> str:
    better = FIGURES[name.removeprefix("x ")].better
    if better == "neither":
        return "other"
    return "better" if (after.median < before.median) == (better == "lower") else "worse"


def _range(spread: Spread) -> str:
    return f"{spread.median:,.2f} ({spread.low:,.2f}\N{EN DASH}{spread.high:,.2f})"
