"""The independent checker of the chaos suite: what was published against what was seen. No I/O, no backplane."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["GAP", "Event", "GapSeen", "Outcome", "Verdict", "check"]

Outcome = Literal["ok", "unavailable", "refused", "unknown"]
"""What a publisher was told: the broker has it, it certainly has not (for one of two reasons), nobody knows."""

_CERTAINLY_NOT: Final = ("unavailable", "refused")


class GapSeen:
    """Type of `GAP`."""

    def __repr__(self) -> str:
        return "GAP"


GAP: Final = GapSeen()
"""A gap event, at its place among the messages."""

Event = tuple[str, int] | GapSeen
"""A message, by its publisher and number, or a gap."""


@dataclass(slots=True, kw_only=True)
class Verdict:
    """What was found on one channel of one subscriber.

    Attributes:
        faults: Every broken promise, in words.
        gaps: How many gaps were told.
        lost: How many messages that the broker had acknowledged did not arrive.
    """

    faults: list[str] = field(default_factory=list[str])
    gaps: int = 0
    lost: int = 0


def check(
    published: Mapping[str, Sequence[Outcome]], seen: Sequence[Event], *, max_gaps: int, lossless: bool = False
) -> Verdict:
    """Judge one channel of one subscriber, who was there from before the first message to behind the last.

    Args:
        published: Of each publisher the outcome of each message, by number.
        seen: Messages and gaps in the order they came.
        max_gaps: How many stretches there were: more gaps than that were told without cause, or twice.
        lossless: Nothing acknowledged may be lost, gap or not.
    """
    verdict = Verdict(gaps=sum(event is GAP for event in seen))
    if verdict.gaps > max_gaps:
        verdict.faults.append(f"{verdict.gaps} gaps told, for {max_gaps} stretches at most")
    for publisher, outcomes in published.items():
        _check_order(publisher, outcomes, seen, verdict, lossless=lossless)
        arrived = {event[1] for event in seen if not isinstance(event, GapSeen) and event[0] == publisher}
        for number in sorted(arrived):
            outcome = outcomes[number] if number < len(outcomes) else "never published"
            if outcome in (*_CERTAINLY_NOT, "never published"):
                verdict.faults.append(f"{publisher} {number} arrived and was {outcome}")
    return verdict


def _check_order(
    publisher: str, outcomes: Sequence[Outcome], seen: Sequence[Event], verdict: Verdict, *, lossless: bool
) -> None:
    last, told, arrived = -1, False, set[int]()
    for event in seen:
        if isinstance(event, GapSeen):
            told = True
        elif event[0] == publisher:
            number = event[1]
            if number in arrived:
                verdict.faults.append(f"{publisher} {number} came twice")
            elif number < last:
                verdict.faults.append(f"{publisher} {number} came behind {last}")
            else:
                missing = _acknowledged(outcomes, last + 1, number)
                verdict.lost += len(missing)
                if missing and lossless:
                    verdict.faults.append(f"{publisher} {_short(missing)} lost, of what must not be lost")
                elif missing and not told:
                    verdict.faults.append(f"{publisher} {_short(missing)} missing without a gap")
                last, told = number, False
            arrived.add(number)
    if missing := _acknowledged(outcomes, last + 1, len(outcomes)):  # a gap makes up for nothing here
        verdict.lost += len(missing)
        verdict.faults.append(f"{publisher} {_short(missing)} missing at the end: deaf")


def _acknowledged(outcomes: Sequence[Outcome], start: int, end: int) -> list[int]:
    return [number for number in range(start, min(end, len(outcomes))) if outcomes[number] == "ok"]


def _short(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:5])) + (f", ... ({len(numbers)})" if len(numbers) > 5 else "")
