"""`?durable=true`: messages are rows of a table, and a worker goes on after a lost link where it was.

A notification is only a doorbell. What is delivered are the rows that were committed since the position of the worker,
read by a statement that also returns its own snapshot, which becomes the position. So nothing is missed and nothing
delivered twice, whatever happens between two reads.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final
from zlib import crc32

from backplane.adapters.postgres.broadcaster import COMPARE_SECONDS, PostgresBroadcaster
from backplane.adapters.postgres.errors import ASYNCPG_ERRORS, connect_error
from backplane.adapters.postgres.history import HistoryReader, epoch_of
from backplane.adapters.postgres.inspection import inspect_tables
from backplane.adapters.postgres.publisher import Publisher
from backplane.adapters.postgres.schema import RowStatements, create_statements
from backplane.adapters.postgres.wire import encode_channel
from backplane.adapters.shared.error_chain import reason_of
from backplane.errors import BrokerError
from backplane.journal.events import BROKER_MISFIT
from backplane.journal.writing import write
from backplane.message import ALL, Place, Position, Receipt
from backplane.transaction import Statement

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from backplane.adapters.postgres.connection import PostgresConnection
    from backplane.adapters.postgres.options import PostgresOptions
    from backplane.adapters.postgres.wire import NotificationReader
    from backplane.broadcaster import BrokerUrl, Capabilities, Recalled, Sink
    from backplane.findings import Finding
    from backplane.history_rules import History, HistoryRules

__all__ = ["DurablePostgresBroadcaster"]

logger: Final = logging.getLogger("backplane.adapters.postgres.durable")

# Of the statement that reads: rows are found by their index, whatever the statistics of the table are. With that a plan
# seems to be so expensive that the server would compile it, which takes a second.
_READ_SETTINGS: Final = "SELECT set_config('enable_seqscan', 'off', false), set_config('jit', 'off', false)"
# A promoted standby has another timeline, on which transaction numbers are used again: see `schema`.
_TIMELINE: Final = "SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)"
_READ_ERRORS: Final[tuple[type[Exception], ...]] = (BrokerError, *ASYNCPG_ERRORS)


@dataclass(frozen=True, slots=True)
class _Position:
    """What a worker has delivered.

    Attributes:
        log: Which server and tables: the identity of what the snapshot belongs to.
        timeline: Of the server, another one after each promotion.
        snapshot: Everything that is visible in it was delivered.
        highest_id: The highest id of the rows that were read.
        mark: What else distinguishes that row; `None` where it was deleted.
        is_synchronous: What was read, or confirmed to a publisher, a standby has too.
    """

    log: tuple[str, str]
    timeline: str
    snapshot: str
    highest_id: int
    mark: str | None
    is_synchronous: bool


class DurablePostgresBroadcaster(PostgresBroadcaster):
    """One link to one PostgreSQL primary, whose messages are stored before a publish returns."""

    def __init__(self, url: BrokerUrl, options: PostgresOptions, *, compare_seconds: float = COMPARE_SECONDS) -> None:
        super().__init__(url, options, compare_seconds=compare_seconds)
        self._rows = RowStatements(options.notify)
        self._position: _Position | None = None
        self._since: Any = None
        self._server: tuple[str, str] = ("", "")  # and its timeline
        self._is_reading = False
        self._has_news = False
        self._retention_warned = False

    @property
    def capabilities(self) -> Capabilities:
        """What this adapter can do."""
        return replace(super().capabilities, publish_returns="stored", resumes=True, keeps="server", deduplicates=True)

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

    def transaction_statement(
        self, channel: str, payload: bytes, rule: History | None = None, *, key: bytes | None = None
    ) -> Statement:
        """Return a statement that adds a row, and notifies the workers when the transaction commits.

        Its place in the history of the channel it gets at the commit.
        """
        values = (self.options.notify, encode_channel(channel), payload)
        if rule is None:
            return Statement(self._rows.insert_in, values, self._database)
        return Statement(self._rows.keep_in, (*values, *_history_values(payload, rule, key)), self._database)

    async def prepare(self, rules: HistoryRules) -> None:
        """Do nothing: the tables are there since the start, and each message states the rule that it is kept by."""
        self._require_publisher()

    async def keep(self, channel: str, payload: bytes, rule: History, *, key: bytes | None = None) -> Receipt:
        """Publish, and store in the history of `channel`: one at a time of all workers, in the order of the commits."""
        publisher = self._require_publisher()
        assert isinstance(publisher, _RowPublisher)
        name = encode_channel(channel)
        offset, checksum, is_duplicate = await publisher.keep(name, payload, _history_values(payload, rule, key))
        epoch = epoch_of(name, publisher.epoch)
        return Receipt(position=Position(epoch, offset, checksum), duplicate=bool(is_duplicate))

    async def recall(
        self, channel: str, rule: History, *, after: Position | None, limit: int, max_bytes: int
    ) -> Recalled:
        """Read the history of `channel` from the table, by one statement for all that wait."""
        publisher = self._require_publisher()
        assert isinstance(publisher, _RowPublisher)
        return await publisher.history.recall(encode_channel(channel), rule, after, limit, max_bytes)

    async def inspect(self, subscribers: Mapping[str, int]) -> list[Finding]:
        """Return what is found without `durable` too, and whether old rows are deleted and vacuumed."""
        connection = self._require_publisher().connection
        now = self._position_of(await connection.ask(self._rows.position))
        findings = await inspect_tables(
            connection, self._rows.inspect, self.options.retention_seconds, now.is_synchronous
        )
        return [*await super().inspect(subscribers), *findings]

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
        state = await connection.ask(self._rows.position) if exist else None
        if state is None:
            raise self._without_tables()
        await connection.ask(_READ_SETTINGS)
        publisher = _RowPublisher(
            connection,
            await connection.prepare(self._rows.insert),
            self.options.notify,
            self.options.max_pending_bytes,
        )
        publisher.keep_statement = await connection.prepare(self._rows.keep)
        recall = await connection.prepare(HistoryReader.statement(self.options.notify))
        publisher.history = HistoryReader(connection, recall, str(self.url))
        publisher.epoch = state[1]
        return publisher

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
            state = next((row for row in rows if row[0] is not None), None)
            messages = sorted(tuple(row)[7:] for row in rows if row[0] is None)  # by ids, which are unique
            if state is None:
                raise self._without_tables()
            reason = await self._reason_of_gap(listener, position, state, len(messages))
            now = await self._present(listener) if reason else self._position_of(state, position.highest_id)
            if self._position is not position or self._sink is not sink or listener.loss is not None:
                return
            self._position = now
            if reason:
                return sink.gap(ALL, reason)
            for identity, name, payload, checksum in messages:
                if (channel := reader.wanted.find(name)) is None:
                    continue
                if checksum is None:
                    sink.deliver(channel, payload)
                else:
                    sink.deliver(channel, payload, Place(epoch_of(name, now.log[1]), identity, checksum))

    async def _reason_of_gap(self, listener: PostgresConnection, position: _Position, state: Any, count: int) -> str:
        """Return why messages may be missing in what was read since a position; empty where none can be."""
        most = self.options.max_resume_messages
        now = self._position_of(state)
        if now.log != position.log:
            return "another server, or other tables, have taken the place of those of before"
        if now.timeline != position.timeline and not position.is_synchronous:
            return "a standby was promoted for which commits had not waited (synchronous_standby_names)"
        if now.timeline != position.timeline and position.mark not in (None, state[6]):
            await listener.ask(self._rows.disown, now.log[1])  # so that every worker reports it, whatever it has read
            return "a standby was promoted that had not received the newest messages"
        if state[5]:
            return "messages were deleted (retention_seconds) before this worker had received them"
        return f"more than {most:,} messages were missed (max_resume_messages)" if count > most else ""

    async def _present(self, listener: PostgresConnection) -> _Position:
        """Return the position after everything that is committed now."""
        state = await listener.ask(self._rows.position)
        if state is None:
            raise self._without_tables()
        return self._position_of(state)

    def _position_of(self, state: Any, at_least: int = 0) -> _Position:
        """Return the position that a statement has read; `at_least` is the highest id of before."""
        snapshot, epoch, highest, mark, is_synchronous = state[:5]
        system, timeline = self._server
        if highest < at_least:  # rows were deleted
            highest, mark = at_least, None
        return _Position((system, epoch), timeline, snapshot, highest, mark, is_synchronous)

    def _without_tables(self) -> BrokerError:
        return BrokerError(
            f"{self.url} has no tables for durable=true: print the SQL by `backplane schema postgres`, and run it "
            "once, as a migration",
            adapter="postgres",
            retriable=False,
        )


def _history_values(payload: bytes, rule: History, key: bytes | None) -> tuple[object, ...]:
    """Return the values of a message that is kept, after its payload."""
    return crc32(payload), rule.max_messages, float(rule.max_age_seconds), key


class _RowPublisher(Publisher):
    """Adds rows.

    Attributes:
        keep_statement: Adds rows to the history of their channels.
        history: Reads it, over the same session.
        epoch: That of the tables.
    """

    keep_statement: Any
    history: HistoryReader
    epoch: str

    async def keep(self, name: str, payload: bytes, values: tuple[object, ...]) -> list[int]:
        """Add a row to the history of its channel; return id, checksum, and whether it is one that was there."""
        kept: list[int] = await self._publish([(name, payload, *values)], len(payload), self.keep_statement)
        return kept

    def _items(self, channel: str, payload: bytes) -> list[Any]:
        return [(encode_channel(channel), payload)]

    def _values(self, items: list[Any]) -> tuple[object, ...]:
        return tuple(map(list, zip(*items, strict=True)))
