"""Pushes of joins and leaves: one watch of a channel's presence per worker, for all clients that want them."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Protocol

from backplane.centrifugal.encoding import JSON, PROTOBUF
from backplane.centrifugal.values import as_json
from backplane.errors import BackplaneError
from backplane.presence_types import PresenceSnapshot

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backplane.centrifugal.encoding import Encoding
    from backplane.core import Backplane
    from backplane.presence_types import PresenceChange, PresentUser, Who

__all__ = ["Audiences", "info_of"]

# A push is a write of some 5 µs: so many in one pass of the event loop.
_SLICE: Final = 200
# Who is in a channel that nothing watched is known after 1.3 s.
_KNOWN_SECONDS: Final = 2.0


class Watcher(Protocol):
    """A client that is notified."""

    @property
    def encoding(self) -> Encoding:
        """Its encoding."""
        ...

    @property
    def who(self) -> Who | None:
        """Its user, whose join it was notified of when it was added."""
        ...

    def push(self, data: str | bytes, /) -> None:
        """Send it a push."""


class _Audience:
    """The clients of one channel.

    Attributes:
        watchers: The clients, each with whether it is notified already: not before the reply to its subscribe.
        users: The users of the channel, as the clients know them; `None` before they are known.
        is_known: Set once it is known which users were there when the first client came, or that it will not be.
        task: What watches.
    """

    def __init__(self) -> None:
        self.watchers: dict[Watcher, bool] = {}
        self.users: dict[str, PresentUser] | None = None
        self.is_known: asyncio.Event = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    def take(
        self, item: PresenceSnapshot | PresenceChange
    ) -> tuple[Mapping[str, PresentUser], Mapping[str, PresentUser]]:
        """Return the users who have joined, and who have left.

        Those of the first snapshot were there before. While the channel exchanges numbers alone there are none: what
        has changed meanwhile is known afterwards.
        """
        users = self.users
        if isinstance(item, PresenceSnapshot):
            if item.counts_only:
                return {}, {}
            self.users = now = dict(item.users)
            if users is None:
                return {}, {}
            return _without(now, users), _without(users, now)
        if users is None:
            return {}, {}
        left = {name: users.pop(name) for name in item.left}
        users |= {**item.joined, **item.updated}
        return item.joined, left


class Audiences:
    """The clients of this worker that are notified of joins and leaves, by channel.

    A join is the first connection of a user, and a leave the end of the last one, after the grace of the channel's
    `Presence` rule: a user who reloads the page has neither left nor joined.

    Args:
        backplane: What knows the presence.
    """

    def __init__(self, backplane: Backplane) -> None:
        self._backplane = backplane
        self._audiences: dict[str, _Audience] = {}

    async def prepare(self, channel: str, watcher: Watcher) -> None:
        """Wait until it is known which users are there, which are no joins; for 2 s at most. `discard` undoes it."""
        audience = self._audiences.get(channel)
        if audience is None:
            audience = self._audiences[channel] = _Audience()
            name = f"backplane-centrifugal-presence-{channel}"
            audience.task = asyncio.create_task(self._watch(channel, audience), name=name)
        audience.watchers[watcher] = False
        with suppress(TimeoutError):
            async with asyncio.timeout(_KNOWN_SECONDS):
                await audience.is_known.wait()

    def begin(self, channel: str, watcher: Watcher) -> None:
        """Notify a client that is prepared from now on: first of its own join."""
        self._audiences[channel].watchers[watcher] = True
        if (who := watcher.who) is not None:
            own = {"info": info_of(who.user, who.info, watcher.encoding)}
            watcher.push(watcher.encoding.push(channel, "join", own))

    def discard(self, channel: str, watcher: Watcher) -> None:
        """Notify a client that is prepared no more."""
        audience = self._audiences[channel]
        del audience.watchers[watcher]
        if not audience.watchers:
            del self._audiences[channel]
            assert audience.task is not None
            audience.task.cancel()

    async def _watch(self, channel: str, audience: _Audience) -> None:
        try:
            async with self._backplane.watch(channel) as presence:
                async for item in presence:
                    joined, left = audience.take(item)
                    audience.is_known.set()
                    for name, user in joined.items():
                        await _push(audience.watchers, channel, "join", name, user.info)
                    for name, user in left.items():
                        await _push(audience.watchers, channel, "leave", name, user.info)
        except BackplaneError:  # it has stopped, or this is no channel name, which the join raises too
            pass
        finally:
            audience.is_known.set()


async def _push(watchers: Mapping[Watcher, bool], channel: str, name: str, user: str, info: Any) -> None:
    """Push to all clients, in slices; each encoding is made once."""
    pushes = {
        encoding.name: encoding.push(channel, name, {"info": info_of(user, info, encoding)})
        for encoding in (JSON, PROTOBUF)
    }
    for number, watcher in enumerate(tuple(watchers), 1):
        is_own_join = name == "join" and watcher.who is not None and watcher.who.user == user
        if watchers.get(watcher) and not is_own_join:
            watcher.push(pushes[watcher.encoding.name])
        if not number % _SLICE:
            await asyncio.sleep(0)


def info_of(user: str, info: Any, encoding: Encoding) -> dict[str, Any]:
    """Return a user as the protocol lists it. It has one entry, whatever the number of its connections."""
    found: dict[str, Any] = {"user": user, "client": user}
    if info is not None:
        found["conn_info"] = as_json(encoding, info)
    return found


def _without(users: Mapping[str, PresentUser], others: Mapping[str, PresentUser]) -> Mapping[str, PresentUser]:
    return {name: user for name, user in users.items() if name not in others}
