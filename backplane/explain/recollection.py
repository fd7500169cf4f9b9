"""What a worker remembers of clients that are gone and of joins that were refused: only a few, and no message."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from backplane.errors import BackplaneError, BrokerError, TooManyChannelsError
from backplane.explain.evidence import EndedClient, RefusedJoin

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Recollection"]

_MOST: Final = 200
_MAX_REASON: Final = 300


class _Ended(NamedTuple):
    at: float
    id: str
    user: str | None
    kind: str
    code: int | None
    reason: str


class _Refused(NamedTuple):
    at: float
    id: str
    user: str | None
    channel: str
    by: str
    reason: str


class Recollection:
    """The last 200 clients that ended, and the last 200 joins that were refused. Costs nothing while clients stay."""

    def __init__(self) -> None:
        self._ended: deque[_Ended] = deque(maxlen=_MOST)
        self._refused: deque[_Refused] = deque(maxlen=_MOST)

    def ended(self, client: Any, user: str | None, closed_with: tuple[int, str] | None) -> None:
        """Remember a client that has ended.

        Args:
            client: The client.
            user: Its user or `client_key`.
            closed_with: With which code and reason this side closed it, if it did.
        """
        code, reason = closed_with or (None, "")
        self._ended.append(_Ended(_now(), client.id, user, client.kind, code, reason))

    def join_failed(self, client: Any, user: str | None, channel: str, error: Exception) -> None:
        """Remember a join that was refused, or could not be made."""
        by, reason = _by(error), str(error) if isinstance(error, BackplaneError) else type(error).__name__
        self._refused.append(_Refused(_now(), client.id, user, channel, by, reason[:_MAX_REASON]))

    def ended_clients(self, is_meant: Callable[[str, str | None], bool]) -> tuple[EndedClient, ...]:
        """Return the clients that are meant, by their id and user, the last one first; three at most."""
        now = _now()
        found = (
            EndedClient(
                id=each.id,
                user=each.user,
                kind=each.kind,
                code=each.code,
                reason=each.reason,
                seconds_ago=round(now - each.at, 1),
            )
            for each in reversed(self._ended)
            if is_meant(each.id, each.user)
        )
        return tuple(each for each, _ in zip(found, range(3), strict=False))

    def refused_joins(self, channel: str, is_meant: Callable[[str, str | None], bool]) -> tuple[RefusedJoin, ...]:
        """Return the joins of a channel by clients that are meant, the last one first; ten at most."""
        now = _now()
        found = (
            RefusedJoin(client=each.id, by=each.by, reason=each.reason, seconds_ago=round(now - each.at, 1))
            for each in reversed(self._refused)
            if each.channel == channel and is_meant(each.id, each.user)
        )
        return tuple(each for each, _ in zip(found, range(10), strict=False))


def _by(error: Exception) -> str:
    """Return what has refused a join: an error that is none of ours was raised by `authorize`."""
    if isinstance(error, BrokerError):
        return "broker"
    return "limit" if isinstance(error, TooManyChannelsError) else "authorize"


def _now() -> float:
    return asyncio.get_running_loop().time()
