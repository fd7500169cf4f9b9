"""Command line of the benchmarks."""

from __future__ import annotations

import asyncio
import platform
import signal
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer
from rich.console import Console
from rich.status import Status
from rich.table import Table

from benchmarks.choice import Choice, check_capacity, measure_choice
from benchmarks.competitors.catalog import COMPETITORS
from benchmarks.harness.brokers import NAMES, Brokers
from benchmarks.harness.candidate import CACHE, Loop, ServerName, Serving
from benchmarks.harness.capacity import MAX_ADDRESSES, CapacityError, allow_many_files
from benchmarks.harness.figures import FIGURES
from benchmarks.harness.machine import description
from benchmarks.harness.result import Report
from benchmarks.micro.walks import walks
from benchmarks.plans import FULL, SHORT
from benchmarks.report import compare as comparison
from benchmarks.report.page import write_page
from benchmarks.report.table import table
from benchmarks.scenarios.catalog import SCENARIOS

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from benchmarks.harness.result import Section
    from benchmarks.harness.run import Run
    from benchmarks.micro.figure import Figure

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Benchmarks of backplane; see benchmarks/README.md.",
)
# Into a file or a pipe a table may be as wide as it needs.
console = Console() if sys.stdout.isatty() else Console(width=170)

Urls = Annotated[
    list[str], typer.Option("--url", help=f"Broker of backplane by URL, or to be started: {', '.join(NAMES)}. Repeat.")
]
Competitors = Annotated[
    list[str], typer.Option("--competitors", help=f"Competitors beside it: all, {', '.join(COMPETITORS)}. Repeat.")
]
Output = Annotated[Path, typer.Option(help="The JSON file; the page is written beside it.")]
Optional = Annotated[int | None, typer.Option(min=1)]


@app.callback()
def main() -> None:
    """Benchmarks of backplane."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # started processes end with this one
    allow_many_files()  # servers inherit it


def scenario(  # one for each option
    ctx: typer.Context,
    url: Urls = ["redis"],  # noqa: B006  # typer reads it only
    *,
    lane: Annotated[bool, typer.Option("--lane", help="Measure with the direct lane too.")] = False,
    only_lane: Annotated[bool, typer.Option("--only-lane", help="Measure with the direct lane only.")] = False,
    handed_over: Annotated[
        bool, typer.Option("--handed-over", help="Measure with clients that are handed over too, on the lane.")
    ] = False,
    sdk: Annotated[
        bool, typer.Option("--sdk", help="Measure with clients of the Centrifugal client protocol too, handed over.")
    ] = False,
    floors: Annotated[
        bool, typer.Option("--floors", help="Measure the floors too: the least that one write per message costs.")
    ] = False,
    competitors: Competitors = [],  # noqa: B006
    server: Annotated[str, typer.Option(help="uvicorn or gunicorn.")] = "uvicorn",
    workers: Annotated[int, typer.Option(min=1)] = 1,
    loop: Annotated[str, typer.Option(help="uvloop or asyncio.")] = "uvloop",
    connections: Optional = None,
    channels: Optional = None,
    rate: Annotated[float | None, typer.Option(min=0.1, help="Messages per second.")] = None,
    payload: Annotated[int | None, typer.Option(min=32, help="Bytes of a message.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.1, help="How long is measured.")] = None,
    warm_up: Annotated[float | None, typer.Option(min=0.0, help="Seconds before that.")] = None,
    publishers: Annotated[int | None, typer.Option(min=1, help="Clients that publish to each channel.")] = None,
    outstanding: Optional = None,
    stalled: Optional = None,
    repaired: Annotated[int | None, typer.Option(min=1, help="Kept channels that are repaired.")] = None,
    clients: Annotated[int | None, typer.Option(min=1, help="Processes of the audience.")] = None,
    addresses: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MAX_ADDRESSES,
            help="Loopback addresses of the clients; each has 28,232 ports. More than that many sockets need several.",
        ),
    ] = None,
    in_memory: Annotated[int | None, typer.Option(min=0, help="How many idle clients have no socket.")] = None,
    heartbeat: Annotated[float | None, typer.Option(min=0.1, help="Seconds between two pings to idle clients.")] = None,
    drain: Annotated[float | None, typer.Option(min=0.1, help="Seconds over which idle clients are closed.")] = None,
    deflate: Annotated[bool, typer.Option("--deflate", help="Clients offer compression, as browsers do.")] = False,
    stalls: Annotated[bool, typer.Option("--stalls", help="Watch the server's event loops for stalls.")] = False,
    repetitions: Annotated[int, typer.Option(min=1)] = 3,
    output: Output = CACHE / "last.json",
) -> None:
    """Run one scenario."""
    given = {
        "connections": connections,
        "channels": channels,
        "rate": rate,
        "payload": payload,
        "seconds": seconds,
        "warm_up_seconds": warm_up,
        "publishers": publishers,
        "outstanding": outstanding,
        "stalled": stalled,
        "repaired": repaired,
        "clients": clients,
        "addresses": addresses,
        "in_memory": in_memory,
        "heartbeat": heartbeat,
        "drain": drain,
        "deflate": deflate or None,
        "stalls": stalls or None,
    }
    choice = Choice(
        urls=url,
        lane=lane,
        only_lane=only_lane,
        handed_over=handed_over,
        sdk=sdk,
        floors=floors,
        competitors=competitors,
        serving=serving(server, workers, loop),
        repetitions=repetitions,
        options=tuple((name, value) for name, value in given.items() if value is not None),
    )
    name = ctx.info_name
    assert name is not None
    session([(name, choice)], output)


for _name, _scenario in SCENARIOS.items():
    app.command(_name, help=f"Measure {_scenario.about}.")(scenario)


@app.command()
def short(output: Output = CACHE / "short.json") -> None:
    """Run what `make bench` runs: about eight minutes."""
    session(SHORT, output)


@app.command()
def full(output: Output = CACHE / "full.json") -> None:
    """Run every scenario on every adapter, with floors and competitors: two hours."""
    session(FULL, output)


@app.command()
def add(
    scenarios: Annotated[list[str], typer.Argument(help="Scenarios that `full` runs, such as: history presence")],
    into: Annotated[Path, typer.Option(help="The result, such as benchmarks/results/0.1.0.json.")],
    repetitions: Annotated[int | None, typer.Option(min=1, help="How often at most; as `full` without it.")] = None,
) -> None:
    """Measure scenarios as `full` does, and put them into a result in place of those that it has."""
    parts = [
        (name, replace(choice, repetitions=min(choice.repetitions, repetitions or choice.repetitions)))
        for name, choice in FULL
        if name in scenarios
    ]
    if missing := set(scenarios) - {name for name, _ in parts}:
        raise typer.BadParameter(f"`full` has no {', '.join(sorted(missing))}")
    session(parts, into, Report.load(into))


@app.command("walks")
def show_walks(
    url: Annotated[str, typer.Argument(help="Broker with host and port, such as redis://localhost:6379.")],
    *,
    files: Annotated[bool, typer.Option("--files", help="Print the files too.")] = False,
) -> None:
    """Count how often the file changes on a walk through the code: a join, a message, a lost link, a drain."""
    for walk in asyncio.run(walks(url)):
        console.print(f"{walk.name:<14} {walk.changes:4} changes, {len(set(walk.files)):3} files")
        if files:
            console.print(" > ".join(walk.files), style="dim", soft_wrap=True)


@app.command()
def compare(before: Path, after: Path) -> None:
    """Show what changed between two results by more than the spread of their repetitions."""
    found = comparison.compared(Report.load(before), Report.load(after))
    if found.changes:
        console.print(comparison.as_table(found.changes))
    for each in (*found.faults, *found.alone):
        console.print(each, markup=False, style="bold red" if each in found.faults else "")
    counts = ", ".join(f"{count} {decided}" for decided, count in found.counts.most_common()) or "none in common"
    console.print(f"{found.candidates} candidates compared; figures: {counts}.\n[dim]{comparison.CRITERION}[/]")


@app.command()
def claims(
    result: Annotated[Path | None, typer.Argument(show_default="the newest in benchmarks/results")] = None,
) -> None:
    """Write the claims of both READMEs, and the plot they show, from a committed result."""
    from benchmarks.report import claims as made  # it reads the documents

    try:
        console.print(made.rewrite(result or made.newest()), markup=False, soft_wrap=True)
    except made.ClaimsError as error:
        console.print(f"[bold red]{error}[/]")
        raise typer.Exit(1) from None


@app.command()
def page(result: Path) -> None:
    """Write the HTML page of a result again."""
    console.print(f"[link]{write_page(Report.load(result), result.with_suffix('.html'))}[/link]")


def serving(server: str, workers: int, loop: str) -> Serving:
    """Return how to serve.

    Raises:
        typer.BadParameter: The server or the loop is not known.
    """
    if server in get_args(ServerName) and loop in get_args(Loop):
        return Serving(server=cast("ServerName", server), workers=workers, loop=cast("Loop", loop))
    raise typer.BadParameter("--server is uvicorn or gunicorn, --loop is uvloop or asyncio")


def session(parts: Sequence[tuple[str, Choice]], output: Path, into: Report | None = None) -> None:
    """Measure and show each table; JSON and page are written after each section, so an interruption loses one only.

    Sections of `into` are kept, but for those of a scenario that is measured again, once it is.

    Raises:
        typer.Exit: This machine cannot hold the sockets; nothing has run.
    """
    try:
        check_capacity(parts)
    except CapacityError as error:
        console.print(f"[bold red]{error}[/]", soft_wrap=True)
        raise typer.Exit(1) from None
    began, machine = time.monotonic(), description()
    report = Report(machine=machine) if into is None else into
    measured: list[Section] = []
    console.print(f"{machine['processor']}, {machine['cores']} cores, {machine['python']}")
    with Brokers() as brokers:
        for number, (name, choice) in enumerate(parts, 1):
            with progress_line(f"[{number}/{len(parts)}] {name}", choice.repetitions) as progress:
                section = measure_choice(name, choice, brokers, progress)
            if into is not None:
                section.machine = machine
                if name not in {each.scenario for each in measured}:
                    report.drop([name])
            measured.append(section)
            report.sections.append(section)
            console.print(table(section))
            report.save(output)
            write_page(Report.load(output), output.with_suffix(".html"))
    minutes = (time.monotonic() - began) / 60
    console.print(f"{output}\n{output.with_suffix('.html')}\nIn {minutes:.1f} minutes.", soft_wrap=True)
    outcomes = [outcome for section in measured for outcome in section.outcomes]
    if invalid := sum(len(each.runs) - len(each.valid) for each in outcomes):
        console.print(
            f"[bold red]{invalid} of {sum(len(each.runs) for each in outcomes)} runs are invalid: see above.[/]"
        )
    if missing := [each.name for each in outcomes if each.failed]:
        console.print(f"[bold red]{len(missing)} did not run, each with its reason above.[/]")


@contextmanager
def progress_line(what: str, repetitions: int) -> Generator[Any]:
    """Show what runs, and what the last run found."""
    last = ""
    with Status(what, console=console) as status:

        def progress(candidate: str, repetition: int, found: Run | None) -> None:
            nonlocal last
            if found is not None:
                shown = [name for name in SCENARIOS[what.split()[-1]].columns if name in found.figures][:2]
                figures = (f"{FIGURES[name].title} {found.figures[name]:,.2f} {FIGURES[name].unit}" for name in shown)
                last = f"  [dim]{candidate}: {', '.join(figures)}[/]"
            status.update(f"{what}, {repetition + 1} of {repetitions}: {candidate}{last}")

        yield progress


@app.command()
def micro(
    sockets: int = typer.Option(1000, min=1, help="Local sockets of the fan-out."),
    rounds: int = typer.Option(30, min=3, help="Rounds per figure; the median is shown."),
) -> None:
    """Measure the parts by themselves, each beside a bare loop that does only the necessary work."""
    # Imported where they are measured.
    from benchmarks.micro import asgi, centrifugal, codec, counting, excludes, fanout, import_time, patterns, sdk

    console.print(f"Python {platform.python_version()} on {platform.system()} {platform.machine()}, one process")
    with console.status("codec"):
        show("Codec, 128 bytes", codec.run(rounds))
    with console.status("Centrifugal client protocol"):
        show("Publication of 128 bytes for SDK clients, once per message and encoding", centrifugal.run(rounds))
    with console.status("fan-out"):
        show(f"Fan-out of one message of 128 bytes to {sockets:,} sockets, per delivery", fanout.run(sockets, rounds))
    with console.status("counting"):
        for subscribers, messages in ((1, 1), (1, 16), (sockets, 1)):
            title = f"The hub alone, {subscribers:,} subscribers, {messages} messages in one pass, per message"
            show(title, counting.hub(subscribers, 10 * rounds, messages))
        show("What a publish counts, per publish", counting.publish(rounds))
        show(f"One message on the lane to {sockets:,} clients, per delivery", counting.lane(sockets, rounds))
    with console.status("excludes"):
        for messages in (1, 64):
            title = f"{messages} in one pass for {sockets:,} connections with shared compression, without the writes"
            show(title, excludes.run(sockets, rounds, messages))
    with console.status("patterns"):
        show("A message on a worker with patterns, before its fan-out, per message", patterns.run(rounds, 1_000))
    for messages in (1, 16):
        with console.status("SDK rooms"):
            title = f"{messages} at a time, in frames of 132 bytes, to {sockets:,} clients on the lane, per delivery"
            show(title, sdk.run(sockets, rounds, messages))
    with console.status("plain ASGI"):
        show(f"One message of 128 bytes by plain ASGI to {sockets:,} clients, per delivery", asgi.run(sockets, rounds))
    with console.status("import"):
        show("Import, in a fresh interpreter", import_time.run(min(rounds, 10)))


@app.command("micro-channels")
def micro_channels(
    urls: list[str] = typer.Argument(help="Brokers to measure, such as memory:// ipc://bench redis://localhost"),  # noqa: B008
    count: int = typer.Option(10_000, min=1, help="How many channels."),
) -> None:
    """Measure what many channels cost on each adapter: time to subscribe, memory per channel."""
    from benchmarks.micro import channels as many_channels

    found_table = Table(title=f"{count:,} channels, subscribed in batches of 500", title_justify="left")
    found_table.add_column("adapter")
    for column in ("subscribe s", "µs per channel", "unsubscribe s", "bytes per channel"):
        found_table.add_column(column, justify="right")
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
        found_table.add_row(found.url, *row)
    console.print(found_table)


@app.command("micro-sync")
def micro_sync(
    url: str = typer.Argument(help="A Redis, such as redis://localhost"),
    rounds: int = typer.Option(20, min=3, help="Rounds per figure; the median is shown."),
) -> None:
    """Measure a publish from synchronous code beside redis-py's blocking PUBLISH, side by side, as wall time."""
    from benchmarks.micro import sync_publish  # imported where it is measured

    for threads in (1, 8, 32):
        with console.status(f"{threads} threads"):
            found = sync_publish.run(url, rounds, threads)
        show(f"A publish of 200 bytes, {threads} thread{'s' if threads > 1 else ''}, median of the calls", found)


@app.command("micro-presence")
def micro_presence(
    rounds: int = typer.Option(30, min=3, help="Rounds per figure; the median is shown."),
) -> None:
    """Measure presence by itself, without a broker: a received change, a join or a leave, the memory of an entry."""
    from benchmarks.micro import presence  # imported where it is measured

    with console.status("messages"):
        show("One change of a room of 20, of which every other one is a join or a leave", presence.run(rounds))
    found = Table(title="10,000 entries of four owners, held by a worker that watches", title_justify="left")
    for column in ("rooms", "info of each", "bytes per entry"):
        found.add_column(column, justify="right")
    for rooms in (500, 10):
        for info in (False, True):
            with console.status("memory"):
                held = presence.entries(rooms, 10_000, info=info)
            found.add_row(f"{rooms:,}", "24 bytes" if info else "none", f"{held.bytes_per_entry:,.0f}")
    console.print(found)


@app.command("micro-tracing")
def micro_tracing(
    sockets: int = typer.Option(200, min=1, help="Clients on plain ASGI."),
    rounds: int = typer.Option(30, min=3, help="Rounds per figure; the median is shown."),
) -> None:
    """Measure tracing by itself, and OpenTelemetry's instrumentation of FastAPI on plain ASGI."""
    from benchmarks.micro import tracing  # imported where it is measured

    with console.status("publishes"):
        show("A publish of 128 bytes on memory://, received by one subscriber", tracing.run_publishes(rounds))
    with console.status("instrumentation"):
        title = f"One message of 128 bytes by plain ASGI to {sockets:,} clients, per delivery"
        show(title, tracing.run_instrumented(sockets, rounds))


def show(title: str, figures: list[Figure]) -> None:
    """Print one table; the first row is the floor the others are compared to."""
    found = Table(title=title, title_justify="left")
    found.add_column("what")
    for column in ("median µs", "min µs", "max µs", "x floor"):
        found.add_column(column, justify="right")
    floor = figures[0].median
    for figure in figures:
        row = (figure.median, min(figure.microseconds), max(figure.microseconds))
        found.add_row(figure.name, *(f"{value:,.2f}" for value in row), f"{figure.median / floor:.2f}")
    console.print(found)


if __name__ == "__main__":
    sys.exit(app())
