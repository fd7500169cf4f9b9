"""Makes backplane.json, the dashboard for Grafana: `make dashboard`. Needs `pip install grafana-foundation-sdk`.

Five rows, one question each. The expressions follow one rule: what counts for the whole application is summed over its
workers, what can be wrong with one worker alone is a line for each.
"""

from __future__ import annotations

from itertools import count
from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING

from grafana_foundation_sdk.builders import common, stat, timeseries
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    LegendDisplayMode,
    LegendPlacement,
    StackingMode,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    VariableRefresh,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

TARGET = Path(__file__).with_name("backplane.json")

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
CHOSEN = 'job=~"$job", instance=~"$instance"'
EACH_WORKER = "{{instance}} worker {{worker}}"

FAILED = 'outcome!~"ok|cancelled"'

HEIGHT = 8
COLUMNS = 24


def series(name: str, *matchers: str) -> str:
    """Return the series of a metric of the workers that were chosen."""
    return f"{name}{{{', '.join((CHOSEN, *matchers))}}}"


def per_second(name: str, *matchers: str, by: str = "") -> str:
    """Return how much a counter of all chosen workers grows in a second, by a label."""
    rate = f"rate({series(name, *matchers)}[$__rate_interval])"
    return f"sum by ({by}) ({rate})" if by else f"sum({rate})"


def quantile(quantile: float, name: str, *matchers: str, by: str = "le") -> str:
    """Return a quantile of a histogram of the chosen workers."""
    return f"histogram_quantile({quantile}, {per_second(f'{name}_bucket', *matchers, by=by)})"


def query(expression: str, legend: str) -> Dataquery:
    """Return a query and the name of its lines."""
    return Dataquery().expr(expression).legend_format(legend).datasource(SOURCE)


def figure(title: str, description: str, expression: str, *, bad_from: float, unit: str = "short") -> stat.Panel:
    """Return a panel with one number, green below `bad_from` and red from it on."""
    steps = [Threshold(value=None, color="green"), Threshold(value=bad_from, color="red")]
    thresholds = builders.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)
    return (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .thresholds(thresholds)
        .color_mode(BigValueColorMode.BACKGROUND)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .with_target(query(expression, title).instant().ref_id("A"))
    )


def lines(
    title: str, description: str, *queries: Dataquery, unit: str = "short", stacked: bool = False
) -> timeseries.Panel:
    """Return a panel with lines over time."""
    legend = common.VizLegendOptions().display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM)
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .min(0)
        .legend(legend.show_legend(True))
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
    )
    if stacked:
        panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL)).fill_opacity(30)
    for letter, target in zip(ascii_uppercase, queries, strict=False):
        panel.with_target(target.ref_id(letter))
    return panel


def missing() -> Iterator[stat.Panel | timeseries.Panel]:
    """Yield the panels on what clients may miss."""
    failed = f"sum(rate({series('backplane_publishes_total', FAILED)}[5m]))"
    yield figure(
        "Workers without a link",
        "Their clients receive nothing until the link to the broker is back.",
        f"sum(1 - {series('backplane_link_up')})",
        bad_from=1,
    )
    yield figure(
        "Gaps in an hour",
        "Channels on which messages may be missing; their subscribers were notified.",
        f"sum(increase({series('backplane_gaps_total')}[1h]))",
        bad_from=1,
    )
    yield figure(
        "Publishes that fail",
        "Of all publishes of the last five minutes.",
        f"{failed} / (sum(rate({series('backplane_publishes_total')}[5m])) > 0) or vector(0)",
        bad_from=0.01,
        unit="percentunit",
    )
    yield figure(
        "Workers that do not answer",
        "They run, but their event loop is blocked, or they are stopped.",
        f"sum({series('backplane_scrape_workers_missing')})",
        bad_from=1,
    )
    yield lines(
        "Links",
        "1 while the link of a worker is up.",
        query(series("backplane_link_up"), EACH_WORKER),
    )
    yield lines(
        "Gaps",
        "In a second, by their cause.",
        query(per_second("backplane_gaps_total", by="cause"), "{{cause}}"),
    )
    yield lines(
        "Failed publishes",
        "In a second. unavailable: certainly not published; unknown: published or not.",
        query(per_second("backplane_publishes_total", 'outcome!="ok"', by="outcome"), "{{outcome}}"),
    )
    yield lines(
        "Dropped for slow clients",
        "Messages in a second, by the reason.",
        query(per_second("backplane_messages_dropped_total", by="reason"), "{{reason}}"),
    )


def speed() -> Iterator[timeseries.Panel]:
    """Yield the panels on how long a message takes."""
    for publisher, description in {
        "self": "Through the broker and back, by one clock.",
        "other": "Of what other workers publish: it holds the difference of their clocks.",
    }.items():
        label = f'publisher="{publisher}"'
        yield lines(
            f"Lag, published by {'the worker itself' if publisher == 'self' else 'others'}",
            f"From publish until it is received, and until it is written to the last subscriber. {description}",
            *(
                query(
                    quantile(part, "backplane_lag_seconds", label, by="le, stage"), f"{{{{stage}}}} p{part * 100:g}"
                ).exemplar(True)
                for part in (0.5, 0.99)
            ),
            unit="s",
        )
    yield lines(
        "Round trip to the broker",
        "Of the probe that each worker sends to itself, and of publish until it returns.",
        query(quantile(0.99, "backplane_probe_round_trip_seconds"), "probe p99"),
        query(quantile(0.99, "backplane_publish_seconds"), "publish p99"),
        unit="s",
    )
    yield lines(
        "Event loop",
        "How late it runs what is due: above a few milliseconds, something blocks it.",
        query(quantile(0.99, "backplane_loop_lag_seconds", by="le, instance, worker"), f"{EACH_WORKER} p99"),
        unit="s",
    )


def amount() -> Iterator[timeseries.Panel]:
    """Yield the panels on the load."""
    yield lines(
        "Clients",
        "WebSockets and event streams, by worker.",
        query(series("backplane_connections"), EACH_WORKER),
        stacked=True,
    )
    yield lines(
        "Clients by transport",
        "Accepted and not about to end. lane: the direct lane of the server.",
        query(f"sum by (transport) ({series('backplane_open_connections')})", "{{transport}}"),
        stacked=True,
    )
    yield lines(
        "Deliveries by group",
        "In a second, by the group of the channel; one line without channel_group.",
        query(per_second("backplane_deliveries_total", by="group"), "{{group}}"),
        stacked=True,
    )
    yield lines(
        "Messages",
        "In a second: published, received from the broker, and offered to subscribers, once for each.",
        query(per_second("backplane_publishes_total", 'outcome="ok"'), "published"),
        query(per_second("backplane_messages_received_total"), "received"),
        query(per_second("backplane_deliveries_total"), "offered"),
    )
    yield lines(
        "Bytes",
        "In a second, without what the protocols add.",
        query(per_second("backplane_published_bytes_total"), "published"),
        query(per_second("backplane_received_bytes_total"), "received"),
        query(per_second("backplane_delivered_bytes_total"), "offered"),
        unit="Bps",
    )
    yield lines(
        "Comings and goings",
        "Clients in a second.",
        query(per_second("backplane_connections_opened_total"), "opened"),
        query(per_second("backplane_connections_closed_total"), "closed"),
    )


def slow() -> Iterator[timeseries.Panel]:
    """Yield the panels on clients that do not keep up, or that are turned away."""
    yield lines(
        "Slow clients",
        "Subscribers for which something waits.",
        query(series("backplane_slow_connections"), EACH_WORKER),
    )
    yield lines(
        "What waits for them",
        "Bytes in the outboxes of a worker.",
        query(series("backplane_outbox_bytes"), EACH_WORKER),
        unit="bytes",
    )
    yield lines(
        "Closed, by code",
        "In a second. client: it was the client, or its network.",
        query(per_second("backplane_connections_closed_total", by="code"), "{{code}}"),
    )
    yield lines(
        "Refused",
        "In a second, by the rule that refused it.",
        query(per_second("backplane_refused_total", by="what"), "{{what}}"),
    )


def workers() -> Iterator[timeseries.Panel]:
    """Yield the panels on the processes."""
    yield lines(
        "Processor",
        "1 is a whole core, which is all that a worker can use.",
        query(f"rate({series('backplane_worker_cpu_seconds_total')}[$__rate_interval])", EACH_WORKER),
        unit="percentunit",
    )
    yield lines("Memory", "In use.", query(series("backplane_worker_resident_bytes"), EACH_WORKER), unit="bytes")
    yield lines(
        "Open files",
        "Of those that it may have open; each client is one.",
        query(f"{series('backplane_worker_open_fds')} / {series('backplane_worker_max_fds')}", EACH_WORKER),
        unit="percentunit",
    )
    yield lines(
        "Received on the channels of the cluster",
        "Messages in a minute. Every worker receives each, so the lines must be one; see BackplaneWorkerReceivesLess.",
        query(f"increase({series('backplane_control_received_total')}[1m])", EACH_WORKER),
    )
    yield lines(
        "Versions",
        "Workers, by the version of the package.",
        query(f"count by (version) ({series('backplane_info')})", "{{version}}"),
        stacked=True,
    )


ROWS = {
    "Is anyone missing messages?": missing,
    "How fast?": speed,
    "How much?": amount,
    "Who is slow?": slow,
    "Workers": workers,
}


def chosen_by(name: str, label: str, narrowed_by: str = "") -> builders.QueryVariable:
    """Return a variable with the values of a label."""
    return (
        builders.QueryVariable(name)
        .label(name.capitalize())
        .query(f"label_values(backplane_info{narrowed_by}, {label})")
        .datasource(SOURCE)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
    )


def build() -> str:
    """Return the dashboard as JSON."""
    board = (
        builders.Dashboard("backplane")
        .uid("backplane")
        .description("Workers of fastapi-backplane: what is missing, how fast, how much, who is slow.")
        .tags(["backplane", "websocket"])
        .time("now-1h", "now")
        .refresh("30s")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(builders.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(chosen_by("job", "job"))
        .with_variable(chosen_by("instance", "instance", '{job=~"$job"}'))
        .annotation(
            builders.AnnotationQuery()
            .name("Link lost")
            .datasource(SOURCE)
            .enable(True)
            .icon_color("red")
            .expr(f"sum without (cause) (increase({series('backplane_links_lost_total')}[1m])) > 0")
        )
    )
    ids = count(1)
    for title, panels in ROWS.items():
        board.with_row(builders.Row(title).id(next(ids)))
        for panel in panels():
            is_figure = isinstance(panel, stat.Panel)
            board.with_panel(panel.id(next(ids)).height(HEIGHT // 2 if is_figure else HEIGHT).span(COLUMNS // 4))
    return JSONEncoder(sort_keys=True, indent=2).encode(board.build()) + "\n"


if __name__ == "__main__":
    TARGET.write_text(build(), encoding="utf-8")
