"""The table of metrics: Prometheus, OpenTelemetry, the page, the command line and the documents all read this one.

A row that is added here is in all of them. Each series whose labels are known beforehand is there from the start, at 0:
a counter that begins with its first event has no rate for it.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final

from backplane.header import EXTENDED_VERSION
from backplane.metrics import process
from backplane.metrics.metric import Metric

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from backplane.metrics.metric import Sample, Value
    from backplane.metrics.view import View

__all__ = ["METRICS", "Metric"]


def _one(read: Callable[[View], Value | None]) -> Callable[[View], Iterable[Sample]]:
    """Return what reads the one sample of a metric without labels; `None` is no sample."""

    def samples(view: View) -> Iterable[Sample]:
        value = read(view)
        return () if value is None else (((), value),)

    return samples


def _figures(names: dict[str, str]) -> Callable[[View], Iterable[Sample]]:
    """Return what reads the figure of `Statistics` with this name for each value of the one label."""
    return lambda view: [((value,), getattr(view.statistics, name)) for value, name in names.items()]


@cache
def _version() -> str:
    from importlib.metadata import version  # takes 10 ms

    return version("fastapi-backplane")


def _info(view: View) -> Iterable[Sample]:
    loop = wire = ""
    if view.runtime is not None:
        loop = type(view.runtime.affinity.loop).__module__.partition(".")[0]
        wire = str(EXTENDED_VERSION) if view.runtime.wire_format == "header" else view.runtime.wire_format
    return [((_version(), view.scheme, loop, wire), 1)]


def _last_received(view: View) -> float:
    if view.runtime is None:
        return 0.0
    now = view.runtime.affinity.loop.time()
    return view.time_of(now - view.runtime.supervisor.status.session.last_received_at)


LINK: Final = (
    Metric(
        name="backplane_info",
        kind="gauge",
        help="1; what the worker runs: the version of the package, the scheme of the broker, the event loop, and the "
        "newest version of the header of messages that it reads; `plain` where it writes none.",
        labels=("version", "adapter", "loop", "wire"),
        read=_info,
    ),
    Metric(
        name="backplane_link_up",
        kind="gauge",
        help="Whether the link to the broker is live.",
        read=_one(lambda view: int(view.health.state == "live")),
    ),
    Metric(
        name="backplane_draining",
        kind="gauge",
        help="Whether the worker is about to end.",
        read=_one(lambda view: int(view.health.draining)),
    ),
    Metric(
        name="backplane_links_tried_total",
        kind="counter",
        help="Links to the broker that were tried.",
        read=_one(lambda view: view.health.generation),
    ),
    Metric(
        name="backplane_last_received_timestamp_seconds",
        kind="gauge",
        help="When the last message came from the broker, a probe included; after a link that is new, when that began.",
        unit="seconds",
        read=_one(_last_received),
    ),
)

PUBLISHING: Final = (
    Metric(
        name="backplane_publishes_total",
        kind="counter",
        help="Calls of publish, by how they ended.",
        labels=("outcome",),
        read=_figures(
            {
                "ok": "published",
                "unavailable": "publishes_unavailable",
                "unknown": "publishes_unknown",
                "refused": "publishes_refused",
            }
        ),
    ),
    Metric(
        name="backplane_outage_buffer_messages",
        kind="gauge",
        help="Messages that wait for the broker to be available again.",
        read=_one(lambda view: view.statistics.buffered),
    ),
    Metric(
        name="backplane_outage_buffer_dropped_total",
        kind="counter",
        help="Messages of the outage buffer that were never published.",
        read=_one(lambda view: view.statistics.buffer_dropped),
    ),
)

DELIVERY: Final = (
    Metric(
        name="backplane_messages_malformed_total",
        kind="counter",
        help="Payloads of the broker that were dropped because their header is not valid.",
        read=_one(lambda view: view.statistics.malformed),
    ),
    Metric(
        name="backplane_messages_unsupported_total",
        kind="counter",
        help="Payloads of the broker that were dropped because only a newer release can read them.",
        read=_one(lambda view: view.statistics.unsupported),
    ),
    Metric(
        name="backplane_path_tests_total",
        kind="counter",
        help="Path tests that arrived on a channel with a subscriber in this worker.",
        read=_one(lambda view: view.statistics.path_tests),
    ),
    Metric(
        name="backplane_deliveries_total",
        kind="counter",
        help="Messages that were offered to subscribers of this worker, once for each subscriber.",
        read=_one(lambda view: view.statistics.delivered),
    ),
    Metric(
        name="backplane_messages_dropped_total",
        kind="counter",
        help="Messages that were dropped for a slow subscriber.",
        labels=("reason",),
        read=_figures({"oldest": "dropped_oldest", "newest": "dropped_newest", "replaced": "replaced"}),
    ),
    Metric(
        name="backplane_gaps_total",
        kind="counter",
        help="Gaps that subscribers were notified of, one per channel and loss.",
        read=_one(lambda view: view.statistics.gaps),
    ),
    Metric(
        name="backplane_last_gap_timestamp_seconds",
        kind="gauge",
        help="When subscribers were last notified of a gap; 0 where they never were.",
        unit="seconds",
        read=_one(lambda view: view.time_of(view.health.last_gap_seconds_ago)),
    ),
    Metric(
        name="backplane_channels",
        kind="gauge",
        help="Channels with a subscriber on this worker.",
        read=_one(lambda view: view.health.channels),
    ),
    Metric(
        name="backplane_subscriptions",
        kind="gauge",
        help="Subscriptions of the application itself.",
        read=_one(lambda view: view.health.subscriptions),
    ),
)

CLIENTS: Final = (
    Metric(
        name="backplane_connections",
        kind="gauge",
        help="Clients of this worker, WebSockets and event streams.",
        read=_one(lambda view: view.health.connections),
    ),
    Metric(
        name="backplane_connections_opened_total",
        kind="counter",
        help="Clients that were accepted.",
        labels=("transport",),
        read=_figures({"websocket": "connections_opened", "sse": "streams_opened"}),
    ),
    Metric(
        name="backplane_connections_closed_total",
        kind="counter",
        help="WebSockets that ended, by the code with which this side closed them; client: it was the client, or its "
        "network.",
        labels=("code",),
        read=_figures(
            {
                "client": "closed_by_client",
                "cancelled": "closed_cancelled",
                "1000": "closed_normal",
                "1007": "closed_invalid_data",
                "1009": "closed_too_big",
                "1011": "closed_internal_error",
                "1012": "closed_service_restart",
                "1013": "closed_try_again_later",
                "slow": "closed_slow",
                "4000": "closed_messages_missed",
                "4001": "closed_expired",
                "4010": "closed_max_age",
                "4011": "closed_silent",
                "4029": "closed_too_many_messages",
                "4503": "closed_forbidden",
                "4508": "closed_idle",
                "4513": "closed_too_many_channels",
                "other": "closed_other",
            }
        ),
    ),
    Metric(
        name="backplane_refused_total",
        kind="counter",
        help="What was refused to clients, by the rule that refused it.",
        labels=("what",),
        read=_figures(
            {
                "origin": "refused_origins",
                "connection": "refused_connections",
                "join": "refused_joins",
                "channel": "refused_channels",
            }
        ),
    ),
    Metric(
        name="backplane_slow_connections",
        kind="gauge",
        help="Subscribers for which something waits in this package.",
        read=_one(lambda view: view.health.slow_subscribers),
    ),
    Metric(
        name="backplane_outbox_bytes",
        kind="gauge",
        help="What waits for all of them; not what the server and the system have buffered.",
        unit="bytes",
        read=_one(lambda view: view.health.waiting_bytes),
    ),
)

WORKER: Final = (
    Metric(
        name="backplane_worker_cpu_seconds_total",
        kind="counter",
        help="Processor time that the process has used.",
        unit="seconds",
        read=_one(lambda _: process.cpu_seconds()),
    ),
    Metric(
        name="backplane_worker_resident_bytes",
        kind="gauge",
        help="Memory that the process has in use.",
        unit="bytes",
        read=_one(lambda _: process.resident_bytes()),
    ),
    Metric(
        name="backplane_worker_open_fds",
        kind="gauge",
        help="Files and sockets that the process has open.",
        read=_one(lambda _: process.open_fds()),
    ),
    Metric(
        name="backplane_worker_max_fds",
        kind="gauge",
        help="Files and sockets that the process may have open.",
        read=_one(lambda _: process.max_fds()),
    ),
    Metric(
        name="backplane_worker_start_time_seconds",
        kind="gauge",
        help="When the process started, in seconds since the epoch.",
        unit="seconds",
        read=_one(lambda _: process.started_at()),
    ),
)

METRICS: Final[tuple[Metric, ...]] = (*LINK, *PUBLISHING, *DELIVERY, *CLIENTS, *WORKER)
"""Each metric of a worker, once."""
