"""One session at a PostgreSQL server, through asyncpg, which does not reconnect by itself."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import asyncpg  # type: ignore[import-untyped]

from backplane.adapters.postgres.errors import ASYNCPG_ERRORS, ends_link, unavailable
from backplane.adapters.shared.error_chain import reason_of
from backplane.concurrency.fork import close_in_children
from backplane.concurrency.shared_future import outcome_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from backplane.errors import BrokerError

__all__ = ["PostgresConnection", "ServerIdentity", "open_session"]

_asyncpg: Final[Any] = asyncpg
_FOREVER_SECONDS: Final = 86_400.0  # asyncpg's own limit would count a pause of this process
_GIVE_UP_SECONDS: Final = 0.5

ServerIdentity = tuple[str, str]
"""Which cluster of databases, and since when its server runs: a server that replaces another one has others."""

# The server ends no idle session, and notices within a minute that this process, or the way to it, is gone: until then
# the session would keep what it was not sent in the server's queue.
# By a statement: a pooler refuses most parameters of the start-up message. Older servers lack some of these settings.
_SET: Final = """
    SELECT count(set_config(name, wanted.setting, false)) FROM pg_settings JOIN (VALUES
        ('idle_session_timeout', '0'), ('lock_timeout', '0'), ('default_transaction_isolation', 'read committed'),
        ('tcp_keepalives_idle', '30'), ('tcp_keepalives_interval', '10'), ('tcp_keepalives_count', '3'),
        ('tcp_user_timeout', '30000')
    ) AS wanted (name, setting) USING (name)
"""
_IDENTIFY: Final = (
    "SELECT pg_backend_pid(), pg_is_in_recovery(), current_setting('default_transaction_read_only'), "
    "pg_postmaster_start_time()::text"
)
_SYSTEM: Final = "SELECT system_identifier::text FROM pg_control_system()"


class _Session(_asyncpg.Connection):  # type: ignore[misc]  # asyncpg states no types
    """A connection of asyncpg that passes on notifications at once.

    asyncpg itself schedules a callback of the event loop for each, which takes longer than all else that a message of
    this adapter needs. Should it no longer call the method, the listener that `listen` adds is called as ever.

    Attributes:
        receive: What notifications are passed on to, from the first `listen` on.
    """

    receive: Callable[[str], None] | None = None

    def _process_notification(self, pid: int, channel: str, notification: str) -> None:
        if self.receive is not None:
            self.receive(notification)


class PostgresConnection:
    """A session. Its owner is notified of its end from `adopt` on.

    Args:
        connection: The connection of asyncpg, which only this object uses.

    Attributes:
        is_pooled: It leads to a pooler, such as PgBouncer, and not to the server itself.
        is_standby: The server replays what a primary sends it, and takes no NOTIFY.
        is_read_only: Transactions of this session may not write.
        identity: Which server it is.
        version: Its version.
        loss: Why it ended; `None` while it is up.
        reading: Held while what was published is read and delivered.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._on_lost: Callable[[BrokerError], None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._lock = asyncio.Lock()  # asyncpg runs one statement at a time
        self.reading: asyncio.Lock = asyncio.Lock()
        self.is_pooled: bool = False
        self.is_standby: bool = False
        self.is_read_only: bool = False
        self.identity: ServerIdentity = ("", "")
        self.version: str = ""
        self.loss: BrokerError | None = None
        connection.add_termination_listener(self._terminated)
        close_in_children(self, connection._transport)

    async def identify(self) -> None:
        """Set what a session needs, and read which server it leads to.

        Raises:
            Exception: One of `ASYNCPG_ERRORS`.
        """
        await self._connection.execute("SET statement_timeout = 0")  # before it ends one of the others
        await self._connection.execute(_SET)
        version = self._connection.get_server_version()
        self.version = f"{version.major}.{version.minor}"
        pid, self.is_standby, read_only, started = await self._connection.fetchrow(_IDENTIFY)
        self.is_read_only = read_only == "on"
        self.is_pooled = pid != self._connection.get_server_pid()
        try:
            system = await self._connection.fetchval(_SYSTEM)
        except _asyncpg.InsufficientPrivilegeError:
            system = ""
        self.identity = (system, started)

    def adopt(self, on_lost: Callable[[BrokerError], None]) -> None:
        """Take it into use; `on_lost` is called once, at its end.

        Raises:
            BrokerUnavailableError: It has ended already.
        """
        if self.loss is not None:
            raise self.loss
        self._on_lost = on_lost

    async def listen(self, channel: str, receive: Callable[[str], None]) -> None:
        """Call `receive` with each notification of a PostgreSQL channel whose transaction commits from now on.

        Raises:
            Exception: One of `ASYNCPG_ERRORS`.
        """

        def notified(notification: str) -> None:
            if self.loss is None:
                receive(notification)

        def late(_connection: object, _pid: int, _channel: str, notification: str) -> None:
            notified(notification)

        # Older servers fail to LISTEN where the oldest notification is of a transaction that was long
        # forgotten, until this has passed over what no session has to read.
        await self._connection.execute("SELECT pg_notification_queue_usage()")
        self._connection.receive = notified
        await self._connection.add_listener(channel, late)

    async def prepare(self, query: str) -> Any:
        """Return a prepared statement, for `run`."""
        return await self._connection.prepare(query)

    async def fetch(self, statement: Any, *values: object) -> list[Any]:
        """Return all rows of a prepared statement; cancelled, it goes on, as `ask` does.

        Raises:
            BrokerUnavailableError: The session ended.
            Exception: The server refused it, with one of `ASYNCPG_ERRORS`.
        """
        return list(await outcome_of(self.start_task(self._answer(lambda: statement.fetch(*values)))))

    async def run(self, statement: Any, *values: object) -> Any:
        """Run a prepared statement, and return the first value. Not to be cancelled: see `ask`.

        Raises:
            BrokerUnavailableError: The session had ended before.
            Exception: One of `ASYNCPG_ERRORS`; the session is ended where that means that it is over.
        """
        async with self._lock:
            if self.loss is not None:
                raise self.loss
            try:
                return await statement.fetchval(*values)
            except ASYNCPG_ERRORS as error:
                self._end_after(error)
                raise

    async def ask(self, query: str, *values: object) -> Any:
        """Return the first row of a query. Cancelled, the query goes on: asyncpg would open a connection to end it.

        Raises:
            BrokerUnavailableError: The session ended.
            Exception: The server refused it, with one of `ASYNCPG_ERRORS`.
        """
        return await outcome_of(self.start_task(self._ask(query, *values)))

    def start_task(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a part of the work on this session; `closed` waits for its end."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def end(self, reason: str) -> None:
        """End it at once; what is in progress fails."""
        if self.loss is not None:
            return
        self.loss = unavailable(reason)
        self._connection.terminate()
        if self._on_lost is not None:
            self._on_lost(self.loss)

    async def closed(self) -> None:
        """Wait until everything that ran on it has ended; to be called after `end`."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _ask(self, query: str, *values: object) -> Any:
        return await self._answer(lambda: self._connection.fetchrow(query, *values))

    async def _answer(self, ask: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        async with self._lock:
            if self.loss is not None:
                raise self.loss
            try:
                return await ask()
            except ASYNCPG_ERRORS as error:
                self._end_after(error)
                if self.loss is not None:
                    raise self.loss from error
                raise

    def _end_after(self, error: Exception) -> None:
        if ends_link(error):
            self.end(f"the session ended: {reason_of(error)}")

    def _terminated(self, _connection: object) -> None:
        self.end("the session ended")


async def open_session(**arguments: Any) -> PostgresConnection:
    """Connect, log in, and identify the server.

    Args:
        arguments: Those of `asyncpg.connect`.

    Raises:
        Exception: One of `ASYNCPG_ERRORS`.
    """
    connection = PostgresConnection(await _connect(arguments))
    try:
        await connection.identify()
    except BaseException:
        connection.end("it was given up")
        raise
    return connection


async def _connect(arguments: dict[str, Any]) -> Any:
    """Return a connection of asyncpg; cancelled, leave none."""
    connecting: asyncio.Task[Any] = asyncio.create_task(
        _asyncpg.connect(
            **arguments,
            timeout=_FOREVER_SECONDS,
            statement_cache_size=0,
            target_session_attrs="any",
            connection_class=_Session,
        )
    )
    try:
        return await outcome_of(connecting)
    except asyncio.CancelledError:
        connecting.add_done_callback(_terminate_result)  # first: the waits below can be cancelled too
        # Cancelled right after the socket was connected, asyncpg 0.32 leaves a future whose error is never retrieved,
        # and asyncio reports it. So it gets a moment to come past that.
        await asyncio.wait((connecting,), timeout=_GIVE_UP_SECONDS)
        connecting.cancel()
        await asyncio.wait((connecting,))
        raise


def _terminate_result(connecting: asyncio.Task[Any]) -> None:
    if not connecting.cancelled() and connecting.exception() is None:
        connecting.result().terminate()
