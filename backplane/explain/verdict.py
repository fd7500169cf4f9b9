"""What follows from what the workers state: the rules, in the order of a message's way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from backplane.explain.explanation import Explanation, Finding
from backplane.explain.rules import delivery, joins, link, publishers, workers
from backplane.explain.wording import count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from backplane.explain.case import Case

__all__ = ["explain"]

_RULES: Final[tuple[Callable[[Case], Iterable[Finding]], ...]] = (
    joins.elsewhere,
    workers.unanswered,
    link.link,
    workers.missing,
    workers.erring,
    joins.unknown,
    joins.not_joined,
    link.subscription,
    link.path,
    delivery.waiting,
    publishers.nothing_published,
    publishers.excluded,
    workers.differing,
    delivery.several,
    delivery.lost,
    delivery.logged,
)


def explain(case: Case) -> Explanation:
    """Return the explanation of a case: the first fault on the way decides."""
    found = [finding for rule in _RULES for finding in rule(case)]
    faults = [finding for finding in found if finding.is_fault]
    first = faults[0] if faults else _whole(case)
    return Explanation(
        verdict=first.code,
        text=first.text,
        cure=first.cure,
        findings=(*faults, *(finding for finding in found if not finding.is_fault)),
        workers=case.workers,
        missing=tuple(worker.id for worker in (*case.missing, *(worker for worker, _ in case.errors))),
        channel=case.question.channel,
        client=case.question.client,
        tested=not case.not_tested,
        not_tested=case.not_tested,
    )


def _whole(case: Case) -> Finding:
    tested = "" if case.not_tested else ", and a test message arrived at its worker"
    if case.question.client is None:
        tested = "" if case.not_tested else ", and a test message arrived there"
        text = f"channel {case.channel} has subscribers on {count(len(case.homes), 'worker')}{tested}"
    else:
        text = f"{case.client} has joined {case.channel}, nothing waits for it{tested}"
    withheld = any(client.withheld for _, client in case.found if client.joined)
    cure = "look at the proxy and at the client itself: what is published is handed to the socket" + (
        ", except what envelope= of the application returns None for" if withheld else ""
    )
    return Finding(code="whole", station="client", text=text, cure=cure, is_fault=False)
