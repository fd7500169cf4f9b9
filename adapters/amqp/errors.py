"""Errors of the RabbitMQ adapter: what a refusal of the server, or of the system, means.

The codes are those of https://www.rabbitmq.com/amqp-0-9-1-reference#constants.
"""

from __future__ import annotations

import ssl
from typing import Final

from backplane.adapters.shared.error_chain import certificate_error, reason_of
from backplane.errors import (
    BrokerAuthenticationError,
    BrokerError,
    BrokerUnavailableError,
    PublishError,
    PublishOutcomeUnknownError,
)

__all__ = [
    "ACCESS_REFUSED",
    "CONNECT_ERRORS",
    "ENDED",
    "PRECONDITION_FAILED",
    "WireError",
    "connect_error",
    "outcome_unknown",
    "publish_error",
    "refusal",
    "unavailable",
]

ACCESS_REFUSED: Final = 403
PRECONDITION_FAILED: Final = 406
_NOT_ALLOWED: Final = 530  # the virtual host is missing, or closed to this user

ENDED: Final = "the connection ended"
"""How the reason begins where a connection ended without one that the server gave."""
CONNECT_ERRORS: Final[tuple[type[Exception], ...]] = (OSError, BrokerError, UnicodeError)
"""What can be raised while a connection is opened: a name with a label of over 63 characters is a `UnicodeError`."""


class WireError(Exception):
    """The bytes of the server are no frames of AMQP 0-9-1."""


def unavailable(reason: str) -> BrokerUnavailableError:
    """Return the error for a lost link, or for a server that accepts nothing at present."""
    return BrokerUnavailableError(reason, adapter="amqp")


def outcome_unknown(reason: str) -> PublishOutcomeUnknownError:
    """Return the error for a publish that was not confirmed."""
    return PublishOutcomeUnknownError(f"{reason}, before it was confirmed; it may have been published", adapter="amqp")


def publish_error(reason: str, *, retriable: bool = False) -> PublishError:
    """Return the error for a message that was not published."""
    return PublishError(reason, adapter="amqp", retriable=retriable)


def refusal(code: int, text: str) -> BrokerError:
    """Return the error for what the server gives as its reason to close a connection or a channel."""
    if code == ACCESS_REFUSED:
        return BrokerAuthenticationError(f"the server refused it: {text}", adapter="amqp")
    if code in (_NOT_ALLOWED, PRECONDITION_FAILED):
        # A virtual host that is down passes.
        return BrokerError(f"the server refused it: {text}", adapter="amqp", retriable="is down" in text)
    return unavailable(f"the server closed it: {text} ({code})")


def connect_error(error: Exception, where: str) -> BrokerError:
    """Return what to raise for an error while a connection was opened.

    Args:
        error: One of `CONNECT_ERRORS`.
        where: The server, as errors show it.
    """
    if (untrusted := certificate_error(error)) is not None:
        reason = f"{where} shows a certificate that is not trusted: {untrusted}"
        return BrokerError(reason, adapter="amqp", retriable=False)
    reason = reason_of(error) or type(error).__name__
    if isinstance(error, BrokerAuthenticationError):
        return BrokerAuthenticationError(f"{where}: {reason}", adapter="amqp")
    if isinstance(error, BrokerError) and not isinstance(error, BrokerUnavailableError):
        return BrokerError(f"{where}: {reason}", adapter="amqp", retriable=error.retriable)
    if isinstance(error, ssl.SSLError):
        hint = "where this port speaks no TLS, the scheme is amqp://"
        return unavailable(f"cannot reach {where}: the TLS handshake failed: {reason}; {hint}")
    if reason.startswith(ENDED) and where.startswith("amqp:"):
        reason += "; where this port speaks TLS, the scheme is amqps://"
    return unavailable(f"cannot reach {where}: {reason}")
