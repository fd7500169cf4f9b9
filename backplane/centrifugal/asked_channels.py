"""How many channels one client lets its worker watch by requests for presence. No I/O."""

from __future__ import annotations

from typing import Final

from backplane.centrifugal.codes import LIMIT_EXCEEDED
from backplane.presence.times import PresenceTimes

__all__ = ["AskedChannels"]

_KEPT_SECONDS: Final = PresenceTimes().present


class AskedChannels:
    """The channels whose presence a client has asked for within the time for which a worker watches them for that.

    Each is a subscription at the broker, and all that is present there: a client that asks for one channel after the
    other would let its worker watch any number of them.

    Args:
        most: How many there may be; `None` for any number.
    """

    __slots__ = ("_asked_at", "_most")

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._asked_at: dict[str, float] = {}  # the last one asked for is the last item

    def note(self, channel: str, now: float) -> None:
        """Take note of a request.

        Args:
            channel: The channel.
            now: Seconds on a monotonic clock.

        Raises:
            ProtocolError: The client has asked for as many other channels as there may be.
        """
        asked_at = self._asked_at
        asked_at.pop(channel, None)
        while asked_at and next(iter(asked_at.values())) <= now - _KEPT_SECONDS:
            del asked_at[next(iter(asked_at))]
        if self._most is not None and len(asked_at) >= self._most:
            raise LIMIT_EXCEEDED.error()
        asked_at[channel] = now
