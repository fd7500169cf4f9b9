"""Command line of the benchmarks."""

from __future__ import annotations

import platform
import sys
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.micro import channels as many_channels
from benchmarks.micro import codec, fanout, import_time

if TYPE_CHECKING:
    from benchmarks.micro.figure import Figure

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Benchmarks of backplane.")
console = Console()


@app.callback()
def main() -> None:
    """Benchmarks of backplane."""


@app.command()
def micro(
    sockets: int = typer.Option(1000, min=1, help="Local sockets of the fan-out."),
    rounds: int = typer.Option(30, min=3, help="Rounds per figure; the median is shown."),
) -> None:
    """Measure the parts by themselves, each beside a bare loop that does the least there is to do."""
    console.print(f"Python {platform.python_version()} on {platform.system()} {platform.machine()}, one process")
    with console.status("codec"):
        show("Codec, 128 bytes", codec.run(rounds))
    with console.status("fan-out"):
        show(f"Fan-out of one message of 128 bytes to {sockets:,} sockets, per delivery", fanout.run(sockets, rounds))
    with console.status("import"):
        show("Import, in a fresh interpreter", import_time.run(min(rounds, 10)))


@app.command()
def channels(
    urls: list[str] = typer.Argument(help="Brokers to measure, such as memory:// ipc://bench redis://localhost"),  # noqa: B008
    count: int = typer.Option(10_000, min=1, help="How many channels."),
) -> None:
    """Measure what many channels cost on each adapter: time to subscribe, memory per channel."""
    table = Table(title=f"{count:,} channels, subscribed in batches of 500", title_justify="left")
    table.add_column("adapter")
    for column in ("subscribe s", "µs per channel", "unsubscribe s", "bytes per channel"):
        table.add_column(column, justify="right")
    for url in urls:
        with console.status(url.partition(":")[0]):
            found = many_channels.run(url, count)
        seconds, per_channel = found.subscribe_seconds, found.subscribe_seconds / count * 1e6
        row = (
            f"{seconds:.3f}",
            f"{per_channel:.1f}",
            f"{found.unsubscribe_seconds:.3f}",
            f"{found.bytes_per_channel:,.0f}",
        )
        table.add_row(found.url, *row)
    console.print(table)


def show(title: str, figures: list[Figure]) -> None:
    """Print one table; the first row is the floor the others are compared to."""
    table = Table(title=title, title_justify="left")
    table.add_column("what")
    for column in ("median µs", "min µs", "max µs", "x floor"):
        table.add_column(column, justify="right")
    floor = figures[0].median
    for figure in figures:
        row = (figure.median, min(figure.microseconds), max(figure.microseconds))
        table.add_row(figure.name, *(f"{value:,.2f}" for value in row), f"{figure.median / floor:.2f}")
    console.print(table)


if __name__ == "__main__":
    sys.exit(app())
