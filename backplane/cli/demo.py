"""`backplane demo`: a chat on several workers."""

from __future__ import annotations

import asyncio
import errno
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from backplane.broker.registry import broadcaster_from_url
from backplane.cli.terminal import exiting_on_errors, fail, note, out, require_modules, resolve_url, url_option
from backplane.core import Backplane
from backplane.demo.history import history_on

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

__all__ = ["demo"]


def demo(
    url: Annotated[str | None, url_option("ipc://demo-<port>")] = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="How many worker processes.")] = 4,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
) -> None:
    """Run a chat on several workers, to see one room span them all."""
    require_modules("the demo", "fastapi", "gunicorn", "uvicorn", "uvicorn_worker", "websockets")
    with exiting_on_errors():
        url = None if url is None else resolve_url(url)
    with suppress(KeyboardInterrupt), _listen(host, port) as listener:
        _run_demo(url, workers, listener)


def _run_demo(url: str | None, workers: int, listener: socket.socket) -> None:
    from backplane.demo.server import Announcements, serve  # after the check of the modules it needs

    address, port = listener.getsockname()[:2]
    url = url or f"ipc://demo-{port}"
    masked_url = _check_broker(url)
    os.environ["BACKPLANE_URL"] = url
    split = workers > 1 and broadcaster_from_url(url).capabilities.reach == "process"
    announcements = Announcements(
        ready=lambda pids: out.print(_ready_panel(_web_address(address, port), pids, masked_url, split=split)),
        ended=lambda pid: note(f"worker {pid} ended; a new one starts", console=out),
        replaced=lambda pid: note(f"worker {pid} replaced it", console=out),
    )
    if not serve("backplane.demo.app:app", listener, workers=workers, announcements=announcements):
        fail(f"a worker could not start: is the broker at {masked_url} still running?")


def _listen(host: str, port: int) -> socket.socket:
    from backplane.demo.server import listen

    try:
        return listen(host, port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            fail(f"port {port} on {host} is in use: choose another one, such as --port {port % 65535 + 1}")
        fail(f"cannot listen on {host}, port {port}: {error.strerror or error}")


def _check_broker(url: str) -> str:
    """Connect once, so that an error is reported once and not by every worker; return the URL, masked."""
    with exiting_on_errors():
        backplane = Backplane(url, history=history_on(url))
        asyncio.run(_connect_once(backplane))
    return backplane.url


async def _connect_once(backplane: Backplane) -> None:
    async with backplane:
        pass


def _web_address(address: str, port: int) -> str:
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)  # noqa: S104  # "every address" cannot be opened
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"


def _ready_panel(web_address: str, pids: Sequence[int], masked_url: str, *, split: bool) -> Panel:
    in_two_windows = "two rooms, as this broker does not join workers" if split else "two workers, one room"
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="dim")
    rows.add_column(overflow="fold")
    rows.add_row("open", Text(web_address, style=f"bold link {web_address}"))
    rows.add_row("", f"in two windows: {in_two_windows}")
    rows.add_row("workers", f"{len(pids)} ({', '.join(map(str, pids))})")
    rows.add_row("broker", Text(masked_url))
    rows.add_row("end", "Ctrl-C")
    return Panel(rows, title="backplane demo", title_align="left", border_style="dark_orange3", expand=False)
