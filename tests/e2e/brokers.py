"""On which brokers a test runs by default: the full suite runs it on each."""

from __future__ import annotations

import pytest

__all__ = ["BROKERS", "by_default_on"]

BROKERS = ["ipc", "redis", "nats", "kafka"]
"""Those that connect processes."""


def by_default_on(*names: str) -> pytest.MarkDecorator:
    """Return the mark of a test that uses `broker_url`, and runs on these brokers; on all of them with --chaos=full.

    A test whose subject is the same on each starts four workers for each of them.
    """
    brokers = [name if name in names else pytest.param(name, marks=pytest.mark.full) for name in BROKERS]
    return pytest.mark.parametrize("broker_url", brokers, indirect=True)
