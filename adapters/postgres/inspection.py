"""What of a PostgreSQL server can end links of workers, or keep messages from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from backplane.adapters.postgres.errors import ASYNCPG_ERRORS
from backplane.adapters.shared.error_chain import reason_of
from backplane.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Callable

    from backplane.adapters.postgres.connection import PostgresConnection

__all__ = ["inspect_server", "inspect_tables"]

_QUEUE: Final = "SELECT pg_notification_queue_usage()"
_SESSIONS: Final = (
    "SELECT (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'), "
    "current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int"
)
_MOST_SESSIONS_SHARE: Final = 0.8
_QUEUE_WARNING: Final = 0.01
_QUEUE_ERROR: Final = 0.5
_DEAD_ROWS: Final = 100_000
_RETENTIONS_MISSED: Final = 3


async def inspect_server(connection: PostgresConnection) -> list[Finding]:
    """Return what was found; what the server does not permit is skipped."""
    return [
        _pooler(connection),
        await _ask("postgres_queue", connection, _QUEUE, _queue),
        await _ask("postgres_max_connections", connection, _SESSIONS, _sessions),
    ]


async def inspect_tables(
    connection: PostgresConnection, statement: str, retention_seconds: float, is_synchronous: bool
) -> list[Finding]:
    """Return what was found of the tables of `durable=true`.

    Args:
        connection: A session.
        statement: `RowStatements.inspect`.
        retention_seconds: How long messages are kept.
        is_synchronous: Commits wait for a standby.
    """

    def rows(check: str, live: int, dead: int, age: float) -> Finding:
        return _rows(check, live, dead, age, retention_seconds)

    return [await _ask("postgres_rows", connection, statement, rows), _promotion(is_synchronous)]


async def _ask(check: str, connection: PostgresConnection, query: str, judge: Callable[..., Finding]) -> Finding:
    try:
        return judge(check, *await connection.ask(query))
    except ASYNCPG_ERRORS as error:
        return Finding(check=check, level="skipped", text=f"the server refuses it: {reason_of(error)}")


def _rows(check: str, live: int, dead: int, age: float, retention_seconds: float) -> Finding:
    text = f"{live:,} rows are kept, {dead:,} deleted ones await vacuum, and old ones were deleted {age:,.0f} s ago"
    if age > _RETENTIONS_MISSED * retention_seconds:
        cure = "no worker deletes old messages: look for `old messages cannot be deleted` in the logs of the workers"
        return Finding(check=check, level="warning", text=text, cure=cure)
    if dead > max(_DEAD_ROWS, live):
        cure = (
            "autovacuum does not keep up, or may not: a transaction that has been open for long (pg_stat_activity), a "
            "replication slot or a standby with hot_standby_feedback holds it up"
        )
        return Finding(check=check, level="warning", text=text, cure=cure)
    return Finding(check=check, level="ok", text=text)


def _promotion(is_synchronous: bool) -> Finding:
    check = "postgres_promotion"
    if is_synchronous:
        return Finding(check=check, level="ok", text="commits wait for a standby: its promotion loses nothing")
    return Finding(
        check=check, level="ok", text="commits wait for no standby: the promotion of one is a Gap on every channel"
    )


def _pooler(connection: PostgresConnection) -> Finding:
    check = "postgres_pooler"
    if connection.is_pooled:
        text = "the URL leads to a pooler in session mode: each worker keeps two of its connections"
        return Finding(check=check, level="ok", text=text)
    return Finding(check=check, level="ok", text="no pooler is between the workers and the server")


def _queue(check: str, usage: float) -> Finding:
    text = f"the queue of notifications is {usage:.1%} full"
    if usage < _QUEUE_WARNING:
        return Finding(check=check, level="ok", text=text)
    cure = (
        "a session that listens sits in a transaction or does not read, and at 100 % every publish fails: "
        "SELECT pid, state, xact_start, query FROM pg_stat_activity ORDER BY xact_start"
    )
    return Finding(check=check, level="error" if usage >= _QUEUE_ERROR else "warning", text=text, cure=cure)


def _sessions(check: str, open_sessions: int, most: int) -> Finding:
    text = f"{open_sessions:,} of {most:,} sessions are open"
    if open_sessions < _MOST_SESSIONS_SHARE * most:
        return Finding(check=check, level="ok", text=text)
    cure = "raise max_connections: a worker takes two sessions, and twice as many in a restart"
    return Finding(check=check, level="warning", text=text, cure=cure)
