"""Errors of the NATS adapter."""

from __future__ import annotations

from backplane.errors import BrokerUnavailableError, PublishOutcomeUnknownError

__all__ = ["line_too_long", "outcome_unknown", "unavailable"]


def unavailable(reason: str) -> BrokerUnavailableError:
    """Return the error for a link that is lost, or that cannot be opened."""
    return BrokerUnavailableError(reason, adapter="nats")


def outcome_unknown(reason: str) -> PublishOutcomeUnknownError:
    """Return the error for a publish that the server has neither confirmed nor refused."""
    return PublishOutcomeUnknownError(f"{reason}; it may have been published", adapter="nats")


def line_too_long(size_bytes: int) -> str:
    """Return the reason to refuse a command whose line is longer than the server accepts."""
    return f"its subject takes {size_bytes:,} bytes of a control line, more than the server accepts (max_control_line)"
