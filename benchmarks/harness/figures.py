"""The figures by name: what they are called, in which unit, and which way is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["FAULTS", "FIGURES", "PERCENTILES", "Figure"]

Better = Literal["lower", "higher", "neither"]

PERCENTILES: Final = ("p50", "p90", "p99", "p99.9", "max")
"""What is kept of the histogram of a latency."""


@dataclass(frozen=True, slots=True)
class Figure:
    """How one figure is shown."""

    title: str
    unit: str = ""
    better: Better = "lower"
    digits: int = 2


def _latencies(name: str, title: str) -> dict[str, Figure]:
    return {f"{name}_{key}_ms": Figure(f"{title} {key}", "ms") for key in PERCENTILES}


FIGURES: Final[dict[str, Figure]] = {
    **_latencies("latency", "latency"),
    **_latencies("last", "to last socket"),
    **_latencies("connect", "connect"),
    "connect_seconds": Figure("connect, mean", "s", "neither"),
    "stall_ms": Figure("loop's longest stall", "ms"),
    "deliveries_per_second": Figure("deliveries/s", "", "higher", 0),
    "cpu_us_per_delivery": Figure("server CPU per delivery", "µs"),
    "cpu_us_per_join": Figure("server CPU per join", "µs", digits=0),
    "joins_per_second": Figure("joins and leaves/s", "", "higher", 0),
    "server_cpu_percent": Figure("server CPU", "%", "neither", 0),
    "broker_cpu_percent": Figure("broker CPU", "%", "neither", 0),
    "client_cpu_percent": Figure("client CPU", "%", "neither", 0),
    "publisher_cpu_percent": Figure("publisher CPU", "%", "neither", 0),
    "publisher_late_p99_ms": Figure("publisher late p99", "ms", "neither"),
    "kib_per_connection": Figure("memory per connection", "KiB", digits=1),
    "tasks_per_connection": Figure("tasks per connection"),
    "idle_cpu_percent": Figure("CPU while all are idle", "% of a core"),
    "collection_ms": Figure("longest collection", "ms"),
    "pings_per_client": Figure("pings answered by each", "", "neither"),
    "drain_seconds": Figure("drain, all closed after", "s"),
    "drain_stall_ms": Figure("drain, longest stall", "ms"),
    "drain_collection_ms": Figure("drain, longest collection", "ms"),
    "drain_cpu_percent": Figure("drain, CPU", "% of a core", "neither", 0),
    "ended_seconds": Figure("server ended after", "s"),
    "server_mib": Figure("server memory", "MiB", digits=0),
    "server_mib_before": Figure("server memory before", "MiB", digits=0),
    "server_mib_grown": Figure("server memory grown", "MiB", digits=1),
    "alone_p99_ms": Figure("latency p99 without stalled ones", "ms"),
    "times_alone": Figure("latency p99, times that"),
    "silence_ms": Figure("longest silence", "ms", digits=0),
    "all_back_ms": Figure("all back after", "ms", digits=0),
    "first_back_ms": Figure("first back after", "ms", digits=0),
    "stalled_closed": Figure("stalled ones closed", "", "neither", 0),
    "publish_plain_us": Figure("publisher CPU a plain publish", "µs"),
    "publish_kept_us": Figure("publisher CPU a kept publish", "µs"),
    "publish_times": Figure("publisher CPU, kept : plain", ""),
    "broker_plain_us": Figure("broker CPU a plain publish", "µs"),
    "broker_kept_us": Figure("broker CPU a kept publish", "µs"),
    "broker_times": Figure("broker CPU, kept : plain"),
    "wall_plain_us": Figure("time a plain publish", "µs"),
    "wall_kept_us": Figure("time a kept publish", "µs"),
    "wall_times": Figure("time, kept : plain"),
    "receive_plain_us": Figure("receiver CPU a plain message", "µs"),
    "receive_kept_us": Figure("receiver CPU a kept message", "µs"),
    "receive_extra_us": Figure("receiver CPU, kept over plain", "µs"),
    "storm_ms": Figure("storm, all resumed after", "ms", digits=0),
    "storm_plain_ms": Figure("storm without history", "ms", digits=0),
    "storm_reads": Figure("storm, reads at the broker", digits=0),
    "storm_stall_ms": Figure("storm, longest stall", "ms", digits=0),
    "storm_plain_stall_ms": Figure("the same without history", "ms", digits=0),
    "repair_ms": Figure("repair, none missed", "ms", digits=0),
    "repair_stall_ms": Figure("repair, longest stall", "ms", digits=1),
    "repair_gc_ms": Figure("repair, longest collection", "ms", digits=1),
    "repair_missed_ms": Figure("repair, 3 missed in each", "ms", digits=0),
    "repair_missed_stall_ms": Figure("repair of 3, longest stall", "ms", digits=1),
    "repair_missed_gc_ms": Figure("repair of 3, longest collection", "ms", digits=1),
    "presence_cpu_percent": Figure("CPU of a worker", "%", digits=2),
    "presence_off_cpu_percent": Figure("the same without presence", "%", digits=2),
    "presence_extra_percent": Figure("CPU that presence takes", "% of a core", digits=2),
    "presence_extra_max_percent": Figure("the same, of the worker with most", "% of a core", digits=2),
    "presence_sent_per_second": Figure("messages sent/s", "", "neither", 1),
    "presence_delta_per_second": Figure("changes sent/s", "", "neither", 1),
    "presence_heartbeat_per_second": Figure("heartbeats sent/s", "", "neither", 1),
    "presence_beacon_per_second": Figure("beacons sent/s", "", "neither", 1),
    "presence_request_per_second": Figure("requests sent/s", "", "neither", 2),
    "presence_state_per_second": Figure("answers sent/s", "", "neither", 2),
    "presence_snapshot_per_second": Figure("snapshots sent/s", "", "neither", 2),
    "presence_received_per_second": Figure("received by a worker/s", "", "neither", 1),
    "present_watched_ms": Figure("present() of a watched room", "ms", digits=1),
    "present_watched_max_ms": Figure("the same, longest", "ms", digits=1),
    "present_unwatched_ms": Figure("present() of one that no worker watches", "ms", digits=0),
    "present_unwatched_max_ms": Figure("the same, longest", "ms", digits=0),
    "left_seconds": Figure("kill -9, all have left after", "s", digits=1),
    "publishes_per_second_1": Figure("publishes/s, 1 worker", "", "higher", 0),
    "publishes_per_second_8": Figure("publishes/s, 8 workers", "", "higher", 0),
    "cpu_us_per_publish_1": Figure("CPU each, 1 worker", "µs"),
    "cpu_us_per_publish_8": Figure("CPU each, 8 workers", "µs"),
    "publish_p50_ms": Figure("single publish p50", "ms"),
    "publish_p99_ms": Figure("single publish p99", "ms"),
    "raw_us": Figure("raw", "µs"),
    "json_us": Figure("JSON", "µs"),
    "protobuf_us": Figure("Protobuf", "µs"),
    "json_times": Figure("JSON : raw"),
    "protobuf_times": Figure("Protobuf : raw"),
    "paced_raw_us": Figure("raw, at the rate", "µs"),
    "paced_json_us": Figure("JSON, at the rate", "µs"),
    "paced_protobuf_us": Figure("Protobuf, at the rate", "µs"),
    "paced_json_times": Figure("JSON : raw, at the rate"),
    "paced_protobuf_times": Figure("Protobuf : raw, at the rate"),
    "messages": Figure("messages", "", "neither", 0),
    "deliveries": Figure("deliveries", "", "neither", 0),
    "frame_bytes": Figure("a frame with its header", "B", "neither", 0),
    "lost": Figure("lost", digits=0),
    "late": Figure("late", digits=0),
    "gaps": Figure("gap events", "", "neither", 0),
    "duplicates": Figure("doubled", digits=0),
    "reordered": Figure("out of order", digits=0),
    "astray": Figure("astray", digits=0),
    "closed": Figure("sockets closed", digits=0),
    "refused": Figure("publishes refused", "", "neither", 0),
}

FAULTS: Final = ("lost", "duplicates", "reordered", "astray", "closed")
"""Figures that must be 0 where nothing is broken on purpose."""
