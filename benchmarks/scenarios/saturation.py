"""Throughput: publishers send as soon as a few watchers have received what is on its way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.harness.run import Load

if TYPE_CHECKING:
    from benchmarks.harness.run import Options, Run
    from benchmarks.harness.server import Server

__all__ = ["run"]

_READ_EVERY_SECONDS = 0.01

_WATCHERS_PER_WORKER = 4
"""With several workers each of them should have a watcher: otherwise messages would pile up in one without."""


def run(server: Server, options: Options) -> Run:
    """Keep `outstanding` messages on their way to `connections` sockets, from `publishers` in turn.

    One publisher is one handler in the worker, which publishes one message after another.

    The audience reads at intervals, as what is measured is no latency: reading each small frame by itself would keep a
    client busier than the kernel keeps the server.
    """
    workers = server.candidate.workers
    with Load(server, options, read_every_seconds=_READ_EVERY_SECONDS) as load:
        load.connect()
        load.ready(watchers=1 if workers == 1 else workers * _WATCHERS_PER_WORKER)
        return load.publish(rate=0)[0]
