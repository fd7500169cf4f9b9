"""`backplane bench`: fan-out through your broker, from the time a message is due until the last socket received it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.table import Table
from rich.text import Text

from backplane.broker.registry import broadcaster_from_url
from backplane.cli.load import Load, LoadError
from backplane.cli.terminal import (
    exiting_on_errors,
    fail,
    out,
    progress,
    require_modules,
    resolve_url,
    url_option,
    visible,
)
from backplane.core import Backplane

if TYPE_CHECKING:
    from collections.abc import Generator

    from starlette.applications import Starlette
    from starlette.websockets import WebSocket

__all__ = ["bench", "make_app"]

_CHANNEL: Final = "backplane-bench"
_START_SECONDS: Final = 30.0


def bench(
    url: Annotated[str, url_option("BACKPLANE_URL")] = "env",
    workers: Annotated[int, typer.Option(min=1, max=64, help="How many worker processes.")] = 2,
    connections: Annotated[int, typer.Option(min=1, help="Sockets that receive each message.")] = 200,
    rate: Annotated[float, typer.Option(min=0.1, help="Messages per second.")] = 20.0,
    seconds: Annotated[float, typer.Option(min=0.1, help="Duration of the measurement.")] = 5.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure how long a message takes through a broker to many WebSockets.

    Exit status: 0 everything arrived once, 1 it did not or the figures are invalid,
    2 the URL or an option is wrong.
    """
    require_modules("bench", "uvicorn", "websockets")
    with exiting_on_errors():
        url = resolve_url(url)
        broadcaster = broadcaster_from_url(url)
        if workers > 1 and broadcaster.capabilities.reach == "process":
            fail(f"{broadcaster.url} reaches one process only: use --workers 1, or another broker", status=2)
        asyncio.run(_connect_once(url))
    load = Load(connections, rate, seconds)
    with progress() as on_progress, _served(url, workers) as port:
        on_progress(f"{workers} workers, {connections:,} sockets, {rate:g} messages/s for {seconds:g} s")
        try:
            asyncio.run(load.run(port, workers))
        except LoadError as error:
            fail(str(error))
    found = {"url": str(broadcaster.url), **load.figures()}
    if as_json:
        typer.echo(json.dumps(found))
    else:
        out.print(_table(found))
    if found["problem"]:
        fail(found["problem"])


def make_app() -> Starlette:
    """Return the workers' application: `/receive` sends its process id and joins, `/publish` publishes."""
    from starlette.applications import Starlette
    from starlette.routing import WebSocketRoute

    backplane = Backplane()

    async def receive(websocket: WebSocket) -> None:
        async with backplane.connect(websocket, _CHANNEL) as connection:
            await connection.send(f"worker {os.getpid()}")
            async for _ in connection:
                pass

    async def publish(websocket: WebSocket) -> None:
        await websocket.accept()
        async for text in websocket.iter_text():
            await backplane.publish(_CHANNEL, text)

    return Starlette(
        routes=[WebSocketRoute("/receive", receive), WebSocketRoute("/publish", publish)], lifespan=backplane.lifespan
    )


async def _connect_once(url: str) -> None:
    """Report what is wrong with the broker once, before any worker starts."""
    async with Backplane(url):
        pass


@contextmanager
def _served(url: str, workers: int) -> Generator[int]:
    """Serve as `backplane run` does; yield the port once it accepts connections."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "backplane.cli", "run", "backplane.cli.bench:make_app", "--factory"]
    command += ["--workers", str(workers), "--port", str(port), "--log-level", "warning"]
    environment = {**os.environ, "BACKPLANE_URL": url}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)  # noqa: S603  # this package
        try:
            deadline = time.monotonic() + _START_SECONDS
            while not _accepts(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    fail(f"no worker started: {log.read().decode(errors='replace').strip()[-300:]}")
                time.sleep(0.05)
            yield port
        finally:
            process.terminate()
            process.wait()


def _accepts(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _table(found: dict[str, Any]) -> Table:
    workers = ", ".join(map(str, found["sockets_per_worker"]))
    rows = {
        "url": found["url"],
        "sockets": f"{workers} on each worker, on the direct lane",
        "one socket": _milliseconds(found["latency_seconds"]),
        "last socket": _milliseconds(found["last_socket_seconds"]),
        "arrived": f"{found['deliveries']:,} of {found['messages'] * sum(found['sockets_per_worker']):,}, "
        f"{found['lost']:,} lost, {found['duplicated']:,} duplicated",
        "clients": f"one Python process, {found['client_cpu_percent']} % busy; the times include its own delay",
    }
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, words in rows.items():
        table.add_row(name, Text(visible(words)))
    return table


def _milliseconds(found: dict[str, float] | None) -> str:
    return ", ".join(f"{name} {seconds * 1000:.3g} ms" for name, seconds in (found or {}).items()) or "nothing arrived"
