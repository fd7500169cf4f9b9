"""What waits for one subscriber, within the bounds and by the policy of its `Backlog`. No I/O."""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from backplane.fanout.batch import source_of
from backplane.journal.events import HOOK_FAILED
from backplane.journal.place import place_of
from backplane.message import Gap, Message

if TYPE_CHECKING:
    from collections.abc import Callable

    from backplane.fanout.backlog import Backlog, FullPolicy
    from backplane.journal.journal import Journal
    from backplane.statistics import DropReason

__all__ = ["GAP_BYTES", "Outbox", "Waiting"]

logger: Final = logging.getLogger("backplane.fanout.outbox")

GAP_BYTES: Final = 64
"""What a gap counts as: it is small, but many of them must not grow without bound either."""

# How many times what is given back at once may wait.
_MOST_ALLOWED: Final = 3


class Waiting:
    """What waits in all outboxes of a worker. Each counts its own, so that no pass adds it up.

    Attributes:
        subscribers: Outboxes in which something waits.
        messages: What waits in all of them, gaps included.
        size_bytes: Its size.
    """

    __slots__ = ("messages", "size_bytes", "subscribers")

    def __init__(self) -> None:
        self.subscribers: int = 0
        self.messages: int = 0
        self.size_bytes: int = 0


class Outbox:
    """The items that wait for one subscriber, in the order in which they were offered.

    Args:
        backlog: The bounds of all channels together, and the policy of those that have none of their own.
        journal: How a `latest_by` that fails is logged. Defaults to not at all.
        waiting: Where what waits is counted, with that of other outboxes. Defaults to nowhere else.

    Attributes:
        dropped: How many messages were dropped or replaced so far.
        is_overflowing: Whether a message was dropped for lack of room since the outbox was last empty.
        on_drop: Called with each dropped message and the reason, before `is_overflowing` changes.
    """

    __slots__ = (
        "_allowances",
        "_backlog",
        "_count",
        "_items",
        "_journal",
        "_of_channels",
        "_size_bytes",
        "_waiting",
        "dropped",
        "is_overflowing",
        "on_drop",
    )

    def __init__(self, backlog: Backlog, *, journal: Journal | None = None, waiting: Waiting | None = None) -> None:
        self._backlog = backlog
        self._of_channels: dict[str, Backlog] | None = None
        self._journal = journal
        self._waiting = waiting or Waiting()
        # `None` while empty: most subscribers are idle, and an empty OrderedDict takes 400 bytes.
        self._items: OrderedDict[object, Message | Gap] | None = None
        self._count: int = 0
        self._size_bytes: int = 0
        # By channel, how many messages and bytes were given back at its join, until nothing waits.
        self._allowances: dict[str, tuple[int, int]] | None = None
        self.dropped: int = 0
        self.is_overflowing: bool = False
        self.on_drop: Callable[[Message | Gap, DropReason], object] | None = None

    def __len__(self) -> int:
        return len(self._items) if self._items else 0

    @property
    def size_bytes(self) -> int:
        """Bytes that wait."""
        return self._size_bytes

    @property
    def calls_application(self) -> bool:
        """Whether `offer` calls a function of the application, by the policy of all channels: `latest_by`."""
        return self._backlog.latest_by is not None

    def policy(self, when_full: FullPolicy | None, latest_by: Callable[[Message], object] | None) -> Backlog | None:
        """Return the policy of one channel, for `set_policy`; `None` where neither option is given.

        The bounds are those of all channels: the items of a subscriber wait in one order, so that a channel has no
        bound of its own.

        Raises:
            ConfigurationError: The policy is not known, or `latest_by` is given with a policy that does not call it.
        """
        if when_full is None and latest_by is None:
            return None
        return replace(self._backlog, when_full=when_full or "latest", latest_by=latest_by)

    def when_full(self, channel: str) -> FullPolicy:
        """Return what happens to a message of a channel that does not fit."""
        of_channels = self._of_channels or {}
        return of_channels.get(channel, self._backlog).when_full

    def set_policy(self, channel: str, policy: Backlog | None) -> None:
        """Give one channel a policy of its own; `None` takes it away."""
        if policy is not None:
            self._of_channels = {**(self._of_channels or {}), channel: policy}
        elif self._of_channels:
            self._of_channels.pop(channel, None)

    def allow(self, channel: str, count: int, size_bytes: int) -> None:
        """Raise the bounds by what is given back of `channel`, until nothing waits or the channel is left.

        A client that missed more than its backlog is not slow, and would come back with the same position for ever. One
        that takes nothing while its worker loses link after link is: what was allowed before is not added endlessly.

        Args:
            channel: The channel.
            count: How many items are about to be offered beside what is published.
            size_bytes: Their size.
        """
        if self._allowances is None:
            self._allowances = {}
        counts, sizes = self._allowances.get(channel, (0, 0))
        self._allowances[channel] = (
            min(counts + count, max(counts, _MOST_ALLOWED * count)),
            min(sizes + size_bytes, max(sizes, _MOST_ALLOWED * size_bytes)),
        )

    def disallow(self, channel: str) -> None:
        """Take back what `allow` gave for a channel that is left, or joins and leaves would raise them without end."""
        if self._allowances is not None:
            self._allowances.pop(channel, None)

    def settle(self) -> None:
        """Take back what `allow` gave if nothing waits: it was sent at once."""
        if not self._items:
            self._allowances = None

    def offer(self, item: Message | Gap) -> bool:
        """Take `item`, or act by the policy; `False` only where the policy is `close` and `item` does not fit."""
        policy = self._policy_of(item)
        place = self._place(item, policy)
        if self._items and place in self._items:
            self._drop(place, "replaced")
        size = _size(item)
        while not self._fits(size):
            if policy.when_full == "close":
                return False
            oldest = self._oldest_to_drop() if policy.when_full != "drop_newest" else None
            if oldest is None:
                self._report_drop(item, "dropped_newest")
                return True
            self._drop(oldest, "dropped_oldest")
        waiting = self._waiting
        if self._items is None:
            self._items = OrderedDict()
            waiting.subscribers += 1
        self._items[place] = item
        self._size_bytes += size
        waiting.messages += 1
        waiting.size_bytes += size
        return True

    def take(self) -> Message | Gap | None:
        """Remove and return the oldest item; `None` where nothing waits."""
        if not self._items:
            return None
        _, item = self._items.popitem(last=False)
        if not self._items:
            self._allowances = None
            self.is_overflowing = False
        self._removed(1, _size(item))
        return item

    def clear(self) -> int:
        """Discard what waits, which does not count as dropped; return how many messages that were."""
        self._allowances = None
        self.is_overflowing = False
        if not self._items:
            return 0
        count = len(self._items)
        messages = sum(isinstance(item, Message) for item in self._items.values())
        self._items.clear()
        self._removed(count, self._size_bytes)
        return messages

    def _removed(self, count: int, size_bytes: int) -> None:
        """Note what waits no more: `count` items have been removed."""
        self._size_bytes -= size_bytes
        self._waiting.messages -= count
        self._waiting.size_bytes -= size_bytes
        if not self._items:
            self._items = None
            self._waiting.subscribers -= 1

    def _policy_of(self, item: Message | Gap) -> Backlog:
        return self._backlog if self._of_channels is None else self._of_channels.get(item.channel, self._backlog)

    def _place(self, item: Message | Gap, policy: Backlog) -> object:
        """Return the key of `item` in the queue: that of the item which it replaces, else a new one."""
        # What `Connection.send` sends has no channel, and is never replaced.
        if policy.when_full == "latest" and isinstance(item, Message) and item.channel:
            return item.channel, self._key(item, policy)
        self._count += 1
        return self._count

    def _key(self, message: Message, policy: Backlog) -> object:
        if policy.latest_by is None:
            return None
        try:
            key = policy.latest_by(source_of(message))
            hash(key)
        except Exception as error:  # a failure in the application's function must not end the fan-out
            if self._journal is not None:
                words = (
                    "%(hook)s failed for a message on channel %(channel)r, which is kept beside the others: %(error)s"
                )
                self._journal.log(
                    logger, HOOK_FAILED, words, hook="latest_by", channel=message.channel, error=place_of(error)
                )
            return object()  # equal to no key of the application's
        return key

    def _fits(self, size: int) -> bool:
        if not self._items:
            return True
        count, max_bytes = self._backlog.max_messages, self._backlog.max_bytes
        if self._allowances:
            for more, more_bytes in self._allowances.values():
                count, max_bytes = count + more, max_bytes + more_bytes
        return len(self._items) < count and self._size_bytes + size <= max_bytes

    def _oldest_to_drop(self) -> object | None:
        """Return the place of the oldest item that may make room: not one that its own channel's policy keeps."""
        for place, item in (self._items or {}).items():
            if self._of_channels is None or self._policy_of(item).when_full in {"drop_oldest", "latest"}:
                return place
        return None

    def _drop(self, place: object, reason: DropReason) -> None:
        assert self._items is not None
        item = self._items.pop(place)
        self._removed(1, _size(item))
        self._report_drop(item, reason)

    def _report_drop(self, item: Message | Gap, reason: DropReason) -> None:
        self.dropped += 1
        if self.on_drop is not None:
            self.on_drop(item, reason)
        self.is_overflowing = self.is_overflowing or reason != "replaced"


def _size(item: Message | Gap) -> int:
    return item.size_bytes if isinstance(item, Message) else GAP_BYTES
