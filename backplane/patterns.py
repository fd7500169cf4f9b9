"""Patterns of channels: `*` is any run of characters, also none, and every other character is itself.

This is the one language of patterns of the package: of `history=`, `presence=` and `channel_group=`, and of
subscriptions.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

__all__ = ["WILDCARD", "Pattern", "Prefixes"]

WILDCARD: Final = "*"
"""Stands for any run of characters."""

_KeyT = TypeVar("_KeyT", str, bytes)


class Pattern:
    """A pattern, ready to be matched.

    Matching looks for the text between two wildcards at the first place after what was found before, which never has to
    be corrected: it takes a time that is linear in the length of the channel, whatever the pattern is. A regular
    expression would try every way to divide the channel among the wildcards.

    Args:
        text: The pattern.

    Attributes:
        text: As above.
        prefix: What is before the first wildcard, which every channel that matches begins with.
    """

    __slots__ = ("_is_name", "_least", "_middle", "_suffix", "prefix", "text")

    def __init__(self, text: str) -> None:
        first, *others = text.split(WILDCARD)
        self.text: str = text
        self.prefix: str = first
        self._is_name = not others
        self._suffix = others.pop() if others else ""
        self._middle = tuple(filter(None, others))
        self._least = len(first) + len(self._suffix)

    def matches(self, channel: str) -> bool:
        """Whether `channel` matches."""
        if self._is_name:
            return channel == self.text
        if len(channel) < self._least or not channel.startswith(self.prefix) or not channel.endswith(self._suffix):
            return False
        at, end = len(self.prefix), len(channel) - len(self._suffix)
        for part in self._middle:
            at = channel.find(part, at, end)
            if at < 0:
                return False
            at += len(part)
        return True


class Prefixes(Generic[_KeyT]):
    """Prefixes, by which a key is looked up in a time that does not depend on how many there are.

    It depends on how many lengths they have, which is few.
    """

    __slots__ = ("_counts", "_lengths", "_prefixes")

    def __init__(self) -> None:
        self._prefixes: set[_KeyT] = set()
        self._counts: Counter[int] = Counter()
        self._lengths: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return bool(self._prefixes)

    def __iter__(self) -> Iterator[_KeyT]:
        return iter(self._prefixes)

    def __contains__(self, prefix: _KeyT) -> bool:
        return prefix in self._prefixes

    def add(self, prefixes: Iterable[_KeyT]) -> None:
        """Add prefixes; one that is there already changes nothing."""
        new = set(prefixes) - self._prefixes
        self._prefixes |= new
        self._count(new, 1)

    def remove(self, prefixes: Iterable[_KeyT]) -> None:
        """Remove prefixes; one that is not there changes nothing."""
        gone = self._prefixes.intersection(prefixes)
        self._prefixes -= gone
        self._count(gone, -1)

    def clear(self) -> None:
        """Remove all."""
        self._prefixes.clear()
        self._counts.clear()
        self._lengths = ()

    def covers(self, key: _KeyT) -> bool:
        """Whether `key` begins with one of them."""
        prefixes = self._prefixes
        return any(key[:length] in prefixes for length in self._lengths)

    def of(self, key: _KeyT) -> list[_KeyT]:
        """Return those that `key` begins with, the shortest first."""
        prefixes = self._prefixes
        found = (key[:length] for length in self._lengths if length <= len(key))
        return [prefix for prefix in found if prefix in prefixes]

    def _count(self, prefixes: Collection[_KeyT], change: int) -> None:
        for prefix in prefixes:
            self._counts[len(prefix)] += change
        if len(+self._counts) != len(self._lengths):
            self._lengths = tuple(sorted(+self._counts))
