"""`?durable=true`: messages are rows of a table, and a worker goes on after a lost link where it was.

A notification is only a doorbell. What is delivered are the rows that were committed since the position of the worker,
read by a statement that also returns its own snapshot, which becomes the position. So nothing is missed and nothing
delivered twice, whatever happens between two reads.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from backplane.adapters.postgres.broadcaster import COMPARE_SECONDS, PostgresBroadcaster
from backplane.adapters.postgres.errors import ASYNCPG_ERRORS, connect_error
from backplane.adapters.postgres.publisher import Publisher
from backplane.adapters.postgres.schema import RowStatements, create_statements
from backplane.adapters.postgres.wire import encode_channel
from backplane.adapters.shared.error_chain import reason_of
from backplane.errors import BrokerError
from backplane.journal.events import BROKER_MISFIT
from backplane.journal.writing import write
from backplane.message import ALL
from backplane.transaction import Statement

if TYPE_CHECKING:
    from collections.abc import Collection

    from backplane.adapters.postgres.connection import PostgresConnection
    from backplane.adapters.postgres.options import PostgresOptions
    from backplane.adapters.postgres.wire import NotificationReader
    from backplane.broadcaster import BrokerUrl, Capabilities, Sink

__all__ = ["DurablePostgresBroadcaster"]

logger: Final = logging.getLogger("backplane.adapters.postgres.durable")

# Of the statement that reads: rows are found by their index, whatever the statistics of the table are. With that a plan
# seems to be so expensive that the server would compile it, which takes a second.
_READ_SETTINGS: Final = "SELECT set_config('enable_seqscan', 'off', false), set_config('jit', 'off', false)"
# A promoted standby has another timeline, on which transaction numbers are used again.
_TIMELINE: Final = "SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)"
_READ_ERRORS: Final[tuple[type[Exception], ...]] = (BrokerError, *ASYNCPG_ERRORS)


@dataclass(frozen=True, slots=True)
class _Position:
    """What a worker has delivered.

    Attributes:
        log: Which server, timeline and tables: the identity of what the snapshot belongs to.
        snapshot: Everything that is visible in it was delivered.
        highest_id: The highest id of the rows that were read.
    """

    log: tuple[str, ...]
    snapshot: str
    highest_id: int


class DurablePostgresBroadcaster(PostgresBroadcaster):
    """One link to one PostgreSQL primary, whose messages are stored before a publish returns."""

    def __init__(self, url: BrokerUrl, options: PostgresOptions, *, compare_seconds: float = COMPARE_SECONDS) -> None:
        super().__init__(url, options, compare_seconds=compare_seconds)
        self._rows = RowStatements(options.notify)
        self._position: _Position | None = None
        self._since: Any = None
        self._server: tuple[str, ...] = ()
        self._is_reading = False
        self._has_news = False
        self._retention_warned = False

    @property
    def capabilities(self) -> Capabilities:
        """What this adapter can do."""
        return replace(super().capabilities, publish_returns="stored", resumes=True)

    def schema(self) -> str:
        """Return the SQL that creates the tables."""
        return create_statements(self.options.notify)

    async def stop(self) -> None:
        """Close both sessions, and forget the position."""
        await super().stop()
        self._since = self._position = None

    async def suspend(self) -> None:
        """Close both sessions; `resume` goes on at the position."""
        await self._close()
        self._since = None

    async def resume(self, sink: Sink, channels: Collection[str]) -> None:
        """Open both sessions again, and deliver the rows that were committed meanwhile."""
        await self._open(sink)
        if self._position is not None:
            await self._require_reader(channels)

    def transaction_statement(self, channel: str, payload: bytes) -> Statement:
        """Return a statement that adds a row, and notifies the workers when the transaction commits."""
        return Statement(self._rows.insert_in, (self.options.notify, encode_channel(channel), payload), self._database)

    async def check(self) -> None:
        """Check as without `durable`; read what no notification has announced, and delete what is old."""
        await super().check()
        if self._publisher is not None:
            try:
                await self._publisher.connection.ask(self._rows.retain, self.options.retention_seconds)
            except ASYNCPG_ERRORS as error:
                if not self._retention_warned:
                    words = "old messages of %(url)s cannot be deleted: %(reason)s"
                    write(logger, BROKER_MISFIT, words, url=self.url, reason=reason_of(error))
                self._retention_warned = True
        if self._listener is not None and self._sink is not None:
            await self._read()

    async def _make_publisher(self, connection: PostgresConnection) -> Publisher:
        (exist,) = await connection.ask(self._rows.exist)
        if not exist:
            raise self._without_tables()
        statement = await connection.prepare(self._rows.insert)
        return _RowPublisher(connection, statement, self.options.notify, self.options.max_pending_bytes)

    async def _ready(self, listener: PostgresConnection, reader: NotificationReader) -> None:
        """Find the position, or deliver what was committed since the one that is known."""
        try:
            await listener.ask(_READ_SETTINGS)
            (timeline,) = await listener.ask(_TIMELINE)
            self._server = (listener.identity[0], timeline)
            self._since = await listener.prepare(self._rows.since)
            if self._position is None:
                self._position = await self._present(listener)
            else:
                await self._read_once(listener, reader)
        except ASYNCPG_ERRORS as error:
            raise connect_error(error, str(self.url)) from error

    def _opened(self, listener: PostgresConnection, reader: NotificationReader) -> None:
        """Read once more: rows may have been announced since the read of `_ready`."""
        reader.on_rows = lambda: self._rows_added(listener)
        self._rows_added(listener)

    def _rows_added(self, listener: PostgresConnection) -> None:
        """Read soon; a second notification during a read leads to one more."""
        self._has_news = True
        if not self._is_reading and listener is self._listener:
            self._is_reading = True
            listener.start_task(self._read_all())

    async def _read_all(self) -> None:
        try:
            while self._has_news:
                self._has_news = False
                await self._read()
        except _READ_ERRORS as error:
            if self._listener is not None:  # a refusal: what was not read is read on the next link
                self._listener.end(f"what was published cannot be read: {reason_of(error)}")
        finally:
            self._is_reading = False

    async def _read(self) -> None:
        listener, reader = self._listener, self._reader
        if listener is not None and reader is not None:
            await self._read_once(listener, reader)

    async def _read_once(self, listener: PostgresConnection, reader: NotificationReader) -> None:
        """Deliver the rows that were committed since the position, and move it, in one pass of the event loop."""
        most = self.options.max_resume_messages
        async with listener.reading:  # two reads from one position would deliver twice
            position, sink = self._position, self._sink
            if position is None or sink is None:
                return
            rows = await listener.fetch(self._since, position.snapshot, position.highest_id, most + 1)
            messages = sorted((row[3], row[4], row[5]) for row in rows if row[3] is not None)
            reason = self._reason_of_gap(position, rows, len(messages))
            if reason:
                now = await self._present(listener)
            else:  # a transaction that was open for long can add rows below the highest id
                highest = max(position.highest_id, messages[-1][0] if messages else 0)
                now = _Position(position.log, rows[0][0], highest)
            if self._position is not position or self._sink is not sink or listener.loss is not None:
                return
            self._position = now
            if reason:
                return sink.gap(ALL, reason)
            for _, name, payload in messages:
                reader.deliver_row(name, payload)

    def _reason_of_gap(self, position: _Position, rows: list[Any], count: int) -> str:
        """Return why messages may be missing in what was read since a position; empty where none can be."""
        most = self.options.max_resume_messages
        if not rows or (*self._server, rows[0][1]) != position.log:
            return "another server, or other tables, have taken the place of those of before"
        if rows[0][2]:
            return "messages were deleted (retention_seconds) before this worker had received them"
        return f"more than {most:,} messages were missed (max_resume_messages)" if count > most else ""

    async def _present(self, listener: PostgresConnection) -> _Position:
        """Return the position after everything that is committed now."""
        row = await listener.ask(self._rows.position)
        if row is None:
            raise self._without_tables()
        snapshot, epoch, highest = row
        return _Position((*self._server, epoch), snapshot, highest)

    def _without_tables(self) -> BrokerError:
        return BrokerError(
            f"{self.url} has no tables for durable=true: print the SQL by `backplane schema postgres`, and run it "
            "once, as a migration",
            adapter="postgres",
            retriable=False,
        )


class _RowPublisher(Publisher):
    """Adds rows."""

    def _items(self, channel: str, payload: bytes) -> list[Any]:
        return [(encode_channel(channel), payload)]

    def _values(self, items: list[Any]) -> tuple[object, ...]:
        return [name for name, _ in items], [payload for _, payload in items]
