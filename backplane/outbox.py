"""The bound of one subscriber, and what happens at it. No I/O."""

from __future__ import annotations

from collections import deque
from typing import Final, Literal, get_args

from backplane.errors import ConfigurationError
from backplane.message import Gap, Message

__all__ = ["FullPolicy", "Outbox"]

FullPolicy = Literal["close", "drop_oldest", "drop_newest", "latest"]
"""What happens when a subscriber cannot take more.

- `close`: it is cut (a connection with code 1013), and can come back and reload.
- `drop_oldest`: the oldest waiting messages make room.
- `drop_newest`: what comes is dropped.
- `latest`: a message replaces the waiting one of its channel, full or not; what still does not fit acts as
  `drop_oldest`.
"""

# A gap is small, but many of them must not grow without bound either.
_GAP_BYTES: Final = 64


class Outbox:
    """What waits for one subscriber, in order, bounded in messages and in bytes.

    One message larger than the whole bound is taken when nothing else waits: it could never be delivered otherwise.

    Args:
        max_bytes: Most bytes that wait (characters, for text).
        max_messages: Most messages that wait.
        when_full: The policy.

    Attributes:
        dropped: How many messages the policy dropped so far.
    """

    __slots__ = ("_items", "_max_bytes", "_max_messages", "_size_bytes", "_when_full", "dropped")

    def __init__(self, *, max_bytes: int, max_messages: int, when_full: FullPolicy = "close") -> None:
        if when_full not in get_args(FullPolicy):
            raise ConfigurationError(f"when_full must be one of {', '.join(get_args(FullPolicy))}, not {when_full!r}")
        if max_bytes <= 0 or max_messages <= 0:
            raise ConfigurationError("the bounds of an outbox must be more than 0")
        self._max_bytes = max_bytes
        self._max_messages = max_messages
        self._when_full = when_full
        # An idle subscriber has no deque: an empty one takes 600 bytes.
        self._items: deque[Message | Gap] | None = None
        self._size_bytes = 0
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._items) if self._items else 0

    @property
    def size_bytes(self) -> int:
        """Bytes that wait."""
        return self._size_bytes

    def offer(self, item: Message | Gap) -> bool:
        """Take `item`, or act by the policy; `False` only where the policy is `close` and the bound is reached."""
        # What `Connection.send` sends has no channel, and is never replaced.
        if self._when_full == "latest" and isinstance(item, Message) and item.channel:
            self._forget(item.channel)
        size = _size(item)
        while not self._fits(size):
            if self._when_full == "close":
                return False
            self.dropped += 1
            if self._when_full == "drop_newest":
                return True
            self.take()
        if self._items is None:
            self._items = deque()
        self._items.append(item)
        self._size_bytes += size
        return True

    def take(self) -> Message | Gap | None:
        """Remove and return the oldest item, or `None`."""
        if not self._items:
            return None
        item = self._items.popleft()
        if not self._items:
            self._items = None
        self._size_bytes -= _size(item)
        return item

    def clear(self) -> None:
        """Forget what waits."""
        self._items = None
        self._size_bytes = 0

    def _fits(self, size: int) -> bool:
        if not self._items:
            return True
        return len(self._items) < self._max_messages and self._size_bytes + size <= self._max_bytes

    def _forget(self, channel: str) -> None:
        for item in self._items or ():
            if item.channel == channel and isinstance(item, Message):
                assert self._items is not None
                self._items.remove(item)
                self._size_bytes -= _size(item)
                self.dropped += 1
                break


def _size(item: Message | Gap) -> int:
    return item.size_bytes if isinstance(item, Message) else _GAP_BYTES
