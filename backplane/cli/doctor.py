"""`backplane doctor`: all that can be checked of a deployment, a line each, with what to do."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from backplane.broker.registry import broadcaster_from_url
from backplane.channels import validate_channel
from backplane.cli.doctor_app import inspect_app
from backplane.cli.doctor_broker import inspect_broker
from backplane.cli.doctor_host import inspect_host
from backplane.cli.doctor_workers import inspect_workers
from backplane.cli.observer import JsonOption, SecretOption, WaitOption, print_json, printing, reporting_errors, run
from backplane.cli.terminal import UrlArgument, fail, out, progress, resolve_url, visible

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from backplane.findings import Finding, Level

__all__ = ["doctor", "findings_of"]

_MARKS: dict[Level, tuple[str, str]] = {
    "ok": ("✓", "green"),
    "warning": ("!", "yellow"),
    "error": ("✗", "red"),
    "skipped": ("-", "dim"),
}


def doctor(
    url: UrlArgument = "env",
    channel: Annotated[
        list[str] | None,
        typer.Option(
            "--channel",
            metavar="CHANNEL",
            help="Test whether this channel reaches every worker with a subscriber to it; can be given several times. "
            "No subscriber receives the test.",
            show_default=False,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="How many workers there should be.", show_default=False),
    ] = None,
    app: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Where the application serves HTTP: its health and metrics are checked too.",
            show_default=False,
        ),
    ] = None,
    seconds: WaitOption = 3.3,
    as_json: JsonOption = False,
    control_secret: SecretOption = None,
) -> None:
    """Check a deployment: this host, the broker and its limits, all workers, and channels.

    One line for each check: ✓, ! for what can fail later, ✗ for what does, each with what to do.

    Exit status: 0 no ✗, 1 a ✗, 2 the URL or an option is wrong.
    """
    with reporting_errors(as_json=as_json), progress() as on_progress:
        url = resolve_url(url)
        channels = [validate_channel(name) for name in channel or ()]
        masked = str(broadcaster_from_url(url).url)
        checks = findings_of(
            url,
            channels=channels,
            workers=workers,
            app=app,
            seconds=seconds,
            secret=control_secret,
            on_progress=on_progress,
        )
        findings = run(_collect(checks, shown=not as_json))
    errors = sum(finding.level == "error" for finding in findings)
    if as_json:
        print_json(ok=not errors, url=masked, findings=[asdict(finding) for finding in findings])
    if errors:
        fail(f"{errors} check{'s' * (errors > 1)} failed", status=1)


async def _collect(checks: AsyncIterator[Finding], *, shown: bool) -> list[Finding]:
    """Return what was found; show each as soon as it is known."""
    findings: list[Finding] = []
    async for finding in checks:
        findings.append(finding)
        if shown:
            with printing():
                out.print(_line(finding), soft_wrap=True)
    return findings


async def findings_of(
    url: str,
    *,
    channels: Sequence[str] = (),
    workers: int | None = None,
    app: str | None = None,
    seconds: float = 3.3,
    secret: str | None = None,
    on_progress: Callable[[str], None] = lambda _: None,
) -> AsyncIterator[Finding]:
    """Yield what is found, one check after the other.

    Args:
        url: The broker.
        channels: The channels to test.
        workers: How many workers there should be, if that is known.
        app: Where the application serves HTTP, if that is to be checked.
        seconds: After which time all workers are known.
        secret: Signs what the workers are asked.
        on_progress: Called with a line about each step.

    Raises:
        ConfigurationError: The URL is wrong.
    """
    can_ask = True
    for finding in inspect_host(url):
        can_ask = can_ask and (finding.check, finding.level) != ("reach", "error")
        yield finding
    if can_ask:
        async for finding in inspect_broker(url, on_progress):
            can_ask = can_ask and finding.level != "error"
            yield finding
    if can_ask:
        async for finding in inspect_workers(url, channels, workers, seconds, secret, on_progress):
            yield finding
    if app is not None:
        on_progress(f"asking {app}")
        for finding in await asyncio.to_thread(inspect_app, app):
            yield finding


def _line(finding: Finding) -> Text:
    mark, style = _MARKS[finding.level]
    line = Text(f"{mark} ", style=style).append(visible(finding.text), style="not dim" if style == "dim" else style)
    return line.append(visible(f"  → {finding.cure}"), style="dim") if finding.cure else line
