"""The delivery probe: a message to oneself, through the broker, that finds what no TCP check finds.

A half-open link, a stopped server, a publish connection that leads elsewhere than the subscribe connection: all look
healthy from the outside, and none carries the probe back.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING

from backplane.channels import RESERVED_PREFIX
from backplane.errors import BrokerUnavailableError, PublishError, PublishOutcomeUnknownError, SubscribeError

if TYPE_CHECKING:
    from collections.abc import Collection

    from backplane.broadcaster import Broadcaster
    from backplane.link import Link

__all__ = ["DeliveryProbe", "SilentLinkError"]

logger = logging.getLogger("backplane.probe")


class SilentLinkError(BrokerUnavailableError):
    """The link stands and carries nothing."""


class DeliveryProbe:
    """Probes one link after the other.

    Args:
        broadcaster: The adapter.
        origin: Random bytes of this process; they name its channel.
        wanted: The channels this process hears; one that hears none can miss nothing and is not probed.
        interval_seconds: How long a link may be quiet before it is asked; it is given up within two intervals.

    Attributes:
        channel: The probe's own channel.
        round_trip_seconds: What the last probe took, there and back; `None` before the first.
        answered_at: When the last probe came back, by the event loop's clock; `None` before the first.
    """

    def __init__(
        self, broadcaster: Broadcaster, *, origin: bytes, wanted: Collection[str], interval_seconds: float
    ) -> None:
        self._broadcaster = broadcaster
        self._wanted = wanted
        self._interval = interval_seconds
        self._subscribed = False
        self.channel = f"{RESERVED_PREFIX}probe/{origin.hex()}"
        self.round_trip_seconds: float | None = None
        self.answered_at: float | None = None

    async def watch(self, link: Link) -> None:
        """Return only where the broker does not allow the probe.

        Raises:
            SilentLinkError: Two probes in a row, each given half an interval, did not come back.
        """
        loop = asyncio.get_running_loop()
        self._subscribed = False
        missed = 0
        since = loop.time()  # nothing was heard since then, as far as this task has looked
        while True:
            # What arrives proves the way back; who hears no channel any more can miss nothing.
            if not missed or not self._wanted or link.heard_at > since:
                missed, since = 0, max(since, link.heard_at)
                await asyncio.sleep(since + self._interval * random.uniform(0.9, 1.0) - loop.time())  # noqa: S311  # spreads
                if link.heard_at > since:
                    continue
            since = loop.time()
            if not self._wanted:
                continue
            try:
                async with asyncio.timeout(self._interval / 2):
                    await self._send(link)
                missed = 0
            except TimeoutError:
                missed += 1
                if missed == 2:
                    raise SilentLinkError("the link is silent: two delivery probes did not come back") from None
            except (SubscribeError, PublishError) as error:
                if isinstance(error, PublishOutcomeUnknownError):
                    raise
                missed = 0
                if error.retriable:  # an answer all the same: the broker accepts nothing at present
                    continue
                logger.warning("no delivery probe, a silent link will go unnoticed: allow channel %s*: %s",
                               RESERVED_PREFIX, error)  # fmt: skip
                return

    async def _send(self, link: Link) -> None:
        loop = asyncio.get_running_loop()
        if not self._subscribed:
            await self._broadcaster.subscribe([self.channel])
            self._subscribed = True
        sent = loop.time()
        link.echo = loop.create_future()
        await self._broadcaster.publish(self.channel, b"")
        await link.echo
        self.answered_at = loop.time()
        self.round_trip_seconds = self.answered_at - sent
