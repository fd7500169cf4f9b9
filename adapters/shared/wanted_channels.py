"""Which channels an adapter delivers, of all that it receives: for brokers that send every worker everything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from backplane.patterns import Prefixes

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

__all__ = ["WantedChannels"]

_KeyT = TypeVar("_KeyT", str, bytes)


class WantedChannels(Generic[_KeyT]):
    """The channels that are subscribed to by their name, or because they begin with a prefix.

    Args:
        encode: Returns a channel, or a prefix, as messages of the broker have it. What stands for a prefix must be the
            prefix of what stands for each channel that begins with it.
        decode: Returns the channel again; raises `ValueError` for what is none.

    Attributes:
        names: The channels that are wanted by their name, by their encoded form.
        find: Returns the channel that a message of the broker belongs to, by its encoded form; `None` if it is not
            wanted. It is called for each message.
    """

    __slots__ = ("_decode", "_encode", "_prefixes", "find", "names")

    def __init__(self, encode: Callable[[str], _KeyT], decode: Callable[[_KeyT], str]) -> None:
        self._encode: Callable[[str], _KeyT] = encode
        self._decode: Callable[[_KeyT], str] = decode
        self._prefixes: Prefixes[_KeyT] = Prefixes()
        self.names: dict[_KeyT, str] = {}
        self.find: Callable[[_KeyT], str | None] = self.names.get

    def __bool__(self) -> bool:
        return bool(self.names or self._prefixes)

    @property
    def has_prefixes(self) -> bool:
        """Whether channels are wanted whose names are not known."""
        return bool(self._prefixes)

    def add(self, channels: Iterable[str]) -> None:
        """Want channels by their name."""
        self.names.update((self._encode(channel), channel) for channel in channels)

    def remove(self, channels: Iterable[str]) -> None:
        """Want channels by their name no longer."""
        for channel in channels:
            self.names.pop(self._encode(channel), None)

    def add_prefixes(self, prefixes: Collection[str]) -> None:
        """Want every channel that begins with one of these."""
        self._prefixes.add(map(self._encode, prefixes))
        self.find = self._find if self._prefixes else self.names.get

    def remove_prefixes(self, prefixes: Collection[str]) -> None:
        """Want channels because of these prefixes no longer."""
        self._prefixes.remove(map(self._encode, prefixes))
        self.find = self._find if self._prefixes else self.names.get

    def _find(self, key: _KeyT) -> str | None:
        channel = self.names.get(key)
        if channel is None and self._prefixes.covers(key):
            try:
                return self._decode(key)
            except ValueError:  # of a program that is no backplane
                return None
        return channel
