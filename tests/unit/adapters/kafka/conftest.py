"""Fixtures of the tests of `kafka://` without a broker."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.unit.adapters.kafka.doubles import Tasks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def tasks(anyio_backend: object) -> AsyncIterator[Tasks]:
    """Tasks that end with the test."""
    tasks = Tasks()
    yield tasks
    await tasks.end()
