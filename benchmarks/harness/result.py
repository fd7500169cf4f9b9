"""What a session found, as it stands in the JSON: medians, spreads and ratios of interleaved runs."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from benchmarks.harness.figures import FIGURES
from benchmarks.harness.run import Run

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from benchmarks.harness.candidate import Kind

__all__ = ["FORMAT", "Outcome", "Report", "Section", "Spread"]

FORMAT: Final = 2


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over the repetitions."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread | None:
        """Return the spread of what there is."""
        return cls(median(values), min(values), max(values)) if values else None


@dataclass(slots=True, kw_only=True)
class Outcome:
    """One candidate in one scenario.

    Attributes:
        runs: Its valid and invalid runs, in the order of the repetitions.
        failed: Why it did not run; empty where it did.
    """

    name: str
    kind: Kind
    runs: list[Run] = field(default_factory=list[Run])
    failed: str = ""

    @property
    def valid(self) -> list[Run]:
        """The runs whose figures count: no other run is in a median, a ratio or a plot."""
        return [run for run in self.runs if not run.invalid]

    def values(self, figure: str) -> list[float]:
        """Return one figure of each valid run that has it."""
        return [run.figures[figure] for run in self.valid if figure in run.figures]

    def spread(self, figure: str) -> Spread | None:
        """Return one figure over the valid runs; `None` where none has it."""
        return Spread.of(self.values(figure))

    def ratios(self, figure: str, reference: Outcome) -> list[float]:
        """Return how many times the reference's it is, in each repetition in which the runs of both are valid."""
        return [
            own.figures[figure] / other.figures[figure]
            for own, other in zip(self.runs, reference.runs, strict=False)
            if not own.invalid and not other.invalid and figure in own.figures and other.figures.get(figure)
        ]

    def ratio(self, figure: str, reference: Outcome) -> Spread | None:
        """Return the spread of `ratios`; `None` where there is none."""
        return Spread.of(self.ratios(figure, reference))

    @property
    def invalid(self) -> list[str]:
        """Why runs of it do not count, each reason with the number of runs it applies to."""
        if not self.runs:
            return []
        reasons = sorted({reason for run in self.runs for reason in run.invalid})
        count = f"{len(self.runs) - len(self.valid)} of {len(self.runs)} runs left out"
        return [f"{count}: {reason}" for reason in reasons]


@dataclass(slots=True, kw_only=True)
class Section:
    """One scenario with one set of options.

    Attributes:
        machine: Where it was measured and with what (`harness.machine`), if not as the rest of the report was.
        reference: The candidate that ratios are to: the first with a valid run.
    """

    scenario: str
    title: str
    settings: dict[str, Any]
    outcomes: list[Outcome]
    machine: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def reference(self) -> Outcome | None:
        """The first candidate with a valid run."""
        return next((each for each in self.outcomes if each.valid), None)


@dataclass(slots=True, kw_only=True)
class Report:
    """A whole session."""

    machine: dict[str, Any]
    sections: list[Section] = field(default_factory=list[Section])

    def drop(self, scenarios: Collection[str]) -> None:
        """Drop the sections of some scenarios."""
        self.sections = [section for section in self.sections if section.scenario not in scenarios]

    def save(self, path: Path) -> None:
        """Write it as JSON, a candidate a line: small enough for git, and two results can be read side by side.

        The names of the figures stand once in each section. A figure keeps two digits more than are shown of it.
        """
        sections = ",\n".join(_written(section) for section in self.sections)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            f'{{"format": {FORMAT},\n"machine": {_json(self.machine)},\n"sections": [\n{sections}]}}\n',
            encoding="utf-8",
        )

    @classmethod
    def load(cls, path: Path) -> Report:
        """Read what `save` wrote.

        Raises:
            ValueError: It is of another format.
        """
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.get("format") != FORMAT:
            raise ValueError(f"{path} is of format {data.get('format')}, this reads {FORMAT}")
        return cls(machine=data["machine"], sections=[_read(section) for section in data["sections"]])


def _written(section: Section) -> str:
    names = list(dict.fromkeys(name for each in section.outcomes for run in each.runs for name in run.figures))
    head: dict[str, Any] = {
        "scenario": section.scenario,
        "title": section.title,
        "settings": section.settings,
        "figures": names,
    }
    if section.machine:
        head["machine"] = section.machine
    outcomes = ",\n".join(_json(_outcome_data(each, names)) for each in section.outcomes)
    return f'{_json(head)[:-1]}, "outcomes": [\n{outcomes}]}}'


def _outcome_data(outcome: Outcome, names: Sequence[str]) -> dict[str, Any]:
    runs = [
        {
            "values": [_rounded(name, run.figures.get(name)) for name in names],
            **{key: value for key in ("invalid", "notes", "slices") if (value := getattr(run, key))},
        }
        for run in outcome.runs
    ]
    return {"name": outcome.name, "kind": outcome.kind, "failed": outcome.failed, "runs": runs}


def _read(data: dict[str, Any]) -> Section:
    names = data["figures"]
    outcomes = [
        Outcome(
            name=each["name"],
            kind=each["kind"],
            runs=[_run(names, **run) for run in each["runs"]],
            failed=each["failed"],
        )
        for each in data["outcomes"]
    ]
    return Section(
        scenario=data["scenario"],
        title=data["title"],
        settings=data["settings"],
        outcomes=outcomes,
        machine=data.get("machine", {}),
    )


def _run(names: Sequence[str], values: Sequence[float | None], **rest: Any) -> Run:
    found = {name: float(value) for name, value in zip(names, values, strict=True) if value is not None}
    return Run(figures=found, **rest)


def _rounded(name: str, value: float | None) -> float | None:
    if value is None:
        return None
    value = round(value, FIGURES[name].digits + 2)
    return int(value) if value == int(value) else value


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
