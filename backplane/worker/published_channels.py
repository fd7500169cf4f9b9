"""The channels to which this worker has published lately: a name that is nearly right is the likeliest mistake."""

from __future__ import annotations

import asyncio
from typing import Final

__all__ = ["PublishedChannels"]

_MOST: Final = 1_000


class PublishedChannels(dict[str, float]):
    """The last 1,000 channels, each with the time of the last publish, by the event loop's clock; the oldest first."""

    def note(self, channel: str) -> None:
        """Note that a message was published."""
        self.pop(channel, None)
        self[channel] = asyncio.get_running_loop().time()
        if len(self) > _MOST:
            del self[next(iter(self))]

    def seconds_ago(self, channel: str) -> float | None:
        """Return how long ago the last message was published on a channel; `None` where that is not known."""
        at = self.get(channel)
        return None if at is None else round(asyncio.get_running_loop().time() - at, 1)
