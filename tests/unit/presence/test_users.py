"""`backplane.presence.users`: connections counted by user, and changes numbered."""

from __future__ import annotations

from math import inf
from random import Random

import pytest

from backplane.presence.contract import Present, ViewEvent
from backplane.presence.users import Users
from tests.unit.presence.kit import entry

ONE, TWO, THREE = entry("1"), entry("2", info="[]", since=2.0), entry("3", info="[]", since=3.0)


@pytest.fixture
def users() -> Users:
    """Return users with a grace of 5 s."""
    return Users(5, Random(1))


def test_a_user_joins_with_the_first_connection_and_leaves_after_the_grace(users: Users) -> None:
    """Within the grace it is in the list, without a connection."""
    users.add(ONE)
    assert users.commit(0) == ViewEvent("change", 1, (Present("u", "{}", 1.0, 1),), id=users.id)
    users.remove(ONE)
    assert users.commit(1) is None
    assert users.present() == {"u": Present("u", "{}", 1.0, 0)}
    assert (users.next_due(), users.expire(5.9)) == (6, None)
    assert users.expire(6) == ViewEvent("change", 2, (), ("u",), id=users.id)
    assert (len(users), users.next_due()) == (0, inf)


def test_without_a_grace_none_ends(users: Users) -> None:
    """Nothing is reported then, whatever the time."""
    users.add(ONE)
    users.commit(0)
    assert users.expire(100) is None


def test_a_user_that_is_back_within_the_grace_has_not_left(users: Users) -> None:
    """Nothing is reported, unless its info is another one."""
    users.add(ONE)
    users.commit(0)
    users.remove(ONE)
    users.commit(1)
    users.add(entry("4"))
    assert users.commit(2) is None
    users.remove(entry("4"))
    users.commit(3)
    assert users.expire(6) is None
    users.add(TWO)
    assert users.commit(7) == ViewEvent("change", 2, (), (), (Present("u", "[]", 2.0, 1),), users.id)
    assert users.expire(99) is None


def test_the_newest_connection_states_the_info(users: Users) -> None:
    """Whichever order the connections arrived in."""
    users.add(TWO)
    users.add(ONE)
    users.add(THREE)
    event = users.commit(0)
    assert event is not None
    assert event.joined == (Present("u", "[]", 3.0, 3),)
    users.remove(THREE)
    users.remove(TWO)
    assert users.commit(0) == ViewEvent("change", 2, (), (), (Present("u", "{}", 1.0, 1),), users.id)


def test_a_user_that_joins_and_leaves_at_once_is_not_reported(users: Users) -> None:
    """Only the difference between two commits counts."""
    users.add(ONE)
    users.remove(ONE)
    assert users.commit(0) is None
    assert users.commit(0) is None
    assert users.present() == {}


def test_what_is_added_before_a_restart_is_no_change(users: Users) -> None:
    """It is the state that changes lead on from."""
    users.add(ONE)
    users.restart()
    assert (users.commit(0), users.version) == (None, 0)


def test_a_grace_becomes_longer_by_some_seconds_at_most(users: Users) -> None:
    """Unless nothing was received for a while: then its user may have been back at any time."""
    users.add(ONE)
    users.commit(0)
    users.remove(ONE)
    users.commit(10)
    for now in (11, 14):
        users.restart_graces(now, blind=False)
        assert users.next_due() == now + 5
    for now in (16, 19):
        users.restart_graces(now, blind=False)
        assert users.next_due() == 20
    users.restart_graces(60, blind=True)
    assert users.next_due() == 65
    users.restart_graces(64, blind=False)
    users.restart_graces(68, blind=False)
    assert users.next_due() == 70
