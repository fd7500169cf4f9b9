"""`backplane run`: an application under Uvicorn with the direct lane."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from typing import Annotated, Literal

import typer

from backplane.broker.registry import broadcaster_from_url
from backplane.cli.terminal import exiting_on_errors, fail, require_modules, resolve_url, url_option
from backplane.server.bounds import BOUNDS

__all__ = ["run"]


def run(
    application: Annotated[
        str, typer.Argument(metavar="APP", help="The application: `package.module:name`.", show_default=False)
    ],
    more: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- OPTIONS]", help="Any other option of Uvicorn, after `--`.", show_default=False),
    ] = None,
    url: Annotated[str | None, url_option("BACKPLANE_URL")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="How many worker processes.", show_default="WEB_CONCURRENCY, or 1")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    uds: Annotated[
        str | None, typer.Option(metavar="PATH", help="Unix socket to listen on instead.", show_default=False)
    ] = None,
    reload: Annotated[bool, typer.Option("--reload", help="Restart when a file changes.")] = False,
    factory: Annotated[bool, typer.Option("--factory", help="APP is a function that makes the application.")] = False,
    log_level: Annotated[
        Literal["critical", "error", "warning", "info", "debug", "trace"], typer.Option(help="Log level of Uvicorn.")
    ] = "info",
    timeout_graceful_shutdown: Annotated[
        int, typer.Option(min=0, metavar="SECONDS", help="Limit of the shutdown after the drain.")
    ] = BOUNDS["timeout_graceful_shutdown"],
    shared_compression: Annotated[
        bool, typer.Option("--shared-compression", help="Compress what is published once for all clients.")
    ] = False,
) -> None:
    """Run an application under Uvicorn, with the direct lane to its WebSockets."""
    require_modules("to run an application", "uvicorn", "websockets")
    _check_application(application)
    if url is not None:
        with exiting_on_errors():
            url = resolve_url(url)
            broadcaster_from_url(url)
        os.environ["BACKPLANE_URL"] = url  # inherited by the workers
    protocol = "SharedCompressionProtocol" if shared_compression else "DirectLaneProtocol"
    options = {
        "--http": "backplane.server.http:BoundedHTTPProtocol",
        "--ws": f"backplane.server.uvicorn:{protocol}",
        "--ws-max-size": BOUNDS["ws_max_size"],
        "--ws-per-message-deflate": shared_compression or BOUNDS["ws_per_message_deflate"],
        "--workers": workers,
        "--host": host,
        "--port": port,
        "--uds": uds,
        "--log-level": log_level,
        "--timeout-graceful-shutdown": timeout_graceful_shutdown,
    }
    arguments = [f"{name}={value}" for name, value in options.items() if value is not None]
    arguments += ["--reload"] * reload + ["--factory"] * factory
    _uvicorn([application, *arguments, *(more or ())])


def _check_application(application: str) -> None:
    """Report a wrong APP before a server starts; the workers import the module itself."""
    module, colon, name = application.partition(":")
    if not (module and colon and name):
        hint = (module.removesuffix(".py").replace("/", ".") or "main") + ":app"
        fail(f"{application!r} does not name an application: write package.module:name, as in {hint}", status=2)
    sys.path.insert(0, "")  # as Uvicorn does: modules of the current folder
    try:
        found = find_spec(module)
    except (ImportError, ValueError) as error:
        fail(f"cannot import {module!r}: {error}", status=2)
    if found is None:
        fail(f"there is no module {module!r} here: run this in the folder that holds it", status=2)


def _uvicorn(arguments: list[str]) -> None:
    from uvicorn.main import main  # after the check of the modules it needs

    main(arguments, prog_name="backplane run")
