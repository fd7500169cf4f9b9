"""Which workers answered, and whether they are alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backplane.explain.explanation import Finding
from backplane.explain.wording import place

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backplane.explain.case import Case

__all__ = ["differing", "erring", "missing", "unanswered"]


def unanswered(case: Case) -> Iterator[Finding]:
    """There is no worker."""
    if not case.workers and not case.missing and not case.errors:
        yield Finding(
            code="no workers",
            station="broker",
            text=f"no worker answered, and none is known at {case.place}",
            cure="start the workers with Backplane(cluster=True), and ask with their URL, prefix, database and "
            "control_secret: a worker with others is none of this deployment",
        )


def missing(case: Case) -> Iterator[Finding]:
    """A worker does not answer."""
    for worker in case.missing:
        yield Finding(
            code="silent worker",
            station="link",
            text=f"worker {worker.host or '?'}/{worker.pid} ({worker.id}) did not answer"
            + ("" if case.homes else ", and no other one has what is looked for"),
            cure="its event loop stands, or it receives nothing from the broker: look at its log and health, and "
            f"restart it if it does not answer (py-spy dump --pid {worker.pid} shows what it does)",
            worker=worker.id,
            is_fault=not case.homes,
        )


def erring(case: Case) -> Iterator[Finding]:
    """A worker has answered with an error."""
    for worker, reason in case.errors:
        yield Finding(
            code="no evidence",
            station="hub",
            text=f"worker {worker.host or '?'}/{worker.pid} ({worker.id}) answered with an error: {reason}",
            cure="ask again in a second; a worker of an older release has to be updated",
            worker=worker.id,
            is_fault=not case.homes,
        )


def differing(case: Case) -> Iterator[Finding]:
    """Workers look for their channels in different places."""
    places = {(worker.broker, worker.prefix) for worker in case.workers}
    if len(places) > 1:
        shown = "; ".join(f"{worker.name}: {place(worker.broker, worker.prefix)}" for worker in case.workers)
        yield Finding(
            code="different settings",
            station="broker",
            text=f"workers are configured differently: {shown}",
            cure="give all workers the same URL and prefix",
            is_fault=False,
        )
