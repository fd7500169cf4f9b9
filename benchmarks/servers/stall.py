"""The longest time that the event loop was blocked, and the longest collection of Python's garbage, which is one cause.

A timer notes how late it was at worst, where the harness reads it. It costs a wake-up every five milliseconds, about a
thousandth of a core; only the servers of this folder have it.
"""

from __future__ import annotations

import asyncio
import gc
import mmap
import os
import struct
import time
from pathlib import Path
from typing import Final

__all__ = ["longest", "longest_collection", "reset", "watch"]

_FOLDER: Final = "BENCH_STALLS"
_INTERVAL_SECONDS: Final = 0.005
"""A stall is measured to within this, because the timer was not due when it began."""

_SECONDS: Final = struct.Struct("d")
_LOOP, _COLLECTION = 0, _SECONDS.size
"""Where each of the two stands in the file."""
_NOTHING: Final = bytes(2 * _SECONDS.size)


def watch() -> None:
    """Watch the running loop from now on, where `BENCH_STALLS` names a folder."""
    if not (folder := os.environ.get(_FOLDER)):
        return
    path = Path(folder, str(os.getpid()))
    path.write_bytes(_NOTHING)
    with path.open("r+b") as file:
        shared = mmap.mmap(file.fileno(), len(_NOTHING))
    loop = asyncio.get_running_loop()
    collecting = 0.0

    def note(place: int, seconds: float) -> None:
        if seconds > _SECONDS.unpack_from(shared, place)[0]:
            _SECONDS.pack_into(shared, place, seconds)

    def wait() -> None:
        loop.call_later(_INTERVAL_SECONDS, tick, time.monotonic() + _INTERVAL_SECONDS)

    def tick(due: float) -> None:
        note(_LOOP, time.monotonic() - due)
        wait()

    def collects(phase: str, _: dict[str, int]) -> None:
        nonlocal collecting
        if phase == "start":
            collecting = time.monotonic()
        else:
            note(_COLLECTION, time.monotonic() - collecting)

    gc.callbacks.append(collects)
    wait()


def reset(folder: Path) -> None:
    """Reset what was longest; the harness calls it when the window begins."""
    for path in folder.iterdir():
        with path.open("r+b") as file:  # never shorter than it was: the server has it mapped
            file.write(_NOTHING)


def longest(folder: Path) -> float | None:
    """Return the longest stall of any worker, in seconds; `None` where none is watched."""
    return _longest(folder, _LOOP)


def longest_collection(folder: Path) -> float | None:
    """Return the longest collection in any worker, likewise."""
    return _longest(folder, _COLLECTION)


def _longest(folder: Path, place: int) -> float | None:
    found = [_SECONDS.unpack_from(path.read_bytes(), place)[0] for path in folder.iterdir()]
    return max(found, default=None)
