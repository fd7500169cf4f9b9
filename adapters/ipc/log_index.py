"""Where in the log the records of each channel are, and which idempotency keys were used. No I/O."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from backplane.message import Position

__all__ = ["ChannelRecords", "KeyTable", "KeyUse", "LogIndex"]

_KEY_SECONDS: Final = 300.0


class ChannelRecords:
    """The records of one channel, as far as the log has them.

    Attributes:
        offsets: Their offsets, 8 bytes each, in order.
        last: Position of the newest there ever was, which the log may not have any more: its offset. Before the first
            one the offset up to which the log has none.
        check: Its check, 0 before the first one.
        before: Offset and check of the record before the first of `offsets`; `None` where they are not known.
    """

    __slots__ = ("before", "check", "last", "offsets")

    def __init__(self, last: int, *, known: bool) -> None:
        self.offsets: array[int] = array("Q")
        self.last: int = last
        self.check: int = 0
        self.before: tuple[int, int] | None = (last, 0) if known else None

    def drop_before(self, oldest: int) -> None:
        """Drop the offsets before `oldest`."""
        if self.offsets and self.offsets[0] < oldest:
            del self.offsets[: bisect_left(self.offsets, oldest)]
            self.before = None if self.offsets else (self.last, self.check)

    def after(self, position: Position, check_of: Callable[[int], int], oldest: int, end: int) -> int | None:
        """Return which of the offsets is the first after `position`; `None` where it names nothing here.

        Args:
            position: A position of this log.
            check_of: Returns the check of the record at an offset.
            oldest: First offset of the log, or 0 where nothing was ever removed from it.
            end: Offset after the last record that was read.
        """
        offsets, offset = self.offsets, position.offset
        index = bisect_left(offsets, offset)
        if index < len(offsets) and offsets[index] == offset:
            return index + 1 if check_of(offset) == position.check else None
        if (offset, position.check) == self.before:
            return 0
        # "No message up to here", as a join of a channel without messages returns it: true of any place in the log.
        if position.check == 0 and oldest <= offset <= end:
            return bisect_right(offsets, offset)
        return None


class LogIndex:
    """The records of all channels.

    Attributes:
        channels: The records by the channel's name in UTF-8.
        oldest: First offset of the log; 0 where nothing was ever removed from it.
    """

    __slots__ = ("_outdated", "channels", "oldest")

    def __init__(self) -> None:
        self.channels: dict[bytes, ChannelRecords] = {}
        self.oldest: int = 0
        self._outdated: list[bytes] = []

    def add(self, channel: bytes, offset: int, check: int) -> tuple[int, int]:
        """Add a record; return offset and check of the one before it on its channel."""
        records = self.channels.get(channel)
        if records is None:
            records = self.channels[channel] = ChannelRecords(0, known=not self.oldest)
        before = records.last, records.check
        records.offsets.append(offset)
        records.last, records.check = offset, check
        return before

    def watch(self, channel: bytes, end: int) -> ChannelRecords:
        """Return the records of a channel to which this process is subscribed; of a new one, remember where it began.

        Args:
            channel: Its name in UTF-8.
            end: Offset after the last record that was read.
        """
        records = self.channels.get(channel)
        if records is None:
            records = self.channels[channel] = self.without_records(end)
        return records

    def unwatch(self, channel: bytes) -> None:
        """Forget a channel without records: its name may have been chosen by a client."""
        records = self.channels.get(channel)
        if records is not None and not records.offsets:
            del self.channels[channel]

    def without_records(self, end: int) -> ChannelRecords:
        """Return what is known of a channel that is not in the index."""
        return ChannelRecords(end if self.oldest else 0, known=True)

    def drop_before(self, oldest: int) -> None:
        """Note that the log begins at `oldest`. Channels are dropped by `sweep`, some at a time."""
        if oldest > self.oldest:
            self.oldest = oldest
            self._outdated = list(self.channels)

    def reset(self, oldest: int) -> None:
        """Forget everything: records before `oldest` were removed and never read."""
        self.channels.clear()
        self._outdated.clear()
        self.oldest = oldest

    def sweep(self, count: int, watched: Collection[bytes]) -> bool:
        """Drop those of `count` channels that have no record and are not in `watched`; return whether any is left."""
        for _ in range(min(count, len(self._outdated))):
            channel = self._outdated.pop()
            records = self.channels.get(channel)
            if records is None:
                continue
            records.drop_before(self.oldest)
            if not records.offsets and channel not in watched:
                del self.channels[channel]
        return bool(self._outdated)


class KeyUse(NamedTuple):
    """The first use of an idempotency key.

    Attributes:
        offset: Offset of its record.
        check: Check of its record.
        time: When it was written, in seconds since the Unix epoch.
    """

    offset: int
    check: int
    time: float


class KeyTable:
    """The idempotency keys of the last 300 seconds.

    Whether a record is a repetition depends on what is in the log alone, its times included, so that each process
    decides alike.
    """

    __slots__ = ("_order", "_uses")

    def __init__(self) -> None:
        self._uses: dict[tuple[bytes, bytes], KeyUse] = {}
        self._order: deque[tuple[tuple[bytes, bytes], KeyUse]] = deque()

    def __len__(self) -> int:
        return len(self._uses)

    def find(self, channel: bytes, key: bytes, time: float) -> KeyUse | None:
        """Return the first use of `key` on `channel`, if it was less than 300 seconds before `time`."""
        use = self._uses.get((channel, key))
        return use if use is not None and time - use.time < _KEY_SECONDS else None

    def add(self, channel: bytes, key: bytes, use: KeyUse, oldest: int) -> bool:
        """Add the use of a key, unless it is a repetition; return whether it is none.

        Args:
            channel: The channel's name in UTF-8.
            key: The key.
            use: The record.
            oldest: First offset of the log: what is before it is dropped.
        """
        while self._order:
            name, first = self._order[0]
            if first.offset >= oldest and use.time - first.time < _KEY_SECONDS:
                break
            self._order.popleft()
            if self._uses.get(name) is first:
                del self._uses[name]
        if self.find(channel, key, use.time) is not None:
            return False
        self._uses[channel, key] = use
        self._order.append(((channel, key), use))
        return True
