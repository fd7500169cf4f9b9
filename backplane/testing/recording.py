"""A sink that records what an adapter reports, for a test to wait for."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from backplane.broadcaster import KeptMessage
from backplane.message import All

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from backplane.errors import BrokerError
    from backplane.message import Place

__all__ = ["RecordingSink"]


class RecordingSink:
    """Implements `backplane.broadcaster.Sink`.

    Attributes:
        delivered: Every `(channel, payload)`, in order.
        places: The place of each of them; `None` for one that is in no history.
        gaps: Every `(channels, reason)`; the channels are `None` for all.
        revocations: Every `(channels, reason)` reported by `revoked`.
        losses: Every error reported by `lost`.
    """

    def __init__(self) -> None:
        self.delivered: list[tuple[str, bytes]] = []
        self.places: list[Place | None] = []
        self.gaps: list[tuple[frozenset[str] | None, str]] = []
        self.revocations: list[tuple[frozenset[str], str]] = []
        self.losses: list[BrokerError] = []
        self._changed = asyncio.Event()

    def deliver(self, channel: str, payload: bytes, place: Place | None = None) -> None:
        """Record a delivery."""
        self.delivered.append((channel, payload))
        self.places.append(place)
        self._changed.set()

    def gap(self, channels: Collection[str] | All, reason: str) -> None:
        """Record a gap."""
        self.gaps.append((None if isinstance(channels, All) else frozenset(channels), reason))
        self._changed.set()

    def revoked(self, channels: Collection[str], reason: str) -> None:
        """Record a revocation."""
        self.revocations.append((frozenset(channels), reason))
        self._changed.set()

    def lost(self, error: BrokerError) -> None:
        """Record a lost link."""
        self.losses.append(error)
        self._changed.set()

    def payloads(self, channel: str) -> list[bytes]:
        """Return what was delivered on `channel`, in order."""
        return [payload for name, payload in self.delivered if name == channel]

    def kept(self, channel: str) -> list[KeptMessage]:
        """Return what was delivered on `channel` with a place in its history, in order."""
        delivered = zip(self.delivered, self.places, strict=True)
        return [
            KeptMessage(payload, place) for (name, payload), place in delivered if name == channel and place is not None
        ]

    async def until(self, condition: Callable[[], bool], *, timeout_seconds: float = 30.0) -> None:
        """Wait until `condition` holds; it is checked after every report.

        Raises:
            TimeoutError: It did not hold in time; the message shows the last reports.
        """
        try:
            async with asyncio.timeout(timeout_seconds):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise TimeoutError(
                f"not within {timeout_seconds:g} s; {len(self.delivered)} deliveries, the last {self.delivered[-3:]}, "
                f"gaps {self.gaps[-3:]}, revocations {self.revocations[-3:]}, losses {self.losses[-3:]}"
            ) from None
