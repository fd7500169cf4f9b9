"""What can happen to a fleet: each case begins something, and the clients come back."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from benchmarks.simulation.fleet import Fleet, Outcome, Setup

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.simulation.fleet import Worker

__all__ = ["CASES", "simulate"]


def _rolling(fleet: Fleet) -> None:
    """Replace the workers, some at a time: new ones are ready, then the old ones drain."""
    setup = fleet.setup

    def replace(old: Worker) -> None:
        fleet.add_worker()
        fleet.refuse(old)
        begin = setup.drain_seconds / 10  # as ClientRegistry.retire_all
        fleet.close(old, after_seconds=begin, seconds=setup.drain_seconds - begin)

    each = setup.start_seconds + max(setup.drain_seconds, setup.notice_seconds)
    for number, worker in enumerate(fleet.workers):
        fleet.plan(number // setup.replaced_at_once * each, partial(replace, worker))


def _killed(fleet: Fleet) -> None:
    """End one worker without a close frame; another one takes its place when it is ready."""
    worker = fleet.workers[0]
    fleet.refuse(worker)
    fleet.close(worker, is_lost=True)
    fleet.plan(fleet.setup.start_seconds, fleet.add_worker)


def _gap(fleet: Fleet) -> None:
    """Close every client with 4000, each at a random time within `drain_seconds`, as after an outage of the broker."""
    for worker in fleet.workers:
        fleet.close(worker, seconds=fleet.setup.drain_seconds)


def _all_at_once(fleet: Fleet) -> None:
    """End all connections without a close frame, as the restart of a load balancer does; the workers go on."""
    for worker in fleet.workers:
        fleet.close(worker, is_lost=True)


CASES: Final[dict[str, tuple[str, Callable[[Fleet], None]]]] = {
    "rolling": ("rolling deployment", _rolling),
    "killed": ("one worker killed", _killed),
    "gap": ("a gap closes all", _gap),
    "all": ("all connections lost", _all_at_once),
}
"""Each case with its title, and what begins it."""


def simulate(case: str, setup: Setup) -> Outcome:
    """Return what comes of a case.

    Raises:
        KeyError: There is no such case.
    """
    fleet = Fleet(setup)
    CASES[case][1](fleet)
    return fleet.run()
