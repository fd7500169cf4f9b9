"""Publishes inside transactions of the application: `Backplane.publish_in`."""

from __future__ import annotations

import os
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING

from backplane.broadcaster import SupportsTransactions
from backplane.channels import validate_channel
from backplane.errors import ConfigurationError, PayloadTooLargeError
from backplane.fanout.codec import encode
from backplane.header import ID_BYTES, body_size, without_extensions
from backplane.transaction import execute, execute_sync
from backplane.worker.publish_options import checked_key, excluded_id

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from backplane.broadcaster import Broadcaster
    from backplane.connection.connection import Connection
    from backplane.history_rules import HistoryRules
    from backplane.message_tracing import MessageTracer, PublishSpan
    from backplane.transaction import Statement

__all__ = ["TransactionPublisher"]


class TransactionPublisher:
    """Publishes by a statement that the application's own session executes, without a link of its own.

    Usable from any thread, started or not.

    Args:
        adapter: Returns the adapter, which need not be started.
        rules: Which channels have a history.
        tracer: Makes the span of each execution of the statement, if any.
    """

    def __init__(self, adapter: Callable[[], Broadcaster], rules: HistoryRules, tracer: MessageTracer | None) -> None:
        self._adapter = adapter
        self._rules = rules
        self._tracer = tracer
        self._origin = os.urandom(ID_BYTES)

    async def publish(
        self,
        session: object,
        channel: str,
        data: object,
        exclude: Connection | str | None,
        idempotency_key: str | bytes | None,
    ) -> None:
        """See `Backplane.publish_in`."""
        with self._span(channel) as span:
            await execute(session, self._statement(channel, data, exclude, idempotency_key, span))

    def publish_sync(
        self,
        session: object,
        channel: str,
        data: object,
        exclude: Connection | str | None,
        idempotency_key: str | bytes | None,
    ) -> None:
        """See `SyncPublisher.publish_in`."""
        with self._span(channel) as span:
            execute_sync(session, self._statement(channel, data, exclude, idempotency_key, span))

    def _span(self, channel: str) -> AbstractContextManager[PublishSpan | None]:
        validate_channel(channel)
        return nullcontext() if self._tracer is None else self._tracer.publish(channel)

    def _statement(
        self,
        channel: str,
        data: object,
        exclude: Connection | str | None,
        idempotency_key: str | bytes | None,
        span: PublishSpan | None,
    ) -> Statement:
        adapter = self._adapter()
        if not isinstance(adapter, SupportsTransactions):
            raise ConfigurationError(
                f"{adapter.url} has no part in a transaction of your database: publish_in needs postgres://, on the "
                "database of that transaction. Elsewhere publish after the commit"
            )
        capabilities, rule = adapter.capabilities, self._rules.rule_of(channel)
        if rule is not None and capabilities.keeps == "nothing":
            raise ConfigurationError(
                f"channel {channel!r} has a history, and {adapter.url} keeps no messages: add durable=true to the URL, "
                "or leave history out"
            )
        key = None if idempotency_key is None else checked_key(idempotency_key, channel, rule, adapter)
        payload = encode(
            data,
            origin=self._origin,
            published_at=time.time(),
            excluded=excluded_id(exclude),
            wire_format=adapter.options.wire_format,
            states_json=rule is not None,
            extensions=b"" if span is None else span.extensions,
        )
        limit = capabilities.max_payload_bytes
        if span is not None:
            span.encoded(body_size(payload))
            if len(payload) > limit:
                payload = without_extensions(payload)  # tracing must not change an outcome
        if len(payload) > limit:
            raise PayloadTooLargeError(len(payload), limit)
        return adapter.transaction_statement(channel, payload, rule, key=key)
