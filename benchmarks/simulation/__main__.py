"""Command line of the simulation."""

from __future__ import annotations

import sys
from typing import Annotated, cast, get_args

import typer

from benchmarks.simulation.cases import CASES, simulate
from benchmarks.simulation.fleet import Balance, Setup
from benchmarks.simulation.tables import PAGE, describe, recommended, rewritten, tables

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

Number = Annotated[int, typer.Option(min=1)]
Seconds = Annotated[float, typer.Option(min=0.0)]


@app.command()
def main(
    case: Annotated[str | None, typer.Argument(help=f"{', '.join(CASES)}; without one the tables are printed.")] = None,
    *,
    clients: Number = 1_000_000,
    workers: Number = 50,
    handshakes_per_second: Annotated[float, typer.Option(min=0.1, help="What one worker takes.")] = 880.0,
    drain_seconds: Seconds = 5.0,
    first_pause_seconds: Annotated[float, typer.Option(min=0.0, help="First bound after a close frame.")] = 0.5,
    lost_pause_seconds: Annotated[float, typer.Option(min=0.0, help="First bound without one, or if refused.")] = 0.5,
    longest_pause_seconds: Seconds = 10.0,
    patience_seconds: Annotated[float, typer.Option(min=0.1, help="A proxy's timeout.")] = 60.0,
    notice_seconds: Annotated[float, typer.Option(min=0.0, help="Until the balancer leaves a worker.")] = 2.0,
    start_seconds: Seconds = 10.0,
    replaced_at_once: Number = 1,
    balance: Annotated[str, typer.Option(help="even: in turn; least: fewest connections first.")] = "even",
    seed: int = 17,
    best: Annotated[bool, typer.Option("--recommended", help="Compute drain and pause as the page does.")] = False,
    write: Annotated[bool, typer.Option("--write", help="Write the tables into docs/operations/scale.md.")] = False,
) -> None:
    """Simulate how clients come back to their workers; see docs/operations/scale.md."""
    if write:
        PAGE.write_text(rewritten(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    elif case is None:
        typer.echo("\n".join(tables().values()), nl=False)
    elif case not in CASES:
        raise typer.BadParameter(f"a case is one of {', '.join(CASES)}")
    elif balance not in get_args(Balance):
        raise typer.BadParameter("--balance is even or least")
    else:
        setup = Setup(
            clients=clients,
            workers=workers,
            handshakes_per_second=handshakes_per_second,
            drain_seconds=drain_seconds,
            first_pause_seconds=first_pause_seconds,
            lost_pause_seconds=lost_pause_seconds,
            longest_pause_seconds=longest_pause_seconds,
            patience_seconds=patience_seconds,
            notice_seconds=notice_seconds,
            start_seconds=start_seconds,
            replaced_at_once=replaced_at_once,
            balance=cast("Balance", balance),
            seed=seed,
        )
        typer.echo(describe(case, simulate(case, recommended(setup) if best else setup)))


if __name__ == "__main__":
    sys.exit(app())
