"""One session of the broker link: the sink of an adapter between one `start` and the next."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from backplane.concurrency.affinity import LoopAffinity
    from backplane.errors import BrokerError
    from backplane.fanout.hub import Hub
    from backplane.message import All, Place

__all__ = ["LinkSession"]


class LinkSession:
    """The sink that an adapter reports to. Reports that arrive after the session was retired are ignored.

    An adapter reports in the event loop; a report from another thread raises `WrongLoopError` there.

    Args:
        hub: Takes the messages and the gaps.
        probe_channel: Channel of the delivery probe, whose messages do not reach the hub.

    Attributes:
        retired: Reports are ignored from now on.
        last_received_at: When a message was last received, by the event loop's clock; at first, when the session began.
        last_answered_at: When the broker last answered a publish, likewise.
        received_any: Whether a message was ever received.
        failure: Raises why the link was lost, once it is.
        probe_reply: Completed by the next probe that is received.
        probe_subscribed: The broker has confirmed the channel of the probe.
        unanswered_publishes: How many publishes in a row the broker has not answered in time.
    """

    def __init__(self, hub: Hub, probe_channel: str) -> None:
        self._loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self._hub = hub
        self._affinity: LoopAffinity = hub.affinity
        self._probe_channel = probe_channel
        self._confirmed = False
        # What the adapter reports while it resumes, until the hub knows which channels are confirmed. Messages are kept
        # only after a gap, so all of the gaps come first.
        self._early_gaps: list[tuple[Collection[str] | All, str]] = []
        self._early_messages: list[tuple[str, bytes, Place | None]] = []
        self.retired: bool = False
        self.last_received_at: float = self._loop.time()
        self.last_answered_at: float = self.last_received_at
        self.received_any: bool = False
        self.failure: asyncio.Future[None] = self._loop.create_future()
        self.probe_reply: asyncio.Future[None] | None = None
        self.probe_subscribed: bool = False
        self.unanswered_publishes: int = 0

    @property
    def is_over(self) -> bool:
        """Whether the link was lost, or the supervisor has retired the session."""
        return self.retired or self.failure.done()

    @property
    def unreported_gaps(self) -> Sequence[tuple[Collection[str] | All, str]]:
        """The gaps that were found before the channels were confirmed, each with its reason; none after `confirm`.

        If the session is lost before that, the supervisor opens them: an adapter reports each only once.
        """
        return self._early_gaps

    def publish_answered(self) -> None:
        """Note that the broker has answered a publish: the publish path works."""
        self.last_answered_at = monotonic()  # the clock of the event loop, read at half the cost
        self.unanswered_publishes = 0

    def deliver(self, channel: str, payload: bytes, place: Place | None = None) -> None:
        """Pass a payload to the hub, or complete the reply of a probe."""
        self._affinity.check()
        if self.retired:
            return
        self.received_any = True
        self.last_received_at = self._loop.time()
        if channel != self._probe_channel:
            if self._early_gaps:
                self._early_messages.append((channel, payload, place))
            else:
                self._hub.deliver(channel, payload, place)
        elif self.probe_reply is not None and not self.probe_reply.done():
            self.probe_reply.set_result(None)

    def gap(self, channels: Collection[str] | All, reason: str) -> None:
        """Pass a gap to the hub; until the channels are confirmed, keep it: the hub would ignore it."""
        self._affinity.check()
        if self.retired:
            return
        if self._confirmed:
            self._hub.gap(channels, reason)
        else:
            self._early_gaps.append((channels, reason))

    def revoked(self, channels: Collection[str], reason: str) -> None:
        """Pass revoked subscriptions to the hub, which opens a gap on them and subscribes again."""
        self._affinity.check()
        if self.retired:
            return
        if self._probe_channel in channels:
            self.probe_subscribed = False
        self._hub.revoke(channels, reason)

    def confirm(self) -> None:
        """Every wanted channel is confirmed: pass on the gaps that were found before, then what was received since."""
        self._confirmed = True
        for channels, reason in self._early_gaps:
            self._hub.gap(channels, reason)
        self._early_gaps.clear()
        for channel, payload, place in self._early_messages:
            self._hub.deliver(channel, payload, place)
        self._early_messages.clear()

    def lost(self, error: BrokerError) -> None:
        """End the session; the supervisor retires it. A second report changes nothing."""
        self._affinity.check()
        if not self.is_over:
            self.failure.set_exception(error)
            self.failure.exception()  # marks it as retrieved: the supervisor may end without waiting for it
