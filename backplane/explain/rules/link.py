"""Whether what is published arrives at the worker of the client."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backplane.explain.explanation import Finding
from backplane.explain.wording import place

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backplane.explain.case import Case
    from backplane.explain.evidence import WorkerEvidence

__all__ = ["link", "path", "subscription"]


def link(case: Case) -> Iterator[Finding]:
    """The link of the worker is lost; where it is not known which worker has the client, any of them."""
    for worker in case.homes or case.workers:
        if worker.state != "live":
            yield Finding(
                code="link down",
                station="link",
                text=f"the link of worker {worker.name} to the broker has been {worker.state} for "
                f"{worker.state_seconds:.0f} s",
                cure="the worker reconnects by itself; if others are live, look at its network, and at its log",
                worker=worker.worker,
            )


def subscription(case: Case) -> Iterator[Finding]:
    """The broker does not deliver the channel to the worker."""
    for worker in case.homes:
        if worker.refused:
            yield Finding(
                code="refused by the broker",
                station="broker",
                text=f"the broker refuses {case.channel} to worker {worker.name}: {worker.refused}",
                cure="allow its account to subscribe to this channel; it is tried again every probe interval",
                worker=worker.worker,
            )
        elif worker.state == "live" and not worker.confirmed:
            yield Finding(
                code="not subscribed",
                station="broker",
                text=f"worker {worker.name} has subscribers of {case.channel}, and the broker has not confirmed its "
                "subscription",
                cure="it is tried again by itself; if that lasts, look at the worker's log and at the broker's load",
                worker=worker.worker,
            )


def path(case: Case) -> Iterator[Finding]:
    """The test message did not arrive at the worker; or none was published."""
    if case.not_tested:
        if case.homes:
            yield Finding(
                code="not tested",
                station="publisher",
                text=f"no test message was published on {case.channel}: {case.not_tested}",
                is_fault=False,
            )
        return
    silent = [worker for worker in case.homes if worker.test_received is False and _should_receive(worker)]
    reached = [worker for worker in case.workers if worker.test_received]
    for worker in silent:
        others = f"; it arrived at {', '.join(each.name for each in reached[:3])}" if reached else ""
        yield Finding(
            code="receives nothing",
            station="link",
            text=f"worker {worker.name} is subscribed to {case.channel}, and does not receive what is published: the "
            f"broker took a test message, and it did not arrive{others}",
            cure="restart this worker, and report it"
            if reached
            else "compare prefix, database and account of the publisher with those of the worker "
            f"({place(worker.broker, worker.prefix)}); if they are the same, restart the worker",
            worker=worker.worker,
        )


def _should_receive(worker: WorkerEvidence) -> bool:
    return worker.state == "live" and worker.confirmed and not worker.refused
