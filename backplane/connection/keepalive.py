"""One timer for all connections of a worker: heartbeats, idle timeouts, largest ages, permissions that run out."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Literal, Protocol

from backplane.close_codes import CloseCode
from backplane.concurrency.schedule import Schedule

if TYPE_CHECKING:
    from backplane.connection.limits import Limits

__all__ = ["ConnectionTimers", "KeepaliveScheduler", "TimedConnection"]


class TimedConnection(Protocol):
    """A connection of a `KeepaliveScheduler`."""

    @property
    def timers(self) -> ConnectionTimers:
        """Its times, with the one at which `check_timers` is due."""
        ...

    def check_timers(self, now: float, /) -> None:
        """Do what is due, and set `timers.due` to the next time."""
        ...


class ConnectionTimers:
    """The times of one connection, by the event loop's clock.

    Attributes:
        opened_at: When it was accepted.
        last_received_at: When its client last sent a message.
        heartbeat_at: When the next heartbeat is due.
        pinged_at: When the last heartbeat was sent, if that is not answered.
        expires_at: When its permission runs out.
        due: When `check_timers` is due next.
        bucket: In which bucket of `KeepaliveScheduler` it is.
    """

    __slots__ = ("bucket", "due", "expires_at", "heartbeat_at", "last_received_at", "opened_at", "pinged_at")

    def __init__(self, now: float) -> None:
        self.opened_at: float = now
        self.last_received_at: float = now
        self.heartbeat_at: float = math.inf
        self.pinged_at: float | None = None
        self.expires_at: float | None = None
        self.due: float = now
        self.bucket: int | None = None

    def begin(self, now: float, limits: Limits) -> None:
        """The handshake is done: every time counts from now.

        The first heartbeats are spread, as many clients can connect at the same moment.
        """
        self.opened_at = self.last_received_at = now
        if limits.heartbeat_seconds is not None:
            self.heartbeat_at = now + limits.heartbeat_seconds * random.uniform(0.5, 1)  # noqa: S311
        self.due = self.next_due(limits)

    def has_expired(self, now: float) -> bool:
        """Return whether the permission has run out."""
        return self.expires_at is not None and now >= self.expires_at

    def ended_by(self, now: float, limits: Limits) -> CloseCode | None:
        """Return the close code of the first limit that is reached, `None` where none is."""
        if self.has_expired(now):
            return CloseCode.EXPIRED
        if limits.max_age_seconds is not None and now >= self.opened_at + limits.max_age_seconds:
            return CloseCode.MAX_AGE
        if limits.idle_timeout_seconds is not None and now >= self.last_received_at + limits.idle_timeout_seconds:
            return CloseCode.IDLE
        return None

    def heartbeat(
        self, now: float, interval: float, *, last_received_at: float, is_read: bool
    ) -> Literal["alive", "ping", "silent"]:
        """Return what a heartbeat finds: the client is alive, must be pinged, or has not answered the last ping.

        The next one is due after `interval`.

        Args:
            now: By the event loop's clock.
            interval: The time between two heartbeats.
            last_received_at: When the last bytes of the client came.
            is_read: Whether the client is read at all: only then the absence of an answer shows that it is gone.
        """
        self.heartbeat_at = now + interval
        if is_read and self.pinged_at is not None and last_received_at < self.pinged_at:
            return "silent"
        if not is_read or now - last_received_at < interval / 2:
            self.pinged_at = None
            return "alive"
        self.pinged_at = now
        return "ping"

    def next_due(self, limits: Limits) -> float:
        """Return when the next limit can be reached, or the next heartbeat is due."""
        due = self.heartbeat_at
        if self.expires_at is not None:
            due = min(due, self.expires_at)
        if limits.max_age_seconds is not None:
            due = min(due, self.opened_at + limits.max_age_seconds)
        if limits.idle_timeout_seconds is not None:
            due = min(due, self.last_received_at + limits.idle_timeout_seconds)
        return due


class KeepaliveScheduler(Schedule[TimedConnection]):
    """Calls `check_timers` of each connection when it is due, from one timer of the event loop for all of them.

    Args:
        tick_seconds: The resolution.
        slice_size: How many connections are checked in one pass of the event loop: each may cost a write.
    """

    def __init__(self, *, tick_seconds: float = 0.25, slice_size: int = 64) -> None:
        super().__init__(tick_seconds=tick_seconds, slice_size=slice_size)

    def put(self, client: TimedConnection) -> None:
        """Check `client` when its `timers.due` has come, at most a tick later."""
        self.remove(client)
        timers = client.timers
        if timers.due != math.inf:
            timers.bucket = self._add(client, timers.due)

    def remove(self, client: TimedConnection) -> None:
        """Check `client` no more."""
        bucket, client.timers.bucket = client.timers.bucket, None
        if bucket is not None:
            self._discard(client, bucket)

    def _call(self, item: TimedConnection, now: float) -> None:
        try:
            item.check_timers(now)
        finally:  # also one whose check has failed, but not at once
            item.timers.due = max(item.timers.due, now + self._tick_seconds)
            self.put(item)
