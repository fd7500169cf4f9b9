"""Publishes inside transactions of the application: `Backplane.publish_in`."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from backplane.broadcaster import SupportsTransactions
from backplane.channels import validate_channel
from backplane.errors import ConfigurationError, PayloadTooLargeError
from backplane.fanout.codec import encode
from backplane.header import ID_BYTES
from backplane.transaction import execute, execute_sync
from backplane.worker.publish_options import excluded_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from backplane.broadcaster import Broadcaster
    from backplane.connection.connection import Connection
    from backplane.transaction import Statement

__all__ = ["TransactionPublisher"]


class TransactionPublisher:
    """Publishes by a statement that the application's own session executes, without a link of its own.

    Usable from any thread, started or not.

    Args:
        adapter: Returns the adapter, which need not be started.
    """

    def __init__(self, adapter: Callable[[], Broadcaster]) -> None:
        self._adapter = adapter
        self._origin = os.urandom(ID_BYTES)

    async def publish(self, session: object, channel: str, data: object, exclude: Connection | str | None) -> None:
        """See `Backplane.publish_in`."""
        await execute(session, self._statement(channel, data, exclude))

    def publish_sync(self, session: object, channel: str, data: object, exclude: Connection | str | None) -> None:
        """See `SyncPublisher.publish_in`."""
        execute_sync(session, self._statement(channel, data, exclude))

    def _statement(self, channel: str, data: object, exclude: Connection | str | None) -> Statement:
        adapter = self._adapter()
        if not isinstance(adapter, SupportsTransactions):
            raise ConfigurationError(
                f"{adapter.url} has no part in a transaction of your database: publish_in needs postgres://, on the "
                "database of that transaction. Elsewhere publish after the commit"
            )
        validate_channel(channel)
        payload = encode(
            data,
            origin=self._origin,
            published_at=time.time(),
            excluded=excluded_id(exclude),
            wire_format=adapter.options.wire_format,
        )
        limit = adapter.capabilities.max_payload_bytes
        if len(payload) > limit:
            raise PayloadTooLargeError(len(payload), limit)
        return adapter.transaction_statement(channel, payload)
