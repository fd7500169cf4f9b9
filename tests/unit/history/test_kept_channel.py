"""`backplane.history.kept_channel`: what is to be read for a channel, and what wakes the joins that wait."""

from __future__ import annotations

import asyncio

import pytest

from backplane.broadcaster import Recalled
from backplane.history.kept_channel import KeptChannel
from backplane.history.ring import Ring, RingBudget
from backplane.history.track import Track
from backplane.history_rules import History
from backplane.message import Position
from tests.unit.doubles import until_idle

pytestmark = pytest.mark.anyio

EPOCH = b"epoch  1"


def settled() -> KeptChannel:
    """Return a channel that needs nothing."""
    kept = KeptChannel("k", History(), Track(), Ring(100, 60, RingBudget()))
    kept.track.ask(1)
    kept.track.mend(Recalled(top=Position(EPOCH, 0, 0)))
    return kept


def position(number: int) -> Position:
    """Return a position that no message has."""
    return Position(EPOCH, number, 0)


async def test_what_needs_a_read() -> None:
    """A doubt, a ring that a join waits for, and a position that no message has are read; nothing else is."""
    assert KeptChannel("k", History(), Track(), Ring(1, 1, RingBudget())).needs_read
    kept = settled()
    assert not kept.needs_read
    kept.wants_ring = True
    assert kept.needs_read
    kept = settled()
    kept.want_after(position(1), limit=1)
    assert kept.needs_read


async def test_a_new_doubt_begins_a_new_repair() -> None:
    """A channel that is put in doubt is read, and the time of its repair begins with its next read."""
    kept = settled()
    kept.repair_since = 1.0
    kept.lose("the link was lost")
    assert (kept.track.doubt, kept.needs_read) == ("the link was lost", True)
    assert kept.repair_since is None


async def test_the_end_of_a_fill() -> None:
    """A read that should fill the ring is counted, with why it failed."""
    kept = settled()
    kept.wants_ring = True
    kept.end_fill("refused")
    assert (kept.wants_ring, kept.fills, kept.fill_error) == (False, 1, "refused")
    kept.end_fill(None)
    assert (kept.fills, kept.fill_error) == (2, None)


async def test_reads_after_positions_that_no_message_has_are_limited() -> None:
    """As many as the limit are read at once, and no more."""
    kept = settled()
    wanted = list[bool]()
    for number in range(5):
        wanted.append(kept.want_after(position(number), limit=3))
        kept.wants_after = None  # it was read
    assert wanted == [True, True, True, False, False]


async def test_a_second_later_as_many_are_read_again() -> None:
    """A second after the last of them, the limit begins anew."""
    kept = settled()
    assert kept.want_after(position(1), limit=1)
    kept.wants_after = None
    assert not kept.want_after(position(2), limit=1)
    kept.read_after_at -= 1.5
    assert kept.want_after(position(2), limit=1)
    assert kept.wants_after == position(2)


async def test_one_such_position_is_read_at_a_time() -> None:
    """While one is read another one waits for its end, and counts as no read."""
    kept = settled()
    first = position(1)
    assert kept.want_after(first, limit=2)
    for number in range(2, 9):
        assert kept.want_after(position(number), limit=2)
    assert (kept.wants_after, kept.reads_after) == (first, 1)


async def test_every_join_that_waits_is_woken() -> None:
    """A change wakes all that wait, once; one that was cancelled keeps none of the others waiting."""
    kept = settled()
    kept.notify()
    waiting = [asyncio.create_task(kept.changed()) for _ in range(3)]
    await until_idle()
    assert not any(task.done() for task in waiting)
    waiting[0].cancel()
    await until_idle()
    assert [task.done() for task in waiting] == [True, False, False]
    kept.notify()
    await until_idle()
    assert [task.cancelled() for task in waiting] == [True, False, False]
    assert all(task.done() for task in waiting)
    later = asyncio.create_task(kept.changed())
    await until_idle()
    assert not later.done()
    kept.notify()
    await later
