"""The newest messages of a channel in the memory of this process, for subscribers that come back. No I/O."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import OrderedDict, deque
from itertools import islice
from typing import TYPE_CHECKING, Final

from backplane.fanout.batch import Batch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from backplane.message import Message, Place, Position

__all__ = ["Ring", "RingBudget"]

_MAX_BYTES: Final = 32 * 1024 * 1024
# What the objects of one message take beside its data.
_MESSAGE_BYTES: Final = 400
_MAX_BATCHES: Final = 64
# A broker may give back what is a little too old. What seems much older has a publisher whose clock is wrong.
_LATE_SECONDS: Final = 5.0

_Read = tuple["Place", "Message | None"]
_Entry = tuple["Place", "Message | None", float]
"""The last is from when on it ages, by the ring's timer; it never decreases from one entry to the next."""


class RingBudget:
    """How many bytes the rings of a process may take together.

    Where they take more, rings are emptied: first those that no subscriber has read from, then the least recently read.

    Args:
        max_bytes: The limit. Defaults to 32 MiB.

    Attributes:
        size_bytes: What all rings take.
    """

    __slots__ = ("_rings", "max_bytes", "size_bytes")

    def __init__(self, max_bytes: int = _MAX_BYTES) -> None:
        self.max_bytes: int = max_bytes
        self.size_bytes: int = 0
        self._rings: OrderedDict[Ring, None] = OrderedDict()  # that are not empty, the next to be emptied first

    def enter(self, ring: Ring) -> None:
        """Note that `ring` is no longer empty."""
        self._rings[ring] = None
        self._rings.move_to_end(ring, last=False)

    def used(self, ring: Ring) -> None:
        """Note that a subscriber has read from `ring`."""
        if ring in self._rings:
            self._rings.move_to_end(ring)

    def leave(self, ring: Ring) -> None:
        """Note that `ring` is empty."""
        self._rings.pop(ring, None)

    def make_room(self) -> None:
        """Empty rings until the limit holds."""
        while self.size_bytes > self.max_bytes and self._rings:
            next(iter(self._rings)).evict()


class Ring:
    """The newest messages that a `Track` has let through, without a hole between them.

    It holds one more than can be given back, so that a client that missed as many finds its position.

    Args:
        max_messages: How many are given back: `History.max_messages`.
        max_age_seconds: How old they may be: `History.max_age_seconds`. It counts from when a message was received, or,
            of one that was read from the broker, from when it was published. The broker decides what is too old: where
            the publisher's time contradicts it, that is not used.
        budget: The limit that all rings share.
        clock: Returns the seconds since the Unix epoch, by which the publishers' times are judged.
        timer: Returns seconds by a clock that is never set.

    Attributes:
        is_complete: The ring holds everything that may be given back: a position that `after` does not find cannot be
            resumed. Otherwise the history has to be read, and `fill` called.
    """

    __slots__ = (
        "__weakref__",
        "_batches",
        "_batches_end",
        "_budget",
        "_clock",
        "_entries",
        "_floor",
        "_floor_first",
        "_max_age_seconds",
        "_max_entries",
        "_max_messages",
        "_timer",
        "_tip",
        "is_complete",
    )

    def __init__(
        self,
        max_messages: int,
        max_age_seconds: float,
        budget: RingBudget,
        *,
        clock: Callable[[], float] = time.time,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self.is_complete: bool = False
        self._max_messages = max_messages
        self._max_entries = max_messages + 1
        self._max_age_seconds = max_age_seconds
        self._budget = budget
        self._clock = clock
        self._timer = timer
        self._entries: deque[_Entry] = deque()
        self._tip: Position | None = None  # where the channel is, while there are no entries
        self._floor: Position | None = None  # see `fill_after`
        self._floor_first: Place | None = None
        self._batches: dict[Position | int, Batch] = {}
        self._batches_end: Place | None = None

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def newest_position(self) -> Position | None:
        """Position of the newest message, or where the channel is without any; `None` where it is not known."""
        return self._entries[-1][0] if self._entries else self._tip

    def append(self, place: Place, message: Message | None) -> None:
        """Add the message that follows the newest one; `None` for a malformed payload, which is not given back."""
        entries, budget = self._entries, self._budget
        size = _MESSAGE_BYTES if message is None else _MESSAGE_BYTES + len(message.data)
        if len(entries) == self._max_entries:
            oldest = entries.popleft()[1]
            size -= _MESSAGE_BYTES if oldest is None else _MESSAGE_BYTES + len(oldest.data)
        elif not entries:
            budget.enter(self)
        entries.append((place, message, self._timer()))
        if size:
            budget.size_bytes += size
            if budget.size_bytes > budget.max_bytes:
                budget.make_room()

    def fill(self, entries: Iterable[_Read], last: Position, *, complete: bool) -> bool:
        """Put before the present entries what one read has returned, and return whether it could be joined to them.

        Args:
            entries: What was read, oldest first, without a hole. What is newer than `last` is left out: it arrives.
            last: `Track.last`. If the present entries are not empty it is the newest of them.
            complete: The read has returned everything that may be given back.
        """
        mine = self._entries
        if mine:
            first = mine[0][0]
            older = [entry for entry in entries if entry[0].epoch == first.epoch and entry[0].offset <= first.offset]
            if older and older[-1][0] == first:
                older.pop()
            elif (older and not _precedes(older[-1][0], first)) or (not older and first.before):
                return False
        else:
            older = [entry for entry in entries if entry[0].epoch == last.epoch and entry[0].offset <= last.offset]
            if older and older[-1][0] != last:
                return False
        if not mine and older:
            self._budget.enter(self)
        mine.extendleft(self._timed(reversed(older)))
        added = sum(_size(message) for _, message in older)
        while len(mine) > self._max_entries:
            added -= _size(mine.popleft()[1])
        self._budget.size_bytes += added
        self._tip = last
        self._forget_batches()
        self.is_complete = complete
        self._budget.used(self)
        self._budget.make_room()
        return True

    def fill_after(self, position: Position, entries: Iterable[_Read], last: Position) -> None:
        """Take what one read has returned after a position that no message has, so that `after` finds it.

        Args:
            position: The position.
            entries: Everything after it, oldest first. What is newer than `last` is left out: it arrives.
            last: `Track.last`.
        """
        entries = list(entries)
        if self.fill(entries, last, complete=self.is_complete):
            first = self._entries[0][0] if self._entries else None
            if first is None or (entries and entries[0][0] == first):
                self._floor, self._floor_first = position, first

    def after(self, position: Position) -> Batch | None:
        """Return the messages after `position`, or `None` if it is not found. The batch is shared: do not change it.

        It is found if the ring holds the message it names; or it is the newest there is; or the oldest message that the
        ring holds names it as its predecessor.
        """
        self._drop_old()
        self._budget.used(self)
        if (known := self._cached(position)) is not None:
            return known
        start = self._index_after(position)
        return None if start is None else self._batch(position, start)

    def newest(self, count: int) -> Batch:
        """Return the newest messages, at most `count`. The batch is shared: do not change it."""
        self._drop_old()
        self._budget.used(self)
        if (known := self._cached(count)) is not None:
            return known
        entries = self._entries
        wanted, start = min(count, self._max_messages), len(entries)
        oldest_allowed = max(0, len(entries) - self._max_messages)
        while start > oldest_allowed and wanted > 0:
            start -= 1
            wanted -= entries[start][1] is not None
        return self._batch(count, start)

    def clear(self, last: Position | None) -> None:
        """Forget everything, because a gap follows; the channel goes on at `last`."""
        self._empty()
        self._tip = last
        # Nothing before the gap may be joined to what follows it: only a read can show what is there.
        self.is_complete = False

    def evict(self) -> None:
        """Forget everything to make room."""
        self.clear(self.newest_position)

    def _empty(self) -> None:
        self._budget.size_bytes -= sum(_size(message) for _, message, _ in self._entries)
        self._budget.leave(self)
        self._entries.clear()
        self._forget_batches()

    def _timed(self, newest_first: Iterable[_Read]) -> list[_Entry]:
        """Return the entries for messages that were read, and come before all that the ring holds.

        A message without a time that can be used is as old as the one after it.
        """
        now, clock, latest = self._timer(), self._clock(), self._max_age_seconds + _LATE_SECONDS
        newest = self._entries[0][2] if self._entries else now
        timed: list[_Entry] = []
        for place, message in newest_first:
            published_at = None if message is None else message.published_at
            if published_at is not None and 0 <= (age := clock - published_at) <= latest:
                newest = min(newest, now - age)
            timed.append((place, message, newest))
        return timed

    def _drop_old(self) -> None:
        """Drop what is older than the rule allows."""
        entries = self._entries
        dropped = bisect_left(entries, self._timer() - self._max_age_seconds, key=_time)
        if not dropped:
            return
        self._tip = entries[-1][0]
        size = sum(_size(entries.popleft()[1]) for _ in range(dropped))
        self._budget.size_bytes -= size
        self._forget_batches()
        if not entries:
            self._budget.leave(self)

    def _index_after(self, position: Position) -> int | None:
        """Return the index of the entry after `position`."""
        entries = self._entries
        if position == self.newest_position:
            return len(entries)
        if self._follows_floor(position):
            return 0
        if not entries or entries[0][0].epoch != position.epoch:
            return None
        first = entries[0][0]
        if position.offset < first.offset:
            return 0 if _names(first, position) else None
        index = bisect_left(entries, position.offset, key=_offset)
        return index + 1 if index < len(entries) and entries[index][0] == position else None

    def _follows_floor(self, position: Position) -> bool:
        """Whether a position that no message has lies after the floor, and before the first entry after that."""
        floor, entries = self._floor, self._entries
        return (
            floor is not None
            and not position.check
            and floor.epoch == position.epoch
            and floor.offset <= position.offset
            and self._floor_first is (entries[0][0] if entries else None)
            and (not entries or position.offset < entries[0][0].offset)
        )

    def _cached(self, key: Position | int) -> Batch | None:
        end = self._entries[-1][0] if self._entries else None
        if end is not self._batches_end:
            self._batches.clear()
            self._batches_end = end
        return self._batches.get(key)

    def _batch(self, key: Position | int, start: int) -> Batch:
        messages = islice(self._entries, start, None)
        batch = Batch(*(message for _, message, _ in messages if message is not None))
        if len(self._batches) >= _MAX_BATCHES:
            self._batches.clear()
        self._batches[key] = batch
        return batch

    def _forget_batches(self) -> None:
        self._batches.clear()
        self._batches_end = None


def _offset(entry: _Entry) -> int:
    return entry[0].offset


def _time(entry: _Entry) -> float:
    return entry[2]


def _size(message: Message | None) -> int:
    return _MESSAGE_BYTES if message is None else _MESSAGE_BYTES + len(message.data)


def _precedes(place: Position, following: Place) -> bool:
    """Whether nothing can be missing between the two, which one broker has numbered."""
    return following.before == place.offset and following.before_check in (None, place.check)


def _names(first: Place, position: Position) -> bool:
    """Whether the oldest message names `position` as its predecessor."""
    if first.before != position.offset:
        return False
    return position.check == first.before_check if position.offset else position.check == 0
