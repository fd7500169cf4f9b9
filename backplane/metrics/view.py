"""What the rows of the table read: one worker at one moment."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from backplane.statistics import Statistics
from backplane.worker.health import Health

if TYPE_CHECKING:
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
