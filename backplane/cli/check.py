"""`backplane check`: whether a broker can be used."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from backplane.channels import MAX_CHANNEL_BYTES
from backplane.cli.diagnosis import describe_reach, describe_return, diagnose, format_size
from backplane.cli.terminal import (
    UrlArgument,
    fail,
    out,
    progress,
    resolve_url,
    showing_warnings,
    visible,
)
from backplane.errors import ConfigurationError, InvalidChannelError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backplane.broadcaster import Capabilities
    from backplane.cli.diagnosis import Diagnosis

__all__ = ["check"]


def check(
    url: UrlArgument = "env",
    channel: Annotated[
        str | None,
        typer.Option(help="Channel to use; its subscribers receive the messages.", show_default="a random one"),
    ] = None,
    messages: Annotated[int, typer.Option(min=1, help="How many messages make the round trip.")] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check whether a broker can be used, what it is, and how fast a message returns.

    Exit status: 0 usable, 1 the broker or the way to it is not usable,
    2 the URL or an option is wrong.
    """
    try:
        with showing_warnings(), progress() as on_progress:
            diagnosis = asyncio.run(
                diagnose(resolve_url(url), channel=channel, messages=messages, on_progress=on_progress)
            )
    except (ConfigurationError, InvalidChannelError) as error:
        if as_json:
            typer.echo(json.dumps({"ok": False, "problem": str(error)}))
        fail(str(error), status=2)
    if as_json:
        typer.echo(json.dumps(_as_json(diagnosis)))
    else:
        out.print(_table(diagnosis))
    if diagnosis.problem is not None:
        fail(diagnosis.problem)


def _as_json(diagnosis: Diagnosis) -> dict[str, Any]:
    return {
        "ok": diagnosis.problem is None,
        "problem": diagnosis.problem,
        "url": diagnosis.url,
        "broker": diagnosis.broker,
        "connect_seconds": diagnosis.connect_seconds,
        "round_trip": {
            "messages": len(diagnosis.round_trips_seconds),
            "p50_seconds": diagnosis.round_trip_percentile(50),
            "p99_seconds": diagnosis.round_trip_percentile(99),
        }
        if diagnosis.round_trips_seconds
        else None,
        "capabilities": asdict(diagnosis.capabilities),
        "max_channel_bytes": MAX_CHANNEL_BYTES,
    }


def _table(diagnosis: Diagnosis) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in (*_measurements(diagnosis), *_capabilities(diagnosis.capabilities)):
        table.add_row(name, Text(visible(text)))
    return table


def _measurements(diagnosis: Diagnosis) -> Iterator[tuple[str, str]]:
    yield "url", diagnosis.url
    if diagnosis.connect_seconds is not None:
        yield "broker", diagnosis.broker or "not described by its adapter"
        yield "connected", f"in {_milliseconds(diagnosis.connect_seconds)}"
    if diagnosis.round_trips_seconds:
        median, slow = (_milliseconds(diagnosis.round_trip_percentile(percent)) for percent in (50, 99))
        yield "round trip", f"p50 {median}, p99 {slow}, {len(diagnosis.round_trips_seconds):,} messages"


def _capabilities(capabilities: Capabilities) -> Iterator[tuple[str, str]]:
    yield "reaches", describe_reach(capabilities)
    yield "publish", f"when it returns: {describe_return(capabilities)}"
    if capabilities.brokered:
        yield "lost link", "continues where it was" if capabilities.resumes else "recovers, with a gap"
    yield "limits", f"{format_size(capabilities.max_payload_bytes)} a message, header included"
    yield "", f"{MAX_CHANNEL_BYTES} bytes a channel name"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.2f} s"
