"""One timer for all connections of a worker: heartbeats, idle timeouts, largest ages, permissions that run out."""

from __future__ import annotations

import asyncio
import math
import random
from typing import TYPE_CHECKING, Literal, Protocol

from backplane.close_codes import CloseCode

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


class KeepaliveScheduler:
    """Calls `check_timers` of each connection when it is due, from one timer of the event loop for all of them.

    What is due within one tick is checked together. Without a connection that has anything due there is no timer.

    Args:
        tick_seconds: The resolution.
        slice_size: How many connections are checked in one pass of the event loop: each may cost a write.
    """

    def __init__(self, *, tick_seconds: float = 0.25, slice_size: int = 500) -> None:
        self._tick_seconds = tick_seconds
        self._slice_size = slice_size
        self._buckets: dict[int, dict[TimedConnection, None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0

    def put(self, client: TimedConnection) -> None:
        """Check `client` when its `timers.due` has come, at most a tick later."""
        self.remove(client)
        timers = client.timers
        if timers.due == math.inf:
            return
        timers.bucket = bucket = math.ceil(timers.due / self._tick_seconds)
        self._buckets.setdefault(bucket, {})[client] = None
        if self._timer is None or bucket < self._timer_at:
            self._set_timer(bucket)

    def remove(self, client: TimedConnection) -> None:
        """Check `client` no more."""
        bucket, client.timers.bucket = client.timers.bucket, None
        if bucket is not None and (clients := self._buckets.get(bucket)) is not None:
            clients.pop(client, None)
            if not clients:
                del self._buckets[bucket]
        if not self._buckets and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set_timer(self, bucket: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = bucket
        self._timer = asyncio.get_running_loop().call_at(bucket * self._tick_seconds, self._check_due)

    def _check_due(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        checked = 0
        for bucket in sorted(bucket for bucket in self._buckets if bucket * self._tick_seconds <= now):
            for client in list(self._buckets.get(bucket, ())):
                if client.timers.bucket != bucket:  # a client checked before it has ended this one
                    continue
                self.remove(client)
                client.check_timers(now)
                self.put(client)
                checked += 1
                if checked == self._slice_size:
                    return self._set_timer(bucket)
        if self._buckets:
            self._set_timer(min(self._buckets))
