"""The lag of what one kind of publisher publishes: until a batch was received, and until its last subscriber had it."""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

from backplane.histogram import Exemplar, Histogram

__all__ = ["LAG_SECONDS", "Lags"]

LAG_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""The bounds of the histograms of lag."""


class Lags:
    """Two histograms that mostly have the same values, as most batches have a single slice: so these count once.

    Attributes:
        written: The lag of each batch when its last subscriber was offered it.
    """

    __slots__ = ("_differences", "_received_exemplars", "_received_total", "written")

    def __init__(self) -> None:
        self.written: Histogram = Histogram(*LAG_SECONDS)
        # By bucket, how many values more `received` has than `written`; less than 0 where it has fewer.
        self._differences: tuple[int, ...] = (0,) * len(self.written.counts)
        self._received_total = 0.0
        self._received_exemplars: dict[int, Exemplar] = {}

    @property
    def received(self) -> Histogram:
        """The lag of each batch when its first subscribers, 200 at most, were offered it. A copy."""
        found = Histogram(*LAG_SECONDS)
        # The differences first: another thread that reads meanwhile finds no count that is higher now than later.
        differences, counts = self._differences, list(self.written.counts)
        found.counts = [count + difference for count, difference in zip(counts, differences, strict=True)]
        found.total = self._received_total
        found.exemplars = dict(self._received_exemplars)
        return found

    def count(self, lag: float, received_lag: float | None, /) -> None:
        """Count a batch.

        Args:
            lag: How old its first message was when its last subscriber was offered it, in seconds.
            received_lag: The same when its first subscribers were; `None` where these were all.
        """
        written = self.written
        place = bisect_left(LAG_SECONDS, lag)
        written.counts[place] += 1
        written.total += lag
        if received_lag is None:
            self._received_total += lag
            return
        self._received_total += received_lag
        if place and received_lag <= LAG_SECONDS[place - 1]:
            differences = list(self._differences)
            differences[place] -= 1
            differences[bisect_left(LAG_SECONDS, received_lag)] += 1
            self._differences = tuple(differences)

    def note(self, trace_id: str, lag: float, received_lag: float | None, at: float) -> None:
        """Note that a batch which was counted at a time was part of a sampled trace."""
        if received_lag is None:
            received_lag = lag
        self.written.exemplars[bisect_left(LAG_SECONDS, lag)] = Exemplar(trace_id, lag, at)
        self._received_exemplars[bisect_left(LAG_SECONDS, received_lag)] = Exemplar(trace_id, received_lag, at)
