"""Socket to handler: what one client says, within its limits."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from backplane.closing import CloseCode
from backplane.rate import TokenBucket

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from backplane.limits import Limits

__all__ = ["Incoming", "LimitReached"]


class LimitReached(Protocol):
    """Who ends the connection."""

    def __call__(self, code: CloseCode, reason: str, /) -> None:
        """The client said more than it may."""


class Incoming:
    """What a client says, one message after the other.

    Args:
        receive: Returns the next message, or `None` at the end.
        limits: Size and rate of messages.
        limit_reached: Told of the first message over a limit, which is not handed on.

    Attributes:
        is_closed: Nothing is received any more.
    """

    __slots__ = ("_bucket", "_limit_reached", "_most_bytes", "_receive", "_waiting", "is_closed")

    def __init__(
        self, receive: Callable[[], Awaitable[str | bytes | None]], limits: Limits, limit_reached: LimitReached
    ) -> None:
        self._receive = receive
        self._limit_reached = limit_reached
        self._most_bytes = limits.max_message_bytes
        rate = limits.max_messages_per_second
        burst = limits.max_burst or max(1, round(2 * (rate or 0)))
        self._bucket = None if rate is None else TokenBucket(rate, burst)
        self._waiting: asyncio.Timeout | None = None
        self.is_closed = False

    @property
    def is_waiting(self) -> bool:
        """Whether the handler listens: else nothing the client says is seen."""
        return self._waiting is not None

    async def next(self) -> str | bytes | None:
        """Return the client's next message, or `None` at the end."""
        data = None if self.is_closed else await self._next()
        if data is None:
            return None
        if self._most_bytes is not None and len(data) > self._most_bytes:
            self._limit_reached(CloseCode.TOO_BIG, f"at most {self._most_bytes} bytes")
        elif self._bucket is not None and not self._bucket.take(asyncio.get_running_loop().time()):
            self._limit_reached(CloseCode.TOO_MANY_MESSAGES, "too many messages")
        return None if self.is_closed else data

    def close(self) -> None:
        """Receive nothing more, and wake the handler that waits."""
        self.is_closed = True
        if self._waiting is not None:
            self._waiting.reschedule(0)

    async def _next(self) -> str | bytes | None:
        try:
            # A deadline that only `close` sets: the one way to wake the handler without a second task.
            async with asyncio.timeout(None) as self._waiting:
                return await self._receive()
        except TimeoutError:
            if self.is_closed:
                return None
            raise
        finally:
            self._waiting = None
