"""Which peers have subscribed to which channel, by its name or by a prefix."""

from __future__ import annotations

from collections import defaultdict
from typing import Final, Generic, Protocol, TypeVar

from backplane.channels import RESERVED_PREFIX
from backplane.patterns import Prefixes

__all__ = ["Subscriber", "SubscriberIndex"]

_SubscriberT = TypeVar("_SubscriberT")
_RESERVED: Final = RESERVED_PREFIX.encode()
# Channel names can be chosen by clients: what is known of them must not grow without bound.
_MAX_CACHED: Final = 10_000


class Subscriber(Protocol):
    """A peer to which messages are sent."""

    def send(self, message: bytes, /) -> None:
        """Send a MESSAGE frame."""

    def reads(self, key: bytes, /) -> bool:
        """Whether it reads this channel from the log, and is to be nudged instead."""
        ...

    def nudge(self, notice: bytes, /) -> None:
        """Send a NUDGE frame."""


class SubscriberIndex(Generic[_SubscriberT]):
    """Subscribers by channel, for a publish, and channels by subscriber, for the end of one.

    No prefix stands for the channels of this package, which are of no use to who has not subscribed to their names.
    """

    __slots__ = ("_cached", "_channels", "_prefixes", "_subscribers")

    def __init__(self) -> None:
        self._subscribers: dict[bytes, tuple[_SubscriberT, ...]] = {}
        self._channels: defaultdict[_SubscriberT, set[bytes]] = defaultdict(set)
        self._prefixes: dict[_SubscriberT, Prefixes[bytes]] = {}
        self._cached: dict[bytes, tuple[_SubscriberT, ...]] = {}  # what `of` has found where there are prefixes

    def of(self, key: bytes) -> tuple[_SubscriberT, ...]:
        """Return the subscribers of a channel, as a tuple that does not change during an iteration."""
        if not self._prefixes:
            return self._subscribers.get(key, ())
        found = self._cached.get(key)
        if found is None:
            if len(self._cached) >= _MAX_CACHED:
                self._cached.clear()
            found = self._cached[key] = self._find(key)
        return found

    def add_prefix(self, subscriber: _SubscriberT, prefix: bytes) -> None:
        """Record that `subscriber` has subscribed to every channel that begins with `prefix`."""
        self._prefixes.setdefault(subscriber, Prefixes()).add([prefix])
        self._cached.clear()

    def remove_prefix(self, subscriber: _SubscriberT, prefix: bytes) -> None:
        """Record that `subscriber` has unsubscribed from a prefix."""
        prefixes = self._prefixes.get(subscriber)
        if prefixes is not None:
            prefixes.remove([prefix])
            if not prefixes:
                del self._prefixes[subscriber]
            self._cached.clear()

    def add(self, subscriber: _SubscriberT, key: bytes) -> None:
        """Record that `subscriber` has subscribed to a channel."""
        if key not in self._channels[subscriber]:
            self._channels[subscriber].add(key)
            self._subscribers[key] = (*self._subscribers.get(key, ()), subscriber)
            self._cached.pop(key, None)

    def remove(self, subscriber: _SubscriberT, key: bytes) -> None:
        """Record that `subscriber` has unsubscribed from a channel."""
        if key in self._channels[subscriber]:
            self._channels[subscriber].discard(key)
            self._remove(subscriber, key)

    def remove_all(self, subscriber: _SubscriberT) -> None:
        """Remove every subscription of `subscriber`."""
        for key in self._channels.pop(subscriber, ()):
            self._remove(subscriber, key)
        if self._prefixes.pop(subscriber, None) is not None:
            self._cached.clear()

    def _find(self, key: bytes) -> tuple[_SubscriberT, ...]:
        named = self._subscribers.get(key, ())
        if key.startswith(_RESERVED):
            return named
        others = (each for each, prefixes in self._prefixes.items() if each not in named and prefixes.covers(key))
        return (*named, *others)

    def _remove(self, subscriber: _SubscriberT, key: bytes) -> None:
        self._cached.pop(key, None)
        left = tuple(other for other in self._subscribers[key] if other is not subscriber)
        if left:
            self._subscribers[key] = left
        else:
            del self._subscribers[key]
