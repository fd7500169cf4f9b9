"""One generation of the broker link, as its adapter sees it: the sink that is heard only while its time lasts."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from backplane.errors import BrokerError
    from backplane.hub import Hub
    from backplane.message import All, Position

__all__ = ["Link"]


class Link:
    """The sink of one generation: what an adapter reports after its time is not heard.

    An adapter reports in the event loop; a report from another thread raises `WrongLoopError` there.

    Args:
        hub: Where messages and gaps go.
        probe_channel: The channel of the delivery probe, which the hub never sees.

    Attributes:
        retired: Nothing is heard any more.
        heard_at: When something last came, by the event loop's clock; at first, when the link was made.
        carried: Something ever came.
        ended: Raises why the link was lost, once it is.
        echo: What a delivery probe waits for.
        unanswered: Publishes in a row to which the broker owes the answer.
    """

    def __init__(self, hub: Hub, probe_channel: str) -> None:
        self.retired = False
        self._loop = asyncio.get_running_loop()
        self.heard_at = self._loop.time()
        self.carried = False
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self.echo: asyncio.Future[None] | None = None
        self.unanswered = 0
        self._hub = hub
        self._affinity = hub.affinity
        self._probe_channel = probe_channel
        self._confirmed = False
        self._early_gaps: list[tuple[Collection[str] | All, str]] = []

    @property
    def is_over(self) -> bool:
        """Whether it was lost, or given up."""
        return self.retired or self.ended.done()

    def deliver(self, channel: str, payload: bytes, position: Position | None = None) -> None:
        """Hand a payload to the hub, a probe to who waits for it."""
        self._affinity.check()
        if self.retired:
            return
        self.carried = True
        self.heard_at = self._loop.time()
        if channel != self._probe_channel:
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
        if not self.retired:
            self._hub.revoke(channels, reason)

    def confirm(self) -> None:
        """Every wanted channel is confirmed: tell the gaps that were found before."""
        self._confirmed = True
        for channels, reason in self._early_gaps:
            self._hub.gap(channels, reason)
        self._early_gaps.clear()

    def lost(self, error: BrokerError) -> None:
        """End it, with the error that its owner then sees."""
        self._affinity.check()
        if not self.is_over:
            self.ended.set_exception(error)
            self.ended.exception()  # read even when the owner ends first
