"""`backplane.presence.view`: the larger version wins, and what is named and not held is missing."""

from __future__ import annotations

from math import inf
from random import Random

import pytest

from backplane.presence.contract import ViewEvent
from backplane.presence.view import OwnerView
from backplane.presence.wire import Delta
from tests.unit.presence.kit import A, B, C, Rule, entry


def delta(base: int, version: int, *added: str, gone: tuple[str, ...] = (), size: int = 1) -> Delta:
    """Return a difference of the owner `A`."""
    return Delta(A, base, version, {name: entry(name, f"u{name}") for name in added}, list(gone), None, size)


def users(view: OwnerView) -> list[str] | None:
    """Return the users of a view."""
    present = view.present()
    return None if present is None else sorted(present)


def always(_: str) -> bool:
    """Return that a worker is alive."""
    return True


@pytest.fixture
def view() -> OwnerView:
    """Return a view without a grace that has room for four entries."""
    return OwnerView(Rule(0, 4), Random(1))


def test_a_difference_is_applied_to_its_base(view: OwnerView) -> None:
    """Repeated and late ones change nothing."""
    view.apply(delta(0, 1, "1"), 0)
    view.apply(delta(1, 2, "2", gone=("1", "9")), 0)
    view.apply(delta(1, 2, "2", gone=("1",)), 0)
    view.apply(delta(0, 1, "1"), 0)
    event = view.commit(0)
    assert event is not None
    assert [present.user for present in event.joined] == ["u2"]
    assert (view.held[A].version, view.total, view.known(), list(view.owners())) == (2, 1, {A: 2}, [A])


def test_a_difference_to_another_version_is_missing(view: OwnerView) -> None:
    """Its version is remembered, until it is held."""
    view.apply(delta(3, 4, "1"), 0)
    assert (view.known(), view.lags(A), view.missing(always), view.missing(lambda _: False)) == ({}, True, True, False)
    view.name(A, 3, 0)
    assert view.replace(A, 4, {"1": entry("1")}, 0)
    assert (view.lags(A), view.missing(always)) == (False, False)
    view.name(A, 4, 0)
    assert not view.lags(A)
    view.name(A, 6, 0)
    view.apply(delta(4, 5), 0)
    assert view.lags(A)
    view.apply(delta(5, 6), 0)
    assert not view.lags(A)


def test_everything_replaces_what_is_held(view: OwnerView) -> None:
    """What is equal is no change; an older version is ignored."""
    view.replace(A, 1, {"1": entry("1", "x"), "2": entry("2", "y")}, 0)
    view.commit(0)
    assert view.replace(A, 2, {"1": entry("1", "x"), "3": entry("3", "z")}, 0)
    assert not view.replace(A, 1, {}, 0)
    event = view.commit(0)
    assert event is not None
    assert [present.user for present in event.joined] == ["z"]
    assert view.end_graces(0) == ViewEvent("change", 3, (), ("y",), id=view.id)
    view.replace(A, 3, {"1": entry("1", "x", "[]")}, 0)
    event = view.commit(0)
    assert event is not None
    assert [present.info for present in event.updated] == ["[]"]


def test_the_entries_of_a_dead_owner_go(view: OwnerView) -> None:
    """Its version is remembered: when it is back it is asked for."""
    view.replace(A, 7, {"1": entry("1")}, 0)
    view.commit(0)
    view.drop(A)
    view.drop(B)
    view.commit(0)
    assert view.next_grace() == 0
    assert view.end_graces(0) is not None
    assert (users(view), view.total, view.known(), view.lags(A)) == ([], 0, {}, True)
    view.forget(A)
    view.forget(B)
    assert not view.lags(A)


def test_a_dead_owner_of_which_nothing_is_known_lags_in_nothing(view: OwnerView) -> None:
    """There is nothing to ask."""
    view.name(A, 0, 0)
    view.drop(A)
    assert not view.lags(A)


def test_an_owner_that_is_silent_for_long_is_forgotten(view: OwnerView) -> None:
    """Unless its time begins anew; what another worker states of it does not count."""
    view.replace(A, 1, {"1": entry("1")}, 10)
    view.replace(B, 1, {"2": entry("2")}, 10)
    view.replace(C, 1, {"3": entry("3")}, 10)
    view.touch(B, 20)
    view.touch("d" * 16, 20)
    view.expire(15, keep=C)
    assert sorted(view.held) == [B, C]
    view.restart(50)
    view.expire(49, keep=A)
    assert sorted(view.held) == [B, C]


def test_above_the_largest_number_of_entries_there_are_only_counts(view: OwnerView) -> None:
    """The users are not known from there on, and changes do not lead on."""
    first = view.id
    view.replace(A, 1, {name: entry(name, f"u{name}") for name in "123"}, 0)
    view.commit(0)
    view.replace(B, 1, {name: entry(name, f"u{name}") for name in "45"}, 0)
    assert view.commit(0) == ViewEvent("reset", 0, id=view.id)
    assert (users(view), view.total, view.next_grace(), view.end_graces(0), view.commit(0)) == (
        None,
        5,
        inf,
        None,
        None,
    )
    counts = view.id
    assert counts != first
    view.apply(Delta(B, 1, 2, {"6": entry("6")}, [], None, 3), 0)
    assert view.total == 6
    view.apply(delta(1, 2, "7", gone=("1", "2"), size=2), 0)
    assert (view.total, view.held[A].entries, view.wants_entries()) == (5, None, False)
    view.apply(Delta(B, 2, 3, {}, ["6", "5"], None, 1), 0)
    assert (view.total, view.wants_entries(), view.missing(lambda _: False), view.known()) == (3, True, True, {})
    assert view.replace(A, 2, {"3": entry("3", "x"), "7": entry("7", "x")}, 0)
    assert view.replace(B, 3, {"4": entry("4", "y")}, 0)
    assert view.commit(0) == ViewEvent("reset", 0, id=view.id)
    assert (users(view), view.known()) == (["x", "y"], {A: 2, B: 3})
    assert view.id not in (first, counts)


def test_an_owner_may_publish_only_its_number(view: OwnerView) -> None:
    """A number of 0 is a list without entries."""
    view.replace(A, 1, 9, 0)
    view.replace(B, 1, {"2": entry("2")}, 0)
    assert (view.commit(0), view.total, view.held[A].entries) == (ViewEvent("reset", 0, id=view.id), 10, None)
    view.replace(A, 2, 8, 0)
    view.apply(Delta(B, 1, 2, {}, ["2"], None, 0), 0)
    view.drop(A)
    assert (view.total, view.commit(0), users(view)) == (0, ViewEvent("reset", 0, id=view.id), [])
    view.replace(B, 3, {"2": entry("2")}, 0)
    view.replace(B, 4, 0, 0)
    view.commit(0)
    assert (view.total, users(view)) == (0, [])
