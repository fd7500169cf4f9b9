"""What of a PostgreSQL server can end links of workers, or keep messages from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from backplane.adapters.postgres.errors import ASYNCPG_ERRORS
from backplane.adapters.shared.error_chain import reason_of
from backplane.findings import Finding

if TYPE_CHECKING:
    from backplane.adapters.postgres.connection import PostgresConnection

__all__ = ["inspect_server"]

_QUEUE: Final = "SELECT pg_notification_queue_usage()"
_SESSIONS: Final = (
    "SELECT (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'), "
    "current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int"
)
_MOST_SESSIONS_SHARE: Final = 0.8
_QUEUE_WARNING: Final = 0.01
_QUEUE_ERROR: Final = 0.5


async def inspect_server(connection: PostgresConnection) -> list[Finding]:
    """Return what was found; what the server does not permit is skipped."""
    findings = [_pooler(connection)]
    for check, query, judge in (
        ("postgres_queue", _QUEUE, _queue),
        ("postgres_max_connections", _SESSIONS, _sessions),
    ):
        try:
            findings.append(judge(check, *await connection.ask(query)))
        except ASYNCPG_ERRORS as error:
            findings.append(Finding(check=check, level="skipped", text=f"the server refuses it: {reason_of(error)}"))
    return findings


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
