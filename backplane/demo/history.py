"""What is kept of the demo's rooms: apart from the application, as the command checks the broker with it first."""

from __future__ import annotations

from backplane.history_rules import History

__all__ = ["HISTORY"]

HISTORY: dict[str, History] = {"*": History(max_messages=200, max_age_seconds=600)}
"""Enough for a page that comes back."""
