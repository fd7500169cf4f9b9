"""The presence of a channel for clients: frames, built once per worker for all clients of the channel.

    {"channel": "room:1", "presence": {"id": "5f…", "version": 7, "connections": 3,
        "users": {"u42": {"info": {…}, "connections": 2}, "u9": {…}}}}
    {"channel": "room:1", "presence": {"id": "5f…", "version": 8, "connections": 2,
        "joined": {"u7": {…}}, "left": ["u42"], "updated": {"u9": {…}}}}

The first one replaces all that the client knows; the others have the next version of the same id. `updated` names users
whose info is another one; `connections` is as of this frame, and another number alone makes no frame. Where the channel
exchanges numbers alone, `users` is null, and each other number is a frame with `connections` alone. A client that finds
another id without `users`, or misses a version, since its backlog dropped a frame, joins again to begin anew.

Nothing is sent while the users are not known, as while the broker is away: what a client was sent last stays as it is.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, Final

from backplane.channels import RESERVED_PREFIX
from backplane.fanout.batch import Batch, FinalMessage
from backplane.presence_types import decode_info

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backplane.fanout.delivery import Subscriber
    from backplane.fanout.hub import Hub
    from backplane.presence.agent import PresenceAgent
    from backplane.presence.contract import Head, Present, View, ViewEvent

__all__ = ["PresenceFrames"]


class PresenceFrames:
    """Which clients of this worker are notified of the presence of which channels.

    Args:
        agent: What knows it.
        hub: What delivers to clients.
    """

    def __init__(self, agent: PresenceAgent, hub: Hub) -> None:
        self._agent = agent
        self._hub = hub
        self._audiences: Final[dict[str, _Audience]] = {}

    def add(self, channel: str, client: Subscriber) -> None:
        """Send `client` the users of a channel, once they are known, and every change; called again, it begins anew."""
        audience = self._audiences.get(channel)
        if audience is None:
            audience = self._audiences[channel] = _Audience(self._agent, self._hub, channel)
            self._agent.observe(channel, audience)
        audience.add(client)

    def discard(self, channel: str, client: Subscriber) -> None:
        """Send nothing more to `client`; one that is sent nothing changes nothing."""
        audience = self._audiences.get(channel)
        if audience is not None and audience.discard(client):
            del self._audiences[channel]
            self._agent.unobserve(channel, audience)


class _Audience:
    """The clients of this worker that are notified of one channel.

    One delivery follows another, so that each client gets the versions in order; changes that come meanwhile, and
    clients, wait for the next one. What is delivered is made in a pass of the event loop of its own: for many clients
    that join at once there is one snapshot.
    """

    def __init__(self, agent: PresenceAgent, hub: Hub, channel: str) -> None:
        self._agent = agent
        self._hub = hub
        self._channel = channel
        self._topic = f"{RESERVED_PREFIX}presence-frames/{channel}"
        # The clients that have a snapshot, or one on its way, and those that wait for one.
        self._informed: dict[Subscriber, int] = {}
        self._waiting: dict[Subscriber, int] = {}
        self._changes: list[FinalMessage] = []
        # The last one, with how many connections it has: nothing else can change in it without an event.
        self._snapshot: tuple[int, Batch] | None = None
        self._running = 0
        self._advancing: asyncio.Handle | None = None

    def add(self, client: Subscriber) -> None:
        """Send a client a snapshot, and then every change."""
        self._informed.pop(client, None)
        self._waiting[client] = 1
        self._advance_soon()

    def discard(self, client: Subscriber) -> bool:
        """Send nothing more to a client; return whether none is left: then this is over."""
        self._informed.pop(client, None)
        self._waiting.pop(client, None)
        if self._informed or self._waiting:
            return False
        self._changes.clear()
        if self._advancing is not None:
            self._advancing.cancel()
        return True

    def view_changed(self, channel: str, events: list[ViewEvent], /) -> None:
        """Take changes of the view."""
        head = self._agent.head(channel)
        for event in events:
            if event.kind == "reset":
                self._waiting.update(self._informed)
                self._informed.clear()
                self._changes.clear()
                self._snapshot = None
            elif event.kind in ("change", "count"):
                self._snapshot = None
                if self._informed:
                    self._changes.append(FinalMessage(channel="", data=_change(channel, event, head)))
        self._advance_soon()

    def _advance_soon(self) -> None:
        if self._advancing is None and not self._running:
            self._advancing = asyncio.get_running_loop().call_soon(self._advance)

    def _advance(self) -> None:
        """Deliver what waits."""
        head = self._agent.head(self._channel)  # first: it can bring changes
        self._advancing = None
        changes, self._changes = self._changes, []
        if changes:
            self._deliver(Batch(*changes), self._informed)
        if self._waiting and not head.stale:
            waiting, self._waiting = self._waiting, {}
            self._informed.update(waiting)
            self._deliver(self._snapshot_of(head), waiting)

    def _snapshot_of(self, head: Head) -> Batch:
        if self._snapshot is None or self._snapshot[0] != head.connections:
            text = _snapshot(self._channel, self._agent.view(self._channel))
            self._snapshot = head.connections, Batch(FinalMessage(channel="", data=text))
        return self._snapshot[1]

    def _deliver(self, batch: Batch, recipients: Iterable[Subscriber]) -> None:
        # An empty channel in the messages, as in everything that the application itself sends: no policy of a channel
        # replaces one by another.
        self._running += 1
        self._hub.deliver_local(self._topic, batch, recipients, self._informed, self._delivered)

    def _delivered(self) -> None:
        self._running -= 1
        if self._changes or self._waiting:
            self._advance_soon()


def _snapshot(channel: str, view: View) -> str:
    users = None if view.users is None else _users(view.users.values())
    return _encode(channel, {"id": view.id, "version": view.version, "connections": view.connections, "users": users})


def _change(channel: str, event: ViewEvent, head: Head) -> str:
    changes: dict[str, Any] = {
        "joined": _users(event.joined),
        "left": event.left,
        "updated": _users(event.updated),
    }
    stated = {"id": head.id, "version": event.version, "connections": head.connections}
    return _encode(channel, stated | {name: value for name, value in changes.items() if value})


def _users(users: Iterable[Present]) -> dict[str, Any]:
    return {user: {"info": decode_info(info), "connections": count} for user, info, _, count in users}


def _encode(channel: str, presence: dict[str, Any]) -> str:
    return json.dumps({"channel": channel, "presence": presence}, separators=(",", ":"), ensure_ascii=False)
