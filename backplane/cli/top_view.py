"""How `backplane top` shows an overview: a sentence, what is wrong, the workers, the channels."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from rich.console import Group
from rich.table import Table
from rich.text import Text

from backplane.cli.observer import format_seconds
from backplane.cli.terminal import visible

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from rich.console import RenderableType

    from backplane.stats.overview import ChannelOverview, Overview, Problem, WorkerOverview

__all__ = ["TopOrder", "overview_view"]

TopOrder = Literal["name", "clients", "deliveries", "lag", "waiting", "cpu", "memory"]
"""What the workers with the most of come first; `name`: by host and pid."""

_MOST_PROBLEMS: Final = 5
_WIDE: Final = 120
_MIDDLE: Final = 96


@dataclass(frozen=True, slots=True)
class _Column:
    """One column of the workers.

    Attributes:
        title: Its title.
        shown: What a worker has in it.
        order: What it is sorted by, if it can be.
        least_width: It is left out where a line of the terminal has fewer characters.
    """

    title: str
    shown: Callable[[WorkerOverview], str]
    order: Callable[[WorkerOverview], float] | None = None
    least_width: int = 0


def _rate(worker: WorkerOverview, name: str) -> str:
    return "-" if worker.rates is None else _number(worker.rates.get(name, 0.0))


def _deliveries(worker: WorkerOverview) -> float:
    return 0.0 if worker.rates is None else worker.rates.get("deliveries", 0.0)


_COLUMNS: Final[dict[str, _Column]] = {
    "clients": _Column("clients", lambda w: f"{w.connections:,}", lambda w: w.connections),
    "channels": _Column("channels", lambda w: f"{w.channels:,}", least_width=_WIDE),
    "deliveries": _Column("deliv/s", lambda w: _rate(w, "deliveries"), _deliveries),
    "publishes": _Column("publ/s", lambda w: _rate(w, "publishes")),
    "dropped": _Column("drop/s", lambda w: _rate(w, "dropped"), least_width=_WIDE),
    "gaps": _Column("gaps", lambda w: f"{w.gaps:,}", least_width=_MIDDLE),
    "lag": _Column("lag p99", lambda w: _milliseconds(w.lag_p99), lambda w: w.lag_p99 or 0.0),
    "loop": _Column("stall", lambda w: _milliseconds(w.loop_lag), least_width=_WIDE),
    "waiting": _Column("waits", lambda w: _size(w.waiting_bytes), lambda w: w.waiting_bytes),
    "cpu": _Column("cpu", lambda w: "-" if w.cpu is None else f"{w.cpu:.0%}", lambda w: w.cpu or 0.0),
    "memory": _Column("memory", lambda w: _size(w.resident_bytes), lambda w: w.resident_bytes or 0, _MIDDLE),
    "clock": _Column("clock", lambda w: _offset(w.clock_offset), least_width=_WIDE),
    "up": _Column("up", lambda w: format_seconds(time.time() - w.started_at), least_width=_WIDE),
    "version": _Column("version", lambda w: w.version, least_width=_WIDE),
}


def overview_view(overview: Overview, *, sort: TopOrder, channels: int, width: int, url: str) -> RenderableType:
    """Return what is shown of an overview.

    Args:
        overview: The figures.
        sort: The order of the workers.
        channels: Most channels.
        width: How many characters a line of the terminal has.
        url: The broker, its password masked.
    """
    parts: list[RenderableType] = [_summary(overview, url)]
    parts += map(_problem, overview.problems[:_MOST_PROBLEMS])
    if len(overview.problems) > _MOST_PROBLEMS:
        parts.append(Text(f"and {len(overview.problems) - _MOST_PROBLEMS} more", style="dim"))
    if overview.missing:
        parts.append(Text(visible(f"without figures of: {', '.join(overview.missing)}"), style="yellow"))
    parts += [Text(), _workers(overview, sort, width)]
    if channels and overview.channels:
        parts += [Text(), _channels(overview.channels[:channels])]
    return Group(*parts)


def _summary(overview: Overview, url: str) -> Text:
    clients = sum(worker.connections for worker in overview.workers)
    deliveries = _number(sum(map(_deliveries, overview.workers)))
    at = time.strftime("%H:%M:%S", time.localtime(overview.at))
    figures = f"{overview.answered:,} of {overview.asked:,} workers, {clients:,} clients, {deliveries} deliveries/s"
    summary = Text(visible(f"{at}  {url}  {figures}"), style="dim")
    if overview.problems:  # each has a line of its own below
        return summary
    verdict = f"{'…' if overview.missing else '✓'} {overview.verdict}"
    return summary.append("\n").append(visible(verdict), style="not dim green")


def _problem(problem: Problem) -> Text:
    mark, style = ("✗", "red") if problem.severity == "error" else ("!", "yellow")
    return Text(visible(f"{mark} {problem.text} "), style=style).append(visible(problem.cure), style="dim")


def _workers(overview: Overview, sort: TopOrder, width: int) -> Table:
    columns = [column for column in _COLUMNS.values() if width >= column.least_width]
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="dim")
    table.add_column("worker", no_wrap=True, overflow="ellipsis")
    table.add_column("link", no_wrap=True)
    for column in columns:
        table.add_column(column.title, justify="right", no_wrap=True)
    for worker in _sorted(overview.workers, sort):
        state = "draining" if worker.draining else worker.state
        style = "" if state == "live" else "red"
        cells = [Text(visible(column.shown(worker))) for column in columns]
        table.add_row(Text(visible(worker.worker)), Text(visible(state), style=style), *cells)
    return table


def _sorted(workers: Iterable[WorkerOverview], sort: TopOrder) -> list[WorkerOverview]:
    by_name = sorted(workers, key=lambda worker: (worker.host, worker.pid, worker.id))
    if sort == "name" or (order := _COLUMNS[sort].order) is None:
        return by_name
    return sorted(by_name, key=order, reverse=True)


def _channels(channels: Iterable[ChannelOverview]) -> Table:
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="dim")
    table.add_column("channel", no_wrap=True, overflow="ellipsis")
    for title in ("subscribers", "workers", "messages/s", "bytes/s"):
        table.add_column(title, justify="right", no_wrap=True)
    for channel in channels:
        table.add_row(
            Text(visible(channel.name)),
            f"{channel.subscribers:,}",
            f"{channel.workers:,}",
            _number(channel.messages_per_second),
            _size(round(channel.bytes_per_second)),
        )
    return table


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == 0 else f"{value:.1f}"


def _milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.2f} s"


def _offset(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:+.1f} ms" if abs(seconds) < 1 else f"{seconds:+.1f} s"


def _size(size: int | None) -> str:
    if size is None:
        return "-"
    value = float(size)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:,.0f} {unit}"
        value /= 1024
    return f"{value:,.1f} GiB"
