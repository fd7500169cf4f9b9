"""What clients cost that only wait: CPU of heartbeats, the longest stall of the event loop, and a drain of them all."""

from __future__ import annotations

import signal
import subprocess
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from benchmarks.harness.run import Load, Run
from benchmarks.harness.server import cpu_seconds
from benchmarks.scenarios.memory import WARM_UP, connect_all
from benchmarks.servers import stall

if TYPE_CHECKING:
    from benchmarks.harness.run import Options
    from benchmarks.harness.server import Server

__all__ = ["environment", "run"]

_HEARTBEATS: Final = 2
"""The window is at least as many intervals long: what is due once in each is in it."""
_DRAINED: Final = 1012
_POLL_SECONDS: Final = 0.05
_LATE_SECONDS: Final = 30.0
"""How much longer than planned a drain may take until it is given up."""


def environment(options: Options) -> dict[str, str]:
    """Return how the application is set up."""
    return {"BENCH_HEARTBEAT_SECONDS": f"{options.heartbeat:g}", "BENCH_DRAIN_SECONDS": f"{options.drain:g}"}


def run(server: Server, options: Options) -> Run:
    """Let `connections` clients in one room answer pings for `seconds`, or two heartbeats, then send SIGTERM."""
    with Load(server, replace(options, channels=1)) as load:
        found = Run(figures=connect_all(load))
        _wait(load, found)
        _drain(load, found)
        return found


def _wait(load: Load, found: Run) -> None:
    """Measure while the clients do nothing but answer pings."""
    options, server, figures = load.options, load.server, found.figures
    time.sleep(options.warm_up_seconds)
    stall.reset(server.stalls)
    audience = [each.pid for each in load.audience]
    pings, used, clients_used = _pings(load), cpu_seconds(server.pids()), [cpu_seconds([pid]) for pid in audience]
    began = time.monotonic()
    time.sleep(max(options.seconds, _HEARTBEATS * options.heartbeat))
    seconds = time.monotonic() - began
    figures["idle_cpu_percent"] = (cpu_seconds(server.pids()) - used) / seconds * 100
    figures["client_cpu_percent"] = (
        max(cpu_seconds([pid]) - before for pid, before in zip(audience, clients_used, strict=True)) / seconds * 100
    )
    figures["pings_per_client"] = (_pings(load) - pings) / (options.connections + WARM_UP)
    figures |= _stalls(server, "")
    if figures["client_cpu_percent"] > 90:
        found.invalid.append(f"the client itself was saturated: {figures['client_cpu_percent']:.0f} % of a core")


def _drain(load: Load, found: Run) -> None:
    """End the server by SIGTERM; every client must be closed with 1012, within the time of the drain."""
    options, server, figures = load.options, load.server, found.figures
    stall.reset(server.stalls)
    pids = server.pids()
    began = time.monotonic()
    used = now = cpu_seconds(pids)
    server.process.send_signal(signal.SIGTERM)
    while (left := _open(load)) and time.monotonic() < began + options.drain + _LATE_SECONDS:
        now = max(now, cpu_seconds(pids))  # of a process that has ended it is 0
        time.sleep(_POLL_SECONDS)
    figures["drain_seconds"] = time.monotonic() - began
    figures["drain_cpu_percent"] = (now - used) / figures["drain_seconds"] * 100
    with suppress(subprocess.TimeoutExpired):
        server.process.wait(_LATE_SECONDS)
        figures["ended_seconds"] = time.monotonic() - began
    figures |= _stalls(server, "drain_")
    codes = sum((Counter(each.finish().closed) for each in load.audience), Counter[int]())
    drained = codes.pop(_DRAINED, 0)
    figures["closed"] = float(options.connections + WARM_UP - drained)
    if codes or left:
        ends = [f"{count} by {code}" if code else f"{count} without a code" for code, count in codes.items()]
        found.notes.append(f"not closed by {_DRAINED}: {', '.join([*ends, *([f'{left} not at all'] if left else [])])}")


def _open(load: Load) -> int:
    return sum(audience.call("open_count") for audience in load.audience)


def _pings(load: Load) -> int:
    return sum(audience.call("pings") for audience in load.audience)


def _stalls(server: Server, prefix: str) -> dict[str, float]:
    """Return what has blocked the loop longest since the last reset, where it is watched."""
    found = {"stall_ms": stall.longest(server.stalls), "collection_ms": stall.longest_collection(server.stalls)}
    return {f"{prefix}{name}": seconds * 1000 for name, seconds in found.items() if seconds is not None}
