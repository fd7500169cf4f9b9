"""One measured thing."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from time import process_time_ns
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Figure", "interleaved"]


@dataclass(frozen=True, slots=True)
class Figure:
    """Microseconds per operation, one value per round."""

    name: str
    microseconds: list[float] = field(default_factory=list[float])

    @property
    def median(self) -> float:
        """The figure to quote."""
        return median(self.microseconds)


def interleaved(candidates: dict[str, Callable[[], object]], rounds: int, repeat: int) -> list[Figure]:
    """Run the candidates in turn, `rounds` times, each `repeat` times in a row; the first is the floor."""
    figures = {name: Figure(name) for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            started = process_time_ns()
            for _ in range(repeat):
                run()
            figures[name].microseconds.append((process_time_ns() - started) / 1000 / repeat)
    return list(figures.values())
