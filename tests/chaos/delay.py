"""By how much the other programs of the machine delay what a test measures."""

from __future__ import annotations

from pathlib import Path
from typing import Final

__all__ = ["Delay"]

# proc(5): how long the main thread ran, how long it could run and had no processor (both in ns), how often it ran.
_SCHEDULED: Final = Path("/proc/self/schedstat")
_SHARES: Final = 2


class Delay:
    """What a machine that others use adds to a time, from the creation of this on.

    This process waits for a processor, and as long do the broker or the worker that it waits for. Nothing is added
    where the machine is idle, and where the system does not report it: it must be Linux.
    """

    def __init__(self) -> None:
        self._before = _waited_seconds()

    @property
    def seconds(self) -> float:
        """Twice the time for which this process could run and had no processor."""
        return _SHARES * (_waited_seconds() - self._before)


def _waited_seconds() -> float:
    return int(_SCHEDULED.read_text().split()[1]) / 1e9 if _SCHEDULED.exists() else 0.0
