"""The metrics of what this worker receives, and gives to its subscribers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, get_args

from backplane.metrics.metric import Metric
from backplane.metrics.reading import by_label, distribution, figure, figures, one
from backplane.statistics import Consumer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from backplane.fanout.channel_groups import ChannelGroup
    from backplane.metrics.metric import Sample
    from backplane.metrics.view import View
    from backplane.statistics import LossReason

__all__ = ["DELIVERY"]

_REASONS: Final[dict[str, LossReason]] = {
    "oldest": "dropped_oldest",
    "newest": "dropped_newest",
    "replaced": "replaced",
    "overrun": "overrun",
    "discarded": "discarded",
}


def _lags(view: View) -> Iterable[Sample]:
    lags = {"self": view.traffic.own, "other": view.traffic.others}
    received: list[Sample] = [
        (("received", publisher), distribution(each.received)) for publisher, each in lags.items()
    ]
    return [*received, *((("written", publisher), distribution(each.written)) for publisher, each in lags.items())]


def _by_group(figure: Callable[[ChannelGroup], int]) -> Callable[[View], Iterable[Sample]]:
    """Return what reads a figure of each group of channels."""
    return lambda view: [((group.name,), figure(group)) for group in view.traffic.groups.all]


def _joins(view: View) -> Iterable[Sample]:
    joins = dict.fromkeys((group.name for group in view.traffic.groups.all), 0)
    if view.runtime is not None:
        hub = view.runtime.hub
        for subscribers in (*list(hub.channels.values()), *list(hub.patterns.subscribed.values())):
            if subscribers.is_counted:
                joins[subscribers.group.name] = joins.get(subscribers.group.name, 0) + len(subscribers)
    return [((name,), count) for name, count in joins.items()]


def _losses(view: View) -> Iterable[Sample]:
    losses = view.counters.losses
    consumers: tuple[Consumer, ...] = get_args(Consumer)
    return [
        ((label, consumer), losses.get((consumer, reason), 0))
        for label, reason in _REASONS.items()
        for consumer in consumers
    ]


def _skipped_spans(view: View) -> int:
    tracer = None if view.runtime is None else view.runtime.tracer
    return 0 if tracer is None else tracer.skipped_spans


DELIVERY: Final = (
    Metric(
        name="backplane_messages_received_total",
        kind="counter",
        help="Messages that came from the broker for subscribers of this worker, each counted once.",
        labels=("group",),
        read=_by_group(lambda group: group.messages),
    ),
    Metric(
        name="backplane_received_bytes_total",
        kind="counter",
        help="Their size, without header; of text the characters.",
        unit="bytes",
        labels=("group",),
        read=_by_group(lambda group: group.size_bytes),
    ),
    Metric(
        name="backplane_messages_malformed_total",
        kind="counter",
        help="Payloads of the broker that were dropped because their header is not valid.",
        alert="Rises: another program writes to the channels.",
        read=figure("malformed"),
    ),
    Metric(
        name="backplane_messages_unsupported_total",
        kind="counter",
        help="Payloads of the broker that were dropped because only a newer release can read them.",
        alert="Rises: upgrade this worker.",
        read=figure("unsupported"),
    ),
    Metric(
        name="backplane_messages_invalid_total",
        kind="counter",
        help="Published messages that typed channels dropped, because they do not validate.",
        alert="Rises: a publisher has another model.",
        read=figure("invalid_published"),
    ),
    Metric(
        name="backplane_path_tests_total",
        kind="counter",
        help="Path tests that arrived on a channel with a subscriber in this worker.",
        read=figure("path_tests"),
    ),
    Metric(
        name="backplane_trace_spans_skipped_total",
        kind="counter",
        help="Spans of deliveries that were not made, because there were more than max_spans_per_second of Tracing.",
        read=one(_skipped_spans),
    ),
    Metric(
        name="backplane_deliveries_total",
        kind="counter",
        help="Messages that were offered to subscribers of this worker, once for each subscriber; one that a message "
        "excludes counts too.",
        labels=("group",),
        read=_by_group(lambda group: group.offered),
    ),
    Metric(
        name="backplane_delivered_bytes_total",
        kind="counter",
        help="Their size, without header; of text the characters.",
        unit="bytes",
        labels=("group",),
        read=_by_group(lambda group: group.offered_bytes),
    ),
    Metric(
        name="backplane_messages_sent_total",
        kind="counter",
        help="Messages that the application, or the protocol of a client, sent to a single client, without a publish.",
        read=figure("sent"),
    ),
    Metric(
        name="backplane_lag_seconds",
        kind="histogram",
        help="How old the first message of a batch is: when the first subscribers here were offered it (received), and "
        "when the last one was (written). Of what this worker publishes itself (self) it holds no "
        "difference of clocks.",
        alert="The 99th percentile of `written`, `self` above 0.5 s.",
        unit="seconds",
        labels=("stage", "publisher"),
        read=_lags,
    ),
    Metric(
        name="backplane_clock_ahead_total",
        kind="counter",
        help="Batches whose publisher's clock is ahead of this worker's by more than 1 ms; their lag counts as 0.",
        alert="Rises on many workers: a clock is wrong.",
        read=one(lambda view: view.traffic.clock_ahead),
    ),
    Metric(
        name="backplane_lag_unknown_total",
        kind="counter",
        help="Batches without a lag, as their first message states no time, or one that is more than a day away.",
        alert="Rises, where all publishers use this package: a clock was never set.",
        read=one(lambda view: view.traffic.unknown_lags),
    ),
    Metric(
        name="backplane_messages_dropped_total",
        kind="counter",
        help="Messages that a subscriber was offered and not given: by its policy (oldest, newest, replaced), because "
        "they did not fit and ended it (overrun), or because they waited when it ended (discarded).",
        alert="`oldest`, `newest` and `overrun` rise: clients do not keep up.",
        labels=("reason", "consumer"),
        read=_losses,
    ),
    Metric(
        name="backplane_slow_consumers_total",
        kind="counter",
        help="Subscribers that were ended because they were too slow.",
        alert="Rises.",
        labels=("consumer",),
        read=figures({"websocket": "closed_slow", "sse": "slow_streams", "subscription": "slow_subscriptions"}),
    ),
    Metric(
        name="backplane_gaps_total",
        kind="counter",
        help="Gaps that subscribers were notified of, one per channel and loss, by where they come from.",
        alert="Rises: messages may be missing, and clients reload.",
        labels=("cause",),
        read=by_label(lambda view: view.gaps.items()),
    ),
    Metric(
        name="backplane_last_gap_timestamp_seconds",
        kind="gauge",
        help="When subscribers were last notified of a gap; 0 where they never were.",
        unit="seconds",
        read=one(lambda view: view.time_of(view.health.last_gap_seconds_ago)),
    ),
    Metric(
        name="backplane_repairs_total",
        kind="counter",
        help="How many times a kept channel missed messages and the broker gave them back: no subscriber noticed.",
        read=figure("repaired"),
    ),
    Metric(
        name="backplane_messages_unkept_total",
        kind="counter",
        help="Messages of kept channels that their publisher did not keep.",
        alert="Rises: a process that publishes lacks the rule.",
        read=figure("unkept"),
    ),
    Metric(
        name="backplane_resumes_total",
        kind="counter",
        help="Joins with a position: resumed ones got exactly what they had missed, lost ones a gap.",
        alert="`lost` above a few percent: the history is too short.",
        labels=("outcome",),
        read=figures({"resumed": "resumed", "lost": "not_resumed"}),
    ),
    Metric(
        name="backplane_channels",
        kind="gauge",
        help="Channels with a subscriber on this worker.",
        read=one(lambda view: view.health.channels),
    ),
    Metric(
        name="backplane_channels_in_doubt",
        kind="gauge",
        help="Kept channels that may miss messages which the broker has not given back yet.",
        alert="Above 0 for a minute while the link is up.",
        read=one(lambda view: view.health.channels_in_doubt),
    ),
    Metric(
        name="backplane_joins",
        kind="gauge",
        help="Joins that stand: the subscribers of each channel, added up.",
        labels=("group",),
        read=_joins,
    ),
    Metric(
        name="backplane_subscriptions",
        kind="gauge",
        help="Subscriptions of the application itself.",
        read=one(lambda view: view.health.subscriptions),
    ),
)
