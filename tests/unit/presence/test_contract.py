"""`backplane.presence.contract`: topics are distinguished from channels."""

from __future__ import annotations

from backplane.presence.contract import INBOX, WORKERS, Outgoing, Topic


def test_no_channel_is_a_shared_topic() -> None:
    """A channel can have any name."""
    topics: list[Topic] = [WORKERS, INBOX]
    assert "workers" not in topics
    assert Outgoing("workers", "").topic != Outgoing(WORKERS, "").topic
