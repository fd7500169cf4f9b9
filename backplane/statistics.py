"""What a worker counts: `Counters`, which its parts increment, and `Statistics`, which an application reads."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Final, Literal

from backplane.close_codes import CloseCode

__all__ = ["Counters", "DropReason", "Statistics"]

DropReason = Literal["dropped_oldest", "dropped_newest", "replaced"]
"""Why an outbox dropped a message: the name of the figure that counts it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """What this worker counted since the start of the backplane; each figure only grows, except `buffered`.

    Every closed connection is counted in exactly one of the figures `closed_...`: their sum is `connections_opened`
    less the connections that are open.

    Attributes:
        delivered: Messages handed to the subscribers of this worker, once for each subscriber.
        malformed: Payloads from the broker that were dropped because their header is not valid.
        unsupported: Payloads from the broker that were dropped because only a newer release can read them.
        path_tests: Path tests that arrived on a channel with a subscriber in this worker. No subscriber receives one.
        gaps: Gaps that subscribers were notified of, one per channel and loss.
        published: Calls of `publish` that returned: the broker has the message, or `outage="buffer"` keeps it.
        publishes_unavailable: Calls that raised `BrokerUnavailableError`: certainly not published.
        publishes_unknown: Calls that raised `PublishOutcomeUnknownError`: published or not.
        publishes_refused: Calls that raised any other `PublishError`: the broker refused the message.
        repaired: How many times a kept channel missed messages and the broker gave them back, so that no subscriber
            noticed.
        repaired_messages: The messages that were given back so.
        proved: How many times, after a lost link, the next message itself proved that nothing was missing.
        unkept: Messages of kept channels that their publisher did not keep: it lacks the rule.
        resumed: Joins with a position (`since`) that got exactly what they had missed.
        not_resumed: Joins with a position that the history does not reach back to, or that is none.
        duplicates: Calls of `publish` that returned, where the broker had a message with the same idempotency key and
            dropped this one. They are counted in `published` too.
        commands_applied: Commands and surveys of the cluster that this worker has applied: `disconnect` and others.
        cluster_rejected: Messages on the reserved channels of the cluster that were dropped: not signed with the
            `control_secret`, no message of this package, or a command of another time.
        buffered: Messages that `outage="buffer"` keeps at this moment.
        buffer_dropped: Buffered messages that were never published: refused, of unknown outcome, or left at the end.
        connections_opened: WebSockets that were accepted.
        connections_refused: WebSockets whose handshake was answered with an HTTP error, for any reason.
        streams_opened: Event streams that began.
        streams_closed: Event streams that ended.
        streams_refused: Event streams that were answered with an HTTP error, or ended at once.
        refused_origins: Handshakes and event streams of pages that may not connect: `allowed_origins`, `allowed_hosts`.
        refused_connections: Clients over `max_connections`, `max_connections_per_client` or `max_connections_per_user`.
        refused_joins: Joins that `authorize` refused.
        refused_channels: Joins over `Limits.max_channels`.
        dropped_oldest: Messages that were dropped for a slow subscriber with the policy `drop_oldest`.
        dropped_newest: Messages that were dropped for a slow subscriber with the policy `drop_newest`.
        replaced: Waiting messages that newer ones replaced, with the policy `latest`.
        slow_subscriptions: Subscriptions (`Backplane.subscribe`) that were ended because they were too slow.
        slow_streams: Event streams that were ended because they were too slow.
        invalid_messages: Messages of clients that did not validate in `Connection.iter` or `receive`.
        invalid_published: Published messages that did not validate in `TypedChannel.subscribe`.
        cancelled_handlers: Handlers that were cancelled because they stayed in their block after their connection had
            ended.
        closed_by_client: Connections that the client or its network ended.
        closed_cancelled: Connections whose handler was cancelled.
        closed_normal: Connections whose handler ended (1000).
        closed_slow: Connections that were closed because the client was too slow (1013).
        closed_try_again_later: Connections whose handler ended because the broker failed (1013).
        closed_messages_missed: Connections that were closed after a gap, so that the client reloads (4000).
        closed_service_restart: Connections that were closed because the worker ends (1012).
        closed_internal_error: Connections whose handler, or a task beside it, raised (1011).
        closed_invalid_data: Connections that were closed for an invalid message, by `on_invalid="close"` (1007).
        closed_too_big: Connections that were closed for a message over `max_message_bytes` (1009).
        closed_too_many_messages: Connections that were closed for exceeding `max_messages_per_second` (4029).
        closed_too_many_channels: Connections whose handler ended by a join over `max_channels` (4513).
        closed_forbidden: Connections whose handler ended by a refused join (4503).
        closed_expired: Connections whose permission ran out (4001).
        closed_idle: Connections that were closed by `idle_timeout_seconds` (4508).
        closed_max_age: Connections that were closed by `max_age_seconds` (4010).
        closed_silent: Connections whose client did not answer heartbeats (4011).
        closed_other: Connections that the application closed with any other code.
    """

    delivered: int = 0
    malformed: int = 0
    unsupported: int = 0
    path_tests: int = 0
    gaps: int = 0
    published: int = 0
    publishes_unavailable: int = 0
    publishes_unknown: int = 0
    publishes_refused: int = 0
    repaired: int = 0
    repaired_messages: int = 0
    proved: int = 0
    unkept: int = 0
    resumed: int = 0
    not_resumed: int = 0
    duplicates: int = 0
    commands_applied: int = 0
    cluster_rejected: int = 0
    buffered: int = 0
    buffer_dropped: int = 0
    connections_opened: int = 0
    connections_refused: int = 0
    streams_opened: int = 0
    streams_closed: int = 0
    streams_refused: int = 0
    refused_origins: int = 0
    refused_connections: int = 0
    refused_joins: int = 0
    refused_channels: int = 0
    dropped_oldest: int = 0
    dropped_newest: int = 0
    replaced: int = 0
    slow_subscriptions: int = 0
    slow_streams: int = 0
    invalid_messages: int = 0
    invalid_published: int = 0
    cancelled_handlers: int = 0
    closed_by_client: int = 0
    closed_cancelled: int = 0
    closed_normal: int = 0
    closed_slow: int = 0
    closed_try_again_later: int = 0
    closed_messages_missed: int = 0
    closed_service_restart: int = 0
    closed_internal_error: int = 0
    closed_invalid_data: int = 0
    closed_too_big: int = 0
    closed_too_many_messages: int = 0
    closed_too_many_channels: int = 0
    closed_forbidden: int = 0
    closed_expired: int = 0
    closed_idle: int = 0
    closed_max_age: int = 0
    closed_silent: int = 0
    closed_other: int = 0

    def as_dict(self) -> dict[str, int]:
        """Return every figure by its name, for an exporter of metrics or a log line."""
        return {figure.name: getattr(self, figure.name) for figure in fields(Statistics)}


# The figure that counts a connection which this side closed with a code: names of the interface, not derived from
# those of the codes.
_FIGURE_OF_CODE: Final[dict[int, str]] = {
    CloseCode.NORMAL_CLOSURE: "closed_normal",
    CloseCode.INVALID_DATA: "closed_invalid_data",
    CloseCode.MESSAGE_TOO_BIG: "closed_too_big",
    CloseCode.INTERNAL_ERROR: "closed_internal_error",
    CloseCode.SERVICE_RESTART: "closed_service_restart",
    CloseCode.TRY_AGAIN_LATER: "closed_try_again_later",
    CloseCode.MESSAGES_MISSED: "closed_messages_missed",
    CloseCode.EXPIRED: "closed_expired",
    CloseCode.MAX_AGE: "closed_max_age",
    CloseCode.SILENT: "closed_silent",
    CloseCode.TOO_MANY_MESSAGES: "closed_too_many_messages",
    CloseCode.FORBIDDEN: "closed_forbidden",
    CloseCode.IDLE: "closed_idle",
    CloseCode.TOO_MANY_CHANNELS: "closed_too_many_channels",
}


@dataclass(slots=True, kw_only=True)
class Counters:
    """What the connections, event streams, subscriptions and publishes of a worker increment.

    Each attribute is the figure of the same name in `Statistics`; those by close code and by drop reason have a method.
    """

    published: int = 0
    publishes_unavailable: int = 0
    publishes_unknown: int = 0
    publishes_refused: int = 0
    repaired: int = 0
    repaired_messages: int = 0
    proved: int = 0
    unkept: int = 0
    resumed: int = 0
    not_resumed: int = 0
    duplicates: int = 0
    connections_opened: int = 0
    connections_refused: int = 0
    streams_opened: int = 0
    streams_closed: int = 0
    streams_refused: int = 0
    refused_origins: int = 0
    refused_connections: int = 0
    refused_joins: int = 0
    refused_channels: int = 0
    slow_subscriptions: int = 0
    slow_streams: int = 0
    invalid_messages: int = 0
    invalid_published: int = 0
    cancelled_handlers: int = 0
    closed_by_client: int = 0
    closed_cancelled: int = 0
    closed_slow: int = 0
    _by_name: Counter[str] = field(default_factory=Counter[str])

    def count_close(self, code: int) -> None:
        """Count a connection that this side closed with `code`."""
        self._by_name[_FIGURE_OF_CODE.get(code, "closed_other")] += 1

    def count_drop(self, reason: DropReason) -> None:
        """Count a message that the policy of an outbox dropped."""
        self._by_name[reason] += 1

    def snapshot(self, **others: int) -> Statistics:
        """Return what was counted so far, with the figures that other parts keep themselves."""
        own = {name: getattr(self, name) for name in _COUNTED}
        return Statistics(**others, **own, **self._by_name)


_COUNTED: Final = tuple(counter.name for counter in fields(Counters) if counter.name != "_by_name")
