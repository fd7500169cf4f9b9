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
from backplane.cli.diagnosis import diagnose, reach_in_words, return_in_words, size_in_words
from backplane.cli.terminal import (
    UrlArgument,
    fail,
    given_url,
    out,
    progress,
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
        typer.Option(help="Where to send; whoever listens sees it.", show_default="a random one"),
    ] = None,
    messages: Annotated[int, typer.Option(min=1, help="How many messages make the round trip.")] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say whether a broker can be used, what it is, and how fast a message comes back.

    Ends with 0 where all is well, 1 where the broker or the way to it is not,
    2 where the URL or an option is wrong.
    """
    try:
        with showing_warnings(), progress() as on_progress:
            diagnosis = asyncio.run(
                diagnose(given_url(url), channel=channel, messages=messages, on_progress=on_progress)
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
    for name, words in (*_findings(diagnosis), *_abilities(diagnosis.capabilities)):
        table.add_row(name, Text(visible(words)))
    return table


def _findings(diagnosis: Diagnosis) -> Iterator[tuple[str, str]]:
    yield "url", diagnosis.url
    if diagnosis.connect_seconds is not None:
        yield "broker", diagnosis.broker or "its adapter does not say"
        yield "connected", f"in {_milliseconds(diagnosis.connect_seconds)}"
    if diagnosis.round_trips_seconds:
        median, slow = (_milliseconds(diagnosis.round_trip_percentile(percent)) for percent in (50, 99))
        yield "round trip", f"p50 {median}, p99 {slow}, {len(diagnosis.round_trips_seconds):,} messages"


def _abilities(capabilities: Capabilities) -> Iterator[tuple[str, str]]:
    yield "reaches", reach_in_words(capabilities)
    yield "publish", f"when it returns: {return_in_words(capabilities)}"
    if capabilities.brokered:
        yield "lost link", "goes on where it was" if capabilities.resumes else "heals, and is told as a gap"
    yield "limits", f"{size_in_words(capabilities.max_payload_bytes)} a message, header included"
    yield "", f"{MAX_CHANNEL_BYTES} bytes a channel name"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.2f} s"
