"""The delivery probe: a message that a worker publishes to itself through the broker.

It finds what no check of a TCP connection finds: a half-open link, a server that is stopped, a publish connection that
leads to another server than the subscribe connection. All of these look healthy, and none returns the probe.

The two directions are judged separately, each by what arrived on it: the publish path by the broker's answers to
publishes, the subscribe path by messages. A direction that was quiet for an interval is probed however busy the other
one is, since they may be two connections, and a server, a proxy or a firewall closes the idle one.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING, Final

from backplane.channels import RESERVED_PREFIX
from backplane.concurrency.timeouts import PatientTimeout
from backplane.errors import BrokerUnavailableError, PublishError, PublishOutcomeUnknownError, SubscribeError
from backplane.histogram import Histogram
from backplane.journal.events import PROBE_DENIED
from backplane.journal.writing import write

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from backplane.broadcaster import Broadcaster
    from backplane.broker.session import LinkSession

__all__ = ["MAX_MISSED", "ROUND_TRIP_SECONDS", "DeliveryProbe", "SilentLinkError"]

logger: Final = logging.getLogger("backplane.broker.probe")

MAX_MISSED: Final = 2
"""How many probes in a row, or checks of the adapter, may get no answer before the link is taken for silent."""

ROUND_TRIP_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""The bounds of the histogram of round trips."""

# Links in a row that ended while a probe was in progress: the broker closes the connection because of the probe.
_MAX_ENDED: Final = 3
# A broker that reports a passing state answers, so its link is not silent; after this many reports in a row it is
# opened anew all the same.
_MAX_POSTPONED: Final = 6


class SilentLinkError(BrokerUnavailableError):
    """The link is open, and nothing arrives on it.

    Raised inside the package only; it ends the session, which the supervisor then rebuilds.
    """


class DeliveryProbe:
    """Probes the sessions of the link, one after the other.

    Args:
        broadcaster: The adapter.
        origin: Random bytes of this process; they name the channel of the probe.
        wanted: The channels this process is subscribed to, as `BrokerSubscriptions` edits them, and the prefixes. While
            there are none, no message can be missed: the probe is only published, the broker's answer is all that is
            waited for, and nothing is subscribed.
        interval_seconds: How long a direction may be quiet before it is probed. A silent link is found within two
            intervals.

    Attributes:
        channel: The channel of the probe.
        round_trip_seconds: How long the last probe took, there and back; `None` before the first.
        last_reply_at: When the last probe was received, by the event loop's clock; `None` before the first.
        round_trips: How long the probes took, there and back.
        missed: Probes that got no answer in time.
    """

    def __init__(
        self, broadcaster: Broadcaster, *, origin: bytes, wanted: Sequence[Collection[str]], interval_seconds: float
    ) -> None:
        self._broadcaster = broadcaster
        self._wanted = wanted
        self._interval = interval_seconds
        self._ended = 0
        self._is_refusal_logged = False
        self.channel: str = f"{RESERVED_PREFIX}probe/{origin.hex()}"
        self.round_trip_seconds: float | None = None
        self.last_reply_at: float | None = None
        self.round_trips: Histogram = Histogram(*ROUND_TRIP_SECONDS)
        self.missed: int = 0

    async def watch(self, session: LinkSession) -> None:
        """Probe `session`; returns only where the broker does not allow the probe, or ends links because of it.

        Raises:
            SilentLinkError: Two probes in a row, each given half an interval, got no answer.
            BrokerUnavailableError: The broker was in a passing state for six intervals.

        On a link of several parts (`Capabilities.parts`) neither is raised: an unanswered probe shows no more than that
        one part is silent, and the adapter finds that by itself. The probe then measures the round trip.
        """
        if self._ended >= _MAX_ENDED:
            return self._give_up(f"{self._ended} links ended over it")
        loop = asyncio.get_running_loop()
        has_parts = self._broadcaster.capabilities.parts
        missed = postponed = 0
        probed_at = loop.time()
        while True:
            if not missed or self._last_activity(session) > probed_at:
                missed = 0
                await self._wait_until_quiet(session, probed_at)
            probed_at = loop.time()
            try:
                async with PatientTimeout(self._interval / 2):
                    try:
                        await self._send(session)
                    finally:
                        self._ended += session.failure.done()
                missed = postponed = self._ended = 0
            except TimeoutError:
                self.missed += 1
                missed += not has_parts
                if missed == MAX_MISSED:
                    raise SilentLinkError(f"the link is silent: {MAX_MISSED} delivery probes got no answer") from None
            except (BrokerUnavailableError, SubscribeError, PublishError) as error:
                if session.is_over:
                    raise
                if not error.retriable:
                    return self._give_up(error)
                missed, postponed = 0, postponed + (not has_parts)
                if postponed == _MAX_POSTPONED:
                    raise BrokerUnavailableError(f"the broker accepts no delivery probe: {error}") from error

    async def verify(self, session: LinkSession) -> bool:
        """Publish a probe on a new session; return whether the broker answered. A refusal is an answer too.

        Raises:
            BrokerUnavailableError: The link ended before the answer.
        """
        if self._ended >= _MAX_ENDED:
            return False
        try:
            await self._broadcaster.publish(self.channel, b"")
        except (BrokerUnavailableError, PublishError) as error:
            if session.is_over or isinstance(error, PublishOutcomeUnknownError):
                raise BrokerUnavailableError(f"the link ended before it answered anything: {error}") from error
        return True

    def _give_up(self, reason: object) -> None:
        level = logging.DEBUG if self._is_refusal_logged else None  # once, not for every session
        self._is_refusal_logged = True
        words = "no delivery probe, a silent link will go unnoticed: allow channel %(channel)s: %(reason)s"
        write(logger, PROBE_DENIED, words, level=level, channel=f"{RESERVED_PREFIX}*", reason=reason)

    def _last_activity(self, session: LinkSession) -> float:
        """When something last arrived on the quieter direction; without subscriptions only the publish path counts."""
        if not any(self._wanted):
            return session.last_answered_at
        return min(session.last_answered_at, session.last_received_at)

    async def _wait_until_quiet(self, session: LinkSession, probed_at: float) -> None:
        """Wait until a direction has been quiet for an interval since the last probe."""
        loop = asyncio.get_running_loop()
        while True:
            active_at = max(probed_at, self._last_activity(session))
            # The factor spreads the probes of workers that were started together.
            await asyncio.sleep(active_at + self._interval * random.uniform(0.9, 1.0) - loop.time())  # noqa: S311
            if self._last_activity(session) <= active_at:
                return

    async def _send(self, session: LinkSession) -> None:
        loop = asyncio.get_running_loop()
        awaits_reply = any(self._wanted)
        if awaits_reply and not session.probe_subscribed:
            await self._broadcaster.subscribe([self.channel])
            session.probe_subscribed = True
        sent_at = loop.time()
        session.probe_reply = loop.create_future()
        try:
            await self._broadcaster.publish(self.channel, b"")
        except PublishOutcomeUnknownError:
            if session.is_over:
                raise
            # The adapter has replaced one of its connections, and the probe was lost with it. Waiting for ever makes
            # this a missed probe once its time is up.
            await loop.create_future()
        session.publish_answered()
        if awaits_reply:
            await session.probe_reply
        self.last_reply_at = loop.time()
        self.round_trip_seconds = self.last_reply_at - sent_at
        self.round_trips.observe(self.round_trip_seconds)
