"""How numbers, times and names stand in the sentences of an explanation."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["ago", "count", "place", "quoted", "unique"]


def place(broker: str, prefix: str) -> str:
    """Return where a worker finds its channels."""
    return f"{broker or 'an unknown broker'}, prefix {prefix!r}"


def count(number: int, what: str) -> str:
    """Return a number with its noun: `1 message`, `2,000 messages`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def ago(seconds: float) -> str:
    """Return how long ago something was: `31 s ago`."""
    if seconds < 120:
        return f"{seconds:.0f} s ago"
    return f"{seconds / 60:.0f} min ago" if seconds < 7200 else f"{seconds / 3600:.0f} h ago"


def quoted(names: Iterable[str]) -> str:
    """Return names as a list in a sentence."""
    return ", ".join(repr(name) for name in names)


def unique(names: Iterable[str]) -> list[str]:
    """Return the first three of several names."""
    return list(dict.fromkeys(names))[:3]
