"""`backplane workers`: which workers of an application are alive."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from backplane.cli.observer import (
    JsonOption,
    SecretOption,
    WaitOption,
    format_seconds,
    observed,
    print_json,
    print_rows,
    printing,
    reporting_errors,
    run,
    seen_workers,
)
from backplane.cli.terminal import UrlArgument, fail, note, progress, resolve_url, showing_warnings

if TYPE_CHECKING:
    from collections.abc import Callable

    from backplane.cli.observer import Seen
    from backplane.cluster_types import Worker

__all__ = ["workers"]

_RIGHT: Final = (1, 4)


def workers(
    url: UrlArgument = "env",
    seconds: WaitOption = 3.3,
    as_json: JsonOption = False,
    control_secret: SecretOption = None,
) -> None:
    """List the workers whose heartbeats arrive: those with cluster=True or presence=....

    Exit status: 0 at least one is alive, 1 none is, or the broker
    is not usable, or was lost meanwhile, 2 the URL or an option is wrong.
    """
    with showing_warnings(), progress() as on_progress, reporting_errors(as_json=as_json):
        masked, seen = run(_see(resolve_url(url), control_secret, seconds, on_progress))
    if as_json:
        print_json(
            ok=seen.problem is None,
            problem=seen.problem,
            remark=seen.remark,
            url=masked,
            workers=[asdict(worker) for worker in seen.workers],
        )
    elif seen.workers:
        with printing():
            print_rows(
                ("host", "pid", "id", "version", "connections", "up", "seen"), map(_row, seen.workers), right=_RIGHT
            )
        connections = sum(worker.connections for worker in seen.workers if worker.is_alive)
        note(f"{seen.alive:,} alive, with {connections:,} connections")
    if seen.remark is not None:
        note(f"backplane: {seen.remark}")
    if seen.problem is not None:
        fail(seen.problem)


async def _see(url: str, secret: str | None, seconds: float, on_progress: Callable[[str], None]) -> tuple[str, Seen]:
    on_progress("connecting")
    async with observed(url, secret, seconds) as backplane:
        return backplane.url, await seen_workers(backplane, secret, seconds, on_progress)


def _row(worker: Worker) -> tuple[str, ...]:
    seen = f"{worker.last_seen_seconds_ago:.1f} s ago"
    return (
        worker.host,
        str(worker.pid),
        worker.id,
        worker.version,
        f"{worker.connections:,}",
        format_seconds(time.time() - worker.started_at) if worker.started_at else "?",
        seen if worker.is_alive else f"ended, {seen}",
    )
