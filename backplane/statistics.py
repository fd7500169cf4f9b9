"""What a worker counts, in one place: `Backplane.statistics()` returns it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final, Literal

from backplane.close_codes import CloseCode

__all__ = ["DropReason", "Statistics"]

DropReason = Literal["dropped_oldest", "dropped_newest", "replaced"]
"""Why the policy of an outbox dropped a message: the name of the figure that counts it."""


@dataclass(slots=True, kw_only=True)
class Statistics:
    """Counted since the start of the backplane; each only grows, but for `buffered`.

    Every closed connection stands in exactly one of the `closed_...`, which together are
    `connections_opened` less the connections that are there.

    Attributes:
        delivered: Messages handed to the subscribers of this worker, once each.
        malformed: Payloads on the broker that were dropped because their header made no sense.
        gaps: Gaps of which subscribers were notified, one per channel and stretch.
        published: Calls of `publish` that returned: the broker has the message, or `outage="buffer"` keeps it.
        publishes_unavailable: Those that raised `BrokerUnavailableError`: certainly not published.
        publishes_unknown: Those that raised `PublishOutcomeUnknownError`.
        publishes_refused: Those that raised any other `PublishError`: the broker refused the message.
        buffered: Messages that `outage="buffer"` keeps at the moment.
        buffer_dropped: Kept messages that were never published: refused, of unknown outcome, or left at the end.
        connections_opened: WebSockets that were accepted.
        connections_refused: WebSockets whose handshake was answered with an HTTP error, for whatever reason.
        streams_opened: Event streams that were begun.
        streams_closed: Event streams that ended.
        streams_refused: Event streams that were answered with an HTTP error, or with an end at once.
        refused_origins: Handshakes of pages of sites that may not connect.
        refused_connections: Clients over `max_connections` or `max_connections_per_client`.
        refused_joins: Joins that `authorize` did not allow.
        refused_channels: Joins over `Limits.max_channels`.
        dropped_oldest: Messages that were dropped for a slow client or consumer with the policy `drop_oldest`.
        dropped_newest: The same with `drop_newest`.
        replaced: Waiting messages that newer ones replaced, with the policy `latest`.
        slow_subscriptions: Consumers of `subscribe` that were cut for being too slow.
        slow_streams: Event streams that were ended for it.
        invalid_messages: Messages of clients that did not validate in `Connection.iter` or `receive`.
        invalid_published: Published messages that did not validate in `TypedChannel.subscribe`.
        cancelled_handlers: Handlers that were cancelled as they stayed in their block after their connection had ended.
        closed_by_client: Connections that the client ended, or whose network did.
        closed_cancelled: Whose handler was cancelled.
        closed_normal: Whose handler ended (1000).
        closed_slow: Clients that were cut for being too slow (1013).
        closed_try_again_later: Whose handler ended because the broker failed (1013).
        closed_messages_missed: That were asked to reload after a gap (4000).
        closed_service_restart: Closed because the worker ends (1012).
        closed_internal_error: Whose handler, or a task beside it, raised (1011).
        closed_invalid_data: Closed for what they sent, by `on_invalid="close"` (1007).
        closed_too_big: Closed for a message over `max_message_bytes` (1009).
        closed_too_many_messages: Over `max_messages_per_second` (4029).
        closed_too_many_channels: Whose handler ended by a join over `max_channels` (4513).
        closed_forbidden: Whose handler ended by a refused join (4503).
        closed_expired: Whose permission ran out (4001).
        closed_idle: Over `idle_timeout_seconds` (4508).
        closed_max_age: Over `max_age_seconds` (4010).
        closed_silent: That did not answer heartbeats (4011).
        closed_other: Closed with another code, by the application.
    """

    delivered: int = 0
    malformed: int = 0
    gaps: int = 0
    published: int = 0
    publishes_unavailable: int = 0
    publishes_unknown: int = 0
    publishes_refused: int = 0
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
        """Return every count by its name."""
        return {name: getattr(self, name) for name in _NAMES}

    def count_close(self, code: int) -> None:
        """Count a connection that this side closed with `code`."""
        self._add(_BY_CODE.get(code, "closed_other"))

    def count_drop(self, reason: DropReason) -> None:
        """Count a message that the policy of an outbox dropped."""
        self._add(reason)

    def _add(self, name: str) -> None:
        setattr(self, name, getattr(self, name) + 1)


_NAMES: Final = tuple(field.name for field in fields(Statistics))
_BY_CODE: Final = {int(code): f"closed_{code.name.lower()}" for code in CloseCode}
