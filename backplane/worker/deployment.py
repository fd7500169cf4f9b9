"""The deployment of this process, as far as it can be seen, to warn about what will not work there."""

from __future__ import annotations

import logging
import os
import re
import shlex
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from backplane.journal.events import DEPLOYMENT_ISOLATED, SERVER_MISFIT
from backplane.journal.writing import write

if TYPE_CHECKING:
    from backplane.broadcaster import Capabilities
    from backplane.connection.limits import Limits

__all__ = ["NO_LIFESPAN", "server_pid", "warn_if_isolated", "warn_if_no_pings", "warn_of_default_url", "worker_count"]

logger: Final = logging.getLogger("backplane.worker.deployment")

NO_LIFESPAN: Final = (
    "If that is in place, the server does not run the lifespan: Uvicorn with `--lifespan off`, Gunicorn's asgi worker "
    "with `--asgi-lifespan off`, Granian with `--interface asginl`, and Daphne always"
)
"""Why a backplane that its application starts in the lifespan may not be started."""

# Servers whose WebSockets have no pings, or none by default, by a module that their workers import.
_WITHOUT_PINGS: Final = {
    "gunicorn.workers.gasgi": "Gunicorn's asgi worker sends no WebSocket pings",
    "granian._granian": "Granian sends no WebSocket pings",
    "hypercorn.asyncio.run": "Hypercorn sends no WebSocket pings unless its `websocket_ping_interval` is set",
}

_SERVER = re.compile(r"(gunicorn|uvicorn|hypercorn|granian|fastapi|backplane)\b")
_WORKERS_OPTION = re.compile(r"(?:^|\0)(?:-w|--workers)[\0=]?(\d+)(?=\0|$)")


def warn_if_isolated(capabilities: Capabilities, url: str) -> None:
    """Log a warning, with the cure, where the adapter certainly does not reach every worker."""
    workers = worker_count()
    if capabilities.reach == "process" and workers > 1:
        write(
            logger,
            DEPLOYMENT_ISOLATED,
            "%(url)s reaches this process only, and it is one of %(workers)d workers: a broadcast will reach a part of "
            "the clients. Set BACKPLANE_URL=ipc://myapp to join the workers of one host, or redis://... to join hosts.",
            url=url,
            workers=workers,
        )
    elif capabilities.reach != "network" and "KUBERNETES_SERVICE_HOST" in os.environ:
        write(
            logger,
            DEPLOYMENT_ISOLATED,
            "%(url)s reaches this pod only, and this process runs in Kubernetes: with more than one replica "
            "a broadcast will reach a part of the clients. Set BACKPLANE_URL=redis://... to join pods.",
            url=url,
        )


def warn_of_default_url(url: str) -> None:
    """Log a warning that `url` is a default: a script that publishes there reaches no other process."""
    write(
        logger,
        DEPLOYMENT_ISOLATED,
        "no URL was given and BACKPLANE_URL is not set, so %(url)s is used, which reaches this process only: "
        "set BACKPLANE_URL to the broker of the web workers, or give the URL",
        url=url,
    )


def warn_if_no_pings(limits: Limits) -> None:
    """Log a warning, once, that heartbeats have no effect: for a client that is not on the direct lane."""
    if limits.heartbeat_seconds is not None and limits.heartbeat_message is None:
        _warn_if_no_pings()


@cache  # once, not for every client
def _warn_if_no_pings() -> None:
    for module, reason in _WITHOUT_PINGS.items():
        if module in sys.modules:
            write(
                logger,
                SERVER_MISFIT,
                "heartbeat_seconds has no effect: %(reason)s, so a client that vanishes stays until the system gives "
                "up a send to it. Set Limits(heartbeat_message=...), which clients answer, or use a server with the "
                "direct lane; heartbeat_seconds=None accepts it",
                reason=reason,
            )


def worker_count(proc: Path = Path("/proc")) -> int:
    """Return how many workers the server that started this process was configured with, where it is visible; else 1.

    Looks at the command line of the parent process, where it is a server, and at what Gunicorn and Uvicorn take from
    the environment. A count set only in a Gunicorn configuration file is not seen.
    """
    command = _command_line(proc / str(os.getppid()))
    if not _is_server(command):
        return 1
    for arguments in (command, shlex.split(os.environ.get("GUNICORN_CMD_ARGS", ""))):
        if found := _WORKERS_OPTION.findall("\0".join(arguments)):
            return int(found[-1])
    concurrency = os.environ.get("UVICORN_WORKERS") or os.environ.get("WEB_CONCURRENCY", "")
    return int(concurrency) if concurrency.isdecimal() else 1


def server_pid(proc: Path = Path("/proc")) -> int | None:
    """Return the process that started this one as a worker of a server; `None` where no other worker can be beside it.

    It is known of processes that `multiprocessing` started, as Uvicorn, Hypercorn and Granian do, of Gunicorn's, and of
    those whose parent process is, by its command line, a server, or runs what this process runs.
    """
    from multiprocessing import parent_process  # takes 7 ms

    if (parent := parent_process()) is not None:
        return parent.pid
    command = _command_line(proc / str(os.getppid()))
    is_forked = command != [] and command == _command_line(proc / "self")
    return os.getppid() if is_forked or _is_server(command) or "gunicorn.arbiter" in sys.modules else None


def _is_server(command: list[str]) -> bool:
    """Whether it is the program, or what the interpreter runs: `python gunicorn ...`, `python -m uvicorn ...`."""
    return any(_SERVER.match(Path(argument).name) for argument in command[:3])


def _command_line(process: Path) -> list[str]:
    try:
        return (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:  # not Linux, or not ours to read
        return []
