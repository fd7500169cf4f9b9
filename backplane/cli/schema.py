"""`backplane schema`: print the SQL that an adapter needs."""

from __future__ import annotations

from typing import Annotated

import typer

from backplane.broadcaster import SupportsSchema
from backplane.broker.registry import broadcaster_from_url
from backplane.cli.terminal import exiting_on_errors, fail

__all__ = ["schema"]


def schema(
    url: Annotated[
        str,
        typer.Argument(help="`postgres`, or the URL, whose options decide the names: postgres://host/db?durable=true"),
    ] = "postgres",
) -> None:
    """Print the SQL that creates the tables of an adapter, for a migration. Nothing is connected to."""
    with exiting_on_errors():
        adapter = broadcaster_from_url(url if "://" in url else f"{url}://localhost?durable=true")
    if not isinstance(adapter, SupportsSchema):
        fail(f"{adapter.url} needs no tables: they are for postgres://...?durable=true")
    typer.echo(adapter.schema(), nl=False)
