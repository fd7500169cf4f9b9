"""What is kept of the demo's rooms: apart from the application, as the command checks the broker with it first."""

from __future__ import annotations

from backplane.broker.registry import broadcaster_from_url
from backplane.history_rules import History

__all__ = ["history_on"]

_HISTORY: dict[str, History] = {"*": History(max_messages=200, max_age_seconds=600)}


def history_on(url: str) -> dict[str, History] | None:
    """Return enough for a page that comes back; `None` where the adapter of `url` keeps no messages."""
    return None if broadcaster_from_url(url).capabilities.keeps == "nothing" else _HISTORY
