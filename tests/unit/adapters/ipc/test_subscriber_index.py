"""Which peers have subscribed to which channel."""

from __future__ import annotations

from backplane.adapters.ipc.subscriber_index import SubscriberIndex


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
