"""A rolling restart: every worker is replaced while clients are connected, and those that lose theirs come back."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.harness import histogram
from benchmarks.harness.run import Load

if TYPE_CHECKING:
    from benchmarks.harness.run import Options, Run
    from benchmarks.harness.server import Server

__all__ = ["run"]


def run(server: Server, options: Options) -> Run:
    """Send SIGHUP to the server's master at a quarter of the window; every client reconnects as soon as it is cut.

    `all_back_ms` is from the signal until as many sockets as before are open on new workers.
    """
    before = set(server.worker_pids())
    back_at, seconds = 0.0, list[float]()
    with Load(server, options, late_milliseconds=250) as load:
        load.connect()
        load.ready()
        load.begin(rate=options.rate)
        with load.measured():
            load.sleep_until(load.window.start + (load.window.end - load.window.start) // 4)
            server.process.send_signal(signal.SIGHUP)
            signalled = time.monotonic()
            while load.now() < load.window.end:
                if came := load.reconnect():
                    seconds += came
                elif seconds and not back_at and not before & set(server.worker_pids()):
                    back_at = time.monotonic()
                time.sleep(0.02)
        found, counted = load.finish()
        found.slices = counted.slices.tolist()
        figures = found.figures
        figures["lost"] = float(load.undelivered(counted))
        if back_at:
            figures["all_back_ms"] = (back_at - signalled) * 1000
        else:
            found.notes.insert(0, "the old workers were not all gone in time")
        if seconds:
            counts = histogram.counts_of((np.array(seconds) * 1e6).astype(np.int64))
            figures |= histogram.summary(counts, "connect")
        else:
            found.invalid.append("no client was cut: nothing restarted")
        return found
