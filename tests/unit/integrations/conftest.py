"""The integrations run on one event loop: what is below them is tested on both."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """That of asyncio."""
    return "asyncio", {"use_uvloop": False}
