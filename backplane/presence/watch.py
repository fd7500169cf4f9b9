"""`Backplane.watch` and `Backplane.present`: a channel's users for the application itself."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from backplane.fanout.single_receiver import SingleReceiver
from backplane.presence_types import PresenceChange, PresenceSnapshot, PresenceView, PresentUser, decode_info

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from backplane.concurrency.affinity import LoopAffinity
    from backplane.presence.agent import PresenceAgent
    from backplane.presence.contract import Head, Present, View, ViewEvent

__all__ = ["PresenceWatch"]

# A consumer that is slower than the changes begins anew with a snapshot, which holds them all.
_MAX_WAITING: Final = 1_000


class PresenceWatch:
    """The users of one channel, as an async iterator: a snapshot, then numbered changes.

    The first item is a `PresenceSnapshot`, once the users are known. Each `PresenceChange` after it has the next
    `version`. Another snapshot replaces everything: it comes where the channel turned to numbers alone or back, and
    where more than 1,000 changes waited for a slow consumer. Nothing is reported while the link to the broker is lost:
    `view.stale` is set meanwhile, and changes follow. One task iterates at a time. Cancelling loses nothing.

    Iterating ends when the block of `Backplane.watch` is left, and when the worker has drained or stops.
    """

    def __init__(self, agent: PresenceAgent, affinity: LoopAffinity, channel: str) -> None:
        self._agent = agent
        self._affinity = affinity
        self._channel = channel
        self._waiting: deque[PresenceChange] = deque()
        self._begins_anew = True
        self._wakeup: asyncio.Future[None] | None = None
        self._receiver = SingleReceiver()
        self._last: PresenceView | None = None
        agent.observe(channel, self)

    @property
    def view(self) -> PresenceView:
        """The users as they are known now, whatever was iterated; after the end as they were then, and `stale`."""
        self._affinity.check()
        return view_of(self._agent.view(self._channel)) if self._last is None else self._last

    async def settle(self, seconds: float) -> None:
        """Wait until nothing is known to be missing, for `seconds` at most; while the link is lost, not at all."""
        try:
            async with asyncio.timeout(seconds):
                while self._last is None and self._agent.is_live and self._is_incomplete():
                    await self._agent.passed()
        except TimeoutError:
            pass

    def end(self) -> None:
        """End: the iteration stops after what waits. Ending again changes nothing."""
        if self._last is None:
            self._last = replace(view_of(self._agent.view(self._channel)), stale=True)
            self._agent.unobserve(self._channel, self)
            self._wake()

    def view_changed(self, channel: str, events: list[ViewEvent], /) -> None:
        """Take changes of the view."""
        head = self._agent.head(channel)
        for event in events:
            is_change = event.kind in ("change", "count")
            if event.kind == "reset" or (is_change and len(self._waiting) >= _MAX_WAITING):
                self._waiting.clear()
                self._begins_anew = True
            elif is_change and not self._begins_anew:
                self._waiting.append(_change_of(event, head))
        self._wake()

    def __aiter__(self) -> AsyncIterator[PresenceSnapshot | PresenceChange]:
        return self

    async def __anext__(self) -> PresenceSnapshot | PresenceChange:
        self._affinity.check()
        self._receiver.check_single("this watch", "watch the channel once for each")
        while not self._waiting:
            if self._last is not None:
                raise StopAsyncIteration
            if self._begins_anew and not self._agent.head(self._channel).stale:
                self._begins_anew = False
                return _snapshot_of(self._agent.view(self._channel))
            await self._woken()
        return self._waiting.popleft()

    def _is_incomplete(self) -> bool:
        head = self._agent.head(self._channel)
        return head.stale or head.pending

    async def _woken(self) -> None:
        consumer = self._receiver.begin_waiting()
        self._wakeup = asyncio.get_running_loop().create_future()
        try:
            await self._wakeup
        finally:
            self._receiver.end_waiting(consumer)

    def _wake(self) -> None:
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)


def view_of(view: View) -> PresenceView:
    """Return a view as the application has it."""
    return PresenceView(
        connections=view.connections,
        stale=view.stale,
        counts_only=view.users is None,
        _users=_users(view.users.values() if view.users else ()),
    )


def _snapshot_of(view: View) -> PresenceSnapshot:
    """Return a view as what a watcher begins with."""
    return PresenceSnapshot(
        id=view.id,
        version=view.version,
        users=_users(view.users.values() if view.users else ()),
        connections=view.connections,
        counts_only=view.users is None,
    )


def _change_of(event: ViewEvent, head: Head) -> PresenceChange:
    """Return a change of a view as a watcher has it."""
    return PresenceChange(
        version=event.version,
        joined=_users(event.joined),
        left=event.left,
        updated=_users(event.updated),
        connections=head.connections,
    )


def _users(users: Iterable[Present]) -> dict[str, PresentUser]:
    return {
        user: PresentUser(user=user, info=decode_info(info), connections=connections)
        for user, info, _, connections in users
    }
