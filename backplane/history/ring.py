"""The newest messages of a channel in the memory of this process, for subscribers that come back. No I/O."""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right
from collections import OrderedDict, deque
from itertools import islice
from typing import TYPE_CHECKING, Final, TypeAlias, cast

from backplane.fanout.batch import Batch
from backplane.message import ExtendedMessage

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
_Key: TypeAlias = "Position | int | tuple[bytes, int | None]"
"""Of a batch: the position after which it begins, as epoch and number where that is compact; or how many are newest."""

# Of every ring that is empty: a deque takes 0.6 KB, and each object that is collected lengthens the full collections of
# the process. It cannot be changed.
_NO_ENTRIES: Final = cast("deque[_Entry]", ())
_NOTHING_RECEIVED: Final = cast("list[Message]", ())


class RingBudget:
    """How many bytes the rings of a process may take together, with the batches that they share.

    Where they take more, rings are emptied: first those that no subscriber has read from, then the least recently read.

    Args:
        max_bytes: The limit. Defaults to 32 MiB.

    Attributes:
        size_bytes: What all rings take.
        receiving: Rings that have received something since the last `settle`.
    """

    __slots__ = ("_rings", "max_bytes", "receiving", "size_bytes")

    def __init__(self, max_bytes: int = _MAX_BYTES) -> None:
        self.max_bytes: int = max_bytes
        self.size_bytes: int = 0
        self._rings: OrderedDict[Ring, None] = OrderedDict()  # that are not empty, the next to be emptied first
        self.receiving: list[Ring] = []

    def settle(self) -> None:
        """Let every ring add what it has received: once for each pass of the event loop."""
        receiving, self.receiving = self.receiving, []
        for ring in receiving:
            ring.settle()

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
        """Empty rings until the limit holds, except those that joins are about to read from."""
        while self.size_bytes > self.max_bytes:
            ring = next((ring for ring in self._rings if not (ring.waiting and ring.is_complete)), None)
            if ring is None:
                return
            ring.evict()


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
        received: What was received since the last `settle`. To add to it, see `receive`.
        waiting: How many joins wait for `fill`. Once that has succeeded the ring is not emptied until they have looked.
    """

    __slots__ = (
        "__weakref__",
        "_batches",
        "_batches_bytes",
        "_budget",
        "_clock",
        "_entries",
        "_floor",
        "_floor_end",
        "_floor_next",
        "_max_age_seconds",
        "_max_entries",
        "_max_messages",
        "_timer",
        "_tip",
        "is_complete",
        "received",
        "waiting",
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
        self.waiting: int = 0
        self.received: list[Message] = _NOTHING_RECEIVED
        self._max_messages = max_messages
        self._max_entries = max_messages + 1
        self._max_age_seconds = max_age_seconds
        self._budget = budget
        self._clock = clock
        self._timer = timer
        self._entries: deque[_Entry] = _NO_ENTRIES
        self._tip: Position | None = None  # where the channel is, while there are no entries
        self._floor: Position | None = None  # see `fill_after`
        self._floor_next: Position | None = None
        self._floor_end: int = 0
        self._batches: dict[_Key, Batch] = {}
        self._batches_bytes: int = 0

    def __len__(self) -> int:
        self.settle()
        return len(self._entries)

    @property
    def newest_position(self) -> Position | None:
        """Position of the newest message, or where the channel is without any; `None` where it is not known."""
        self.settle()
        return self._entries[-1][0] if self._entries else self._tip

    def receive(self) -> list[Message]:
        """Return the list to which what is received is to be added, in order: each message with its `Place`.

        The ring adds it to the others when it is next used, or at `RingBudget.settle`: of many messages at once, which
        takes a fraction of what it takes for each. Until then it can be found in `received`.
        """
        self.received = []
        self._budget.receiving.append(self)
        return self.received

    def settle(self) -> None:
        """Add what was received, which is as old as this call."""
        received = self.received
        if not received:
            return
        self.received = _NOTHING_RECEIVED
        if len(received) > self._max_entries:
            received = received[-self._max_entries :]
            self._floor = None
        now = self._timer()
        for message in received:
            self._append(cast("Place", message.position), message, now)

    def append(self, place: Place, message: Message | None) -> None:
        """Add the message that follows the newest one; `None` for a malformed payload, which is not given back."""
        self.settle()
        self._append(place, message, self._timer())

    def fill(self, entries: Iterable[_Read], last: Position, *, complete: bool) -> bool:
        """Put before the present entries what one read has returned, and return whether it could be joined to them.

        Args:
            entries: What was read, oldest first, without a hole. What is newer than `last` is left out: it arrives.
            last: `Track.last`. If the present entries are not empty it is the newest of them.
            complete: The read has returned everything that may be given back.
        """
        self.settle()
        mine = self._entries
        if mine:
            entries = list(entries)
            first = mine[0][0]
            older = [entry for entry in entries if entry[0].epoch == first.epoch and entry[0].offset <= first.offset]
            if older and older[-1][0] == first:
                older.pop()
            elif older:
                if not _precedes(older[-1][0], first):
                    return False
            elif first.before and not any(_is_newer(place, first) for place, _ in entries):
                return False  # else more is held here than was read
        else:
            older = [entry for entry in entries if entry[0].epoch == last.epoch and entry[0].offset <= last.offset]
            if older and older[-1][0] != last:
                return False
        if not mine and older:
            mine = self._entries = deque()
            self._budget.enter(self)
            self._floor = None
        if older:
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
        """Take what one read has returned after a position that no entry has, so that `after` finds it.

        Args:
            position: The position.
            entries: Everything after it, oldest first. What is newer than `last` is left out: it arrives.
            last: `Track.last`.
        """
        self.settle()
        read = [entry for entry in entries if entry[0].epoch == last.epoch and entry[0].offset <= last.offset]
        mine = self._entries
        if not read:
            self._tip = last
        elif (not mine or read[0][0].offset < mine[0][0].offset) and not self.fill(
            read, last, complete=self.is_complete
        ):
            return
        following = self._following(position.offset)[1]
        if following == (read[0][0] if read else self.newest_position):
            floor = self._floor
            if position.check or floor is None or self._floor_next != following or position.offset < floor.offset:
                self._floor = position
            self._floor_next = following
            self._floor_end = max(self._floor_end, position.offset)

    def after(self, position: Position) -> Batch | None:
        """Return the messages after `position`, or `None` if it is not found. The batch is shared: do not change it.

        It is found if the ring holds the message it names; or it is the newest there is; or the oldest message that the
        ring holds names it as its predecessor.
        """
        self._drop_old()
        self._budget.used(self)
        # A compact position equals whole ones that were lost, so these must not find its batch.
        key = (position.epoch, position.compact) if position.is_compact else position
        if (known := self._batches.get(key)) is not None:
            return known
        start = self._index_after(position)
        return None if start is None else self._batch(key, start)

    def newest(self, count: int) -> Batch:
        """Return the newest messages, at most `count`. The batch is shared: do not change it."""
        self._drop_old()
        self._budget.used(self)
        if (known := self._batches.get(count)) is not None:
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
        self._floor, self._floor_end = None, 0

    def evict(self) -> None:
        """Forget everything to make room."""
        self.clear(self.newest_position)

    def _append(self, place: Place, message: Message | None, now: float) -> None:
        entries, budget = self._entries, self._budget
        if self._batches:
            self._forget_batches()
        size = _size(message)
        if len(entries) == self._max_entries:
            oldest = entries.popleft()[1]
            size -= _size(oldest)
        elif not entries:
            entries = self._entries = deque()
            budget.enter(self)
            if self._floor is not None and self._floor_next is self._tip:
                self._floor_next = place  # nothing came between
        _ = place.check  # computed now, or the place would keep its payload
        entries.append((place, message, now))
        if size:
            budget.size_bytes += size
            if budget.size_bytes > budget.max_bytes:
                budget.make_room()

    def _empty(self) -> None:
        self.received = _NOTHING_RECEIVED
        self._budget.size_bytes -= sum(_size(message) for _, message, _ in self._entries)
        self._budget.leave(self)
        self._entries = _NO_ENTRIES
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
        self.settle()
        entries = self._entries
        dropped = bisect_left(entries, self._timer() - self._max_age_seconds, key=_time)
        if not dropped:
            return
        self._tip = entries[-1][0]
        self._floor = None
        size = sum(_size(entries.popleft()[1]) for _ in range(dropped))
        self._budget.size_bytes -= size
        self._forget_batches()
        if not entries:
            self._entries = _NO_ENTRIES
            self._budget.leave(self)

    def _index_after(self, position: Position) -> int | None:
        """Return the index of the entry after `position`."""
        entries = self._entries
        if position == self.newest_position:
            return len(entries)
        if (after_floor := self._index_after_floor(position)) is not None:
            return after_floor
        if not entries or entries[0][0].epoch != position.epoch:
            return None
        first = entries[0][0]
        if position.offset < first.offset:
            return 0 if _names(first, position) else None
        index = bisect_left(entries, position.offset, key=_offset)
        return index + 1 if index < len(entries) and entries[index][0] == position else None

    def _index_after_floor(self, position: Position) -> int | None:
        """Return the index of the entry after a position that no entry has, and before which nothing was dropped.

        It is the floor, or, without a check, any position up to that entry. Where no entry follows it is one up to the
        last that was read: only a read can show whether the log has another one, which a client can make up.
        """
        floor = self._floor
        if floor is None:
            return None
        # A compact floor equals positions with other checks, of messages that were not read.
        is_floor = position == floor and (position.is_compact or not floor.is_compact)
        if not is_floor and (position.check or position.epoch != floor.epoch or position.offset < floor.offset):
            return None
        index, following = self._following(floor.offset)
        is_known = following is self._floor_next and self._following(position.offset)[0] == index
        if index == len(self._entries) and position.offset > self._floor_end:
            return None
        return index if is_known else None

    def _following(self, offset: int) -> tuple[int, Position | None]:
        """Return the index and position of the first entry after an offset; the newest position where there is none."""
        index = bisect_right(self._entries, offset, key=_offset)
        return index, self._entries[index][0] if index < len(self._entries) else self.newest_position

    def _batch(self, key: _Key, start: int) -> Batch:
        """Return the messages from an index on, and remember the batch: its frames count as the messages do."""
        batch = Batch(*(message for _, message, _ in islice(self._entries, start, None) if message is not None))
        budget = self._budget
        own = sum(_size(message) for _, message, _ in self._entries) + self._batches_bytes
        if len(self._batches) >= _MAX_BATCHES or own + batch.size_bytes > budget.max_bytes:
            own -= self._batches_bytes
            self._forget_batches()
        if self._entries and own + batch.size_bytes <= budget.max_bytes:
            self._batches[key] = batch
            self._batches_bytes += batch.size_bytes
            budget.size_bytes += batch.size_bytes
            budget.make_room()
        return batch

    def _forget_batches(self) -> None:
        self._budget.size_bytes -= self._batches_bytes
        self._batches_bytes = 0
        self._batches.clear()


def _offset(entry: _Entry) -> int:
    return entry[0].offset


def _time(entry: _Entry) -> float:
    return entry[2]


def _size(message: Message | None) -> int:
    if message is None:
        return _MESSAGE_BYTES
    extensions = message.extensions if isinstance(message, ExtendedMessage) else b""
    return _MESSAGE_BYTES + len(message.data) + len(extensions)


def _precedes(place: Position, following: Place) -> bool:
    """Whether nothing can be missing between the two, which one broker has numbered."""
    return following.before == place.offset and following.before_check in (None, place.check)


def _is_newer(place: Place, first: Place) -> bool:
    return place.epoch == first.epoch and place.offset > first.offset


def _names(first: Place, position: Position) -> bool:
    """Whether the oldest message names `position` as its predecessor."""
    if first.before != position.offset:
        return False
    return position.check == first.before_check if position.offset else position.check == 0
