"""Whether the messages that arrive on a channel follow each other, and what to do where they do not.

No I/O: the caller reads the history where a `Track` asks for it, and passes on what the track returns.

Between two messages of a channel that a track lets through, either nothing is missing in the broker's log, or exactly
one gap is reported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from backplane.broadcaster import KeptMessage
from backplane.message import Position

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backplane.broadcaster import Recalled
    from backplane.message import Place

__all__ = ["DELIVERED", "DROPPED", "HELD", "JOINING", "PROVED", "Ask", "Mended", "Track"]

# What `Track.take` returns. More than 0: deliver the message.
DELIVERED: Final = 1
PROVED: Final = 2
"""Deliver it. It has ended a doubt without a read: its predecessor is the last message, by its check."""
DROPPED: Final = 0
"""A repetition."""
HELD: Final = -1
"""It waits for `mend`: a repair is needed."""

JOINING: Final = "joining"
_MISSING: Final = "messages were missing before the one that arrived"
_NOT_FOUND: Final = "the history no longer holds what was missed"
_TOO_MANY: Final = "more was missed than is read from the history"
_NOT_PROVED: Final = "the history does not show what is missing"

_MAX_HELD: Final = 10_000
_MAX_HELD_BYTES: Final = 4 * 1024 * 1024
_MAX_READS: Final = 3
_NONE: Final = -1

# Of every track that holds nothing: an object that is collected costs each full collection of the process about half a
# microsecond, and a worker may have ten thousand tracks. Never changed.
_NOTHING_HELD: Final[list[KeptMessage]] = []


class Ask(NamedTuple):
    """What to read from the history: arguments of `SupportsHistory.recall`.

    Attributes:
        after: Read what follows this position; `None` for the newest messages.
        limit: How many messages at most.
    """

    after: Position | None
    limit: int


class Mended(NamedTuple):
    """What `Track.mend` and `Track.give_up` return.

    Attributes:
        items: Messages to deliver now, in order.
        gap: Report a gap with this reason, before the items; `None` for no gap.
        position: `Gap.position` of that gap: the items and what arrives later follow it. `None` if it is not known.
        again: The doubt goes on: `ask` and read again.
    """

    items: Sequence[KeptMessage] = ()
    gap: str | None = None
    position: Position | None = None
    again: bool = False


class Track:
    """The last message of one channel that was delivered, and the doubt whether the next one follows it.

    A track begins in doubt, with the reason `JOINING`: the first `mend` takes the channel's newest position as the last
    one. In doubt, what arrives is held. The caller passes `ask` to the adapter and its answer to `mend`, until that
    does not ask for more; one read at a time.

    Args:
        max_held: How many messages are held. When more arrive, those held are dropped, and read from the history.
        max_held_bytes: The same, by their payloads.
        latest: Only the newest message counts (`History.latest`): what was missed before it is not delivered, and no
            gap is reported.

    Attributes:
        last: Position of the newest message that was delivered, or of the place in the log where the channel begins.
            `None` where nothing is known: then any message is accepted.
        doubt: Why messages may be missing; `None` while each message proves that it follows the last one.
        gap_reason: A gap is certain, and `mend` reports it whatever it reads. Set it in doubt.
        held: The messages that wait for `mend`.
        latest: As above.
    """

    __slots__ = (
        "_asked",
        "_begun",
        "_held_bytes",
        "_max_held",
        "_max_held_bytes",
        "_overtaken",
        "_reads",
        "doubt",
        "gap_reason",
        "held",
        "last",
        "latest",
    )

    def __init__(
        self, max_held: int = _MAX_HELD, max_held_bytes: int = _MAX_HELD_BYTES, *, latest: bool = False
    ) -> None:
        self.last: Position | None = None
        self.doubt: str | None = JOINING
        self.gap_reason: str | None = None
        self.held: list[KeptMessage] = _NOTHING_HELD
        self.latest: bool = latest
        self._max_held = max_held
        self._max_held_bytes = max_held_bytes
        self._held_bytes = 0
        self._begun = False
        # How many messages were held when the present read was begun: it is at least as new as they are. `_NONE` while
        # no read is in progress, or where it was overtaken by a lost link and must not be used.
        self._asked = _NONE
        self._reads = 0  # in a row, without progress
        # A read has got ahead of the link up to this offset: what arrives below it is no surprise, until the channel
        # goes on.
        self._overtaken = _NONE

    def take(self, place: Place, payload: bytes) -> int:
        """Take a message that has arrived, and return `DELIVERED`, `PROVED`, `DROPPED` or `HELD`."""
        if place.before is None:
            return self._take_reported(place)
        last = self.last
        if (
            last is not None
            and place.before == last.offset
            and self.doubt is None
            and place.epoch == last.epoch
            and ((check := place.before_check) is None or check == last.check)
        ):
            # The equal ones of a channel's messages are kept once: they would take some 100 bytes for each message.
            place.epoch, place.before = last.epoch, last.offset
            if check is not None:
                place.before_check = last.check
            self.last = place
            return DELIVERED
        return self._take_other(place, payload)

    def lost(self, reason: str) -> None:
        """Note that messages may be missing from here on, and drop what is held.

        It came by a link whose history can be another than the one that is read next.
        """
        self._doubt(reason)

    def forget(self) -> None:
        """Note that a gap was reported: whatever arrives next, or is the newest when the doubt ends, follows that."""
        self.last = None
        self._begun = True
        self._asked = _NONE

    def ask(self, limit: int) -> Ask:
        """Begin a read, and return what to read: at most `limit` messages.

        It is to be called when the channel is subscribed, directly before the read.
        """
        self._asked = len(self.held)
        if self.latest:
            return Ask(None, 1)
        return Ask(None, 0) if self.last is None else Ask(self.last, limit)

    def mend(self, recalled: Recalled) -> Mended:
        """Take the answer to `ask`, and return what is to be delivered. After it the doubt has ended, unless `again`.

        An answer that a lost link has overtaken is not used.
        """
        asked, self._asked = self._asked, _NONE
        if self.doubt is None or asked < 0:
            return Mended(again=self.doubt is not None)
        if self.latest:
            return self._mend_latest(recalled, asked)
        last, top = self.last, recalled.top
        if last is None:
            if self._begun:
                return self._break(self.doubt, top, asked)
            return self._continue(top, top, [], asked)
        if not recalled.found or top.epoch != last.epoch:
            return self._break(f"{_NOT_FOUND} ({self.doubt})", top, asked)
        if recalled.more:
            return self._break(f"{_TOO_MANY} ({self.doubt})", top, asked)
        items = [item for item in recalled.items if item.place.offset > last.offset]
        return self._continue(last, top, items, asked)

    def give_up(self, reason: str) -> Mended:
        """End the doubt with a gap, because the history could not be read in time.

        What is held is delivered after the gap, as far as it is unbroken up to the newest. If nothing is held the track
        accepts any message next.
        """
        if self.doubt is None:
            return Mended()
        if self.latest:
            newest = self.held[-1:]
            self._settle(newest[-1].place if newest else None, reached=True)
            return Mended(newest)
        return self._end_with_gap(reason, self._newest_run(), None)

    def _take_other(self, place: Place, payload: bytes) -> int:
        last = self.last
        if self.doubt is None:
            if last is None:
                self._settle(place, reached=True)
                return DELIVERED
            if place.epoch == last.epoch:
                if place.offset == last.offset and place.check == last.check:
                    self._overtaken = _NONE  # from here on nothing older is expected
                    return DROPPED
                if place.offset < last.offset == self._overtaken:
                    return DROPPED
                if self.latest and place.offset > last.offset:
                    self.last = place
                    return DELIVERED
            self._doubt(_MISSING)
        elif last is not None and not self.held and self.gap_reason is None and _proves(last, place):
            self._settle(place, reached=True)
            return PROVED
        self._hold(KeptMessage(payload, place))
        return HELD

    def _take_reported(self, place: Place) -> int:
        """Take a message of an adapter that itself reports every gap: it follows, unless a read was ahead of it."""
        last = self.last
        if last is not None and place.epoch == last.epoch and place.offset <= last.offset:
            return DROPPED
        self.last = place
        self._asked = _NONE
        if self.doubt is not None and self.gap_reason is None:
            self._settle(place, reached=True)
        return DELIVERED

    def _hold(self, kept: KeptMessage) -> None:
        if (
            self.latest
            or len(self.held) >= self._max_held
            or self._held_bytes + len(kept.payload) > self._max_held_bytes
        ):
            self.held = _NOTHING_HELD
            self._held_bytes = 0
            self._asked = min(self._asked, 0)  # what is held from now on is newer than the read
        if not self.held:
            self.held = []
        self.held.append(kept)
        self._held_bytes += len(kept.payload)

    def _continue(self, last: Position, top: Position, items: list[KeptMessage], asked: int) -> Mended:
        """Deliver what was read after `last`, then what is held."""
        base: Position = items[-1].place if items else last
        count = len(items)
        hole = self._follow(base, items, asked)
        newest: Position = items[-1].place if items else last
        if hole is None and (newest.epoch != top.epoch or newest.offset >= top.offset):
            reached = len(items) > count or any(kept.place == newest for kept in self.held)
            gap, position = self.gap_reason, last
            self._settle(newest, reached=reached)
            return Mended(items, gap, None if gap is None else position)
        if items:
            self._reads = 0
        elif hole is None or hole < asked:
            self._reads += 1
        if self._reads >= _MAX_READS:
            return self._break(f"{_NOT_PROVED} ({self.doubt})", top, asked)
        gap, self.gap_reason = self.gap_reason, None
        self._begun = True
        self.last = newest
        self._keep_held(len(self.held) if hole is None else hole)
        return Mended(items, gap, None if gap is None else last, again=True)

    def _follow(self, current: Position, items: list[KeptMessage], asked: int) -> int | None:
        """Append to `items` what is held and follows `current`; return the index of the first one after a hole."""
        for index, kept in enumerate(self.held):
            place = kept.place
            if _follows(current, place):
                items.append(kept)
                current = place
            elif index < asked:
                # The read, which is newer, covers it or has replaced it. One that is ahead of it can also show that the
                # broker has answered from before that message, so that is believed only if it repeats it.
                if place.epoch == current.epoch and place.offset > current.offset and self._reads < _MAX_READS - 1:
                    return index
            elif (
                place.epoch != current.epoch
                or place.offset > current.offset
                or (place.offset == current.offset and place.check != current.check)
            ):
                return index
        return None

    def _break(self, reason: str, top: Position, asked: int) -> Mended:
        """Report a gap, and go on at `top`; no gap if what is held itself shows that nothing is missing."""
        run, hole = self._run_through(top, asked)
        if hole is None and self.gap_reason is None and (following := _part_after(self.last, run)) is not None:
            self._settle(run[-1].place, reached=True)
            return Mended(following)
        if run and run[0].place.offset <= top.offset and run[0].place.before_check is None:
            run = [kept for kept in run if kept.place.offset > top.offset]
        if hole is None:
            return self._end_with_gap(reason, run, top)
        position, gap = _position_before(run, top), self.gap_reason or reason
        self.last = run[-1].place if run else top
        self.gap_reason = None
        self._begun = True
        self._reads = 0
        self._keep_held(hole)
        return Mended(run, gap, position, again=True)

    def _run_through(self, top: Position, asked: int) -> tuple[list[KeptMessage], int | None]:
        """Return the unbroken run of held messages that reaches or follows `top`, and the index of a hole after it."""
        run: list[KeptMessage] = []
        current: Position | None = None  # the newest one, once `top` is reached
        for index, kept in enumerate(self.held):
            place = kept.place
            if current is None and (place == top or _follows(top, place)):
                if run and not _follows(run[-1].place, place):
                    run = []
                run.append(kept)
                current = place
            elif current is None and place.epoch == top.epoch and place.offset < top.offset:
                if run and not _follows(run[-1].place, place):
                    run = []
                run.append(kept)
            elif current is not None and _follows(current, place):
                run.append(kept)
                current = place
            elif current is not None and place.epoch == current.epoch and place.offset <= current.offset:
                continue
            elif index >= asked or (place.epoch == top.epoch and place.offset > top.offset):
                return (run if current is not None else []), index
            else:
                run, current = [], None
        return (run if current is not None else []), None

    def _newest_run(self) -> list[KeptMessage]:
        """Return the unbroken run of what is held that ends with the newest one, without what can be a repetition."""
        last, run = self.last, list[KeptMessage]()
        for kept in self.held:
            if last is not None and kept.place.epoch == last.epoch and kept.place.offset <= last.offset:
                continue
            if run and not _follows(run[-1].place, kept.place):
                if any(kept.place == other.place for other in run):
                    continue
                run = []
            run.append(kept)
        return run

    def _end_with_gap(self, reason: str, run: list[KeptMessage], top: Position | None) -> Mended:
        gap, position = self.gap_reason or reason, _position_before(run, top)
        self._settle(run[-1].place if run else top, reached=bool(run))
        return Mended(run, gap, position)

    def _mend_latest(self, recalled: Recalled, asked: int) -> Mended:
        top = recalled.top
        newest = recalled.items[-1] if recalled.items else None
        held = self.held[-1] if self.held else None
        if held is not None and held.place.epoch == top.epoch and held.place.offset > top.offset:
            newest, top = held, held.place
        elif (
            held is not None
            and not asked
            and held.place != top
            and (held.place.epoch != top.epoch or held.place.offset == top.offset)
        ):
            return Mended(again=True)  # which of the two is newer is not known
        elif newest is not None and newest.place != top:
            self._reads += 1
            if self._reads < _MAX_READS:
                return Mended(again=True)
            top = newest.place
        items = () if newest is None or top == self.last else (newest,)
        self._settle(top, reached=newest is held)
        return Mended(items)

    def _doubt(self, reason: str) -> None:
        self.doubt = reason
        self._asked = _NONE
        self._reads = 0
        self._keep_held(len(self.held))

    def _settle(self, last: Position | None, *, reached: bool) -> None:
        """End the doubt. `reached`: the link has delivered the last message, or one after it."""
        self.last = last
        self.doubt = self.gap_reason = None
        self._asked = _NONE
        self._reads = 0
        self._begun = True
        self._overtaken = _NONE if reached or last is None else last.offset
        self._keep_held(len(self.held))

    def _keep_held(self, start: int) -> None:
        """Drop what is held before this index."""
        if self.held:
            self.held = self.held[start:] or _NOTHING_HELD
            self._held_bytes = sum(len(kept.payload) for kept in self.held)


def _follows(last: Position, place: Place) -> bool:
    """Whether `place` is the next one after `last`."""
    return (
        place.before == last.offset
        and place.epoch == last.epoch
        and (place.before_check is None or place.before_check == last.check)
    )


def _proves(last: Position, place: Place) -> bool:
    """Whether `place` names `last` by its check: after a failover a number alone proves nothing."""
    return place.before_check is not None and _follows(last, place)


def _part_after(last: Position | None, run: list[KeptMessage]) -> list[KeptMessage] | None:
    """Return the part of an unbroken run that follows `last`; `None` if the run does not show where that is."""
    if last is None or not run:
        return None
    if _proves(last, run[0].place):
        return run
    return next((run[index + 1 :] for index, kept in enumerate(run) if kept.place == last), None)


def _position_before(run: list[KeptMessage], top: Position | None) -> Position | None:
    """Return the position that `run` follows, or `top` without one; `None` if it is not known."""
    if not run:
        return top
    first = run[0].place
    if first.before is not None and first.before_check is not None:
        return Position(first.epoch, first.before, first.before_check)
    return top if top is not None and _follows(top, first) else None
