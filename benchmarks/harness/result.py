"""What a session found, as it stands in the JSON: medians, spreads and ratios of interleaved runs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.harness.run import Run

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.harness.candidate import Kind

__all__ = ["FORMAT", "Outcome", "Report", "Section", "Spread"]

FORMAT = 1


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
        """The runs whose figures are worth something: no other one is in a median, a ratio or a plot."""
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
        """Why runs of it are worth nothing, each reason with how many of how many it befell."""
        if not self.runs:
            return []
        reasons = sorted({reason for run in self.runs for reason in run.invalid})
        count = f"{len(self.runs) - len(self.valid)} of {len(self.runs)} runs left out"
        return [f"{count}: {reason}" for reason in reasons]


@dataclass(slots=True, kw_only=True)
class Section:
    """One scenario with one set of options.

    Attributes:
        reference: The candidate that ratios are to: the first with a valid run.
    """

    scenario: str
    title: str
    settings: dict[str, Any]
    outcomes: list[Outcome]

    @property
    def reference(self) -> Outcome | None:
        """The first candidate with a valid run."""
        return next((each for each in self.outcomes if each.valid), None)


@dataclass(slots=True, kw_only=True)
class Report:
    """A whole session."""

    machine: dict[str, Any]
    sections: list[Section] = field(default_factory=list[Section])
    format: int = FORMAT

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: Path) -> Report:
        """Read what `save` wrote.

        Raises:
            ValueError: It is of another format.
        """
        data = json.loads(path.read_text())
        if data.get("format") != FORMAT:
            raise ValueError(f"{path} is of format {data.get('format')}, this reads {FORMAT}")
        sections = [
            Section(
                scenario=section["scenario"],
                title=section["title"],
                settings=section["settings"],
                outcomes=[_outcome(outcome) for outcome in section["outcomes"]],
            )
            for section in data["sections"]
        ]
        return cls(machine=data["machine"], sections=sections)


def _outcome(data: dict[str, Any]) -> Outcome:
    runs = [Run(**run) for run in data["runs"]]
    return Outcome(name=data["name"], kind=data["kind"], runs=runs, failed=data["failed"])
