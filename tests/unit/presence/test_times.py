"""`backplane.presence.times`: what is promised where nothing is set."""

from __future__ import annotations

from backplane.presence.times import PresenceTimes


def test_the_defaults_are_those_of_the_documents() -> None:
    """A worker is dead after 10 s."""
    times = PresenceTimes()
    assert (times.heartbeat, times.down_after, times.flush, times.beacon, times.repeat) == (3, 10, 0.1, 300, None)
