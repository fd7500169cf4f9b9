"""The error that explains a failed connection: client libraries raise it as the cause, or the context, of their own."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from backplane.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["certificate_error", "error_chain", "reason_of"]


def error_chain(error: BaseException) -> Iterator[BaseException]:
    """Return `error`, what it was raised from, and so on to the first error."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def certificate_error(error: BaseException) -> ssl.SSLCertVerificationError | None:
    """Return the refusal of the broker's certificate that caused `error`; `None` where the cause is another."""
    return next((cause for cause in error_chain(error) if isinstance(cause, ssl.SSLCertVerificationError)), None)


def reason_of(error: BaseException) -> str:
    """Return the message of `error`; of a `BrokerError` without the name of the adapter, to be part of another one."""
    return error.reason if isinstance(error, BrokerError) else str(error)
