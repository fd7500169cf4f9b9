"""Publishes over one session: whatever is queued goes out in one statement, so the batch grows under load.

Each commit with a NOTIFY takes a lock of the whole server and wakes every listener of the database, and 100 messages in
one cost as much as one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from backplane.adapters.postgres.errors import ASYNCPG_ERRORS, outcome_unknown, publish_error, unavailable
from backplane.adapters.postgres.wire import encode_message
from backplane.errors import BrokerUnavailableError, PublishError

if TYPE_CHECKING:
    from backplane.adapters.postgres.connection import PostgresConnection

__all__ = ["NOTIFY", "NOTIFY_IN", "Publisher"]

NOTIFY: Final = "SELECT count(pg_notify($1, notification)) FROM unnest($2::text[]) AS notification"
"""Sends notifications, in their order."""
NOTIFY_IN: Final = (
    "SELECT current_database()::text, count(pg_notify(CAST($1 AS text), notification)) "
    "FROM unnest(CAST($2 AS text[])) AS notification"
)
"""The same, for a transaction of the application; the first column is the name of its database."""

_MAX_BATCH: Final = 500
_MAX_BATCH_BYTES: Final = 1024 * 1024


class _Waiting(NamedTuple):
    """A message that waits to be sent, as the items of the statement's arrays.

    Attributes:
        items: The items.
        size: Bytes of its payload.
        answer: What the caller waits for: `None`, or what the statement returns for it.
        statement: Which statement sends it.
    """

    items: list[Any]
    size: int
    answer: asyncio.Future[Any]
    statement: Any


class Publisher:
    """Publishes in the order of the calls.

    Args:
        connection: The session.
        statement: `NOTIFY`, prepared there.
        notify: The PostgreSQL channel.
        max_pending_bytes: Most bytes published and not yet answered.

    Attributes:
        connection: The session.
    """

    def __init__(self, connection: PostgresConnection, statement: Any, notify: str, max_pending_bytes: int) -> None:
        self.connection: PostgresConnection = connection
        self._statement = statement
        self._notify = notify
        self._max_pending_bytes = max_pending_bytes
        self._pending_bytes = 0
        self._queue: deque[_Waiting] = deque()
        self._sending: asyncio.Task[None] | None = None

    async def publish(self, channel: str, payload: bytes) -> None:
        """Publish; returns when the transaction has been committed.

        Raises:
            BrokerUnavailableError: The session ended before it was sent.
            PublishError: The server refused it; `retriable` where it accepts none at present, or where too much awaits
                an answer.
            PublishOutcomeUnknownError: The session ended before the answer.
        """
        await self._publish(self._items(channel, payload), len(payload), self._statement)

    async def _publish(self, items: list[Any], size: int, statement: Any) -> Any:
        if self._pending_bytes and self._pending_bytes + size > self._max_pending_bytes:
            raise PublishError(
                f"{self._pending_bytes:,} bytes await the server's answer; publish slower, or raise max_pending_bytes",
                adapter="postgres",
                retriable=True,
            )
        if self.connection.loss is not None:
            raise unavailable("the link is lost")
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting(items, size, answer, statement))
        self._pending_bytes += size
        if self._sending is None:  # it runs in the next pass of the event loop, and takes what comes until then
            self._sending = self.connection.start_task(self._send_queue())
        return await answer

    def _items(self, channel: str, payload: bytes) -> list[Any]:
        """Return what a message is in a statement."""
        return list(encode_message(channel, payload))

    def _values(self, items: list[Any]) -> tuple[object, ...]:
        """Return the values of the statement, after the PostgreSQL channel."""
        return (items,)

    async def _send_queue(self) -> None:
        """Send until nothing waits, or the session has ended."""
        try:
            while self._queue and self.connection.loss is None:
                if batch := self._take():
                    await self._send_batch(batch)
        finally:
            self._sending = None
            self._settle(self._queue, unavailable("the link is lost"))
            self._queue.clear()

    async def _send_batch(self, batch: list[_Waiting]) -> None:
        failure: Exception | None = None
        results: list[Any] | None = None
        statement = batch[0].statement
        try:
            items = [item for waiting in batch for item in waiting.items]
            returned = await self.connection.run(statement, self._notify, *self._values(items))
            results = None if statement is self._statement else returned
        except BrokerUnavailableError as error:
            failure = error
        except ASYNCPG_ERRORS as error:
            lost = self.connection.loss
            failure = publish_error(error) if lost is None else outcome_unknown(lost.reason)
        self._settle(batch, failure, results)

    def _take(self) -> list[_Waiting]:
        """Take the next messages of one statement off the queue, without those whose callers were cancelled."""
        batch: list[_Waiting] = []
        count = size = 0
        while self._queue and (not batch or (count < _MAX_BATCH and size < _MAX_BATCH_BYTES)):
            waiting = self._queue.popleft()
            if waiting.answer.done():
                self._pending_bytes -= waiting.size
                continue
            if batch and waiting.statement is not batch[0].statement:
                self._queue.appendleft(waiting)
                break
            batch.append(waiting)
            count += len(waiting.items)
            size += waiting.size
        return batch

    def _settle(
        self, batch: list[_Waiting] | deque[_Waiting], failure: Exception | None, results: list[Any] | None = None
    ) -> None:
        for number, waiting in enumerate(batch):
            self._pending_bytes -= waiting.size
            if waiting.answer.done():
                continue
            if failure is None:
                waiting.answer.set_result(None if results is None else results[number])
            else:
                waiting.answer.set_exception(failure)
