"""What clients cost that only wait: CPU of heartbeats, the longest stall of the event loop, and a drain of them all."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final
from urllib.request import urlopen

from benchmarks.harness.run import Load, Run
from benchmarks.harness.server import cpu_seconds
from benchmarks.harness.sockets import open_seconds
from benchmarks.harness.text import channel_name
from benchmarks.scenarios.memory import WARM_UP, connect_all
from benchmarks.servers import stall
from benchmarks.servers.crowd import result_path
from tests.brokers.process import wait_until

if TYPE_CHECKING:
    from benchmarks.harness.run import Options
    from benchmarks.harness.server import Server

__all__ = ["environment", "run"]

_HEARTBEATS: Final = 2
"""The window is at least as many intervals long: what is due once in each is in it."""
_DRAINED: Final = 1012
_BUSY_PERCENT: Final = 90
_POLL_SECONDS: Final = 0.05
_REACHED_SECONDS: Final = 30.0
_LATE_SECONDS: Final = 30.0
"""How much longer than planned a drain may take until it is given up."""


def environment(options: Options) -> dict[str, str]:
    """Return how the application is set up."""
    return {"BENCH_HEARTBEAT_SECONDS": f"{options.heartbeat:g}", "BENCH_DRAIN_SECONDS": f"{options.drain:g}"}


def run(server: Server, options: Options) -> Run:
    """Let `connections` clients in one room answer pings for `seconds`, or two heartbeats, then send SIGTERM.

    `in_memory` of them have no socket; the memory of one is taken before these connect.
    """
    with Load(server, replace(options, channels=1, connections=options.connections - options.in_memory)) as load:
        found = Run(figures=connect_all(load))
        if options.in_memory:
            _open_crowd(load)
        _wait(load, found)
        _drain(load, found)
        return found


def _open_crowd(load: Load) -> None:
    """Connect the clients without sockets; each has received from the room then."""
    count = load.options.in_memory
    _crowd(load, count)
    load.ready()
    wait_until(lambda: _crowd(load)["reached"] == count, "each client without a socket receives", _REACHED_SECONDS)


def _wait(load: Load, found: Run) -> None:
    """Measure while the clients do nothing but answer pings."""
    options, server, figures = load.options, load.server, found.figures
    time.sleep(options.warm_up_seconds)
    pids = server.pids()
    pings, clients_used = _pings(load), [cpu_seconds([each.pid]) for each in load.audience]
    stall.reset(server.stalls)
    began, used = time.monotonic(), cpu_seconds(pids)
    time.sleep(max(options.seconds, _HEARTBEATS * options.heartbeat))
    seconds, used = time.monotonic() - began, cpu_seconds(pids) - used
    figures |= _stalls(server, "")
    clients_used = [cpu_seconds([each.pid]) - then for each, then in zip(load.audience, clients_used, strict=True)]
    figures["idle_cpu_percent"] = used / seconds * 100
    figures["client_cpu_percent"] = max(clients_used) / seconds * 100
    figures["pings_per_client"] = (_pings(load) - pings) / _count(options)
    if figures["client_cpu_percent"] > _BUSY_PERCENT:
        found.invalid.append(f"the client itself was saturated: {figures['client_cpu_percent']:.0f} % of a core")


def _drain(load: Load, found: Run) -> None:
    """End the server by SIGTERM; every client must be closed with 1012, within the time of the drain."""
    options, server, figures = load.options, load.server, found.figures
    pids = server.pids()
    stall.reset(server.stalls)
    began = time.monotonic()
    used = now = cpu_seconds(pids)
    server.process.send_signal(signal.SIGTERM)
    while (left := _open(load)) and time.monotonic() < began + options.drain + _LATE_SECONDS:
        now = max(now, cpu_seconds(pids))  # of a process that has ended it is 0
        time.sleep(_POLL_SECONDS)
    drained = time.monotonic()
    with suppress(subprocess.TimeoutExpired):
        server.process.wait(_LATE_SECONDS)
        figures["ended_seconds"] = time.monotonic() - began
    figures |= _stalls(server, "drain_")
    codes = sum((Counter(each.finish().closed) for each in load.audience), Counter[int]())
    if (path := result_path(server.stalls)).exists():
        crowd = json.loads(path.read_text())
        codes += Counter({int(code): count for code, count in crowd["closed"].items()})
        drained = max(drained, crowd["last_closed"])
    figures["drain_seconds"] = drained - began
    figures["drain_cpu_percent"] = (now - used) / figures["drain_seconds"] * 100
    figures["closed"] = float(_count(options) - codes[_DRAINED])
    if figures["closed"]:
        ends = [f"{count:,} by {code}" if code else f"{count:,} cut" for code, count in codes.items()]
        found.notes.append(
            f"of {_count(options):,} clients were closed: {', '.join(ends) or 'none'}; {left:,} are open"
        )


def _count(options: Options) -> int:
    return options.connections + options.in_memory + WARM_UP


def _open(load: Load) -> int:
    return sum(audience.call("open_count") for audience in load.audience)


def _pings(load: Load) -> int:
    found: int = sum(audience.call("pings") for audience in load.audience)
    return found + (_crowd(load)["pings"] if load.options.in_memory else 0)


def _crowd(load: Load, more: int = 0) -> Any:
    """Connect more clients without sockets; return what they have counted by now."""
    url = f"http://127.0.0.1:{load.server.port}/crowd/{channel_name(0)}?count={more}"
    with urlopen(url, timeout=open_seconds(more)) as answer:  # on this machine
        return json.loads(answer.read())


def _stalls(server: Server, prefix: str) -> dict[str, float]:
    """Return what has blocked the loop longest since the last reset, where it is watched."""
    found = {"stall_ms": stall.longest(server.stalls), "collection_ms": stall.longest_collection(server.stalls)}
    return {f"{prefix}{name}": seconds * 1000 for name, seconds in found.items() if seconds is not None}
