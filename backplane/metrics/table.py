"""The table of metrics: Prometheus, OpenTelemetry, the page, the command line and the documents all read this one.

A row that is added here is in all of them. Each series whose labels are known beforehand is there from the start, at 0:
a counter that begins with its first event has no rate for it.
"""

from __future__ import annotations

from typing import Final

from backplane.metrics.clients import CLIENTS
from backplane.metrics.delivery import DELIVERY
from backplane.metrics.link import LINK
from backplane.metrics.metric import Metric
from backplane.metrics.publishing import PUBLISHING
from backplane.metrics.worker import WORKER

__all__ = ["METRICS", "SUBJECTS", "Metric"]

SUBJECTS: Final[dict[str, tuple[Metric, ...]]] = {
    "The link": LINK,
    "Publishing": PUBLISHING,
    "Delivery": DELIVERY,
    "Clients": CLIENTS,
    "The process": WORKER,
}
"""The metrics of a worker, by what they are about."""

METRICS: Final[tuple[Metric, ...]] = tuple(metric for metrics in SUBJECTS.values() for metric in metrics)
"""Each metric of a worker, once."""
