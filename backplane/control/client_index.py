"""The clients of this worker by id and by user, for commands that concern a user."""

from __future__ import annotations

import time
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from backplane.control.messages import Selector

__all__ = ["ClientIndex", "ControlledClient"]


class ControlledClient(Protocol):
    """A client that a command can concern: a WebSocket, an event stream."""

    @property
    def id(self) -> str:
        """Its random name."""
        ...

    @property
    def named(self) -> Mapping[str, Any]:
        """The fields that name it in each log line about it."""
        ...

    @property
    def channels(self) -> Collection[str]:
        """The channels it has joined."""
        ...

    @property
    def is_over(self) -> bool:
        """Whether it has ended, or is about to: nothing more is delivered to it."""
        ...

    async def close(self, code: int, reason: str, /) -> None:
        """Close now."""

    async def join(self, channel: str, /) -> None:
        """Join a channel."""

    async def leave(self, channel: str, /) -> None:
        """Leave a channel."""

    def send(self, data: str | bytes, /) -> None:
        """Send what the application itself sends."""


class _Entry(NamedTuple):
    client: ControlledClient
    user: str | None
    opened_at: float


class ClientIndex:
    """The clients of one worker, from their handshake on. Each has a user, or none."""

    def __init__(self) -> None:
        self._by_id: dict[str, _Entry] = {}
        self._by_user: dict[str, dict[str, _Entry]] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def add(self, client: ControlledClient, user: str | None) -> None:
        """Add a client."""
        entry = self._by_id[client.id] = _Entry(client, user, time.time())
        if user is not None:
            self._by_user.setdefault(user, {})[client.id] = entry

    def identify(self, client: ControlledClient, user: str) -> None:
        """Take the user of a client that names it after its handshake; one that is not there changes nothing."""
        entry = self._by_id.get(client.id)
        if entry is not None:
            self.discard(client)
            named = self._by_id[client.id] = entry._replace(user=user)
            self._by_user.setdefault(user, {})[client.id] = named

    def discard(self, client: ControlledClient) -> None:
        """Remove a client; one that is not there changes nothing."""
        entry = self._by_id.pop(client.id, None)
        if entry is not None and entry.user is not None:
            clients = self._by_user[entry.user]
            del clients[client.id]
            if not clients:
                del self._by_user[entry.user]

    def user_of(self, client_id: str) -> str | None:
        """Return the user of a client; `None` where it has none, or is not there."""
        entry = self._by_id.get(client_id)
        return None if entry is None else entry.user

    def opened_at(self, client_id: str) -> float | None:
        """Return when a client began its handshake, in seconds since the epoch; `None` where it is not there."""
        entry = self._by_id.get(client_id)
        return None if entry is None else entry.opened_at

    def select(self, selector: Selector) -> list[ControlledClient]:
        """Return the clients that `selector` selects, whatever its `worker` is: none where it names nothing.

        Those that have ended, or are being closed, are not among them.
        """
        return [entry.client for entry in self._candidates(selector) if _is_selected(entry, selector)]

    def select_in_slices(self, selector: Selector, size: int) -> Iterator[list[ControlledClient]]:
        """Yield what `select` returns of `size` clients after the other, each slice as it is when it is asked for.

        Clients that come meanwhile are not among them.
        """
        candidates = iter(tuple(self._candidates(selector)))
        while entries := tuple(islice(candidates, size)):
            yield [entry.client for entry in entries if _is_selected(entry, selector)]

    def _candidates(self, selector: Selector) -> Iterable[_Entry]:
        """Return the fewest that can be found without a look at each."""
        if selector.user is None and selector.connection is None and selector.channel is None:
            return ()
        if selector.connection is not None:
            entry = self._by_id.get(selector.connection)
            return () if entry is None else (entry,)
        entries = self._by_id if selector.user is None else self._by_user.get(selector.user, {})
        return entries.values()


def _is_selected(entry: _Entry, selector: Selector) -> bool:
    client = entry.client
    return (
        not client.is_over
        and (selector.user is None or entry.user == selector.user)
        and (selector.channel is None or selector.channel in client.channels)
        and (selector.exclude is None or client.id != selector.exclude)
        and (selector.opened_before is None or _is_older(entry, selector.opened_before, selector.exclude))
    )


def _is_older(entry: _Entry, moment: float, than: str | None) -> bool:
    """Return whether a client was opened before `moment`; of two opened at once the one with the smaller id was."""
    return (entry.opened_at, entry.client.id) < (moment, than or "")
