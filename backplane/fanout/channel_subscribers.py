"""The subscribers of one channel in this worker, and what was received on it for them."""

from __future__ import annotations

from collections import deque
from time import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backplane.fanout.batch import Batch
    from backplane.fanout.channel_groups import ChannelGroup
    from backplane.fanout.delivery import Subscriber
    from backplane.fanout.traffic import Traffic
    from backplane.message import Message
    from backplane.message_tracing import DeliverySpan

__all__ = ["ChannelSubscribers"]

# Of so many of the last messages it is known whom they excluded.
_LAST: Final = 16

# An annotation alone would not do: the class is derived from it.
_Joins = dict["Subscriber", int]


class ChannelSubscribers(_Joins):
    """By subscriber, how many of its joins are complete or in progress: one that fails must not undo another.

    It lives from the first join of the channel to the last leave, and counts what is received meanwhile, where the hub
    counts at all. Messages that are given back after a loss, path tests and malformed payloads do not count.

    Args:
        traffic: Where the lag of its messages is counted.
        group: Where its messages are counted beside.
        is_counted: Whether anything is counted.

    Attributes:
        group, is_counted: As above.
        since: When the first one joined, in seconds since the Unix epoch.
        messages: Messages that were received since then.
        size_bytes: Their size, without header (of text: characters).
        last_received_at: When the last of them was offered to the last subscriber, in seconds since the Unix epoch;
            `None` where none was received since then.
        excluded: Whom each of the last messages excluded, 16 at most; `None` while none of them excluded anyone.
    """

    __slots__ = ("_traffic", "excluded", "group", "is_counted", "last_received_at", "messages", "since", "size_bytes")

    def __init__(self, traffic: Traffic, group: ChannelGroup, *, is_counted: bool = True) -> None:
        super().__init__()
        self._traffic = traffic
        self.group: ChannelGroup = group
        self.is_counted: bool = is_counted
        self.since: float = time()
        self.messages: int = 0
        self.size_bytes: int = 0
        self.last_received_at: float | None = None
        self.excluded: deque[bytes | None] | None = None

    def count(self, batch: Batch, offered: int, received_at: float | None, span: DeliverySpan | None, /) -> None:
        """Count a batch that was received; see `DeliveryCounter`. It is on the way of every message."""
        now = time()
        messages, size = len(batch), batch.size_bytes
        if batch.excludes or self.excluded is not None:
            self.note_excluded(batch)
        self.messages += messages
        self.size_bytes += size
        self.last_received_at = now
        group = self.group
        group.messages += messages
        group.size_bytes += size
        group.offered += messages * offered
        group.offered_bytes += size * offered
        self._traffic.count_lag(batch[0], now, received_at, span)

    def note_received(self, batch: Batch) -> None:
        """Count a batch for these subscribers alone, where the traffic of the worker counts it by its channel."""
        self.messages += len(batch)
        self.size_bytes += batch.size_bytes
        self.last_received_at = time()

    def note_excluded(self, batch: Iterable[Message]) -> None:
        """Note whom the messages exclude that are received, before they are counted."""
        if self.excluded is None:
            self.excluded = deque([None] * min(self.messages, _LAST), maxlen=_LAST)
        self.excluded.extend(message.excluded for message in batch)
        if not any(self.excluded):
            self.excluded = None
