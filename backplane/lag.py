"""How long ago a message was published, by its publisher's clock and within the bounds of what can be."""

from __future__ import annotations

from typing import Final

__all__ = ["lag_of"]

# No message takes so long to be delivered: a time that is further away is none, or one of a clock that was never set.
_MAX_SECONDS: Final = 86_400.0


def lag_of(published_at: float | None, now: float) -> float | None:
    """Return how many seconds before `now` a message was published; less than 0 where its publisher's clock is ahead.

    `None` where that is not known: the message has no header, or its time is more than a day away, as 0 is, which
    programs write that have no clock.

    Args:
        published_at: When it was published, by the clock of its publisher.
        now: The time by the clock of this host.
    """
    if published_at is None or abs(now - published_at) > _MAX_SECONDS:
        return None
    return now - published_at
