"""One generation of the broker link, as its adapter sees it: the sink that is used only while its time lasts."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from backplane.errors import BrokerError
    from backplane.fanout.hub import Hub
    from backplane.message import All, Position

__all__ = ["LinkSession"]


class LinkSession:
    """The sink of one generation: what an adapter reports after its time is not heard.

    An adapter reports in the event loop; a report from another thread raises `WrongLoopError` there.

    Args:
        hub: Where messages and gaps go.
        probe_channel: The channel of the delivery probe, which the hub never sees.

    Attributes:
        retired: Nothing is heard any more.
        received_at: When something was last received, by the event loop's clock; at first, when the link was made.
        answered_at: When the broker last answered a publish, likewise.
        carried: Something was ever received.
        ended: Raises why the link was lost, once it is.
        echo: What a delivery probe waits for.
        probe_subscribed: The probe's channel is subscribed.
        unanswered: Publishes in a row to which the broker owes the answer.
    """

    def __init__(self, hub: Hub, probe_channel: str) -> None:
        self.retired = False
        self._loop = asyncio.get_running_loop()
        self.received_at = self.answered_at = self._loop.time()
        self.carried = False
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self.echo: asyncio.Future[None] | None = None
        self.probe_subscribed = False
        self.unanswered = 0
        self._hub = hub
        self._affinity = hub.affinity
        self._probe_channel = probe_channel
        self._confirmed = False
        self._early_gaps: list[tuple[Collection[str] | All, str]] = []
        self._early_messages: list[tuple[str, bytes, Position | None]] = []  # after those gaps

    @property
    def is_over(self) -> bool:
        """Whether it was lost, or given up."""
        return self.retired or self.ended.done()

    def answered(self) -> None:
        """Note that the broker has answered a publish: the way out carries."""
        self.answered_at = monotonic()  # what an event loop's clock shows, at half the cost
        self.unanswered = 0

    def deliver(self, channel: str, payload: bytes, position: Position | None = None) -> None:
        """Hand a payload to the hub, a probe to who waits for it."""
        self._affinity.check()
        if self.retired:
            return
        self.carried = True
        self.received_at = self._loop.time()
        if channel != self._probe_channel:
            if self._early_gaps:
                self._early_messages.append((channel, payload, position))
            else:
                self._hub.deliver(channel, payload, position)
        elif self.echo is not None and not self.echo.done():
            self.echo.set_result(None)

    def gap(self, channels: Collection[str] | All, reason: str) -> None:
        """Tell the hub, or keep it until the channels are confirmed."""
        self._affinity.check()
        if self.retired:
            return
        if self._confirmed:
            self._hub.gap(channels, reason)
        else:  # found while resuming, when the hub holds no channel for confirmed yet
            self._early_gaps.append((channels, reason))

    def revoked(self, channels: Collection[str], reason: str) -> None:
        """Hand the revoked subscriptions to the hub, which opens a gap and asks for them again."""
        self._affinity.check()
        if self.retired:
            return
        if self._probe_channel in channels:
            self.probe_subscribed = False
        self._hub.revoke(channels, reason)

    def confirm(self) -> None:
        """Every wanted channel is confirmed: report the gaps that were found before, then what was received after."""
        self._confirmed = True
        for channels, reason in self._early_gaps:
            self._hub.gap(channels, reason)
        self._early_gaps.clear()
        for channel, payload, position in self._early_messages:
            self._hub.deliver(channel, payload, position)
        self._early_messages.clear()

    def lost(self, error: BrokerError) -> None:
        """End it, with the error that its owner then sees."""
        self._affinity.check()
        if not self.is_over:
            self.ended.set_exception(error)
            self.ended.exception()  # read even when the owner ends first
