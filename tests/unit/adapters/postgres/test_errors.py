"""Errors of the server and of the way to it."""

from __future__ import annotations

import ssl
from typing import Any

import asyncpg  # type: ignore[import-untyped]
import pytest

from backplane import BrokerAuthenticationError, BrokerError, BrokerUnavailableError
from backplane.adapters.postgres.errors import connect_error, ends_link, publish_error

_asyncpg: Any = asyncpg


def error(code: str, message: str = "it failed") -> Exception:
    """Return the error of the server with this code."""
    made: Exception = _asyncpg.PostgresError.new({"C": code, "M": message})
    return made


@pytest.mark.parametrize(
    ("cause", "expected", "retriable"),
    [
        (error("28P01"), BrokerAuthenticationError, False),
        (error("28000"), BrokerAuthenticationError, False),
        (error("3D000"), BrokerError, False),
        (error("42501"), BrokerError, False),
        (error("57P03"), BrokerUnavailableError, True),
        (error("53300"), BrokerUnavailableError, True),
        (ConnectionRefusedError("refused"), BrokerUnavailableError, True),
        (ssl.SSLError("wrong version"), BrokerUnavailableError, True),
        (ssl.SSLCertVerificationError("self-signed"), BrokerError, False),
        (ConnectionError("PostgreSQL server at h rejected SSL upgrade"), BrokerError, True),
        (BrokerUnavailableError("known", adapter="postgres"), BrokerUnavailableError, True),
    ],
)
def test_errors_while_a_session_is_opened(cause: Exception, expected: type[BrokerError], retriable: bool) -> None:
    """What is refused for good is not tried again; the rest is unavailable."""
    made = connect_error(cause, "postgres://host")
    assert type(made) is expected
    assert made.retriable is retriable


@pytest.mark.parametrize(
    ("cause", "ends", "retriable"),
    [
        (error("57P01"), True, True),
        (error("25006", "cannot execute NOTIFY during recovery"), True, False),
        (ConnectionResetError(), True, False),
        (error("54000", "too many notifications in the NOTIFY queue"), False, True),
        (error("53200"), False, True),
        (error("57014"), False, True),
        (error("42501"), False, False),
    ],
)
def test_errors_of_a_statement(cause: Exception, ends: bool, retriable: bool) -> None:
    """Some end the session, some pass, and some are final."""
    assert ends_link(cause) is ends
    assert publish_error(cause).retriable is retriable


def test_a_full_queue_is_explained() -> None:
    """The error names who fills it."""
    assert "a session that listens" in str(publish_error(error("54000", "too many notifications")))
