"""`backplane why`: why a client does not receive a channel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from backplane.channels import validate_channel
from backplane.cli.observer import (
    JsonOption,
    SecretOption,
    WaitOption,
    observed,
    print_json,
    printing,
    reporting_errors,
    run,
    seen_workers,
)
from backplane.cli.terminal import UrlArgument, fail, out, progress, resolve_url, showing_warnings, visible

if TYPE_CHECKING:
    from collections.abc import Callable

    from backplane.explain.explanation import Explanation

__all__ = ["why"]

_SIGNS = {True: "✗", False: "·"}


def why(
    url: UrlArgument = "env",
    channel: Annotated[
        str, typer.Option("--channel", metavar="CHANNEL", help="The channel, as its whole name.", show_default=False)
    ] = "",
    client: Annotated[
        str | None,
        typer.Option(
            "--client",
            metavar="CLIENT",
            help="The id of a connection or event stream, the first digits of one, a user, or a client_key. Without it "
            "the channel alone is looked at.",
            show_default=False,
        ),
    ] = None,
    no_test: Annotated[
        bool, typer.Option("--no-test", help="Publish no test message on the channel, which no client receives.")
    ] = False,
    timeout: Annotated[float, typer.Option(min=0.1, max=60, metavar="S", help="How long to wait for answers.")] = 2,
    seconds: WaitOption = 3.3,
    as_json: JsonOption = False,
    control_secret: SecretOption = None,
) -> None:
    """Explain why a client does not receive a channel, and what to do about it.

    Every worker is asked, and a test message is followed from here to each of them.

    Exit status: 0 the way is whole, 1 a fault was found, or the broker is not usable,
    2 the URL, the channel or an option is wrong.
    """
    with showing_warnings(), progress() as on_progress, reporting_errors(as_json=as_json):
        url = resolve_url(url)
        name = validate_channel(channel)
        masked, found = run(_ask(url, name, client, not no_test, timeout, control_secret, seconds, on_progress))
    if as_json:
        print_json(ok=found.is_whole, url=masked, **found.to_json())
    else:
        _print(found)
    if not found.is_whole:
        fail(found.text, status=1)


async def _ask(
    url: str,
    channel: str,
    client: str | None,
    test: bool,
    timeout: float,
    secret: str | None,
    seconds: float,
    on_progress: Callable[[str], None],
) -> tuple[str, Explanation]:
    on_progress("connecting")
    async with observed(url, secret, seconds) as backplane:
        await seen_workers(backplane, secret, seconds, on_progress)
        on_progress(f"asking the workers about {channel!r}")
        found = await backplane.explain(channel=channel, client=client, test=test, timeout_seconds=timeout)
        return backplane.url, found


def _print(found: Explanation) -> None:
    with printing():
        for finding in found.findings:
            out.print(f"{_SIGNS[finding.is_fault]} {visible(finding.text)}", soft_wrap=True, markup=False)
            if finding.cure:
                out.print(f"  {visible(finding.cure)}", soft_wrap=True, markup=False, style="dim")
        if found.is_whole:
            out.print(f"✓ {visible(found.text)}", soft_wrap=True, markup=False)
            out.print(f"  {visible(found.cure)}", soft_wrap=True, markup=False, style="dim")
        answered = len(found.workers)
        asked = answered + len(found.missing)
        out.print(f"{answered} of {asked} worker{'' if asked == 1 else 's'} answered", style="dim", soft_wrap=True)
