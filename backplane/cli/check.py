"""`backplane check`: whether a broker can be used."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from backplane.channels import MAX_CHANNEL_BYTES
from backplane.cli.diagnosis import describe_reach, describe_return, diagnose, format_size
from backplane.cli.observer import JsonOption, SecretOption, WaitOption, observed, seen_workers
from backplane.cli.terminal import (
    UrlArgument,
    fail,
    out,
    progress,
    resolve_url,
    showing_warnings,
    visible,
)
from backplane.errors import BrokerError, ConfigurationError, InvalidChannelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from backplane.broadcaster import Capabilities
    from backplane.cli.diagnosis import Diagnosis
    from backplane.cli.observer import Seen

__all__ = ["check"]


def check(
    url: UrlArgument = "env",
    channel: Annotated[
        str | None,
        typer.Option(help="Channel to use; its subscribers receive the messages.", show_default="a random one"),
    ] = None,
    messages: Annotated[int, typer.Option(min=1, help="How many messages make the round trip.")] = 100,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Wait for heartbeats too, and fail unless N workers are seen: fewer at a wrong broker or database.",
            show_default=False,
        ),
    ] = None,
    seconds: WaitOption = 3.3,
    as_json: JsonOption = False,
    control_secret: SecretOption = None,
) -> None:
    """Check whether a broker can be used, what it is, how fast a message returns, and which workers are there.

    Exit status: 0 usable, 1 the broker or the way to it is not usable, or another number of workers
    is there, 2 the URL or an option is wrong.
    """
    seen: Seen | None = None
    try:
        with showing_warnings(), progress() as on_progress:
            url = resolve_url(url)
            diagnosis = asyncio.run(diagnose(url, channel=channel, messages=messages, on_progress=on_progress))
            if workers is not None and diagnosis.problem is None:
                diagnosis, seen = asyncio.run(
                    _count_workers(diagnosis, url, control_secret, seconds, workers, on_progress)
                )
    except (ConfigurationError, InvalidChannelError) as error:
        if as_json:
            typer.echo(json.dumps({"ok": False, "problem": str(error)}))
        fail(str(error), status=2)
    if as_json:
        typer.echo(json.dumps(_as_json(diagnosis, seen)))
    else:
        out.print(_table(diagnosis, seen))
    if diagnosis.problem is not None:
        fail(diagnosis.problem)


async def _count_workers(
    diagnosis: Diagnosis,
    url: str,
    secret: str | None,
    seconds: float,
    expected: int,
    on_progress: Callable[[str], None],
) -> tuple[Diagnosis, Seen | None]:
    """Return the diagnosis with what the number of workers adds to it."""
    try:
        async with observed(url, secret, seconds) as backplane:
            seen = await seen_workers(backplane, secret, seconds, on_progress)
    except BrokerError as error:
        return replace(diagnosis, problem=str(error)), None
    problem = None
    if seen.alive != expected:
        found = seen.problem or seen.remark or "is this the broker, the database and the prefix of the others?"
        problem = f"{seen.alive:,} of {expected:,} workers are seen: {found}"
    return replace(diagnosis, problem=problem), seen


def _as_json(diagnosis: Diagnosis, seen: Seen | None) -> dict[str, Any]:
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
        "workers": None if seen is None else seen.alive,
    }


def _table(diagnosis: Diagnosis, seen: Seen | None) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    workers = [] if seen is None else [("workers", f"{seen.alive:,} seen")]
    for name, text in (*_measurements(diagnosis), *workers, *_capabilities(diagnosis.capabilities)):
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
        if capabilities.parts:
            yield "lost node", "a gap for its channels alone"
    yield "patterns", 'subscribe("prices.*") receives every channel that matches' if capabilities.patterns else "none"
    yield "limits", f"{format_size(capabilities.max_payload_bytes)} a message, header included"
    yield "", f"{MAX_CHANNEL_BYTES} bytes a channel name"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.2f} s"
