"""What changed between two results by more than chance, in ratios to the floor, because a machine's speed drifts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from rich.table import Table

from benchmarks.harness.figures import FAULTS, FIGURES
from benchmarks.harness.result import Spread
from benchmarks.scenarios.catalog import SCENARIOS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.harness.result import Outcome, Report, Section

__all__ = ["CRITERION", "Change", "Comparison", "as_table", "compared", "verdict"]

_MIN_REPETITIONS: Final = 3
_MIN_CHANGE: Final = 0.10

CRITERION: Final = f"""\
A figure has changed when its medians differ by more than the wider of the two ranges over the repetitions, and by
{_MIN_CHANGE:.0%} or more. Below {_MIN_REPETITIONS} valid repetitions on either side the figure is inconclusive.
Where both results hold the same floor, figures are ratios to it, each taken within a turn; where they do not, they are
absolute, marked `abs`, and a machine that was slower looks like a change.
Of figures in which nothing changed this calls up to 6 in 100 changed with 3 repetitions, 1 in 100 with 4, 1 in 250
with 5: repeat what surprises."""

Verdict = Literal["better", "worse", "within spread", "inconclusive"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One figure that has changed.

    Attributes:
        where: Scenario and candidate.
        figure: Its name in `harness.figures`.
        reference: The floor it is a ratio to; empty where it is absolute.
    """

    where: str
    figure: str
    reference: str
    before: Spread
    after: Spread
    verdict: Verdict


@dataclass(slots=True, kw_only=True)
class Comparison:
    """What was found.

    Attributes:
        changes: What is better or worse.
        faults: Descriptions of losses and the like where there were none before; one is enough.
        counts: How many figures have which verdict.
        alone: Descriptions of what only one of the results has, or has no valid run of: it is not compared.
        candidates: How many were compared.
    """

    changes: list[Change] = field(default_factory=list[Change])
    faults: list[str] = field(default_factory=list[str])
    counts: Counter[Verdict] = field(default_factory=Counter[Verdict])
    alone: list[str] = field(default_factory=list[str])
    candidates: int = 0


def compared(before: Report, after: Report) -> Comparison:
    """Compare candidate by candidate what was measured with the same settings, but for how often."""
    found = Comparison()
    for where, old, new, sections in _pairs(before, after, found):
        found.candidates += 1
        floor = _common_floor(*sections)
        for name in SCENARIOS[sections[1].scenario].columns:
            if FIGURES[name].better == "neither" or (floor and floor[1].name == new.name):
                continue
            one, other, reference = _values(name, old, new, floor)
            if one and other:
                _judge(found, where, name, reference, one, other)
        _compare_faults(found, where, old, new, sections[1].scenario)
    return found


def verdict(figure: str, before: list[float], after: list[float]) -> Verdict:
    """Apply `CRITERION` to one figure over the repetitions of two results."""
    if min(len(before), len(after)) < _MIN_REPETITIONS:
        return "inconclusive"
    one, other = _spread(before), _spread(after)
    change = abs(other.median - one.median)
    if change <= max(one.high - one.low, other.high - other.low) or change < _MIN_CHANGE * abs(one.median):
        return "within spread"
    return "better" if (other.median < one.median) == (FIGURES[figure].better == "lower") else "worse"


def as_table(changes: list[Change]) -> Table:
    """Return the changes for a terminal."""
    table = Table(title="Changed", title_justify="left")
    for column in ("where", "figure", "before", "after", "change", ""):
        table.add_column(column, overflow="fold")
    for each in changes:
        change = f"{(each.after.median / each.before.median - 1) * 100:+.0f} %" if each.before.median else "from 0"
        figure = FIGURES[each.figure]
        unit = f"x {each.reference}" if each.reference else f"{figure.unit}, abs"
        row = (each.where, f"{figure.title}, {unit}", _range(each.before), _range(each.after), change, each.verdict)
        table.add_row(*row, style={"better": "green", "worse": "bold red"}.get(each.verdict, ""))
    return table


def _judge(found: Comparison, where: str, figure: str, reference: str, before: list[float], after: list[float]) -> None:
    decided = verdict(figure, before, after)
    found.counts[decided] += 1
    if decided in ("better", "worse"):
        found.changes.append(
            Change(
                where=where,
                figure=figure,
                reference=reference,
                before=_spread(before),
                after=_spread(after),
                verdict=decided,
            )
        )


def _compare_faults(found: Comparison, where: str, old: Outcome, new: Outcome, scenario: str) -> None:
    if SCENARIOS[scenario].faults_allowed:
        return
    for name in FAULTS:
        sums = [sum(run.figures.get(name, 0) for run in outcome.runs) for outcome in (old, new)]
        if sums[1] and not sums[0]:
            found.faults.append(f"{where}: {sums[1]:,.0f} {FIGURES[name].title}, none before")


def _pairs(
    before: Report, after: Report, found: Comparison
) -> Iterator[tuple[str, Outcome, Outcome, tuple[Section, Section]]]:
    """Yield what both have; what has no counterpart is noted."""
    olds, news = ({_key(section): section for section in report.sections} for report in (before, after))
    found.alone += [f"only in one result: {key[0]} with {', '.join(key[1:])}" for key in sorted(olds.keys() ^ news)]
    for key in (key for key in news if key in olds):
        sections = olds[key], news[key]
        old, new = ({each.name: each for each in section.outcomes} for section in sections)
        for name in {**old, **new}:
            where = f"{sections[1].scenario}: {name}"
            if all(name in outcomes and outcomes[name].valid for outcomes in (old, new)):
                yield where, old[name], new[name], sections
            else:
                found.alone.append(f"{where}: not in both results with a valid run")


def _key(section: Section) -> tuple[str, ...]:
    rest: dict[str, Any] = {key: value for key, value in section.settings.items() if key != "repetitions"}
    return section.scenario, *(f"{key} {rest[key]}" for key in sorted(rest))


def _common_floor(old: Section, new: Section) -> tuple[Outcome, Outcome] | None:
    """Return the first floor that has valid runs in both."""
    olds = {each.name: each for each in old.outcomes if each.kind == "floor" and each.valid}
    return next(((olds[each.name], each) for each in new.outcomes if each.name in olds and each.valid), None)


def _values(
    name: str, old: Outcome, new: Outcome, floor: tuple[Outcome, Outcome] | None
) -> tuple[list[float], list[float], str]:
    if floor:
        one, other = old.ratios(name, floor[0]), new.ratios(name, floor[1])
        if one and other:
            return one, other, floor[1].name
    return old.values(name), new.values(name), ""


def _spread(values: list[float]) -> Spread:
    found = Spread.of(values)
    assert found is not None
    return found


def _range(spread: Spread) -> str:
    return f"{spread.median:,.2f} ({spread.low:,.2f}\N{EN DASH}{spread.high:,.2f})"
