"""All clients lose their connection and come back at once."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.harness import histogram
from benchmarks.harness.run import Load, Run

if TYPE_CHECKING:
    from benchmarks.harness.run import Options
    from benchmarks.harness.server import Server

__all__ = ["run"]


def run(server: Server, options: Options) -> Run:
    """Close `connections` sockets, open as many without a pause between, and wait until each receives again."""
    with Load(server, options) as load:
        load.connect()
        load.ready()
        for audience in load.audience:
            audience.call("disconnect", options.connections)
        started = time.monotonic()
        seconds = load.connect(at_once=options.connections)
        load.ready()
        back = time.monotonic() - started
        counts = histogram.counts_of((np.array(seconds) * 1e6).astype(np.int64))
        figures = {"all_back_ms": back * 1000, **histogram.summary(counts, "connect")}
        return Run(figures=figures)
