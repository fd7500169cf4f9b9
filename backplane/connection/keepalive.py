"""One timer for all connections of a worker: heartbeats, idle clients, largest ages, permissions that run out."""

from __future__ import annotations

import asyncio
import math
import random
from typing import TYPE_CHECKING, Final, Literal, Protocol

from backplane.close_codes import CloseCode

if TYPE_CHECKING:
    from backplane.connection.limits import Limits

__all__ = ["ConnectionTimers", "KeepaliveScheduler", "TimedConnection"]

# Whatever is due within one of these is looked at together.
_TICK_SECONDS: Final = 0.25
# So many are looked at in one pass of the event loop: each may cost a write.
_SLICE: Final = 500


class TimedConnection(Protocol):
    """What is watched."""

    @property
    def timers(self) -> ConnectionTimers:
        """When it must be looked at."""
        ...

    def check_timers(self, now: float, /) -> None:
        """Do what is due, and set `timers.due` to the next time."""
        ...


class ConnectionTimers:
    """The times of one connection, by the event loop's clock.

    Attributes:
        opened_at: When it was accepted.
        said_at: When its client last said something.
        asked_at: When it was last asked for a sign, if that is not answered.
        expires_at: When its permission runs out.
        due: When it must be looked at next.
        bucket: Where `KeepaliveScheduler` keeps it.
    """

    __slots__ = ("asked_at", "bucket", "due", "expires_at", "last_received_at", "opened_at")

    def __init__(self, now: float) -> None:
        self.opened_at = now
        self.last_received_at = now
        self.asked_at: float | None = None
        self.expires_at: float | None = None
        self.due = now
        self.bucket: int | None = None

    def begin(self, now: float, limits: Limits) -> None:
        """The handshake is done: everything counts from here. First heartbeats are spread: clients come together."""
        self.opened_at = self.last_received_at = now
        self.due = self.next_due(now, limits)
        if limits.heartbeat_seconds is not None:
            self.due = min(self.due, now + limits.heartbeat_seconds * random.uniform(0.5, 1))  # noqa: S311

    def has_expired(self, now: float) -> bool:
        """Return whether the permission has run out."""
        return self.expires_at is not None and now >= self.expires_at

    def ended_by(self, now: float, limits: Limits) -> CloseCode | None:
        """Return the code of the first limit that is reached."""
        if self.has_expired(now):
            return CloseCode.EXPIRED
        if limits.max_age_seconds is not None and now >= self.opened_at + limits.max_age_seconds:
            return CloseCode.MAX_AGE
        if limits.idle_timeout_seconds is not None and now >= self.last_received_at + limits.idle_timeout_seconds:
            return CloseCode.IDLE
        return None

    def heartbeat(
        self, now: float, interval: float, *, heard: float, listening: bool
    ) -> Literal["there", "ask", "vanished"]:
        """Tell what a heartbeat is to do about a client that was `heard` last at that time.

        Where nobody is `listening`, silence says nothing.
        """
        if listening and self.asked_at is not None and heard < self.asked_at:
            return "vanished"  # nothing tells the other side of a broken line
        if not listening or now - heard < interval / 2:
            self.asked_at = None
            return "there"
        self.asked_at = now
        return "ask"

    def next_due(self, now: float, limits: Limits) -> float:
        """Return when the next limit can be reached, or the next heartbeat is due."""
        due = math.inf
        if self.expires_at is not None:
            due = self.expires_at
        if limits.max_age_seconds is not None:
            due = min(due, self.opened_at + limits.max_age_seconds)
        if limits.idle_timeout_seconds is not None:
            due = min(due, self.last_received_at + limits.idle_timeout_seconds)
        if limits.heartbeat_seconds is not None:
            due = min(due, now + limits.heartbeat_seconds)
        return due


class KeepaliveScheduler:
    """Looks after every client when it is due. Holds a timer only while there is a client with something due."""

    def __init__(self) -> None:
        self._buckets: dict[int, dict[TimedConnection, None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0

    def put(self, client: TimedConnection) -> None:
        """Look after `client` when its `timers.due` has come, at most a quarter of a second later."""
        self.remove(client)
        timers = client.timers
        if timers.due == math.inf:
            return
        timers.bucket = bucket = math.ceil(timers.due / _TICK_SECONDS)
        self._buckets.setdefault(bucket, {})[client] = None
        if self._timer is None or bucket < self._timer_at:
            self._set_timer(bucket)

    def remove(self, client: TimedConnection) -> None:
        """Forget `client`."""
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
        self._timer = asyncio.get_running_loop().call_at(bucket * _TICK_SECONDS, self._look)

    def _look(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        looked_at = 0
        for bucket in sorted(bucket for bucket in self._buckets if bucket * _TICK_SECONDS <= now):
            for client in list(self._buckets.get(bucket, ())):
                if client.timers.bucket != bucket:  # the one before it has ended it
                    continue
                self.remove(client)
                client.check_timers(now)
                self.put(client)
                looked_at += 1
                if looked_at == _SLICE:
                    return self._set_timer(bucket)
        if self._buckets:
            self._set_timer(min(self._buckets))
