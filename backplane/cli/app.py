"""The commands, registered under one program."""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated

import typer

from backplane import __version__
from backplane.cli.bench import bench
from backplane.cli.check import check
from backplane.cli.demo import demo
from backplane.cli.disconnect import disconnect
from backplane.cli.doctor import doctor
from backplane.cli.present import present
from backplane.cli.publish import publish
from backplane.cli.run import run
from backplane.cli.schema import schema
from backplane.cli.survey import survey
from backplane.cli.tail import tail
from backplane.cli.terminal import discard_output, err, visible
from backplane.cli.top import top
from backplane.cli.why import why
from backplane.cli.workers import workers

__all__ = ["app", "main"]

app: typer.Typer = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def main() -> None:
    """Run the command line: the console script `backplane`."""
    _replace_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for a terminal that is not UTF-8
    try:
        app(prog_name="backplane")
    except OSError as error:  # of standard output, such as a full disk; a broker's error is a BackplaneError
        discard_output()
        err.print(visible(f"backplane: {error}"), soft_wrap=True)
        raise SystemExit(1) from None


def _replace_closed_streams() -> None:
    """Replace a closed output stream: a socket that took its descriptor would receive what is printed."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115  # until the process ends


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def backplane_command(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Pub/sub backplane for FastAPI and Starlette WebSockets."""


_COMMANDS = (demo, run, check, publish, tail, workers, top, doctor, why, present, disconnect, survey, schema, bench)
for _command in _COMMANDS:
    app.command()(_command)
