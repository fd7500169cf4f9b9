"""What a worker counts: `Counters`, which its parts increment, and `Statistics`, which an application reads."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Final, Literal

from backplane.close_codes import CloseCode
from backplane.histogram import Histogram

__all__ = [
    "FIGURE_OF_CODE",
    "PUBLISH_SECONDS",
    "Consumer",
    "Counters",
    "DropReason",
    "LossReason",
    "Statistics",
    "Transport",
]

DropReason = Literal["dropped_oldest", "dropped_newest", "replaced"]
"""Why the policy of an outbox dropped a message: the name of the figure that counts it."""

LossReason = Literal[DropReason, "overrun", "discarded"]
"""Why a subscriber was not given a message that it was offered: the name of the figure that counts it."""

Consumer = Literal["websocket", "sse", "subscription"]
"""What kind of subscriber lost a message."""

Transport = Literal["lane", "asgi"]
"""How a WebSocket is served: on the direct lane of its server, or by ASGI."""

PUBLISH_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""The bounds of the histogram of publishes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """What this worker counted since the start of the backplane; each figure only grows, except `buffered`.

    Every closed connection is counted in exactly one of the figures `closed_...`: their sum is `connections_opened`
    less the connections that are open.

    Attributes:
        delivered: Messages that were received for subscribers of this worker, each counted once, however many they are.
        received_bytes: Their size, without header (of text: characters).
        offered: Messages that were offered to the subscribers of this worker, once for each subscriber. What was not
            delivered of them is in `dropped_oldest`, `dropped_newest`, `replaced`, `overrun` and `discarded`. What one
            connection is excluded from counts for it too.
        offered_bytes: Their size.
        sent: Messages that the application, or the protocol of a client, sent to a single client, without a publish.
            They are not in `offered`, and those that are dropped are in the same figures.
        malformed: Payloads from the broker that were dropped because their header is not valid.
        unsupported: Payloads from the broker that were dropped because only a newer release can read them.
        path_tests: Path tests that arrived on a channel with a subscriber in this worker. No subscriber receives one.
        gaps: Gaps that subscribers were notified of, one per channel and loss.
        published: Calls of `publish` that returned: the broker has the message, or `outage="buffer"` keeps it.
        publishes_unavailable: Calls that raised `BrokerUnavailableError`: certainly not published.
        publishes_unknown: Calls that raised `PublishOutcomeUnknownError`: published or not.
        publishes_refused: Calls that raised any other `PublishError`: the broker refused the message.
        publishes_too_large: Calls that raised `PayloadTooLargeError`: the broker takes no message of that size.
        publishes_invalid: Calls that raised `InvalidDataError`, `InvalidChannelError` or `ConfigurationError`: nothing
            was sent.
        publishes_cancelled: Calls that were cancelled: published or not.
        publishes_failed: Calls that raised anything else, such as `ClosedError` during a stop.
        published_bytes: What was published, with its headers, as it went to the broker.
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
        connections_on_lane: Those of them that are served on the direct lane.
        connections_of_sdks: Those of them that speak the Centrifugal client protocol.
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
        overrun: Messages that did not fit and ended their subscriber, with the policy `close`.
        discarded: Messages that waited for a subscriber when it ended: its client had left, or was closed.
        slow_subscriptions: Subscriptions (`Backplane.subscribe`) that were ended because they were too slow.
        slow_streams: Event streams that were ended because they were too slow.
        client_messages: Messages that clients sent.
        client_bytes: Their size (of text: characters).
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
    received_bytes: int = 0
    offered: int = 0
    offered_bytes: int = 0
    sent: int = 0
    malformed: int = 0
    unsupported: int = 0
    path_tests: int = 0
    gaps: int = 0
    published: int = 0
    publishes_unavailable: int = 0
    publishes_unknown: int = 0
    publishes_refused: int = 0
    publishes_too_large: int = 0
    publishes_invalid: int = 0
    publishes_cancelled: int = 0
    publishes_failed: int = 0
    published_bytes: int = 0
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
    connections_on_lane: int = 0
    connections_of_sdks: int = 0
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
    overrun: int = 0
    discarded: int = 0
    slow_subscriptions: int = 0
    slow_streams: int = 0
    client_messages: int = 0
    client_bytes: int = 0
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


FIGURE_OF_CODE: Final[dict[int, str]] = {
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
"""The figure that counts a connection which this side closed with a code.

They are names of the interface, not derived from those of the codes.
"""


@dataclass(slots=True, kw_only=True)
class Counters:
    """What the connections, event streams, subscriptions and publishes of a worker increment.

    Each `int` is the figure of the same name in `Statistics`. What is counted by a label too has a method.

    Attributes:
        publish_seconds: How long the calls of `publish` took that returned.
        losses: Messages that were offered to subscribers and not given to them, by kind of subscriber and reason.
        closes: Connections that ended, by how they were served and the figure of their end.
    """

    sent: int = 0
    published: int = 0
    publishes_unavailable: int = 0
    publishes_unknown: int = 0
    publishes_refused: int = 0
    publishes_too_large: int = 0
    publishes_invalid: int = 0
    publishes_cancelled: int = 0
    publishes_failed: int = 0
    published_bytes: int = 0
    repaired: int = 0
    repaired_messages: int = 0
    proved: int = 0
    unkept: int = 0
    resumed: int = 0
    not_resumed: int = 0
    duplicates: int = 0
    connections_opened: int = 0
    connections_on_lane: int = 0
    connections_of_sdks: int = 0
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
    client_messages: int = 0
    client_bytes: int = 0
    invalid_messages: int = 0
    invalid_published: int = 0
    cancelled_handlers: int = 0
    publish_seconds: Histogram = field(default_factory=lambda: Histogram(*PUBLISH_SECONDS))
    losses: Counter[tuple[Consumer, LossReason]] = field(default_factory=Counter[tuple[Consumer, LossReason]])
    closes: Counter[tuple[Transport, str]] = field(default_factory=Counter[tuple[Transport, str]])

    def count_close(self, code: int, transport: Transport) -> None:
        """Count a connection that this side closed with `code`."""
        self.closes[transport, FIGURE_OF_CODE.get(code, "closed_other")] += 1

    def count_end(
        self, how: Literal["closed_by_client", "closed_cancelled", "closed_slow"], transport: Transport
    ) -> None:
        """Count a connection that ended without a close code of its own."""
        self.closes[transport, how] += 1

    def count_loss(self, consumer: Consumer, reason: LossReason, messages: int = 1) -> None:
        """Count messages that a subscriber was offered, and not given."""
        self.losses[consumer, reason] += messages

    def snapshot(self, **others: int) -> Statistics:
        """Return what was counted so far, with the figures that other parts keep themselves."""
        own = Counter({name: getattr(self, name) for name in _COUNTED})
        for (_, figure), count in (*dict(self.losses).items(), *dict(self.closes).items()):
            own[figure] += count
        return Statistics(**others, **own)


_COUNTED: Final = tuple(counter.name for counter in fields(Counters) if counter.default == 0)
