"""The pauses between two tries to open the link."""

from __future__ import annotations

import random
from typing import Final

__all__ = ["Backoff"]

_FIRST_SECONDS: Final = 0.1


class Backoff:
    """Full jitter: each pause is drawn evenly between 0 and a bound that doubles up to the cap.

    So the workers that one outage concerns do not come back at the same moment.

    Args:
        cap_seconds: Largest bound.
    """

    def __init__(self, cap_seconds: float) -> None:
        self._cap_seconds = cap_seconds
        self._bound_seconds: float = _FIRST_SECONDS

    def next(self) -> float:
        """Return the next pause, in seconds."""
        pause = random.uniform(0, min(self._bound_seconds, self._cap_seconds))  # noqa: S311  # no secret
        self._bound_seconds = min(self._bound_seconds * 2, self._cap_seconds)
        return pause

    def reset(self) -> None:
        """Begin with the smallest bound again."""
        self._bound_seconds = _FIRST_SECONDS
