"""The judge of the chaos suite: each case becomes a row of the table at the end of the run, and fails where it must."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pytest

    from tests.chaos.crew import Crew

__all__ = ["Judge", "lines"]

# What the event loop of five workers may be late on a machine that is busy with other things.
_SCHEDULING_SECONDS: Final = 0.3
_FIGURES: Final = "chaos"
_HEAD: Final = ("case", "broker", "detected s", "bound", "recovered s", "bound", "gaps", "lost", "unknown")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One case.

    Attributes:
        case: What was done.
        broker: To whom.
        detected: Seconds from the fault to the state `degraded`, of the last one to find it; `None` where nobody did.
        detected_within: Their bound, where one is promised.
        recovered: Seconds from the broker's return until a last message of everyone has reached everyone.
        recovered_within: Their bound.
        gaps: Gap events, over all channels of all subscribers.
        lost: Messages that the broker had acknowledged and a subscriber did not get; each lies in a gap.
        unknown: Messages of which the publisher does not know whether they were published.
    """

    case: str
    broker: str
    detected: float | None = None
    detected_within: float | None = None
    recovered: float | None = None
    recovered_within: float | None = None
    gaps: int = 0
    lost: int = 0
    unknown: int = 0

    def cells(self) -> tuple[str, ...]:
        """The row as words."""
        seconds = (self.detected, self.detected_within, self.recovered, self.recovered_within)
        counts = (self.gaps, self.lost, self.unknown)
        return (self.case, self.broker, *("-" if n is None else f"{n:.2f}" for n in seconds), *map(str, counts))


class Judge:
    """Puts a case into the table, then fails it where a promise was broken.

    Args:
        properties: What the test's report carries, to this process or from a worker of `pytest -n`; the table is made
            from it.
    """

    def __init__(self, properties: list[tuple[str, object]]) -> None:
        self._properties = properties

    def __call__(
        self,
        case: str,
        broker: str,
        crew: Crew,
        *,
        detected: float | None = None,
        silent: bool = False,
        recovered: float | None = None,
        more_gaps: int = 0,
    ) -> None:
        """Judge a crew whose talk is over.

        Args:
            case: What was done.
            broker: To whom.
            crew: Who talked.
            detected: Seconds until it was found.
            silent: The link stood and carried nothing: two probe intervals are promised.
            recovered: Seconds from the broker's return on; the cap of the back-off and one more are promised.
            more_gaps: How many gaps may have come without an outage.
        """
        verdict = crew.verdict(more_gaps=more_gaps)
        row = Row(
            case=case,
            broker=broker,
            detected=detected,
            detected_within=2 * crew.settings.probe_interval_seconds if silent else None,
            recovered=recovered,
            recovered_within=None if recovered is None else crew.settings.max_backoff_seconds + 1,
            gaps=verdict.gaps,
            lost=verdict.lost,
            unknown=crew.unknown,
        )
        self._properties.append((_FIGURES, row.cells()))
        assert not verdict.faults, "\n".join(verdict.faults[:20])
        assert _within(row.detected, row.detected_within), f"found too late: {row}"
        assert _within(row.recovered, row.recovered_within), f"back too late: {row}"


def lines(reports: Iterable[pytest.TestReport]) -> list[str]:
    """Return the table of all cases, as lines of even width; nothing where there was none."""
    properties = [found for report in reports if report.when == "call" for found in report.user_properties]
    rows = [cast("Sequence[str]", value) for name, value in properties if name == _FIGURES]
    if not rows:
        return []
    cells = [_HEAD, *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join([*map(str.ljust, row[:2], widths), *map(str.rjust, row[2:], widths[2:])]) for row in cells]


def _within(seconds: float | None, bound: float | None) -> bool:
    return bound is None or seconds is None or seconds <= bound + _SCHEDULING_SECONDS
