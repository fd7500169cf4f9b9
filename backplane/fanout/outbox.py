"""The bound of one subscriber, and what happens at it. No I/O."""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, get_args

from backplane.errors import ConfigurationError
from backplane.log_bursts import place_of
from backplane.message import Gap, Message
from backplane.option_checks import check_number

if TYPE_CHECKING:
    from collections.abc import Callable

    from backplane.log_bursts import LogBursts
    from backplane.statistics import DropReason

__all__ = ["FullPolicy", "Outbox", "Rule"]

logger = logging.getLogger("backplane.fanout.outbox")

FullPolicy = Literal["close", "drop_oldest", "drop_newest", "latest"]
"""What happens when a subscriber cannot take more.

- `close`: it is cut (a connection with code 1013), and can come back and reload.
- `drop_oldest`: the oldest waiting messages make room.
- `drop_newest`: what comes is dropped.
- `latest`: a message replaces the waiting one of its channel (or of its key), full or not; what still does not fit acts
  as `drop_oldest`.
"""

# A gap is small, but many of them must not grow without bound either.
_GAP_BYTES: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """The policy of a subscriber, or of one channel of it.

    Attributes:
        when_full: What happens at the bound. Defaults to `close`.
        latest_by: With `latest`, what tells the messages of one channel apart: one per channel and key is kept. Must
            return something hashable. Defaults to one per channel.

    Raises:
        ConfigurationError: The policy is not known, or `latest_by` stands without `latest`.
    """

    when_full: FullPolicy = "close"
    latest_by: Callable[[Message], object] | None = None

    def __post_init__(self) -> None:
        if self.when_full not in get_args(FullPolicy):
            known = ", ".join(get_args(FullPolicy))
            raise ConfigurationError(f"when_full must be one of {known}, not {self.when_full!r}")
        if self.latest_by is not None and self.when_full != "latest":
            raise ConfigurationError("latest_by needs when_full='latest'")


class Outbox:
    """What waits for one subscriber, in order, bounded in messages and in bytes.

    One message larger than the whole bound is taken when nothing else waits: it could never be delivered otherwise.

    Args:
        max_bytes: Most bytes that wait (characters, for text).
        max_messages: Most messages that wait.
        when_full: The policy.
        latest_by: The key of `latest`; see `Rule`.
        bursts: How a `latest_by` that fails is logged. Defaults to not at all.

    Attributes:
        dropped: How many messages the policy dropped so far.
        behind: Whether it dropped a message for lack of room since it was last empty.
        on_drop: Called with each dropped message, and why.
    """

    __slots__ = (
        "_bursts",
        "_count",
        "_items",
        "_max_bytes",
        "_max_messages",
        "_rule",
        "_rules",
        "_size_bytes",
        "behind",
        "dropped",
        "on_drop",
    )

    def __init__(
        self,
        *,
        max_bytes: int,
        max_messages: int,
        when_full: FullPolicy = "close",
        latest_by: Callable[[Message], object] | None = None,
        bursts: LogBursts | None = None,
    ) -> None:
        check_number("max_outbox_bytes", max_bytes, whole=True)
        check_number("max_outbox_messages", max_messages, whole=True)
        self._rule = (
            _PLAIN[when_full]
            if latest_by is None and when_full in _PLAIN
            else Rule(when_full=when_full, latest_by=latest_by)
        )
        self._rules: dict[str, Rule] | None = None
        self._bursts = bursts
        self._max_bytes = max_bytes
        self._max_messages = max_messages
        # An idle subscriber has none: an empty one takes 400 bytes.
        self._items: OrderedDict[object, Message | Gap] | None = None
        self._count = 0
        self._size_bytes = 0
        self.dropped = 0
        self.behind = False
        self.on_drop: Callable[[Message | Gap, DropReason], None] | None = None

    def __len__(self) -> int:
        return len(self._items) if self._items else 0

    @property
    def size_bytes(self) -> int:
        """Bytes that wait."""
        return self._size_bytes

    def set_rule(self, channel: str, rule: Rule | None) -> None:
        """Give one channel a policy of its own, or take it away."""
        if rule is not None:
            self._rules = {**(self._rules or {}), channel: rule}
        elif self._rules:
            self._rules.pop(channel, None)

    def offer(self, item: Message | Gap) -> bool:
        """Take `item`, or act by the policy; `False` only where the policy is `close` and the bound is reached."""
        rule = self._rule_of(item)
        place = self._place(item, rule)
        if self._items and place in self._items:
            self._drop(place, "replaced")
        size = _size(item)
        while not self._fits(size):
            if rule.when_full == "close":
                return False
            oldest = self._oldest_to_drop() if rule.when_full != "drop_newest" else None
            if oldest is None:
                self._tell_drop(item, "dropped_newest")
                return True
            self._drop(oldest, "dropped_oldest")
        if self._items is None:
            self._items = OrderedDict()
        self._items[place] = item
        self._size_bytes += size
        return True

    def take(self) -> Message | Gap | None:
        """Remove and return the oldest item, or `None`."""
        if not self._items:
            return None
        _, item = self._items.popitem(last=False)
        if not self._items:
            self._items = None
            self.behind = False
        self._size_bytes -= _size(item)
        return item

    def clear(self) -> None:
        """Forget what waits."""
        self._items = None
        self.behind = False
        self._size_bytes = 0

    def _rule_of(self, item: Message | Gap) -> Rule:
        return self._rule if self._rules is None else self._rules.get(item.channel, self._rule)

    def _place(self, item: Message | Gap, rule: Rule) -> object:
        # What `Connection.send` sends has no channel, and is never replaced.
        if rule.when_full == "latest" and isinstance(item, Message) and item.channel:
            return item.channel, self._key(item, rule)
        self._count += 1
        return self._count

    def _key(self, message: Message, rule: Rule) -> object:
        if rule.latest_by is None:
            return None
        try:
            key = rule.latest_by(message)
            hash(key)
        except Exception as error:  # the application's function must not end the fan-out
            if self._bursts is not None:
                words = "latest_by failed for a message on channel %r, which is kept beside the others: %s"
                self._bursts.log(logger, logging.ERROR, words, message.channel, place_of(error))
            return object()  # equal to no key of the application's
        return key

    def _fits(self, size: int) -> bool:
        if not self._items:
            return True
        return len(self._items) < self._max_messages and self._size_bytes + size <= self._max_bytes

    def _oldest_to_drop(self) -> object | None:
        """Return the place of the oldest item that may make room: not one that its own channel's policy keeps."""
        for place, item in (self._items or {}).items():
            if self._rules is None or self._rule_of(item).when_full in {"drop_oldest", "latest"}:
                return place
        return None

    def _drop(self, place: object, reason: DropReason) -> None:
        assert self._items is not None
        item = self._items.pop(place)
        self._size_bytes -= _size(item)
        self._tell_drop(item, reason)

    def _tell_drop(self, item: Message | Gap, reason: DropReason) -> None:
        self.dropped += 1
        if self.on_drop is not None:
            self.on_drop(item, reason)
        self.behind = self.behind or reason != "replaced"


# The common ones are shared: a rule of its own costs each connection 56 bytes.
_PLAIN: Final = {policy: Rule(when_full=policy) for policy in get_args(FullPolicy)}


def _size(item: Message | Gap) -> int:
    return item.size_bytes if isinstance(item, Message) else _GAP_BYTES
