"""The metrics of what this worker publishes."""

from __future__ import annotations

from typing import Final

from backplane.metrics.metric import Metric
from backplane.metrics.reading import figure, figures, histogram

__all__ = ["PUBLISHING"]

PUBLISHING: Final = (
    Metric(
        name="backplane_publishes_total",
        kind="counter",
        help="Calls of publish, by how they ended; each ends in one way.",
        alert="`unavailable`, `unknown` and `refused` together above 1 % of all.",
        labels=("outcome",),
        read=figures(
            {
                "ok": "published",
                "unavailable": "publishes_unavailable",
                "unknown": "publishes_unknown",
                "refused": "publishes_refused",
                "too_large": "publishes_too_large",
                "invalid": "publishes_invalid",
                "cancelled": "publishes_cancelled",
                "failed": "publishes_failed",
            }
        ),
    ),
    Metric(
        name="backplane_publish_seconds",
        kind="histogram",
        help="How long the calls of publish took that returned.",
        unit="seconds",
        read=histogram(lambda view: view.counters.publish_seconds),
    ),
    Metric(
        name="backplane_published_bytes_total",
        kind="counter",
        help="What was published, as it went to the broker, with its headers.",
        unit="bytes",
        read=figure("published_bytes"),
    ),
    Metric(
        name="backplane_publish_duplicates_total",
        kind="counter",
        help="Publishes that the broker dropped, as it had one with the same idempotency key; they count as ok too.",
        read=figure("duplicates"),
    ),
    Metric(
        name="backplane_outage_buffer_messages",
        kind="gauge",
        help="Messages that wait for the broker to be available again.",
        alert="Near `max_buffer_messages`: publishes are about to fail.",
        read=figure("buffered"),
    ),
    Metric(
        name="backplane_outage_buffer_dropped_total",
        kind="counter",
        help="Messages of the outage buffer that were never published.",
        alert="Rises: they are lost.",
        read=figure("buffer_dropped"),
    ),
)
