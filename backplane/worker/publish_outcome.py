"""How a call of `publish` that raised is counted."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from backplane.errors import (
    BrokerUnavailableError,
    ConfigurationError,
    InvalidChannelError,
    InvalidDataError,
    PayloadTooLargeError,
    PublishError,
    PublishOutcomeUnknownError,
)

if TYPE_CHECKING:
    from backplane.statistics import Counters

__all__ = ["count_failed_publish"]


def count_failed_publish(counters: Counters, error: BaseException) -> None:
    """Count a call of `publish` that raised `error`, in exactly one figure."""
    match error:
        case BrokerUnavailableError():
            counters.publishes_unavailable += 1
        case PublishOutcomeUnknownError():
            counters.publishes_unknown += 1
        case PublishError():
            counters.publishes_refused += 1
        case PayloadTooLargeError():
            counters.publishes_too_large += 1
        case InvalidChannelError() | InvalidDataError() | ConfigurationError():
            counters.publishes_invalid += 1
        case asyncio.CancelledError():
            counters.publishes_cancelled += 1
        case _:
            counters.publishes_failed += 1
