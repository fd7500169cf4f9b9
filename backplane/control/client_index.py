"""The clients of this worker by user, for commands that concern a user."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from backplane.control.messages import Selector

__all__ = ["ClientIndex", "ControlledClient"]


class ControlledClient(Protocol):
    """A client that a command can concern: a WebSocket, an event stream."""

    @property
    def id(self) -> str:
        """Its random name."""
        ...

    @property
    def channels(self) -> Collection[str]:
        """The channels it has joined."""
        ...

    async def close(self, code: int, reason: str, /) -> None:
        """Close now."""

    async def join(self, channel: str, /) -> None:
        """Join a channel."""

    async def leave(self, channel: str, /) -> None:
        """Leave a channel."""

    def send(self, data: str | bytes, /) -> None:
        """Send what the application itself sends."""


class ClientIndex:
    """The clients of one worker. Each has a user, or none."""

    def __init__(self) -> None:
        self._users: dict[ControlledClient, str | None] = {}
        self._by_user: dict[str, dict[ControlledClient, None]] = {}

    def __len__(self) -> int:
        return len(self._users)

    def add(self, client: ControlledClient, user: str | None) -> None:
        """Add a client."""
        self._users[client] = user
        if user is not None:
            self._by_user.setdefault(user, {})[client] = None

    def discard(self, client: ControlledClient) -> None:
        """Remove a client; one that is not there changes nothing."""
        user = self._users.pop(client, None)
        if user is not None:
            clients = self._by_user[user]
            del clients[client]
            if not clients:
                del self._by_user[user]

    def select(self, selector: Selector) -> list[ControlledClient]:
        """Return the clients that `selector` selects, whatever its `worker` is: none where it names nothing."""
        if selector.user is None and selector.connection is None and selector.channel is None:
            return []
        candidates: Iterable[ControlledClient] = self._users
        if selector.user is not None:
            candidates = self._by_user.get(selector.user, ())
        return [
            client
            for client in candidates
            if (selector.connection is None or client.id == selector.connection)
            and (selector.channel is None or selector.channel in client.channels)
            and (selector.exclude is None or client.id != selector.exclude)
        ]
