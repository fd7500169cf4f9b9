"""The metrics of the link to the broker, and of what workers exchange over it."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final

from backplane.header import VERSION
from backplane.metrics.metric import Metric
from backplane.metrics.reading import by_label, figure, histogram, one

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backplane.metrics.metric import Sample
    from backplane.metrics.view import View

__all__ = ["LINK"]


@cache
def _version() -> str:
    from importlib.metadata import version  # takes 10 ms

    return version("fastapi-backplane")


def _info(view: View) -> Iterable[Sample]:
    loop = wire = ""
    if view.runtime is not None:
        loop = type(view.runtime.affinity.loop).__module__.partition(".")[0]
        wire = str(VERSION) if view.runtime.wire_format == "header" else view.runtime.wire_format
    return [((_version(), view.scheme, loop, wire), 1)]


def _last_received(view: View) -> float:
    if view.runtime is None:
        return 0.0
    now = view.runtime.affinity.loop.time()
    return view.time_of(now - view.runtime.supervisor.status.session.last_received_at)


def _control_received(view: View) -> int:
    cluster = None if view.runtime is None else view.runtime.cluster
    return 0 if cluster is None else cluster.received_of_all


LINK: Final = (
    Metric(
        name="backplane_info",
        kind="gauge",
        help="1; what the worker runs: the version of the package, the scheme of the broker, the event loop, and the "
        "version of the header of messages.",
        alert="More than one `version` or `wire` for longer than an upgrade takes.",
        labels=("version", "adapter", "loop", "wire"),
        read=_info,
    ),
    Metric(
        name="backplane_link_up",
        kind="gauge",
        help="Whether the link to the broker is live.",
        alert="0 for 30 s on a worker that does not drain; on all workers for 15 s it is the broker.",
        read=one(lambda view: int(view.health.state == "live")),
    ),
    Metric(
        name="backplane_draining",
        kind="gauge",
        help="Whether the worker is about to end.",
        read=one(lambda view: int(view.health.draining)),
    ),
    Metric(
        name="backplane_links_tried_total",
        kind="counter",
        help="Links to the broker that were tried.",
        read=one(lambda view: view.health.generation),
    ),
    Metric(
        name="backplane_links_lost_total",
        kind="counter",
        help="Live links that were lost, by the class of the error: silent (no answer), closed, refused, fault (of an "
        "adapter).",
        alert="More than three in ten minutes: the link comes and goes.",
        labels=("cause",),
        read=by_label(lambda view: view.link.lost.items()),
    ),
    Metric(
        name="backplane_link_degraded_seconds_total",
        kind="counter",
        help="How long there was no link, in all outages, the present one included.",
        unit="seconds",
        read=one(lambda view: view.link.degraded_seconds),
    ),
    Metric(
        name="backplane_outage_seconds",
        kind="histogram",
        help="How long the outages lasted that are over.",
        unit="seconds",
        read=histogram(lambda view: view.link.outages),
    ),
    Metric(
        name="backplane_last_received_timestamp_seconds",
        kind="gauge",
        help="When the last message came from the broker, a probe included; after a link that is new, when that began.",
        alert="Older than a minute while the link is up: the worker receives nothing.",
        unit="seconds",
        read=one(_last_received),
    ),
    Metric(
        name="backplane_probe_round_trip_seconds",
        kind="histogram",
        help="How long probes took, through the broker and back: free of the difference of clocks. A link with traffic "
        "in both directions is not probed.",
        unit="seconds",
        read=histogram(lambda view: view.probe_round_trips),
    ),
    Metric(
        name="backplane_probes_missed_total",
        kind="counter",
        help="Probes that got no answer in time; after two in a row the link is lost.",
        read=one(lambda view: 0 if view.runtime is None else view.runtime.supervisor.probe.missed),
    ),
    Metric(
        name="backplane_control_received_total",
        kind="counter",
        help="Messages on the channels that every worker of a cluster receives, heartbeats and commands.",
        alert="Less than half of what the other workers receive, for five minutes: this one misses messages.",
        read=one(_control_received),
    ),
    Metric(
        name="backplane_commands_applied_total",
        kind="counter",
        help="Commands and surveys of the cluster that this worker has applied.",
        read=figure("commands_applied"),
    ),
    Metric(
        name="backplane_cluster_rejected_total",
        kind="counter",
        help="Messages on reserved channels that were dropped: not signed, no message of this package, or of another "
        "time.",
        alert="Rises: another program, another secret, or clocks that differ.",
        read=figure("cluster_rejected"),
    ),
)
