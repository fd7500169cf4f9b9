"""`backplane.presence.roster`: which workers are alive."""

from __future__ import annotations

from math import inf
from random import Random

import pytest

from backplane.presence import roster as module
from backplane.presence.roster import News, Roster
from backplane.presence.times import PresenceTimes
from tests.unit.presence.kit import A, B, C


@pytest.fixture
def roster() -> Roster:
    """Return a roster that knows no worker."""
    return Roster(PresenceTimes(), Random(1))


def test_a_worker_is_alive_until_its_heartbeats_end(roster: Roster) -> None:
    """It is dead `down_after` after the last one that was new."""
    assert roster.next_due() == inf
    assert roster.heartbeat(A, 1, {"pid": 1}, 0) is News.NEW
    assert roster.heartbeat(A, 2, {"pid": 1}, 5) is News.NOTHING
    assert roster.heartbeat(A, 2, {"pid": 2}, 8) is News.NOTHING
    assert (roster.next_due(), roster.sweep(14.9), roster.alive(A)) == (15, [], True)
    assert (roster.sweep(15), roster.alive(A), list(roster), len(roster)) == ([A], False, [], 0)
    [worker] = roster.workers(15)
    assert worker == (A, False, 10, 10, {"pid": 1})


def test_only_a_new_heartbeat_raises_the_dead(roster: Roster) -> None:
    """Late messages do not."""
    roster.heartbeat(A, 5, {}, 0)
    roster.sweep(20)
    assert roster.mentioned(A, 21) is News.NOTHING
    assert roster.heartbeat(A, 5, {}, 21) is News.NOTHING
    assert not roster.alive(A)
    assert roster.known(A)
    assert roster.heartbeat(A, 6, {}, 22) is News.BACK
    assert roster.alive(A)


def test_a_goodbye_ends_a_worker_at_once(roster: Roster) -> None:
    """A late one changes nothing, and heartbeats before it raise it no more."""
    roster.heartbeat(A, 5, {}, 0)
    assert roster.goodbye(A, 5, 1) is News.NOTHING
    assert roster.alive(A)
    assert roster.goodbye(A, 6, 1) is News.DEAD
    assert roster.goodbye(A, 6, 1) is News.NOTHING
    assert roster.goodbye(A, 8, 1) is News.NOTHING
    assert roster.heartbeat(A, 7, {}, 2) is News.NOTHING
    assert roster.goodbye(B, 3, 2) is News.NOTHING
    assert roster.mentioned(B, 3) is News.NOTHING
    assert not roster.alive(B)


def test_a_worker_that_is_mentioned_is_alive_for_as_long_as_it_was_silent_less(roster: Roster) -> None:
    """A worker that starts does not wait longer for the end of another one than those that know it."""
    assert roster.mentioned(A, 0) is News.NEW
    roster.mentioned(B, 0, silent=7)
    roster.mentioned(C, 0, silent=7)
    roster.heartbeat(C, 1, {}, 1)
    assert roster.next_due() == 3
    assert roster.sweep(3) == [B]
    roster.mentioned("d" * 16, 3, silent=9)
    roster.goodbye("d" * 16, 1, 3)
    assert roster.sweep(4) == []
    assert roster.silence(A, 4) == 4
    assert roster.silence(B, 4) == 0


def test_silence_means_nothing_while_the_own_link_is_away(roster: Roster) -> None:
    """The time of every worker begins anew."""
    roster.heartbeat(A, 1, {}, 0)
    roster.mentioned(B, 0, silent=9)
    roster.restart(50)
    assert roster.sweep(59) == []
    assert roster.sweep(60) == [A, B]


def test_a_worker_that_is_silent_in_both_ways_is_dead_once(roster: Roster) -> None:
    """It is in the list of the dead once."""
    roster.mentioned(A, 0, silent=5)
    assert roster.sweep(20) == [A]


def test_heartbeats_stretch_with_the_workers(roster: Roster) -> None:
    """No worker receives more than about 50 a second, and `down_after` stretches too."""
    assert 2.7 <= roster.draw_interval() <= 3
    for number in range(999):
        roster.mentioned(f"{number:016}", 0)
    assert roster.interval == 20
    assert roster.down_after == pytest.approx(66)


def test_the_dead_are_forgotten(roster: Roster) -> None:
    """After an hour."""
    roster.heartbeat(A, 1, {}, 0)
    roster.goodbye(A, 2, 1)
    roster.heartbeat(B, 1, {}, 0)
    roster.goodbye(B, 2, 5)
    assert roster.forget(3_601) == [A]
    assert not roster.known(A)


def test_the_number_of_workers_is_bounded(roster: Roster, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest of the dead makes room; without one, there is none."""
    monkeypatch.setattr(module, "MAX_WORKERS", 2)
    roster.mentioned(A, 0)
    roster.mentioned(B, 0)
    assert roster.mentioned(C, 0, silent=1) is News.CROWD
    assert roster.heartbeat(C, 1, {}, 0) is News.CROWD
    assert roster.goodbye(C, 1, 0) is News.CROWD
    roster.goodbye(A, 1, 0)
    assert roster.mentioned(C, 0) is News.NEW
    assert not roster.known(A)


def test_a_worker_that_is_dead_elsewhere(roster: Roster) -> None:
    """Only the largest number counts: what has received a later heartbeat knows better."""
    roster.heartbeat(A, 5, {}, 0)
    assert roster.dead_elsewhere(B, 9, 1) is News.NOTHING
    assert roster.dead_elsewhere(A, 4, 1) is News.NOTHING
    assert roster.dead_at(A) is None
    assert roster.dead_elsewhere(A, 5, 1) is News.DEAD
    assert roster.dead_elsewhere(A, 5, 1) is News.NOTHING
    assert (roster.dead_at(A), roster.dead_at(B)) == (5, None)
    assert roster.heartbeat(A, 6, {}, 2) is News.BACK
