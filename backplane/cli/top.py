"""`backplane top`: the figures of all workers, as they change."""

from __future__ import annotations

import asyncio
import json
import signal
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group
from rich.live import Live
from rich.text import Text

from backplane.cli.keys import calling_at_keys
from backplane.cli.observer import SecretOption, WaitOption, observed, reporting_errors
from backplane.cli.terminal import UrlArgument, discard_output, out, progress, resolve_url
from backplane.cli.top_view import TopOrder, overview_view

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from contextlib import AbstractContextManager

    from rich.console import RenderableType

    from backplane.stats.overview import Overview

__all__ = ["top"]


def top(
    url: UrlArgument = "env",
    sort: Annotated[TopOrder, typer.Option(help="Which workers come first.")] = "name",
    channels: Annotated[int, typer.Option(min=0, max=20, help="How many channels to show.")] = 10,
    interval: Annotated[
        float, typer.Option(min=2, max=3600, metavar="S", help="The time between two updates, in seconds.")
    ] = 2,
    once: Annotated[bool, typer.Option("--once", help="Show the figures once, and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
    seconds: WaitOption = 3.3,
    control_secret: SecretOption = None,
) -> None:
    """Show all workers as they change: links, clients, rates, lags, what waits, and what is wrong.

    It needs the broker alone; workers send their figures only while it runs. `q` or
    Ctrl-C ends it. Where the output is no terminal it prints once.

    Exit status: 0, 1 the broker is not usable, 2 the URL or an option is wrong.
    """
    is_live = out.is_terminal and not (once or as_json)

    def view(overview: Overview, masked: str) -> RenderableType:
        return overview_view(overview, sort=sort, channels=channels, width=out.width, url=masked)

    display = _json_lines if as_json else partial(_screen if is_live else _plain, view)
    is_once = once or not (is_live or as_json)
    with reporting_errors(as_json=as_json):
        try:
            asyncio.run(_watch(resolve_url(url), control_secret, seconds, interval, display, is_once=is_once))
        except (KeyboardInterrupt, asyncio.CancelledError):
            pass
        except BrokenPipeError:
            discard_output()


async def _watch(
    url: str,
    secret: str | None,
    seconds: float,
    interval: float,
    display: Callable[[Callable[[], object]], AbstractContextManager[Callable[[Overview, str], None]]],
    *,
    is_once: bool,
) -> None:
    """Show overviews until the task is cancelled, as by a key or a signal.

    Args:
        url: The broker.
        secret: Signs what is asked.
        seconds: After which time all workers are known.
        interval: The time between two overviews, in seconds.
        display: Returns a block in which an overview is shown by a call; it is passed what ends the command.
        is_once: End after the first one.
    """
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with ExitStack() as connecting:
        on_progress = connecting.enter_context(progress())
        on_progress("connecting")
        async with (
            observed(url, secret, seconds) as backplane,
            backplane.overviews(interval_seconds=interval, with_rates=True) as overviews,
        ):
            on_progress("waiting for the workers")
            overview = await anext(overviews)
            connecting.close()
            with display(task.cancel) as show:
                show(overview, backplane.url)
                if is_once:
                    return
                async for overview in overviews:
                    show(overview, backplane.url)


@contextmanager
def _screen(
    view: Callable[[Overview, str], RenderableType], end: Callable[[], object]
) -> Generator[Callable[[Overview, str], None]]:
    with Live(console=out, screen=True, auto_refresh=False) as live, calling_at_keys("qQ", end):

        def show(overview: Overview, masked: str) -> None:
            live.update(Group(view(overview, masked), Text("\nq ends", style="dim")), refresh=True)

        yield show


@contextmanager
def _plain(
    view: Callable[[Overview, str], RenderableType], _end: Callable[[], object]
) -> Generator[Callable[[Overview, str], None]]:
    yield lambda overview, masked: out.print(view(overview, masked))


@contextmanager
def _json_lines(_end: Callable[[], object]) -> Generator[Callable[[Overview, str], None]]:
    yield lambda overview, _: typer.echo(json.dumps(overview.to_json()))
