"""The prefixes of channel names that one link has to deliver."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, AnyStr, Generic

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Prefixes", "outermost"]


class Prefixes(Generic[AnyStr]):
    """A set of prefixes, as text or as bytes, some of which may begin with others of them.

    Attributes:
        wanted: All of them.
        outermost: Those that begin with no other one: a channel that begins with any of all begins with one of these.
    """

    __slots__ = ("outermost", "wanted")

    def __init__(self) -> None:
        self.wanted: set[AnyStr] = set()
        self.outermost: tuple[AnyStr, ...] = ()

    def add(self, prefixes: Iterable[AnyStr]) -> None:
        """Add prefixes."""
        self.wanted.update(prefixes)
        self.outermost = outermost(self.wanted)

    def discard(self, prefixes: Iterable[AnyStr]) -> None:
        """Remove prefixes; those that are not there are ignored."""
        self.wanted.difference_update(prefixes)
        self.outermost = outermost(self.wanted)

    def clear(self) -> None:
        """Remove all."""
        self.discard(list(self.wanted))

    def match(self, channel: AnyStr) -> bool:
        """Return whether a channel begins with one of them."""
        text: Any = channel  # of a tuple of either kind pyright knows no `startswith`
        return bool(text.startswith(self.outermost))


def outermost(prefixes: Iterable[AnyStr]) -> tuple[AnyStr, ...]:
    """Return those that begin with no other one."""
    found: list[AnyStr] = []
    for prefix in sorted(prefixes):  # each directly follows those that it begins with, or others that do
        if not found or not prefix.startswith(found[-1]):
            found.append(prefix)
    return tuple(found)
