"""Publishing through a link that comes and goes: what a publish waits for, for how long, and what it then raises."""

from __future__ import annotations

import asyncio
from heapq import heappop, heappush
from itertools import count
from typing import TYPE_CHECKING, Final, Protocol

from backplane.broker.probe import SilentLinkError
from backplane.concurrency.timeouts import SharedTimeout
from backplane.errors import BrokerUnavailableError, ClosedError, PublishOutcomeUnknownError

if TYPE_CHECKING:
    from backplane.broadcaster import Broadcaster
    from backplane.broker.session import LinkSession
    from backplane.broker.supervisor import LinkState

__all__ = ["LinkOwner", "Publisher"]

# Publishes in a row to which the broker owes the answer: the link is taken for silent.
_MAX_UNANSWERED: Final = 2


class LinkOwner(Protocol):
    """Who opens and rebuilds the link."""

    @property
    def state(self) -> LinkState:
        """How the link is."""
        ...

    @property
    def link(self) -> LinkSession:
        """The present link."""
        ...

    async def state_changed(self) -> None:
        """Wait for the next change of `state`."""
        ...


class Publisher:
    """Publishes on whichever link its owner has, in the order of the calls.

    Args:
        broadcaster: The adapter.
        owner: Who owns the link.
        timeout_seconds: How long one publish waits, for a link and for the broker's answer; see `SharedTimeout`.
    """

    def __init__(self, broadcaster: Broadcaster, owner: LinkOwner, *, timeout_seconds: float) -> None:
        self._broadcaster = broadcaster
        self._owner = owner
        self._seconds = timeout_seconds
        self._deadlines = SharedTimeout(timeout_seconds)
        self._places = count()
        self._line: list[_Waiting] = []  # a heap
        self._in_flight = 0
        self._settled = asyncio.Event()

    async def publish(self, channel: str, payload: bytes, *, wait: bool = True) -> None:
        """Publish once the link is live; without `wait` only if it is.

        Raises:
            BrokerUnavailableError: The link did not return in time, or the broker cannot take it at the moment;
                certainly not published.
            PublishOutcomeUnknownError: The broker did not answer in time.
            PublishError: The broker refused it.
        """
        asked: LinkSession | None = None
        place = next(self._places)
        try:
            with self._deadlines.limit():
                while True:
                    link = self._owner.link
                    if self._owner.state != "live" or link.is_over or self._line:
                        link = await self._live_link(place, wait=wait)
                    try:
                        asked = link
                        return await self._publish_on(link, channel, payload)
                    except BrokerUnavailableError:
                        asked = None
                        # On a link that stands the broker is in a passing state. It is not asked again here: publishes
                        # that follow on the same channel may be under way already, and would be overtaken.
                        if not link.is_over:
                            raise
        except TimeoutError:
            if asked is not None:
                self._count_unanswered(asked)
                raise PublishOutcomeUnknownError(
                    f"no answer within {self._seconds:g} s; it may have been published"
                ) from None
            raise BrokerUnavailableError(
                f"{self._broadcaster.url} has been away for {self._seconds:g} s; not published"
            ) from None

    async def settled(self) -> None:
        """Wait for the broker's answers, while the link is live; each publish is bounded in time, and so is this."""
        while self._in_flight and self._owner.state == "live":
            self._settled.clear()
            await self._settled.wait()

    def close(self) -> None:
        """Cancel the timer: publishes under way are limited no more."""
        self._deadlines.close()

    async def _publish_on(self, link: LinkSession, channel: str, payload: bytes) -> None:
        self._in_flight += 1
        try:
            await self._broadcaster.publish(channel, payload)
            link.answered()
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._settled.set()

    def _count_unanswered(self, link: LinkSession) -> None:
        """Give up a link whose way out is dead, even while its way in still carries."""
        if not self._broadcaster.capabilities.brokered:  # there is no answer to wait for: we were slow ourselves
            return
        link.unanswered += 1
        if link.unanswered >= _MAX_UNANSWERED:
            link.lost(SilentLinkError(f"the link is silent: {_MAX_UNANSWERED} publishes got no answer"))

    async def _live_link(self, place: int, *, wait: bool) -> LinkSession:
        """Wait for a live link, and for the publishes of earlier calls that wait too.

        One of them can come back from a link that did not take it after later ones have begun to wait.
        """
        line, waiting = self._line, _Waiting(place)
        heappush(line, waiting)
        try:
            while True:
                link = self._owner.link
                is_live = self._owner.state == "live" and not link.is_over
                if self._owner.state == "closed":
                    raise ClosedError("this Backplane has been stopped")
                if not (is_live or wait):
                    raise BrokerUnavailableError(f"{self._broadcaster.url} is away; not published")
                if line[0] is not waiting:
                    await waiting.turn()
                elif is_live:
                    return link
                else:
                    await self._owner.state_changed()
        finally:
            waiting.has_left = True
            while line and line[0].has_left:
                heappop(line)
            if line:
                line[0].wake()


class _Waiting:
    """A publish that waits for the link.

    Attributes:
        has_left: It waits no more.
    """

    __slots__ = ("_place", "_turn", "has_left")

    def __init__(self, place: int) -> None:
        self._place = place
        self._turn: asyncio.Future[None] | None = None
        self.has_left = False

    def __lt__(self, other: _Waiting) -> bool:
        return self._place < other._place

    async def turn(self) -> None:
        """Wait for `wake`."""
        self._turn = asyncio.get_running_loop().create_future()
        await self._turn

    def wake(self) -> None:
        """Let it look whether it is the first in line; doing so again changes nothing."""
        if self._turn is not None and not self._turn.done():
            self._turn.set_result(None)
