"""`Backplane.watch` and `Backplane.present`: a channel's users for the application itself."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from typing import TYPE_CHECKING, Final

from backplane.errors import LifecycleError
from backplane.presence_types import PresenceChange, PresenceSnapshot, PresenceView, PresentUser

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from backplane.presence.agent import PresenceAgent
    from backplane.presence.contract import Present, View, ViewEvent

__all__ = ["PresenceWatch", "change_of", "snapshot_of"]

# A consumer that is slower than the changes begins anew with a snapshot, which holds them all.
_MAX_WAITING: Final = 1_000


class PresenceWatch:
    """The users of one channel, as an async iterator: a snapshot, then numbered changes.

    The first item is a `PresenceSnapshot`. Each `PresenceChange` after it has the next `version`. A snapshot with
    another `id` replaces everything: where the channel turned to numbers alone or back, and for a consumer that is too
    slow. One task iterates at a time. Cancelling the iteration loses nothing.

    Iterating ends when the block of `Backplane.watch` is left, or the backplane stops.
    """

    def __init__(self, agent: PresenceAgent, channel: str) -> None:
        self._agent = agent
        self._channel = channel
        self._waiting: deque[PresenceSnapshot | PresenceChange] = deque()
        self._begins_anew = True
        self._is_waiting = False
        self._wakeup = asyncio.Event()
        self._has_ended = False
        agent.observe(channel, self)

    @property
    def view(self) -> PresenceView:
        """The users as they are known now, whatever was iterated."""
        return view_of(self._agent.view(self._channel))

    async def sure(self, seconds: float) -> bool:
        """Wait until nothing is known to be missing, for `seconds` at most; return whether that is so."""
        try:
            async with asyncio.timeout(seconds):
                while self._agent.view(self._channel).stale and not self._has_ended:
                    await self._woken()
        except TimeoutError:
            return False
        return not self._has_ended

    def end(self) -> None:
        """End: the iteration stops after what waits."""
        if not self._has_ended:
            self._has_ended = True
            self._agent.unobserve(self._channel, self)
            self._wakeup.set()

    def view_changed(self, channel: str, events: list[ViewEvent], /) -> None:
        """Take changes of the view."""
        view = self._agent.view(channel)
        for event in events:
            if event.kind == "reset" or len(self._waiting) >= _MAX_WAITING:
                self._waiting.clear()
                self._begins_anew = True
            elif event.kind == "change" and not self._begins_anew:
                self._waiting.append(change_of(event, view))
        self._wakeup.set()

    def __aiter__(self) -> AsyncIterator[PresenceSnapshot | PresenceChange]:
        return self

    async def __anext__(self) -> PresenceSnapshot | PresenceChange:
        if self._is_waiting:
            raise LifecycleError("another task iterates this watch: watch the channel once for each")
        self._is_waiting = True
        try:
            while not self._waiting and not self._has_ended:
                if self._begins_anew and not (view := self._agent.view(self._channel)).stale:
                    self._begins_anew = False
                    return snapshot_of(view)
                await self._woken()
        finally:
            self._is_waiting = False
        if not self._waiting:
            raise StopAsyncIteration
        return self._waiting.popleft()

    async def _woken(self) -> None:
        self._wakeup.clear()
        await self._wakeup.wait()


def view_of(view: View) -> PresenceView:
    """Return a view as the application has it."""
    return PresenceView(
        connections=view.connections,
        stale=view.stale,
        counts_only=view.users is None,
        _users=_users(view.users.values() if view.users else ()),
    )


def snapshot_of(view: View) -> PresenceSnapshot:
    """Return a view as what a watcher begins with."""
    return PresenceSnapshot(
        id=view.id,
        version=view.version,
        users=_users(view.users.values() if view.users else ()),
        connections=view.connections,
        stale=view.stale,
        counts_only=view.users is None,
    )


def change_of(event: ViewEvent, view: View) -> PresenceChange:
    """Return a change of a view as a watcher has it."""
    return PresenceChange(
        version=event.version,
        joined=_users(event.joined),
        left=event.left,
        updated=_users(event.updated),
        connections=view.connections,
    )


def _users(users: Iterable[Present]) -> dict[str, PresentUser]:
    return {
        user: PresentUser(user=user, info=json.loads(info), connections=connections)
        for user, info, _, connections in users
    }
