"""`backplane.presence.owner`: one version has one content."""

from __future__ import annotations

import pytest

from backplane.presence.owner import Owner
from backplane.presence.wire import Delta, Request, Snapshot
from tests.unit.presence.kit import ME, entry


@pytest.fixture
def owner() -> Owner:
    """Return an owner that has published nothing."""
    return Owner(ME, 0)


def test_the_first_message_is_everything(owner: Owner) -> None:
    """Its base is 0, also where versions begin above."""
    owner.enter(entry("1"))
    assert (owner.published, owner.empty, owner.size, owner.stated()) == (False, False, 1, {})
    assert owner.flush().message == Delta(ME, 0, 1, {"1": entry("1")}, [], None, 1)
    later = Owner(ME, 40)
    later.enter(entry("1"))
    assert later.flush().message == Delta(ME, 0, 41, {"1": entry("1")}, [], None, 1)


def test_what_is_pending_is_not_stated(owner: Owner) -> None:
    """An answer between two flushes has the content of its version."""
    owner.enter(entry("1"))
    owner.enter(entry("2"))
    owner.flush()
    owner.exit("1")
    assert (owner.get("1"), owner.get("2"), owner.get("3")) == (None, entry("2"), None)
    assert owner.snapshot() == Snapshot(ME, 1, {"1": entry("1"), "2": entry("2")})
    owner.enter(entry("2", info="[]"))
    message, added, removed = owner.flush()
    assert message == Snapshot(ME, 2, {"2": entry("2", info="[]")})
    assert (added, removed) == ([entry("2", info="[]")], [entry("1"), entry("2")])


def test_the_last_message_states_that_nothing_is_left(owner: Owner) -> None:
    """It is a difference."""
    owner.enter(entry("1"))
    owner.flush()
    owner.exit("1")
    assert owner.flush().message == Delta(ME, 1, 2, {}, ["1"], None, 0)
    assert owner.empty


def test_what_cancels_out_is_not_pending(owner: Owner) -> None:
    """A connection that was there for less than a flush is not published."""
    owner.enter(entry("1"))
    owner.exit("1")
    assert not owner.pending
    owner.enter(entry("1"))
    owner.flush()
    owner.enter(entry("1", info="[]"))
    owner.enter(entry("1"))
    assert not owner.pending


def test_a_request_travels_with_a_difference(owner: Owner) -> None:
    """With the version that it leads to."""
    owner.enter(entry("1"))
    message = owner.flush(Request(ME, {}, False, 0, 7)).message
    assert isinstance(message, Delta)
    assert message.request == Request(ME, {}, False, 1, 7)


def test_everything_is_published_where_the_last_message_may_be_missing(owner: Owner) -> None:
    """Not the difference: the next one has another base."""
    owner.enter(entry("1"))
    owner.flush()
    owner.whole = True
    owner.enter(entry("2"))
    assert owner.flush().message == Snapshot(ME, 2, {"1": entry("1"), "2": entry("2")})
    assert not owner.whole


def test_a_turn_to_counts_is_another_version(owner: Owner) -> None:
    """Numbers are published then."""
    owner.turn(counts=True)
    assert not owner.pending
    owner.turn(counts=False)
    owner.enter(entry("1"))
    owner.flush()
    owner.turn(counts=True)
    owner.turn(counts=True)
    assert owner.pending
    assert owner.flush().message == Snapshot(ME, 2, 1)
    assert not owner.pending
