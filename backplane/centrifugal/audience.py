"""Pushes of joins and leaves: one watch of a channel's presence per worker, for all clients that want them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, Protocol

from backplane.centrifugal.encoding import JSON, PROTOBUF
from backplane.centrifugal.values import as_json
from backplane.errors import BackplaneError
from backplane.presence_types import PresenceSnapshot

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backplane.centrifugal.encoding import Encoding
    from backplane.core import Backplane
    from backplane.presence_types import PresentUser

__all__ = ["Audiences", "info_of"]

# A push is a write of some 5 µs: so many in one pass of the event loop.
_SLICE: Final = 200


class Watcher(Protocol):
    """A client that is notified."""

    @property
    def encoding(self) -> Encoding:
        """Its encoding."""
        ...

    def push(self, data: str | bytes, /) -> None:
        """Send it a push."""


class Audiences:
    """The clients of this worker that are notified of joins and leaves, by channel.

    A join is the first connection of a user, and a leave the end of the last one, after the grace of the channel's
    `Presence` rule: a user who reloads the page has neither left nor joined.

    Args:
        backplane: What knows the presence.
    """

    def __init__(self, backplane: Backplane) -> None:
        self._backplane = backplane
        self._watchers: dict[str, dict[Watcher, None]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def add(self, channel: str, watcher: Watcher) -> None:
        """Notify a client from now on."""
        watchers = self._watchers.setdefault(channel, {})
        watchers[watcher] = None
        if channel not in self._tasks:
            self._tasks[channel] = asyncio.create_task(
                self._watch(channel, watchers), name=f"backplane-centrifugal-presence-{channel}"
            )

    def discard(self, channel: str, watcher: Watcher) -> None:
        """Notify a client no more; one that is not notified changes nothing."""
        watchers = self._watchers.get(channel)
        if watchers is not None:
            watchers.pop(watcher, None)
            if not watchers:
                del self._watchers[channel]
                self._tasks.pop(channel).cancel()

    async def _watch(self, channel: str, watchers: dict[Watcher, None]) -> None:
        users: dict[str, PresentUser] = {}
        try:
            async with self._backplane.watch(channel) as presence:
                async for item in presence:
                    if isinstance(item, PresenceSnapshot):
                        joined = {name: user for name, user in item.users.items() if users and name not in users}
                        left = [name for name in users if name not in item.users]
                        gone, users = users, dict(item.users)
                    else:
                        joined, left, gone = dict(item.joined), list(item.left), users
                        users = {name: user for name, user in users.items() if name not in item.left}
                        users |= joined | dict(item.updated)
                    for name, user in joined.items():
                        await _push(watchers, channel, "join", name, user.info)
                    for name in left:
                        await _push(watchers, channel, "leave", name, gone[name].info if name in gone else None)
        except BackplaneError:  # it has stopped
            pass


async def _push(watchers: Mapping[Watcher, None], channel: str, name: str, user: str, info: Any) -> None:
    """Push to all clients, in slices; each encoding is made once."""
    pushes = {
        encoding.name: encoding.push(channel, name, {"info": info_of(user, info, encoding)})
        for encoding in (JSON, PROTOBUF)
    }
    for number, watcher in enumerate(tuple(watchers), 1):
        if watcher in watchers:
            watcher.push(pushes[watcher.encoding.name])
        if not number % _SLICE:
            await asyncio.sleep(0)


def info_of(user: str, info: Any, encoding: Encoding) -> dict[str, Any]:
    """Return a user as the protocol lists it. It has one entry, whatever the number of its connections."""
    found: dict[str, Any] = {"user": user, "client": user}
    if info is not None:
        found["conn_info"] = as_json(encoding, info)
    return found
