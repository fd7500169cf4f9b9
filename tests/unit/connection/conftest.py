"""Fixtures of the tests of connections."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.unit.connection.world import (
    World,
    hub_of,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


@pytest.fixture(params=["plain", "lane", "handed-over"])
async def world(request: pytest.FixtureRequest) -> AsyncGenerator[World]:
    """A hub whose broker is up, and clients by ASGI, on the direct lane, or handed over by it."""
    async with hub_of(lane=request.param != "plain", is_handed_over=request.param == "handed-over") as made:
        yield made


@pytest.fixture(params=["plain", "lane"])
async def handler_world(request: pytest.FixtureRequest) -> AsyncGenerator[World]:
    """The same with clients that have a handler, for what only a handler does: it receives, and it ends."""
    async with hub_of(lane=request.param == "lane") as made:
        yield made


@pytest.fixture
async def plain_world() -> AsyncGenerator[World]:
    """The same with clients by ASGI alone, for what only a `send` can do: raise."""
    async with hub_of(lane=False) as made:
        yield made


@pytest.fixture
async def lane_world() -> AsyncGenerator[World]:
    """The same with clients on the direct lane alone."""
    async with hub_of(lane=True) as made:
        yield made
