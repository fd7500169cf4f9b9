"""Fixtures of the tests of the endpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.unit.centrifugal.world import Sdk, Site, serving

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """One event loop is enough for what has no transport: the integration tests run on both."""
    return "asyncio", {"use_uvloop": False}


@pytest.fixture
async def site() -> AsyncGenerator[Site]:
    """An application with one endpoint."""
    async with serving() as found:
        yield found


@pytest.fixture
async def client(site: Site) -> Sdk:
    """A client of it that has connected as `ann`."""
    return await site.connected()
