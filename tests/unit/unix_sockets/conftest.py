"""Fixtures of the tests of Unix sockets."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory with a short path, which pytest's own is not: the path of a Unix socket has 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="un") as path:
        yield Path(path)
