"""The metrics of the process and its event loop."""

from __future__ import annotations

from typing import Final

from backplane.metrics.metric import Metric
from backplane.metrics.reading import histogram, one
from backplane.worker import process

__all__ = ["WORKER"]

WORKER: Final = (
    Metric(
        name="backplane_loop_lag_seconds",
        kind="histogram",
        help="How late a timer of the event loop is called, twenty times a second: what one callback costs the others.",
        alert="The 99th percentile above 0.1 s: something blocks the loop, or the machine has no free core.",
        unit="seconds",
        read=histogram(lambda view: view.loop_lag),
    ),
    Metric(
        name="backplane_worker_cpu_seconds_total",
        kind="counter",
        help="Processor time that the process has used.",
        alert="Above 0.9 a second: an event loop has one core.",
        unit="seconds",
        read=one(lambda _: process.cpu_seconds()),
    ),
    Metric(
        name="backplane_worker_resident_bytes",
        kind="gauge",
        help="Memory that the process has in use.",
        unit="bytes",
        read=one(lambda _: process.resident_bytes()),
    ),
    Metric(
        name="backplane_worker_open_fds",
        kind="gauge",
        help="Files and sockets that the process has open.",
        alert="Above 90 % of `backplane_worker_max_fds`.",
        read=one(lambda _: process.open_fds()),
    ),
    Metric(
        name="backplane_worker_max_fds",
        kind="gauge",
        help="Files and sockets that the process may have open.",
        read=one(lambda _: process.max_fds()),
    ),
    Metric(
        name="backplane_worker_start_time_seconds",
        kind="gauge",
        help="When the process started, in seconds since the epoch.",
        alert="Changes often: the process is restarted.",
        unit="seconds",
        read=one(lambda _: process.started_at()),
    ),
)
