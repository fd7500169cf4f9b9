"""Joins and leaves, as many as possible, beside an audience that stays and receives at a rate."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.harness import histogram
from benchmarks.harness.remote import RemoteAudience
from benchmarks.harness.run import Load

if TYPE_CHECKING:
    from benchmarks.harness.run import Options, Run
    from benchmarks.harness.server import Server

__all__ = ["run"]

_AT_ONCE = 20


def run(server: Server, options: Options) -> Run:
    """Join and leave 20 at a time from a process of its own; each must receive without a gap while it is joined."""
    joined: list[float] = []
    with Load(server, options) as load, RemoteAudience(load.shape) as visitors:
        load.connect()
        load.ready()
        load.begin(rate=options.rate)
        with load.measured():
            visitors.call("begin", load.window)
            deadline = time.monotonic() + options.seconds - 0.1
            while time.monotonic() < deadline:
                channels = [number % options.channels for number in range(_AT_ONCE)]
                joined += visitors.call("connect", channels, _AT_ONCE, -1)
                visitors.call("disconnect", _AT_ONCE)
        found, _ = load.finish()
        counted = visitors.finish().counted
        figures = found.figures
        figures["joins_per_second"] = len(joined) / options.seconds
        if joined:
            figures["cpu_us_per_join"] = load.usage.server / len(joined) * 1e6
            figures |= histogram.summary(histogram.counts_of((np.array(joined) * 1e6).astype(np.int64)), "connect")
        for name, value in (("lost", counted.missing), ("duplicates", counted.duplicates), ("astray", counted.astray)):
            figures[name] += value
        return found
