"""Which peers have subscribed to which channel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backplane.adapters.ipc import subscriber_index
from backplane.adapters.ipc.subscriber_index import SubscriberIndex

if TYPE_CHECKING:
    import pytest


def test_a_subscriber_is_found_by_its_channels_alone() -> None:
    """A publish finds each subscriber of the channel once, in the order in which they subscribed."""
    index = SubscriberIndex[str]()
    for subscriber, key in (("one", b"a"), ("two", b"a"), ("one", b"a"), ("two", b"b")):
        index.add(subscriber, key)
    assert (index.of(b"a"), index.of(b"b"), index.of(b"c")) == (("one", "two"), ("two",), ())


def test_a_subscriber_that_is_removed_during_a_publish_does_not_disturb_it() -> None:
    """What `of` returned does not change; from then on the subscriber is missing from every channel."""
    index = SubscriberIndex[str]()
    for subscriber, key in (("one", b"a"), ("two", b"a"), ("one", b"b")):
        index.add(subscriber, key)
    publishing = index.of(b"a")
    index.remove_all("one")
    index.remove("two", b"b")  # was not subscribed
    assert publishing == ("one", "two")
    assert (index.of(b"a"), index.of(b"b")) == (("two",), ())


def test_a_subscriber_of_a_prefix_is_found_once() -> None:
    """A publish finds who has subscribed by name, by a prefix or by both once, until nothing of it is left."""
    index = SubscriberIndex[str]()
    index.add("one", b"a.1")
    index.add_prefix("one", b"a.")
    index.add_prefix("two", b"")
    assert (index.of(b"a.1"), index.of(b"a.2"), index.of(b"b")) == (("one", "two"), ("one", "two"), ("two",))
    index.add("two", b"a.1")
    index.add_prefix("two", b"a.")
    index.remove_prefix("two", b"")
    assert (index.of(b"a.1"), index.of(b"a.2"), index.of(b"b")) == (("one", "two"), ("one", "two"), ())
    index.remove("one", b"a.1")
    index.remove_prefix("one", b"a.")
    index.remove_prefix("one", b"never there")
    assert (index.of(b"a.1"), index.of(b"a.2")) == (("two",), ("two",))
    index.remove_all("two")
    assert (index.of(b"a.1"), index.of(b"a.2")) == ((), ())


def test_no_prefix_stands_for_the_channels_of_this_package() -> None:
    """They are found by their names alone, also for who wants every channel."""
    index = SubscriberIndex[str]()
    index.add_prefix("one", b"")
    index.add("two", b"$backplane/x")
    assert (index.of(b"$backplane/x"), index.of(b"$backplane/y"), index.of(b"$back")) == (("two",), (), ("one",))


def test_what_is_remembered_of_channels_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many channels are published to, each is found anew where too many are remembered."""
    monkeypatch.setattr(subscriber_index, "_MAX_CACHED", 2)
    index = SubscriberIndex[str]()
    index.add_prefix("one", b"a")
    for _ in range(2):
        assert [index.of(b"a%d" % number) for number in range(5)] == [("one",)] * 5
    index.remove_prefix("one", b"a")
    assert index.of(b"a0") == ()
