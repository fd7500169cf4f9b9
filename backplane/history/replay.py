"""With what a subscriber begins that joins a kept channel: where it stands, and what it is given back first. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from backplane.errors import InvalidPositionError
from backplane.message import Gap, Joined, Place, Position

if TYPE_CHECKING:
    from backplane.fanout.batch import Batch
    from backplane.history.kept_channel import KeptChannel

__all__ = ["Beginning", "Start", "beginning", "is_ahead", "needs_ring", "unknown_start"]

_NOT_FOUND = "the history does not hold everything since the position that was passed"


class Start(NamedTuple):
    """Where a subscriber wants to begin.

    Attributes:
        since: The position that it passed; `None` where it passed none, or a text that is no position.
        is_return: Whether it passed anything. A text that is no position counts as a position not found.
        rewind: How many of the newest messages it gets where it passed no position, or where that is not found.
    """

    since: Position | None = None
    is_return: bool = False
    rewind: int = 0

    @classmethod
    def of(cls, since: str | None, rewind: int) -> Start:
        """Return it for what a subscriber passed, which can be any text."""
        return cls(_parsed(since), True, rewind) if since else cls(rewind=rewind)


class Beginning(NamedTuple):
    """What a subscriber gets at its join, in this order, before the first live message."""

    joined: Joined
    missed: Batch


def needs_ring(kept: KeptChannel, start: Start) -> bool:
    """Whether a join must wait until the ring holds everything that can be given back.

    Not where it passed the newest position, as most clients that come back to a quiet channel.
    """
    if kept.ring.is_complete:
        return False
    if start.since is not None:
        return kept.ring.after(start.since) is None
    return start.rewind > 0 or kept.rule.latest


def unknown_start(kept: KeptChannel, start: Start, *, follows: bool) -> Position | None:
    """Return the position that was passed where only the broker can judge it.

    Either it is ahead of what this worker has received, whose link may be silent. Or it is a position of the channel
    without a message, and the ring does not know it: a broker can return one for a channel that has none at present,
    and not state later, with the message that follows, what came before that. An adapter that `follows` states no
    predecessors, and such a position has a check too if it is one in a log that channels share.
    """
    position, last = start.since, kept.track.last
    if position is None or last is None or position.epoch != last.epoch:
        return None
    if not follows and is_ahead(kept, position):
        return position
    if (position.check and not follows) or kept.rule.latest:
        return None
    return position if kept.ring.after(position) is None else None


def is_ahead(kept: KeptChannel, position: Position | None) -> bool:
    """Whether a position is that of a message after what this worker has received, in the same history."""
    last = kept.track.last
    if position is None or last is None or not position.check:
        return False
    return position.epoch == last.epoch and position.offset > last.offset


def beginning(kept: KeptChannel, start: Start) -> Beginning:
    """Return what is given back to a subscriber that joins at this moment.

    The ring ends where the live messages begin.
    """
    newest = kept.track.last
    if kept.rule.latest:
        return _beginning_with_latest(kept, newest, start.since)
    gap = None
    if start.is_return:
        missed = None if start.since is None else kept.ring.after(start.since)
        if missed is not None:
            return Beginning(Joined(channel=kept.name, position=start.since, resumed=True), missed)
        gap = Gap(channel=kept.name, reason=kept.fill_error or _NOT_FOUND, position=newest)
    missed = kept.ring.newest(start.rewind)
    return Beginning(Joined(channel=kept.name, position=_before(missed, newest), gap=gap), missed)


def _beginning_with_latest(kept: KeptChannel, newest: Position | None, position: Position | None) -> Beginning:
    """Return the newest message, unless the subscriber has it: of such a channel nothing else counts."""
    missed = kept.ring.newest(0 if position is not None and position == newest else 1)
    joined = Joined(channel=kept.name, position=_before(missed, newest), resumed=position is not None)
    return Beginning(joined, missed)


def _before(missed: Batch, newest: Position | None) -> Position | None:
    """Return the position before `missed`, where it is known."""
    if not missed:
        return newest
    first = missed[0].position
    if isinstance(first, Place) and first.before is not None and first.before_check is not None:
        return Position(first.epoch, first.before, first.before_check)
    return None


def _parsed(since: str) -> Position | None:
    try:
        return Position.parse(since)
    except InvalidPositionError:
        return None
