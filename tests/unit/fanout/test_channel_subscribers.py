"""`backplane.fanout.channel_subscribers`: whom the last messages of a channel excluded."""

from __future__ import annotations

from backplane.fanout.batch import Batch
from backplane.fanout.channel_subscribers import ChannelSubscribers
from backplane.fanout.traffic import Traffic
from backplane.message import Message

ADA, BOB = b"ada".ljust(8), b"bob".ljust(8)


def receive(subscribers: ChannelSubscribers, *excluded: bytes | None) -> list[bytes | None] | None:
    """Let a batch be received; return whom the last messages excluded."""
    batch = Batch(*(Message(channel="a", data="x", excluded=token) for token in excluded))
    subscribers.count(batch, 1, None, None)
    return None if subscribers.excluded is None else list(subscribers.excluded)


def test_last_messages() -> None:
    """Of the last sixteen it is known whom they excluded, as long as one of them did exclude someone."""
    traffic = Traffic()
    subscribers = ChannelSubscribers(traffic, traffic.groups.rest)
    assert receive(subscribers, None, None) is None
    assert receive(subscribers, ADA) == [None, None, ADA]
    assert receive(subscribers, BOB, None) == [None, None, ADA, BOB, None]
    assert receive(subscribers, *[None] * 12) == [None, ADA, BOB, *[None] * 13]
    assert receive(subscribers, *[None] * 2) == [BOB, *[None] * 15]
    assert receive(subscribers, None) is None
    assert receive(subscribers, ADA) == [*[None] * 15, ADA]
