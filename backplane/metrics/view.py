"""What the rows of the table read: one worker at one moment."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, get_args

from backplane.broker.link_tally import LinkTally
from backplane.broker.probe import ROUND_TRIP_SECONDS
from backplane.concurrency.stalls import LATE_SECONDS
from backplane.fanout.gaps import GapCause
from backplane.fanout.traffic import Traffic
from backplane.histogram import Histogram
from backplane.statistics import Counters, Statistics
from backplane.worker.health import Health

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backplane.worker.runtime import Runtime

__all__ = ["Measured", "View", "view_of"]


class Measured(Protocol):
    """What is measured: a `Backplane`."""

    @property
    def url(self) -> str:
        """The broker's URL, without options and with its password masked."""
        ...

    @property
    def _runtime(self) -> Runtime | None: ...


@dataclass(frozen=True, slots=True)
class View:
    """One worker at one moment.

    Attributes:
        scheme: The scheme of the broker's URL: `redis`.
        runtime: The parts of the worker; `None` while its backplane is not started.
        health: As `Backplane.health` returns it.
        statistics: As `Backplane.statistics` returns it.
    """

    scheme: str
    runtime: Runtime | None
    health: Health
    statistics: Statistics

    @property
    def counters(self) -> Counters:
        """What the parts of the worker count."""
        return Counters() if self.runtime is None else self.runtime.statistics

    @property
    def traffic(self) -> Traffic:
        """What passes its hub."""
        return Traffic() if self.runtime is None else self.runtime.traffic

    @property
    def link(self) -> LinkTally:
        """What is counted of its link."""
        return LinkTally() if self.runtime is None else self.runtime.supervisor.status.tally

    @property
    def probe_round_trips(self) -> Histogram:
        """How long its probes took."""
        return Histogram(*ROUND_TRIP_SECONDS) if self.runtime is None else self.runtime.supervisor.probe.round_trips

    @property
    def loop_lag(self) -> Histogram:
        """How late a timer of its event loop was called."""
        return Histogram(*LATE_SECONDS) if self.runtime is None else self.runtime.stalls.late

    @property
    def gaps(self) -> Mapping[GapCause, int]:
        """The gaps of its channels, by cause."""
        return dict.fromkeys(get_args(GapCause), 0) if self.runtime is None else self.runtime.hub.gaps.causes

    def time_of(self, seconds_ago: float | None) -> float:
        """Return the time of what was so long ago, in seconds since the epoch; 0 for what never was."""
        return 0.0 if seconds_ago is None else time.time() - seconds_ago


def view_of(backplane: Measured) -> View:
    """Return how the worker of `backplane` is now. Safe in any thread, and while the backplane is not started."""
    scheme = backplane.url.partition("://")[0]
    runtime = backplane._runtime  # pyright: ignore[reportPrivateUsage]
    if runtime is None or not runtime.affinity.is_alive:
        return View(scheme, None, Health(live=True, ready=False, state="closed"), Statistics())
    return View(scheme, runtime, runtime.health(), runtime.count())
