"""Which peers have subscribed to which channel."""

from __future__ import annotations

from collections import defaultdict
from typing import Generic, Protocol, TypeVar

__all__ = ["Subscriber", "SubscriberIndex"]

_SubscriberT = TypeVar("_SubscriberT")


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
    """Subscribers by channel, for a publish, and channels by subscriber, for the end of one."""

    __slots__ = ("_channels", "_subscribers")

    def __init__(self) -> None:
        self._subscribers: dict[bytes, tuple[_SubscriberT, ...]] = {}
        self._channels: defaultdict[_SubscriberT, set[bytes]] = defaultdict(set)

    def of(self, key: bytes) -> tuple[_SubscriberT, ...]:
        """Return the subscribers of a channel, as a tuple that does not change during an iteration."""
        return self._subscribers.get(key, ())

    def add(self, subscriber: _SubscriberT, key: bytes) -> None:
        """Record that `subscriber` has subscribed to a channel."""
        if key not in self._channels[subscriber]:
            self._channels[subscriber].add(key)
            self._subscribers[key] = (*self.of(key), subscriber)

    def remove(self, subscriber: _SubscriberT, key: bytes) -> None:
        """Record that `subscriber` has unsubscribed from a channel."""
        if key in self._channels[subscriber]:
            self._channels[subscriber].discard(key)
            self._remove(subscriber, key)

    def remove_all(self, subscriber: _SubscriberT) -> None:
        """Remove every subscription of `subscriber`."""
        for key in self._channels.pop(subscriber, ()):
            self._remove(subscriber, key)

    def _remove(self, subscriber: _SubscriberT, key: bytes) -> None:
        left = tuple(other for other in self._subscribers[key] if other is not subscriber)
        if left:
            self._subscribers[key] = left
        else:
            del self._subscribers[key]
