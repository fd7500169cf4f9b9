"""Fixtures of the tests of `ipc://`."""

from __future__ import annotations

import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory with a short path, which pytest's own is not: the path of a Unix socket has 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="ipc") as path:
        yield Path(path)


@pytest.fixture
def url(directory: Path) -> str:
    """The URL of an application of this test. It waits for a peer for longer than a loaded machine delays one."""
    return f"ipc://app?directory={directory}&peer_timeout_seconds=20"


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    """A stack of contexts that ends with the test."""
    async with AsyncExitStack() as stack:
        yield stack
