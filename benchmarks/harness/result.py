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

    def values(self, figure: str) -> list[float]:
        """Return one figure of each run that has it."""
        return [run.figures[figure] for run in self.runs if figure in run.figures]

    def spread(self, figure: str) -> Spread | None:
        """Return one figure over the runs; `None` where none has it."""
        return Spread.of(self.values(figure))

    def ratio(self, figure: str, reference: Outcome) -> Spread | None:
        """Return how many times the reference's it is: each repetition by the one measured right before or after."""
        pairs = zip(self.values(figure), reference.values(figure), strict=False)
        return Spread.of([own / other for own, other in pairs if other])

    @property
    def invalid(self) -> list[str]:
        """Why runs of it are worth nothing."""
        return sorted({reason for run in self.runs for reason in run.invalid})


@dataclass(slots=True, kw_only=True)
class Section:
    """One scenario with one set of options.

    Attributes:
        reference: The candidate that ratios are to: the first.
    """

    scenario: str
    title: str
    settings: dict[str, Any]
    outcomes: list[Outcome]

    @property
    def reference(self) -> Outcome | None:
        """The first candidate that ran."""
        return next((each for each in self.outcomes if each.runs), None)


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
