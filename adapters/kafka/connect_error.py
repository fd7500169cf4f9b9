"""Why a connection to a Kafka broker could not be opened, and what to do about it."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportMissingTypeStubs=false
# aiokafka has no types for its users.

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from aiokafka.errors import (  # type: ignore[import-untyped]
    AuthenticationFailedError,
    IllegalSaslStateError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)

from backplane.adapters.shared.error_chain import certificate_error, error_chain
from backplane.errors import BrokerAuthenticationError, BrokerError, BrokerUnavailableError

if TYPE_CHECKING:
    from backplane.adapters.kafka.login import Security

__all__ = ["clock_hint", "connect_error", "unavailable"]

_LOGIN_ERRORS: Final = (AuthenticationFailedError, IllegalSaslStateError, SaslAuthenticationFailed)
# https://docs.openssl.org/3.0/man3/X509_STORE_CTX_get_error/
_NOT_YET_VALID: Final = 9
_EXPIRED: Final = 10


def unavailable(reason: str) -> BrokerUnavailableError:
    """Return the error for a link or connection that is not available."""
    return BrokerUnavailableError(reason, adapter="kafka")


def clock_hint() -> str:
    """Return a hint for a refusal that a wrong clock can cause."""
    return f"is a clock wrong? This machine's reads {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"


def connect_error(error: Exception, url: str, address: str, node: int | None, security: Security) -> BrokerError:
    """Return the error to raise when `address` cannot be reached.

    Args:
        error: The exception of aiokafka or the operating system.
        url: The URL, without its password.
        address: Host and port.
        node: Id of the broker that advertises `address`; `None` for a broker of the URL.
        security: Security of the attempt.
    """
    if isinstance(error, UnsupportedSaslMechanismError):
        return BrokerAuthenticationError(
            f"{url} offers no login by {security.mechanism}; set sasl_mechanism", adapter="kafka"
        )
    if isinstance(error, _LOGIN_ERRORS):
        hint = f"; {clock_hint()}" if security.token is not None else ""
        return BrokerAuthenticationError(f"{url} refused the credentials: {error}{hint}", adapter="kafka")
    if (cause := certificate_error(error)) is not None:
        hint = f"; {clock_hint()}" if cause.verify_code in (_NOT_YET_VALID, _EXPIRED) else ""
        return BrokerError(f"{address} shows a certificate that is not trusted: {cause}{hint}", adapter="kafka")
    return unavailable(f"{_unreached(url, address, node)}: {_reason(error)}{_hint(error, security)}")


def _unreached(url: str, address: str, node: int | None) -> str:
    if node is None:
        return f"cannot reach {url} ({address})"
    return f"cannot reach broker {node} at {address}, the address in its advertised.listeners (the cluster answers)"


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError) and not str(error):
        return "no answer in time"
    return str(error) or type(error).__name__


def _hint(error: Exception, security: Security) -> str:
    """Return a hint where the broker just closed the connection, as it does when one side alone speaks TLS."""
    was_closed = any(isinstance(cause, ssl.SSLError | ConnectionResetError | EOFError) for cause in error_chain(error))
    if not was_closed:
        return ""
    return "; does this port speak TLS?" if security.ssl_context is None else "; does this port speak no TLS?"
