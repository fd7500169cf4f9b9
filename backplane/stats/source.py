"""What is asked of the worker itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from backplane.stats.queries import ChannelQuery, ConnectionQuery
    from backplane.stats.snapshot import WorkerSnapshot

__all__ = ["StatsSource"]


class StatsSource(Protocol):
    """The figures of this worker."""

    def snapshot(self, interval_seconds: float, /) -> WorkerSnapshot:
        """Return its figures, and after how many seconds the next ones follow."""
        ...

    def watched(self, is_watched: bool, /) -> None:
        """Begin, or end, to hold what only matters while a process watches."""

    def channels(self, query: ChannelQuery, /) -> dict[str, Any]:
        """Return a part of its channels, as JSON: `total` and `rows`."""
        ...

    def describe(self, *, in_full: bool) -> dict[str, Any]:
        """Return what the worker is configured with, as JSON; in full with all settings, limits and options."""
        ...

    async def connections(self, query: ConnectionQuery, /) -> dict[str, Any]:
        """Return a part of its clients, as JSON: `total` and `rows`."""
        ...
