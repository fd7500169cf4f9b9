"""`backplane.worker.process`: what the kernel reports of this process."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import psutil
import pytest

from backplane.worker import process

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_descriptors() -> None:
    """One more open file is one more."""
    before = process.open_fds()
    assert before is not None
    descriptor = os.open(os.devnull, os.O_RDONLY)
    try:
        assert process.open_fds() == before + 1
    finally:
        os.close(descriptor)
    assert process.open_fds() == before


def test_start() -> None:
    """The time of the start is that which others read, to a second."""
    started = process.started_at()
    assert started is not None
    assert abs(started - psutil.Process().create_time()) < 1.1
    assert started < time.time()


def test_memory() -> None:
    """Memory that is written to is in use."""
    before = process.resident_bytes()
    block = bytearray(os.urandom(1)) * (64 << 20)
    after = process.resident_bytes()
    assert before is not None
    assert after is not None
    assert after - before > 0.9 * len(block)


def test_processor_time() -> None:
    """It grows with work."""
    before = process.cpu_seconds()
    while process.cpu_seconds() == before:
        pass
    assert process.cpu_seconds() > before


@pytest.mark.parametrize("read", [process.open_fds, process.resident_bytes, process.started_at])
def test_without_proc(read: Callable[[], object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where there is no `/proc` these figures are left out."""
    monkeypatch.setattr(process, "_PROC", tmp_path / "none")
    assert read() is None
