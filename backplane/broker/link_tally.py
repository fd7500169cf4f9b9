"""What is counted of the link to the broker: how often it was lost, why, and for how long."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Final, Literal, get_args

from backplane.broker.probe import SilentLinkError
from backplane.errors import BrokerError, BrokerUnavailableError
from backplane.histogram import Histogram

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["OUTAGE_SECONDS", "LinkTally", "LossCause"]

LossCause = Literal["silent", "closed", "refused", "fault"]
"""Why a link was lost, by the class of its error.

- `silent`: the broker did not answer any more: a probe, a check, a publish or a subscription.
- `closed`: the connection ended, or the adapter ended it, as one that leads to another server.
- `refused`: the broker refused what the link needs.
- `fault`: an adapter or this package raised what it must not.
"""

OUTAGE_SECONDS: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""The bounds of the histogram of outages."""


class LinkTally:
    """The counters of one link.

    Args:
        clock: In seconds, never set back.

    Attributes:
        lost: How many live links were lost, by cause.
        outages: How long the outages lasted that are over.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._degraded_since: float | None = None
        self.lost: dict[LossCause, int] = dict.fromkeys(get_args(LossCause), 0)
        self.outages: Histogram = Histogram(*OUTAGE_SECONDS)

    @property
    def degraded_seconds(self) -> float:
        """How long there was no link in all outages, the present one included."""
        since = self._degraded_since
        return self.outages.total + (0.0 if since is None else self._clock() - since)

    def count_lost(self, error: Exception) -> None:
        """Count a live link that ended by `error`."""
        self.lost[_cause_of(error)] += 1

    def began(self) -> None:
        """An outage begins."""
        self._degraded_since = self._clock()

    def ended(self) -> None:
        """The outage is over, if there was one."""
        if self._degraded_since is not None:
            self.outages.observe(self._clock() - self._degraded_since)
            self._degraded_since = None


def _cause_of(error: Exception) -> LossCause:
    match error:
        case SilentLinkError():
            return "silent"
        case BrokerUnavailableError():
            return "closed"
        case BrokerError():
            return "refused"
        case _:
            return "fault"
