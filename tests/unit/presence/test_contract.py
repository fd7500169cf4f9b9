"""`backplane.presence.contract`: topics are distinguished from channels."""

from __future__ import annotations

from backplane.presence.contract import INBOX, WORKERS, Outgoing


def test_no_channel_is_a_shared_topic() -> None:
    """A channel can have any name."""
    assert "workers" not in (WORKERS, INBOX)
    assert Outgoing("workers", "").topic != Outgoing(WORKERS, "").topic
