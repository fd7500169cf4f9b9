"""The metrics of WebSockets and event streams."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final, get_args

from backplane.metrics.metric import Metric
from backplane.metrics.reading import figure, figures, one
from backplane.statistics import FIGURE_OF_CODE, Transport

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backplane.metrics.metric import Sample
    from backplane.metrics.view import View
    from backplane.statistics import Statistics

__all__ = ["CLIENTS"]

_CODES: Final = {
    "client": "closed_by_client",
    "cancelled": "closed_cancelled",
    "slow": "closed_slow",
    **{str(code): figure for code, figure in sorted(FIGURE_OF_CODE.items())},
    "other": "closed_other",
}


def _opened_by_transport(statistics: Statistics) -> dict[str, int]:
    return {
        "lane": statistics.connections_on_lane,
        "asgi": statistics.connections_opened - statistics.connections_on_lane,
        "sse": statistics.streams_opened,
    }


def _opened(view: View) -> Iterable[Sample]:
    return [((transport,), count) for transport, count in _opened_by_transport(view.statistics).items()]


def _open(view: View) -> Iterable[Sample]:
    closed = Counter({"sse": view.statistics.streams_closed})
    for (transport, _), count in dict(view.counters.closes).items():
        closed[transport] += count
    opened = _opened_by_transport(view.statistics)
    # In another thread a client can begin and end between the two readings.
    return [((transport,), max(0, count - closed[transport])) for transport, count in opened.items()]


def _closed(view: View) -> Iterable[Sample]:
    closes, statistics = view.counters.closes, view.statistics
    transports: tuple[Transport, ...] = get_args(Transport)
    found: list[Sample] = [
        ((transport, code), closes.get((transport, name), 0))
        for transport in transports
        for code, name in _CODES.items()
    ]
    return [*found, (("sse", "none"), statistics.streams_closed)]


CLIENTS: Final = (
    Metric(
        name="backplane_connections",
        kind="gauge",
        help="Clients of this worker, WebSockets and event streams, until their transport is gone.",
        alert="Above 90 % of `backplane_max_connections`, where that is not 0.",
        read=one(lambda view: view.health.connections),
    ),
    Metric(
        name="backplane_connections_handed_over",
        kind="gauge",
        help="Those of them that were handed over, and have no task.",
        read=one(lambda view: view.health.handed_over),
    ),
    Metric(
        name="backplane_open_connections",
        kind="gauge",
        help="Clients that were accepted and have not begun to end, by how they are served: WebSockets on the direct "
        "lane and by ASGI (SDK clients are among them), event streams.",
        labels=("transport",),
        read=_open,
    ),
    Metric(
        name="backplane_max_connections",
        kind="gauge",
        help="How many clients the worker may have; 0 is no limit.",
        read=one(lambda view: 0 if view.runtime is None else view.runtime.settings.max_connections or 0),
    ),
    Metric(
        name="backplane_connections_opened_total",
        kind="counter",
        help="Clients that were accepted: WebSockets on the direct lane and by ASGI, event streams.",
        labels=("transport",),
        read=_opened,
    ),
    Metric(
        name="backplane_sdk_connections_opened_total",
        kind="counter",
        help="WebSockets of SDK clients that were accepted; they count as lane or asgi too.",
        read=figure("connections_of_sdks"),
    ),
    Metric(
        name="backplane_connections_closed_total",
        kind="counter",
        help="Clients that ended, by the code with which this side closed them; client: it left, or its network "
        "failed; slow: closed with 1013 as it did not keep up. Event streams have no code: none.",
        alert="`1011`: handlers fail. `slow`: clients do not keep up. `4000`: they reload after a gap.",
        labels=("transport", "code"),
        read=_closed,
    ),
    Metric(
        name="backplane_handshakes_refused_total",
        kind="counter",
        help="WebSockets and event streams that were answered with an HTTP error, or ended at once, for any reason.",
        labels=("transport",),
        read=figures({"websocket": "connections_refused", "sse": "streams_refused"}),
    ),
    Metric(
        name="backplane_refused_total",
        kind="counter",
        help="What was refused to clients, by the rule that refused it.",
        alert="`connection`: the worker, or one client, is at its limit. `origin`, `join`: a page is configured wrong, "
        "or someone tries.",
        labels=("what",),
        read=figures(
            {
                "origin": "refused_origins",
                "connection": "refused_connections",
                "join": "refused_joins",
                "channel": "refused_channels",
            }
        ),
    ),
    Metric(
        name="backplane_client_messages_total",
        kind="counter",
        help="Messages that clients sent, and the worker received; frames of SDK clients.",
        read=figure("client_messages"),
    ),
    Metric(
        name="backplane_client_bytes_total",
        kind="counter",
        help="Their size; of text the characters.",
        unit="bytes",
        read=figure("client_bytes"),
    ),
    Metric(
        name="backplane_client_messages_invalid_total",
        kind="counter",
        help="Messages of clients that did not validate.",
        read=figure("invalid_messages"),
    ),
    Metric(
        name="backplane_handlers_cancelled_total",
        kind="counter",
        help="Handlers that were cancelled because they stayed in their block after their connection had ended.",
        alert="Rises: a handler waits for something else than its client.",
        read=figure("cancelled_handlers"),
    ),
    Metric(
        name="backplane_slow_connections",
        kind="gauge",
        help="Subscribers for which something waits in this package.",
        alert="Goes on rising.",
        read=one(lambda view: view.health.slow_subscribers),
    ),
    Metric(
        name="backplane_outbox_messages",
        kind="gauge",
        help="What waits for all of them, gaps included.",
        read=one(lambda view: view.health.waiting_messages),
    ),
    Metric(
        name="backplane_outbox_bytes",
        kind="gauge",
        help="The size of what waits; not what the server and the system have buffered.",
        alert="Near the memory that is left.",
        unit="bytes",
        read=one(lambda view: view.health.waiting_bytes),
    ),
)
