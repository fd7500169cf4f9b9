"""The table of the chaos suite: each case is checked and becomes a row, printed at the end of the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pytest

    from tests.chaos.workload import Workload

__all__ = ["CLIENT_FIGURES", "JOIN_FIGURES", "KEPT_FIGURES", "PRESENCE_FIGURES", "CaseRecorder", "lines"]

# By how much timers of five workers in one event loop may be late, beside what other programs delay.
_SCHEDULING_SECONDS: Final = 0.3
_FIGURES: Final = "chaos"
KEPT_FIGURES: Final = "chaos of kept channels"
"""Name of the user property with a row of the second table: of cases on channels with a history."""
_HEAD: Final = ("case", "broker", "detected s", "bound", "recovered s", "bound", "gaps", "lost", "unknown")
_KEPT_HEAD: Final = (
    *("kept channels", "broker", "messages", "links lost", "gaps", "lost", "twice", "disordered", "unknown"),
    *("plain gaps", "plain lost"),
)
CLIENT_FIGURES: Final = "chaos of clients"
"""Name of the user property with a row of the third table: of WebSocket clients."""
_CLIENT_HEAD: Final = ("WebSocket clients", "broker", "messages", "closed", "resumed", "plain closed")
JOIN_FIGURES: Final = "chaos of joins"
"""Name of the user property with a row of the fourth table: of joins under load."""
_JOIN_HEAD: Final = ("joins under load", "broker", "joins", "messages/s", "came too late", "faults")
PRESENCE_FIGURES: Final = "chaos of presence"
"""Name of the user property with a row of the fifth table: of lists of users under faults."""
_PRESENCE_HEAD: Final = (
    *("presence", "broker", "clients", "complete s", "after the fault s", "after its end s", "of the resumed s"),
    "left",
)
_TABLES: Final = (
    (_FIGURES, _HEAD),
    (KEPT_FIGURES, _KEPT_HEAD),
    (CLIENT_FIGURES, _CLIENT_HEAD),
    (JOIN_FIGURES, _JOIN_HEAD),
    (PRESENCE_FIGURES, _PRESENCE_HEAD),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One case.

    Attributes:
        case: The fault.
        broker: The broker.
        detected: Seconds from the fault to the state `degraded`, of the last worker; `None` where no worker was.
        detected_within: Their bound, where one is promised.
        recovered: Seconds from the broker's return until a last message of each publisher has reached each subscriber.
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
        """The row as texts."""
        seconds = (self.detected, self.detected_within, self.recovered, self.recovered_within)
        counts = (self.gaps, self.lost, self.unknown)
        return (self.case, self.broker, *("-" if n is None else f"{n:.2f}" for n in seconds), *map(str, counts))


class CaseRecorder:
    """Puts a case into the table, then fails the test where a guarantee was broken.

    Args:
        properties: The user properties of the test's report, which also reach this process from a worker of
            `pytest -n`; the table is made from them.
    """

    def __init__(self, properties: list[tuple[str, object]]) -> None:
        self._properties = properties

    def __call__(
        self,
        case: str,
        broker: str,
        workload: Workload,
        *,
        detected: float | None = None,
        silent: bool = False,
        recovered: float | None = None,
        more_gaps: int = 0,
        may_be_unknown: bool = False,
    ) -> None:
        """Check and record a workload that has ended.

        Args:
            case: The fault.
            broker: The broker.
            workload: The workload.
            detected: Seconds until the fault was detected.
            silent: The link was open and carried nothing: detection within two probe intervals is guaranteed.
            recovered: Seconds since the broker's return; the maximum back-off and one second more are guaranteed.
            more_gaps: How many gaps may have been received without an outage.
            may_be_unknown: Publishes may have ended without a known outcome, without an outage.
        """
        result = workload.check(more_gaps=more_gaps, may_be_unknown=may_be_unknown)
        row = Row(
            case=case,
            broker=broker,
            detected=detected,
            detected_within=2 * workload.settings.probe_interval_seconds if silent else None,
            recovered=recovered,
            recovered_within=None if recovered is None else workload.settings.max_backoff_seconds + 1,
            gaps=result.gaps,
            lost=result.lost,
            unknown=workload.unknown,
        )
        self._properties.append((_FIGURES, row.cells()))
        assert not result.faults, "\n".join(result.faults[:20])
        slack = _SCHEDULING_SECONDS + workload.delay.seconds
        assert _within(row.detected, row.detected_within, slack), f"detected too late: {row}"
        assert _within(row.recovered, row.recovered_within, slack), f"recovered too late: {row}"


def lines(reports: Iterable[pytest.TestReport]) -> list[str]:
    """Return the tables of all cases, as lines of equal width; empty where there was none."""
    properties = [found for report in reports if report.when == "call" for found in report.user_properties]
    found: list[str] = []
    for figures, head in _TABLES:
        rows = [cast("Sequence[str]", value) for name, value in properties if name == figures]
        if rows:
            cells = [head, *rows]
            widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
            found += [
                "  ".join([*map(str.ljust, row[:2], widths), *map(str.rjust, row[2:], widths[2:])]) for row in cells
            ]
    return found


def _within(seconds: float | None, bound: float | None, slack: float) -> bool:
    return bound is None or seconds is None or seconds <= bound + slack
