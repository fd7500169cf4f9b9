"""On which brokers a test runs by default: the full suite runs it on each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from _pytest.mark import ParameterSet

__all__ = ["BROKERS", "brokers_by_default", "by_default_on"]

BROKERS = ["ipc", "redis", "redis_cluster", "nats", "kafka", "postgres", "amqp"]
"""Those that connect processes."""


def by_default_on(*names: str) -> pytest.MarkDecorator:
    """Return the mark of a test that uses `broker_url`, and runs on these brokers; on all of them with --chaos=full.

    A test whose subject is the same on each starts four workers for each of them.
    """
    return pytest.mark.parametrize("broker_url", brokers_by_default(*names), indirect=True)


def brokers_by_default(*names: str) -> list[str | ParameterSet]:
    """Return the parameters for all brokers, of which these are used by default."""
    return [name if name in names else pytest.param(name, marks=pytest.mark.full) for name in BROKERS]
