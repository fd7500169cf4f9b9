"""The longest time that the event loop was blocked: a timer notes how late it was at worst, where the harness reads it.

It costs a wake-up every five milliseconds, about a thousandth of a core; only the servers of this folder have it.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import struct
import time
from pathlib import Path
from typing import Final

__all__ = ["longest", "reset", "watch"]

_FOLDER: Final = "BENCH_STALLS"
_INTERVAL_SECONDS: Final = 0.005
"""A stall is measured to within this, because the timer was not due when it began."""

_SECONDS: Final = struct.Struct("d")


def watch() -> None:
    """Watch the running loop from now on, where `BENCH_STALLS` names a folder."""
    if not (folder := os.environ.get(_FOLDER)):
        return
    path = Path(folder, str(os.getpid()))
    path.write_bytes(_SECONDS.pack(0))
    with path.open("r+b") as file:
        shared = mmap.mmap(file.fileno(), _SECONDS.size)
    loop = asyncio.get_running_loop()

    def wait() -> None:
        loop.call_later(_INTERVAL_SECONDS, tick, time.monotonic() + _INTERVAL_SECONDS)

    def tick(due: float) -> None:
        late = time.monotonic() - due
        if late > _SECONDS.unpack_from(shared)[0]:
            _SECONDS.pack_into(shared, 0, late)
        wait()

    wait()


def reset(folder: Path) -> None:
    """Reset the longest stall; the harness calls it when the window begins."""
    for path in folder.iterdir():
        with path.open("r+b") as file:  # never shorter than it was: the server has it mapped
            file.write(_SECONDS.pack(0))


def longest(folder: Path) -> float | None:
    """Return the longest stall of any worker, in seconds; `None` where none is watched."""
    found = [_SECONDS.unpack(path.read_bytes())[0] for path in folder.iterdir()]
    return max(found, default=None)
