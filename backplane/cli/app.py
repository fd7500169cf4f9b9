"""The commands put together."""

from __future__ import annotations

import sys
from importlib.metadata import version
from io import TextIOWrapper
from typing import Annotated

import typer

from backplane.cli.bench import bench
from backplane.cli.check import check
from backplane.cli.demo import demo
from backplane.cli.publish import publish
from backplane.cli.run import run
from backplane.cli.tail import tail

__all__ = ["app", "main"]

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def main() -> None:
    """Run the command line: the console script `backplane`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that is not UTF-8 shows what it can
    app(prog_name="backplane")


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(version("fastapi-backplane"))
        raise typer.Exit


@app.callback()
def backplane_command(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Pub/sub backplane for FastAPI and Starlette WebSockets."""


for command in (demo, run, check, publish, tail, bench):
    app.command()(command)
