"""The delivery probe: a message to oneself, through the broker, that finds what no TCP check finds.

A half-open link, a stopped server, a publish connection that leads elsewhere than the subscribe connection: all look
healthy from the outside, and none carries the probe back.

Each direction is judged by what came on it: the way out by the broker's answers to publishes, the way in by messages. A
direction that was quiet for an interval is probed, however busy the other one is: they may be two connections, and a
server, a proxy or a firewall closes the idle one.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING, Final

from backplane.channels import RESERVED_PREFIX
from backplane.concurrency.timeouts import PatientTimeout
from backplane.errors import BrokerUnavailableError, PublishError, PublishOutcomeUnknownError, SubscribeError

if TYPE_CHECKING:
    from collections.abc import Collection

    from backplane.broadcaster import Broadcaster
    from backplane.broker.session import LinkSession

__all__ = ["MAX_MISSED", "DeliveryProbe", "SilentLinkError"]

logger = logging.getLogger("backplane.broker.probe")

MAX_MISSED: Final = 2
"""Probes, or checks of the adapter, in a row without an answer after which a link is taken for silent."""
# Links in a row that ended while the probe was under way: the broker closes the connection over it.
_MAX_ENDED: Final = 3
# A broker that names a passing state answers, so its link is not silent; one that names nothing else is opened anew.
_MAX_POSTPONED: Final = 6


class SilentLinkError(BrokerUnavailableError):
    """The link stands and carries nothing."""


class DeliveryProbe:
    """Probes one link after the other.

    Args:
        broadcaster: The adapter.
        origin: Random bytes of this process; they name its channel.
        wanted: The channels this process is subscribed to. Without any it can miss nothing: the probe is published, the
            broker's answer is all that is waited for, and no subscription is opened.
        interval_seconds: How long a direction may be quiet before it is probed; it is given up within two intervals.

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
        self._ended = 0
        self._is_refusal_logged = False
        self.channel = f"{RESERVED_PREFIX}probe/{origin.hex()}"
        self.round_trip_seconds: float | None = None
        self.answered_at: float | None = None

    async def watch(self, link: LinkSession) -> None:
        """Return only where the broker does not allow the probe, or ends the link over it.

        Raises:
            SilentLinkError: Two probes in a row, each given half an interval, did not come back.
            BrokerUnavailableError: The broker was in a passing state for six intervals.
        """
        if self._ended >= _MAX_ENDED:
            return self._give_up(f"{self._ended} links ended over it")
        loop = asyncio.get_running_loop()
        missed = postponed = 0
        since = loop.time()
        while True:
            if not missed or self._carried_at(link) > since:
                missed = 0
                await self._quiet(link, since)
            since = loop.time()
            try:
                async with PatientTimeout(self._interval / 2):
                    try:
                        await self._send(link)
                    finally:
                        self._ended += link.ended.done()
                missed = postponed = self._ended = 0
            except TimeoutError:
                missed += 1
                if missed == MAX_MISSED:
                    raise SilentLinkError(f"the link is silent: {MAX_MISSED} delivery probes got no answer") from None
            except (BrokerUnavailableError, SubscribeError, PublishError) as error:
                if link.is_over:
                    raise
                if not error.retriable:
                    return self._give_up(error)
                missed, postponed = 0, postponed + 1
                if postponed == _MAX_POSTPONED:
                    raise BrokerUnavailableError(f"the broker takes no delivery probe: {error}") from error

    async def prove(self, link: LinkSession) -> bool:
        """Return whether the broker answers anything on a new link; a refusal is an answer too.

        Raises:
            BrokerUnavailableError: The link ended over it.
        """
        if self._ended >= _MAX_ENDED:
            return False
        try:
            await self._broadcaster.publish(self.channel, b"")
        except (BrokerUnavailableError, PublishError) as error:
            if link.is_over or isinstance(error, PublishOutcomeUnknownError):
                raise BrokerUnavailableError(f"the link ended before it answered anything: {error}") from error
        return True

    def _give_up(self, reason: object) -> None:
        level = logging.DEBUG if self._is_refusal_logged else logging.WARNING  # not at every link
        self._is_refusal_logged = True
        logger.log(
            level, "no delivery probe, a silent link will go unnoticed: allow channel %s*: %s", RESERVED_PREFIX, reason
        )

    def _carried_at(self, link: LinkSession) -> float:
        """When the quieter direction of the two carried something; who is subscribed to nothing has but one."""
        return min(link.answered_at, link.received_at) if self._wanted else link.answered_at

    async def _quiet(self, link: LinkSession, since: float) -> None:
        """Wait until a direction has been quiet for an interval."""
        loop = asyncio.get_running_loop()
        while True:
            carried_at = max(since, self._carried_at(link))
            await asyncio.sleep(carried_at + self._interval * random.uniform(0.9, 1.0) - loop.time())  # noqa: S311  # spreads
            if self._carried_at(link) <= carried_at:
                return

    async def _send(self, link: LinkSession) -> None:
        loop = asyncio.get_running_loop()
        there_and_back = bool(self._wanted)
        if there_and_back and not link.probe_subscribed:
            await self._broadcaster.subscribe([self.channel])
            link.probe_subscribed = True
        sent = loop.time()
        link.echo = loop.create_future()
        try:
            await self._broadcaster.publish(self.channel, b"")
        except PublishOutcomeUnknownError:
            if link.is_over:
                raise
            await loop.create_future()  # an adapter has replaced a connection: a missed probe, once its time is up
        link.answered()
        if there_and_back:
            await link.echo
        self.answered_at = loop.time()
        self.round_trip_seconds = self.answered_at - sent
