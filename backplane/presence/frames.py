"""The presence of a channel for clients: frames, built once per worker for all clients of the channel.

    {"channel": "room:1", "presence": {"id": "5f…", "version": 7, "connections": 3,
        "users": {"u42": {"info": {…}, "connections": 2}, "u9": {…}}}}
    {"channel": "room:1", "presence": {"id": "5f…", "version": 8, "connections": 2,
        "joined": {"u7": {…}}, "left": ["u42"], "updated": {"u9": {…}}}}

The first one replaces all that the client knows; the others have the next version of the same id. Where the channel
exchanges numbers alone, `users` is null. A client that finds another id, or misses a version, since its backlog dropped
a frame, joins again to begin anew.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from backplane.cluster.topics import presence_of
from backplane.fanout.batch import Batch, FinalMessage

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backplane.fanout.delivery import Subscriber
    from backplane.fanout.hub import Hub
    from backplane.presence.agent import PresenceAgent
    from backplane.presence.contract import Present, View, ViewEvent

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
        # By channel, the clients that have a snapshot, and those that wait for one: until the view is complete.
        self._clients: Final[dict[str, tuple[dict[Subscriber, int], dict[Subscriber, int]]]] = {}

    def add(self, channel: str, client: Subscriber) -> None:
        """Send `client` the users of a channel, once they are known, and every change; called again, it begins anew."""
        entry = self._clients.get(channel)
        if entry is None:
            entry = self._clients[channel] = {}, {}
            self._agent.observe(channel, self)
        informed, waiting = entry
        informed.pop(client, None)
        waiting[client] = 1
        self._inform(channel)

    def discard(self, channel: str, client: Subscriber) -> None:
        """Send nothing more to `client`; one that is sent nothing changes nothing."""
        entry = self._clients.get(channel)
        if entry is not None:
            for clients in entry:
                clients.pop(client, None)
            if not any(entry):
                del self._clients[channel]
                self._agent.unobserve(channel, self)

    def view_changed(self, channel: str, events: list[ViewEvent], /) -> None:
        """Take changes of a view."""
        informed, waiting = self._clients[channel]
        for event in events:
            if event.kind == "reset":
                waiting.update(informed)
                informed.clear()
            elif event.kind == "change" and informed:
                self._send(channel, _change(channel, event, self._agent.view(channel)), informed)
        self._inform(channel)

    def _inform(self, channel: str) -> None:
        """Send a snapshot to the clients that wait for one, if it is complete."""
        informed, waiting = self._clients[channel]
        if waiting and not (view := self._agent.view(channel)).stale:
            self._send(channel, _snapshot(channel, view), dict(waiting))
            informed.update(waiting)
            waiting.clear()

    def _send(self, channel: str, text: str, clients: dict[Subscriber, int]) -> None:
        # An empty name, as of everything that the application itself sends.
        batch = Batch(FinalMessage(channel="", data=text))
        self._hub.deliver_local(presence_of(channel), batch, clients)


def _snapshot(channel: str, view: View) -> str:
    users = None if view.users is None else _users(view.users.values())
    return _encode(channel, view, users=users)


def _change(channel: str, event: ViewEvent, view: View) -> str:
    changes: dict[str, Any] = {
        "joined": _users(event.joined),
        "left": list(event.left),
        "updated": _users(event.updated),
    }
    return _encode(channel, view, version=event.version, **{name: value for name, value in changes.items() if value})


def _users(users: Iterable[Present]) -> dict[str, Any]:
    return {user: {"info": json.loads(info), "connections": count} for user, info, _, count in users}


def _encode(channel: str, view: View, **members: Any) -> str:
    head = {"id": view.id, "version": view.version, "connections": view.connections}
    return json.dumps({"channel": channel, "presence": head | members}, separators=(",", ":"), ensure_ascii=False)
