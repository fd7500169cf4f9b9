"""The path tests that have arrived at a worker: the answer to a question waits for one."""

from __future__ import annotations

import asyncio
from typing import Final

__all__ = ["PathTests"]

# As many as are kept: one is asked for right after it was published.
_MOST: Final = 200


class PathTests:
    """The last path tests, by channel and id."""

    def __init__(self) -> None:
        self._arrived: dict[tuple[str, bytes], None] = {}
        self._waiting: dict[tuple[str, bytes], asyncio.Event] = {}

    def arrived(self, channel: str, test_id: bytes) -> None:
        """Take a path test; called by the hub."""
        key = channel, test_id
        self._arrived[key] = None
        if len(self._arrived) > _MOST:
            del self._arrived[next(iter(self._arrived))]
        if (event := self._waiting.get(key)) is not None:
            event.set()

    async def wait(self, channel: str, test_id: bytes, seconds: float) -> bool:
        """Return whether a path test has arrived, or does within `seconds`."""
        key = channel, test_id
        if key in self._arrived:
            return True
        event = self._waiting.setdefault(key, asyncio.Event())
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            return False
        finally:
            self._waiting.pop(key, None)
        return True
