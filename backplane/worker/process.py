"""What this process uses of its host: several workers after one scrape have these figures nowhere else."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path
from typing import Final

__all__ = ["cpu_seconds", "max_fds", "open_fds", "resident_bytes", "started_at"]

_PROC: Final = Path("/proc/self")
_PAGE_BYTES: Final = resource.getpagesize()
_STARTED_AT: Final = 21  # starttime in /proc/self/stat, counted from 0, proc_pid_stat(5)


def cpu_seconds() -> float:
    """Return the processor time that this process has used, in user and in system mode."""
    return time.process_time()


def max_fds() -> int:
    """Return how many files this process may open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def open_fds() -> int | None:
    """Return how many files this process has open; `None` where there is no `/proc`."""
    try:
        return len(os.listdir(_PROC / "fd"))  # noqa: PTH208  # thousands of names, without a `Path` for each
    except OSError:
        return None


def resident_bytes() -> int | None:
    """Return how much memory this process has in use; `None` where there is no `/proc`."""
    try:
        return int((_PROC / "statm").read_bytes().split()[1]) * _PAGE_BYTES
    except OSError:
        return None


def started_at() -> float | None:
    """Return when this process started, in seconds since the epoch; `None` where there is no `/proc`."""
    try:
        fields = (_PROC / "stat").read_bytes().rpartition(b")")[2].split()
        booted_at = next(
            int(line.split()[1]) for line in Path("/proc/stat").read_bytes().splitlines() if line.startswith(b"btime ")
        )
    except (OSError, StopIteration):
        return None
    return booted_at + int(fields[_STARTED_AT - 2]) / os.sysconf("SC_CLK_TCK")
