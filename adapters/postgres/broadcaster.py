"""`postgres://` and `postgresql://`: PostgreSQL's LISTEN and NOTIFY.

There are two sessions: one publishes; the other, opened with the first subscription, receives. All channels share one
PostgreSQL channel (option `notify`), and each worker passes on those that it has subscribed to. Nothing is created in
the database.

At most once: PostgreSQL keeps no notification for a session that has ended
(https://www.postgresql.org/docs/current/sql-notify.html).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

from backplane.adapters.postgres.connector import Connector
from backplane.adapters.postgres.errors import ASYNCPG_ERRORS, connect_error, unavailable
from backplane.adapters.postgres.inspection import inspect_server
from backplane.adapters.postgres.options import PostgresOptions, check_options
from backplane.adapters.postgres.publisher import NOTIFY, NOTIFY_IN, Publisher
from backplane.adapters.postgres.wire import NotificationReader, encode_message, statement_of_test
from backplane.adapters.shared.error_chain import reason_of
from backplane.broadcaster import Broadcaster, Capabilities
from backplane.concurrency.timeouts import PatientTimeout
from backplane.errors import BrokerError, ConfigurationError
from backplane.journal.events import BROKER_DETAIL, BROKER_MISFIT
from backplane.journal.writing import write
from backplane.transaction import Statement

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from backplane.adapters.postgres.connection import PostgresConnection
    from backplane.broadcaster import BrokerUrl, Options, Sink
    from backplane.findings import Finding
    from backplane.history_rules import History

__all__ = ["COMPARE_SECONDS", "PostgresBroadcaster", "PostgresOptions"]

logger: Final = logging.getLogger("backplane.adapters.postgres.broadcaster")

COMPARE_SECONDS: Final = 60.0
"""How often a new session is opened, to see whether the URL still leads to the same server."""
_CHECK: Final = "SELECT pg_is_in_recovery(), pg_notification_queue_usage()"
# Of the 8 GB of notifications that no session has read: when they are full, every NOTIFY fails.
_QUEUE_USAGE_LIMIT: Final = 0.1


class PostgresBroadcaster(Broadcaster):
    """One link to one PostgreSQL primary, of several servers that the URL may name: `postgres://one,two:5432/shop`.

    Args:
        url: Where it connects.
        options: The validated options.
        compare_seconds: How often a new session is opened, to see whether the URL still leads to the same server.
    """

    options_class: ClassVar[type[Options]] = PostgresOptions
    options: PostgresOptions

    def __new__(cls, url: BrokerUrl, options: PostgresOptions, *, compare_seconds: float = COMPARE_SECONDS) -> Self:
        """Return the class that the option `durable` asks for: what can resume is another kind of adapter."""
        chosen: Any = cls
        if options.durable and cls is PostgresBroadcaster:
            from backplane.adapters.postgres.durable import DurablePostgresBroadcaster  # it is a subclass

            chosen = DurablePostgresBroadcaster
        made: Self = super().__new__(chosen)
        return made

    def __init__(self, url: BrokerUrl, options: PostgresOptions, *, compare_seconds: float = COMPARE_SECONDS) -> None:
        super().__init__(url, options)
        check_options(url, options)
        self._connector = Connector(url, options)
        self._database = url.path.strip("/") or None
        self._compare_seconds = compare_seconds
        self._compared_at = float("-inf")
        self._queue_warned = False
        self._rows_warned = False
        self._sink: Sink | None = None
        self._publisher: Publisher | None = None
        self._listener: PostgresConnection | None = None
        self._reader: NotificationReader | None = None
        self._prefixes: set[str] = set()  # for the next reader, where the link is resumed
        self._listener_opening = asyncio.Lock()  # a new one at each start: a lock belongs to one event loop

    @property
    def capabilities(self) -> Capabilities:
        """What this adapter can do."""
        return Capabilities(
            brokered=True,
            reach="network",
            publish_returns="accepted",
            max_payload_bytes=self.options.max_payload_bytes,
            patterns=True,
        )

    async def start(self, sink: Sink) -> None:
        """Open the session that publishes; the one that receives is opened with the first subscription.

        Through a pooler both are opened, since only a notification that comes back shows that one can receive.
        """
        await self._open(sink)

    async def stop(self) -> None:
        """Close both sessions; publishes without an answer raise `PublishOutcomeUnknownError`."""
        self._prefixes.clear()
        await self._close()

    async def publish(self, channel: str, payload: bytes) -> None:
        """Publish; returns when the transaction has been committed, which no listener needs to be awaited for.

        Raises:
            PublishError: The server refused it; `retriable` where it accepts none at present (its queue of
                notifications is full), or where too much awaits its answer.
        """
        await self._require_publisher().publish(channel, payload)

    async def subscribe(self, channels: Collection[str]) -> None:
        """Subscribe, in this process; the first call opens the session that receives, and sends it a test."""
        (await self._require_reader()).wanted.add(channels)

    async def unsubscribe(self, channels: Collection[str]) -> None:
        """Drop `channels`, in this process."""
        if self._reader is None:
            raise unavailable("the link is closed")
        self._reader.wanted.remove(channels)

    async def subscribe_prefixes(self, prefixes: Collection[str]) -> None:
        """Subscribe to every channel that begins with one of `prefixes`, in this process."""
        (await self._require_reader()).wanted.add_prefixes(prefixes)
        self._prefixes.update(prefixes)

    async def unsubscribe_prefixes(self, prefixes: Collection[str]) -> None:
        """Drop `prefixes`, in this process."""
        if self._reader is None:
            raise unavailable("the link is closed")
        self._reader.wanted.remove_prefixes(prefixes)
        self._prefixes.difference_update(prefixes)

    async def check(self) -> None:
        """Check that both sessions answer and lead to the primary, and how full the server's queue is.

        Raises:
            BrokerUnavailableError: They do not.
        """
        publisher, listener = self._require_publisher(), self._listener
        try:
            is_standby, usage = await publisher.connection.ask(_CHECK)
            if listener is not None:
                await listener.ask("SELECT 1")
        except ASYNCPG_ERRORS as error:  # an answer all the same
            return write(logger, BROKER_DETAIL, "the check was refused: %(reason)s", reason=reason_of(error))
        if is_standby:
            raise unavailable(f"{self.url} became a standby")
        self._watch_queue(usage)
        await self._compare(publisher.connection)

    async def describe(self) -> str:
        """Return name and version."""
        return f"PostgreSQL {self._require_publisher().connection.version}"

    async def inspect(self, subscribers: Mapping[str, int]) -> list[Finding]:
        """Return how full the queue of notifications is, and whether sessions are left for all workers."""
        return await inspect_server(self._require_publisher().connection)

    def transaction_statement(
        self, channel: str, payload: bytes, rule: History | None = None, *, key: bytes | None = None
    ) -> Statement:
        """Return a statement with `pg_notify`: PostgreSQL sends notifications when their transaction commits."""
        return Statement(NOTIFY_IN, (self.options.notify, encode_message(channel, payload)), self._database)

    def _watch_queue(self, usage: float) -> None:
        """Warn, once until it is emptied, where the server's queue of notifications fills."""
        if usage < _QUEUE_USAGE_LIMIT:
            self._queue_warned = False
        elif not self._queue_warned:
            self._queue_warned = True
            write(
                logger,
                BROKER_MISFIT,
                "the queue of notifications at %(url)s is %(reason)s full: a session that listens sits in a "
                "transaction, or does not read. At 100 %% every publish fails: look for it in pg_stat_activity",
                url=self.url,
                reason=f"{usage:.0%}",
            )

    async def _compare(self, connection: PostgresConnection) -> None:
        """Check that a new session leads to the server of the present one: a name or a proxy can be changed.

        Where a new session fails, the present one is the best there is.
        """
        now = asyncio.get_running_loop().time()
        if now - self._compared_at < self._compare_seconds:
            return
        self._compared_at = now
        try:
            other = await self._connector.open()
        except (BrokerError, ConfigurationError) as error:
            words = "no new session to compare the link with: %(reason)s"
            return write(logger, BROKER_DETAIL, words, reason=reason_of(error))
        other.end("it was compared")
        if other.identity != connection.identity:
            raise unavailable(f"{self.url} leads to another server now")

    async def _open(self, sink: Sink) -> None:
        self._listener_opening = asyncio.Lock()
        connection = await self._connector.open()
        try:
            publisher = await self._make_publisher(connection)
            if connection.is_pooled:
                listener, _ = await self._open_listener(sink, publisher)
                listener.end("it was a test")
            connection.adopt(lambda error: self._lost(connection, error))
        except ASYNCPG_ERRORS as error:
            connection.end("it was given up")
            raise connect_error(error, str(self.url)) from error
        except BaseException:
            connection.end("it was given up")
            raise
        self._compared_at = asyncio.get_running_loop().time()
        self._sink, self._publisher = sink, publisher

    async def _close(self) -> None:
        self._sink = None
        publisher, self._publisher = self._publisher, None
        connections = [publisher.connection if publisher else None, self._listener]
        self._listener = self._reader = None
        for connection in connections:
            if connection is not None:
                connection.end("the link is closed")
        for connection in connections:
            if connection is not None:
                await connection.closed()

    async def _make_publisher(self, connection: PostgresConnection) -> Publisher:
        statement = await connection.prepare(NOTIFY)
        return Publisher(connection, statement, self.options.notify, self.options.max_pending_bytes)

    def _require_publisher(self) -> Publisher:
        if self._publisher is None:
            raise unavailable("the link is closed")
        return self._publisher

    async def _ready(self, listener: PostgresConnection, reader: NotificationReader) -> None:
        """Prepare a session that listens, before it is used."""

    def _opened(self, listener: PostgresConnection, reader: NotificationReader) -> None:
        """Take a session that listens into use."""
        reader.on_rows = self._warn_of_rows

    def _warn_of_rows(self) -> None:
        """Warn, once, where another process stores its messages in the table, which this one does not read."""
        if not self._rows_warned:
            self._rows_warned = True
            write(
                logger,
                BROKER_MISFIT,
                "another process publishes through %(url)s with durable=true, and this one receives none of that: give "
                "all the same URL",
                url=self.url,
            )

    def _require_open(self, publisher: Publisher) -> Sink:
        """Return the sink, unless the link of `publisher` is lost or closed."""
        if self._sink is None or self._publisher is not publisher or publisher.connection.loss is not None:
            raise unavailable("the link is lost")
        return self._sink

    async def _require_reader(self, channels: Collection[str] = ()) -> NotificationReader:
        """Return what reads the session that receives, which is opened where there is none, with these channels."""
        async with self._listener_opening:
            publisher = self._require_publisher()
            sink = self._require_open(publisher)
            if self._reader is None:
                listener, reader = await self._open_listener(sink, publisher)
                reader.wanted.add(channels)
                reader.wanted.add_prefixes(self._prefixes)
                try:
                    await self._ready(listener, reader)
                    self._require_open(publisher)
                    listener.adopt(lambda error: self._lost(listener, error))
                except BaseException:
                    listener.end("it was given up")
                    raise
                self._listener, self._reader = listener, reader
                self._opened(listener, reader)
            return self._reader

    async def _open_listener(self, sink: Sink, publisher: Publisher) -> tuple[PostgresConnection, NotificationReader]:
        """Return a session that receives, as one notification of this process has shown, and what reads it."""
        reader = NotificationReader(sink.deliver, lambda channel, reason: sink.gap([channel], reason))
        listener = await self._connector.open()
        try:
            await listener.listen(self.options.notify, reader.read)
            await self._test(publisher, listener, reader)
        except ASYNCPG_ERRORS as error:
            listener.end("it was given up")
            raise connect_error(error, str(self.url)) from error
        except BaseException:
            listener.end("it was given up")
            raise
        return listener, reader

    async def _test(self, publisher: Publisher, listener: PostgresConnection, reader: NotificationReader) -> None:
        """Check that what `publisher` sends arrives at `listener`."""
        if listener.identity != publisher.connection.identity:
            raise unavailable(f"{self.url} leads to more than one server: two sessions found two primaries")
        word = secrets.token_hex(8)
        try:
            async with PatientTimeout(self.options.connect_timeout_seconds):
                await publisher.connection.ask(statement_of_test(self.options.notify, word))
                while word not in reader.tests_received:
                    reader.test_received.clear()
                    await reader.test_received.wait()
        except TimeoutError:
            if listener.is_pooled:
                raise BrokerError(
                    f"{self.url} leads to a pooler in transaction mode, such as PgBouncer with "
                    "pool_mode=transaction: LISTEN succeeds there and receives nothing. Give the URL of the server "
                    "itself, or of a pool in session mode",
                    adapter="postgres",
                    retriable=False,
                ) from None
            raise unavailable(f"{self.url} did not send back a notification of this process") from None
        reader.tests_received.clear()

    def _lost(self, connection: PostgresConnection, error: BrokerError) -> None:
        publisher = self._publisher
        if self._sink is None or publisher is None or connection not in (publisher.connection, self._listener):
            return
        sink, self._sink = self._sink, None
        sink.lost(error)
