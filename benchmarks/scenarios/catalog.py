"""The scenarios by name: what runs them, with which options, and which figures their tables show."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from benchmarks.harness.candidate import APP
from benchmarks.scenarios import (
    channels,
    churn,
    failover,
    fanout,
    history,
    idle,
    memory,
    presence,
    publishes,
    restart,
    saturation,
    sdk,
    slow,
    storm,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from benchmarks.harness.run import Options, Run
    from benchmarks.harness.server import Server

__all__ = ["SCENARIOS", "Scenario"]

_LATENCY = ("latency_p50_ms", "latency_p99_ms", "latency_p99.9_ms", "latency_max_ms")


def _no_environment(_: Options) -> dict[str, str]:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One scenario.

    Attributes:
        run: Runs it once.
        about: What it measures, in a few words.
        columns: The figures of its table, `harness.figures` names; the first is the one ratios are shown of.
        defaults: Where its options differ from those of `harness.run.Options`.
        faults_allowed: Whether losses and closed sockets are what it measures, and no fault.
        needs: What a candidate must have for it: a `broker` to break, `workers` to restart, `heartbeats`, a `history`,
            `presence`, `publishes` of its own, or `rooms` for plain clients and others; empty for nothing.
        app: The application that backplane serves for it.
        environment: What is added to the server's environment for these options.
        has_sdk_clients: Whether its clients may be those of `--sdk`.
        opens_sockets: Whether its connections have sockets, for which this machine must have room.
    """

    run: Callable[[Server, Options], Run]
    about: str
    columns: tuple[str, ...]
    defaults: Mapping[str, Any] = field(default_factory=dict[str, Any])
    faults_allowed: bool = False
    needs: str = ""
    app: str = APP
    environment: Callable[[Options], Mapping[str, str]] = _no_environment
    has_sdk_clients: bool = True
    opens_sockets: bool = True


SCENARIOS: Final[dict[str, Scenario]] = {
    "fanout": Scenario(
        run=fanout.run,
        about="latency of one channel at a rate",
        columns=(
            "latency_p50_ms",
            "latency_p99_ms",
            "latency_p99.9_ms",
            "last_p50_ms",
            "last_p99_ms",
            "last_max_ms",
            "stall_ms",
            "cpu_us_per_delivery",
        ),
    ),
    "saturation": Scenario(
        run=saturation.run,
        about="deliveries per second and CPU per delivery",
        columns=(
            "cpu_us_per_delivery",
            "deliveries_per_second",
            "server_cpu_percent",
            "client_cpu_percent",
        ),
        defaults={"publishers": 16},
    ),
    "sdk": Scenario(
        run=sdk.run,
        about="CPU per delivery of rooms of SDK clients beside a raw one of the same bytes",
        columns=sdk.COLUMNS,
        defaults={"seconds": 3.0},
        needs="rooms",
        has_sdk_clients=False,
    ),
    "channels": Scenario(
        run=channels.run,
        about="many channels with a few sockets each",
        columns=("latency_p99_ms", "latency_p50_ms", "latency_max_ms", "cpu_us_per_delivery", "server_mib"),
        defaults={"channels": 500, "connections": 1000, "rate": 500.0},
    ),
    "memory": Scenario(
        run=memory.run,
        about="memory per idle connection",
        columns=("kib_per_connection", "tasks_per_connection", "server_mib", "server_mib_before"),
        defaults={"connections": 5000},
    ),
    "idle": Scenario(
        run=idle.run,
        about="what idle clients cost, and their drain",
        columns=(
            "idle_cpu_percent",
            "stall_ms",
            "collection_ms",
            "pings_per_client",
            "kib_per_connection",
            "tasks_per_connection",
            "drain_seconds",
            "drain_stall_ms",
            "drain_collection_ms",
            "ended_seconds",
        ),
        defaults={"connections": 50_000, "addresses": 4, "clients": 2, "seconds": 75.0, "drain": 30.0, "stalls": True},
        needs="heartbeats",
        environment=idle.environment,
    ),
    "slow": Scenario(
        run=slow.run,
        about="what the others get while some never read",
        columns=(
            "latency_p99_ms",
            "alone_p99_ms",
            "times_alone",
            "latency_max_ms",
            "last_p99_ms",
            "silence_ms",
            "stalled_closed",
            "server_mib_grown",
        ),
        defaults={"connections": 200, "rate": 100.0, "payload": 16_384, "seconds": 8.0},
    ),
    "churn": Scenario(
        run=churn.run,
        about="joins and leaves beside a steady audience",
        columns=("joins_per_second", "cpu_us_per_join", "connect_p99_ms", "latency_p50_ms", "latency_p99_ms"),
        defaults={"connections": 200},
    ),
    "storm": Scenario(
        run=storm.run,
        about="all clients reconnect at once",
        columns=("all_back_ms", "connect_p50_ms", "connect_p99_ms", "connect_max_ms"),
        defaults={"connections": 1000},
        faults_allowed=True,
    ),
    "failover": Scenario(
        run=failover.run,
        about="broker killed and back",
        columns=("all_back_ms", "lost", "late", "gaps", "refused", "closed"),
        defaults={"connections": 100, "seconds": 12.0},
        faults_allowed=True,
        needs="broker",
    ),
    "restart": Scenario(
        run=restart.run,
        about="rolling restart of the workers",
        columns=("all_back_ms", "lost", "closed", "connect_p99_ms"),
        defaults={"connections": 200, "seconds": 8.0, "workers": 2, "server": "gunicorn"},
        faults_allowed=True,
        needs="workers",
    ),
    "history": Scenario(
        run=history.run,
        about="what a history costs, a storm of clients that resume, and repair",
        columns=(
            "publish_kept_us",
            "publish_times",
            "broker_times",
            "wall_times",
            "receive_kept_us",
            "receive_extra_us",
            "storm_ms",
            "storm_plain_ms",
            "storm_reads",
            "storm_stall_ms",
            "repair_ms",
            "repair_stall_ms",
            "repair_gc_ms",
            "repair_missed_ms",
            "repair_missed_stall_ms",
            "repair_missed_gc_ms",
        ),
        defaults={"connections": 5000, "channels": 10, "stalls": True},
        needs="history",
        has_sdk_clients=False,
        app="benchmarks.servers.history_app:app",
    ),
    "publishes": Scenario(
        run=publishes.run,
        about="confirmed publishes per second with one worker and with eight in one process, and a single publish",
        columns=publishes.COLUMNS,
        defaults={"payload": 221, "outstanding": 256, "seconds": 3.0},
        needs="publishes",
        has_sdk_clients=False,
        app="benchmarks.servers.publishes_app:app",
        opens_sockets=False,
    ),
    "presence": Scenario(
        run=presence.run,
        about="presence of four workers: its cost at a steady churn, time to a list, a worker killed",
        columns=(
            "presence_extra_percent",
            "presence_extra_max_percent",
            "presence_cpu_percent",
            "presence_off_cpu_percent",
            "joins_per_second",
            "presence_sent_per_second",
            "presence_delta_per_second",
            "presence_beacon_per_second",
            "presence_received_per_second",
            "present_watched_ms",
            "present_watched_max_ms",
            "present_unwatched_ms",
            "left_seconds",
        ),
        # An adapter on which a change is stated once more does so after ten seconds.
        defaults={"connections": 10_000, "channels": 500, "seconds": 20.0, "warm_up_seconds": 12.0},
        needs="presence",
        has_sdk_clients=False,
        app="benchmarks.servers.presence_app:app",
        opens_sockets=False,
    ),
}
