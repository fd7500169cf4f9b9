"""Memory per idle connection, in the server's own processes; what the kernel holds for a socket is not in it."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final
from urllib.request import urlopen

from benchmarks.harness.run import Load, Run

if TYPE_CHECKING:
    from benchmarks.harness.run import Options
    from benchmarks.harness.server import Server

__all__ = ["WARM_UP", "connect_all", "run"]

WARM_UP: Final = 100
"""Sockets that are open before those that are measured."""

_STEADY: Final = 0.005
_STEADY_SECONDS: Final = 10.0


def run(server: Server, options: Options) -> Run:
    """Open a hundred sockets, so that everything is imported, then `connections` more in one room, and compare."""
    with Load(server, replace(options, channels=1)) as load:
        return Run(figures=connect_all(load))


def connect_all(load: Load) -> dict[str, float]:
    """Open the sockets, each of which has received from the room then; return what one costs the server."""
    server, connections = load.server, load.options.connections
    load.connect(connections=WARM_UP)
    load.ready()
    before, tasks = _steady(server), _tasks(server)
    seconds = load.connect()
    load.ready()
    after = _steady(server)
    figures = {
        "kib_per_connection": (after - before) / connections / 1024,
        "server_mib": after / 2**20,
        "server_mib_before": before / 2**20,
        "connect_seconds": sum(seconds) / len(seconds),
        "closed": float(WARM_UP + connections - sum(audience.call("open_count") for audience in load.audience)),
    }
    if tasks is not None and (now := _tasks(server)) is not None:
        figures["tasks_per_connection"] = (now - tasks) / connections
    return figures


def _tasks(server: Server) -> int | None:
    """Return how many tasks the event loop has, where the server is backplane in one process."""
    if server.candidate.kind != "backplane" or server.candidate.workers > 1:
        return None
    with urlopen(f"http://127.0.0.1:{server.port}/tasks", timeout=10) as answer:  # on this machine
        return int(answer.read())


def _steady(server: Server) -> int:
    """Return the memory when it no longer changes."""
    deadline = time.monotonic() + _STEADY_SECONDS
    last, now = 0, server.resident_bytes()
    while abs(now - last) > now * _STEADY and time.monotonic() < deadline:
        time.sleep(0.3)
        last, now = now, server.resident_bytes()
    return now
