"""Errors of the PostgreSQL adapter: what an error of the server, of asyncpg or of the system means.

The codes are those of https://www.postgresql.org/docs/current/errcodes-appendix.html.
"""

from __future__ import annotations

import ssl
from typing import Any, Final

import asyncpg  # type: ignore[import-untyped]

from backplane.adapters.shared.error_chain import certificate_error, reason_of
from backplane.errors import (
    BrokerAuthenticationError,
    BrokerError,
    BrokerUnavailableError,
    PublishError,
    PublishOutcomeUnknownError,
)

__all__ = [
    "ASYNCPG_ERRORS",
    "CONNECT_ERRORS",
    "SERVER_ERROR",
    "connect_error",
    "ends_link",
    "outcome_unknown",
    "publish_error",
    "unavailable",
]

_asyncpg: Final[Any] = asyncpg

SERVER_ERROR: Final[type[Exception]] = _asyncpg.PostgresError
"""What the server answered, or that the connection ended."""
ASYNCPG_ERRORS: Final[tuple[type[Exception], ...]] = (
    SERVER_ERROR,
    _asyncpg.InterfaceError,
    _asyncpg.InternalClientError,
    OSError,
)
"""What a call of asyncpg raises where the server, or the way to it, is at fault."""
CONNECT_ERRORS: Final[tuple[type[Exception], ...]] = (*ASYNCPG_ERRORS, UnicodeError)
"""The same while it connects: a name with a label of more than 63 characters is a `UnicodeError`."""

_QUEUE_FULL: Final = "54000"  # program_limit_exceeded: "too many notifications in the NOTIFY queue"
_READ_ONLY: Final = "25006"  # "cannot execute NOTIFY during recovery"
# Connection exceptions, and the end of a session by its administrator, a crash, or the server's stop.
_ENDS_LINK: Final = ("08", "57P", _READ_ONLY)
# Transaction rolled back, resources, locks, a cancelled statement: the next one can pass.
_PASSING: Final = ("40", "53", "55", "57", _QUEUE_FULL)
_REFUSED_LOGIN: Final = ("28",)
_CANNOT_CONNECT_NOW: Final = ("08", *_PASSING)


def unavailable(reason: str) -> BrokerUnavailableError:
    """Return the error for a lost link, or for a server that accepts no sessions at present."""
    return BrokerUnavailableError(reason, adapter="postgres")


def outcome_unknown(reason: str) -> PublishOutcomeUnknownError:
    """Return the error for a publish whose transaction was not answered."""
    return PublishOutcomeUnknownError(
        f"{reason}, before the server's answer; it may have been published", adapter="postgres"
    )


def ends_link(error: Exception) -> bool:
    """Return whether the session is over: it ended, or leads to a server that became a standby."""
    return not isinstance(error, SERVER_ERROR) or _code(error).startswith(_ENDS_LINK)


def publish_error(error: Exception) -> PublishError:
    """Return what to raise for messages whose transaction the server refused: they were not published."""
    reason = reason_of(error)
    if _code(error) == _QUEUE_FULL:
        reason += "; a session that listens, and is in a transaction, keeps it from being emptied: see pg_stat_activity"
    return PublishError(reason, adapter="postgres", retriable=_code(error).startswith(_PASSING))


def connect_error(error: Exception, where: str) -> BrokerError:
    """Return what to raise for an error while a session was opened.

    Args:
        error: The error.
        where: The server, as errors show it.
    """
    if isinstance(error, BrokerError):
        return error
    if (untrusted := certificate_error(error)) is not None:
        reason = f"{where} shows a certificate that is not trusted: {untrusted}"
        return BrokerError(reason, adapter="postgres", retriable=False)
    code, reason = _code(error), reason_of(error) or type(error).__name__
    if isinstance(error, ssl.SSLError):
        return unavailable(f"cannot reach {where}: the TLS handshake failed: {reason}")
    if code.startswith(_REFUSED_LOGIN):
        return BrokerAuthenticationError(f"{where} refused the login: {reason}", adapter="postgres")
    if isinstance(error, OSError) or not code or code.startswith(_CANNOT_CONNECT_NOW):
        if "rejected SSL upgrade" in reason:
            # Of sslmode=prefer asyncpg itself goes on in the clear where a PostgreSQL speaks no TLS.
            reason = f"{where} speaks no TLS, which sslmode demands, or is no PostgreSQL"
            return BrokerError(reason, adapter="postgres", retriable=True)
        return unavailable(f"cannot reach {where}: {reason}")
    return BrokerError(f"{where} refused the session: {reason}", adapter="postgres", retriable=False)


def _code(error: Exception) -> str:
    """Return the five characters of an error of the server; nothing of any other one."""
    return str(getattr(error, "sqlstate", None) or "")
