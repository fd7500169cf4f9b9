"""The checker of the chaos suite: compares what was published with what was received. No I/O, no backplane."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["GAP", "CheckResult", "Event", "GapSeen", "Outcome", "check"]

Outcome = Literal["ok", "unavailable", "refused", "unknown"]
"""How a publish ended: confirmed by the broker, certainly not published (for one of two reasons), or unknown."""

_CERTAINLY_NOT: Final = ("unavailable", "refused")


class GapSeen:
    """Type of `GAP`."""

    def __repr__(self) -> str:
        return "GAP"


GAP: Final = GapSeen()
"""A gap, at its place among the messages."""

Event = tuple[str, int] | GapSeen
"""A message, by its publisher and number, or a gap."""


@dataclass(slots=True, kw_only=True)
class CheckResult:
    """The result for one channel of one subscriber.

    Attributes:
        faults: Every broken guarantee, as text.
        gaps: How many gaps were received.
        lost: How many messages that the broker had acknowledged did not arrive.
        twice: How many messages arrived again.
        disordered: How many messages arrived after a later one.
    """

    faults: list[str] = field(default_factory=list[str])
    gaps: int = 0
    lost: int = 0
    twice: int = 0
    disordered: int = 0


def check(
    published: Mapping[str, Sequence[Outcome]], seen: Sequence[Event], *, max_gaps: int, lossless: bool = False
) -> CheckResult:
    """Check one channel of one subscriber that was joined from before the first message until after the last.

    Args:
        published: For each publisher the outcome of each message, by number.
        seen: Messages and gaps in the order of arrival.
        max_gaps: How many outages there were: more gaps than that were sent without cause, or twice.
        lossless: Nothing acknowledged may be lost, gap or not.
    """
    result = CheckResult(gaps=sum(event is GAP for event in seen))
    if result.gaps > max_gaps:
        result.faults.append(f"{result.gaps} gaps received, for {max_gaps} outages at most")
    for publisher, outcomes in published.items():
        _check_order(publisher, outcomes, seen, result, lossless=lossless)
        arrived = {event[1] for event in seen if not isinstance(event, GapSeen) and event[0] == publisher}
        for number in sorted(arrived):
            outcome = outcomes[number] if number < len(outcomes) else "never published"
            if outcome in (*_CERTAINLY_NOT, "never published"):
                result.faults.append(f"{publisher} {number} arrived and was {outcome}")
    return result


def _check_order(
    publisher: str, outcomes: Sequence[Outcome], seen: Sequence[Event], result: CheckResult, *, lossless: bool
) -> None:
    last, after_gap, arrived = -1, False, set[int]()
    for event in seen:
        if isinstance(event, GapSeen):
            after_gap = True
        elif event[0] == publisher:
            number = event[1]
            if number in arrived:
                result.twice += 1
                result.faults.append(f"{publisher} {number} arrived twice")
            elif number < last:
                result.disordered += 1
                result.faults.append(f"{publisher} {number} arrived after {last}")
            else:
                missing = _acknowledged(outcomes, last + 1, number)
                result.lost += len(missing)
                if missing and lossless:
                    result.faults.append(
                        f"{publisher} {_short(missing)} lost by an adapter that promises to lose nothing"
                    )
                elif missing and not after_gap:
                    result.faults.append(f"{publisher} {_short(missing)} missing without a gap")
                last, after_gap = number, False
            arrived.add(number)
    if missing := _acknowledged(outcomes, last + 1, len(outcomes)):  # no message follows, so a gap does not excuse it
        result.lost += len(missing)
        result.faults.append(f"{publisher} {_short(missing)} missing at the end")


def _acknowledged(outcomes: Sequence[Outcome], start: int, end: int) -> list[int]:
    return [number for number in range(start, min(end, len(outcomes))) if outcomes[number] == "ok"]


def _short(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:5])) + (f", ... ({len(numbers)})" if len(numbers) > 5 else "")
