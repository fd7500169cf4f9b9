"""Socket to handler: what one client says, within its limits."""

from __future__ import annotations

import asyncio
import logging
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

from backplane.close_codes import CloseCode
from backplane.connection.rate import TokenBucket
from backplane.fanout.single_receiver import check_one_receiver

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from backplane.connection.limits import Limits

__all__ = ["Receiver", "ReceiverCallbacks"]

logger = logging.getLogger("backplane.connection.receiver")


class ReceiverCallbacks(Protocol):
    """Whose client speaks."""

    def client_sent(self, now: float, /) -> None:
        """Something came, at this time of the event loop's clock."""

    def client_left(self) -> None:
        """Nothing more will come."""

    def limit_reached(self, code: CloseCode, reason: str, /) -> None:
        """The client said more than it may: end it."""


class Receiver:
    """What a client says, one message after the other.

    An idle client costs what is suspended here, so there is one coroutine between the handler and the socket, and no
    timer.

    Args:
        receive: Returns the next message, or `None` at the end.
        limits: Size and rate of messages; the first one over a limit is not handed on.
        speaker: Who is told.
    """

    __slots__ = ("_bucket", "_cancelling", "_closed", "_most_bytes", "_receive", "_speaker", "_waiting")

    def __init__(
        self, receive: Callable[[], Awaitable[str | bytes | None]], limits: Limits, speaker: ReceiverCallbacks
    ) -> None:
        self._receive = receive
        self._speaker = speaker
        self._most_bytes = limits.max_message_bytes
        rate = limits.max_messages_per_second
        burst = limits.max_burst or max(1, round(2 * (rate or 0)))
        self._bucket = None if rate is None else TokenBucket(rate, burst)
        self._waiting: asyncio.Task[object] | None = None
        self._cancelling = 0  # what its count was when it began
        self._closed = False

    @property
    def is_waiting(self) -> bool:
        """Whether the handler listens: else nothing the client says is seen."""
        return self._waiting is not None

    async def iterate(self, receive: Callable[[], Awaitable[str | bytes | None]] | None = None) -> str | bytes:
        """Return the client's next message, as `__anext__` must.

        Args:
            receive: Where it comes from. Defaults to what this was made with.

        Raises:
            StopAsyncIteration: The end, of which the speaker was told.
            LifecycleError: Another task waits for it.
        """
        data = None
        if self._closed:
            await asyncio.sleep(0)  # who ignores the end must leave others, and its own cancellation, a turn
        else:
            if self._waiting is not None:
                cure = "receive in one task, and hand on from there"
                check_one_receiver(self._waiting, self._cancelling, "this connection", cure)
            task = self._waiting = asyncio.current_task()
            cancelling = self._cancelling = task.cancelling() if task is not None else 0
            try:
                data = await (receive or self._receive)()
            except asyncio.CancelledError:
                # `close` wakes by a cancellation, as a timeout does: no second task, and nothing to set up per message.
                if task is None or not self._closed or task.uncancel() > cancelling:
                    raise
            else:
                if self._closed and task is not None and task.cancelling() > cancelling:
                    task.uncancel()  # the socket took the waking for its end
            finally:
                if self._waiting is task:  # a cancelled one may have a successor already
                    self._waiting = None
        if data is None:
            self._speaker.client_left()
            raise StopAsyncIteration
        self._check_limits(data)
        if self._closed:
            raise StopAsyncIteration
        return data

    def bypass(self, receive: Callable[[], Awaitable[str | bytes | None]]) -> Coroutine[Any, Any, str | bytes]:
        """Do that for a handler that receives past the connection: the limits hold, and the end reaches it. Logged."""
        _warn_of_bypass()
        return self.iterate(receive)

    async def next(self) -> str | bytes | None:
        """Return the client's next message, or `None` at the end."""
        try:
            return await self.iterate()
        except StopAsyncIteration:
            return None

    def close(self) -> None:
        """Receive nothing more, and wake the handler that waits."""
        if self._closed:
            return
        self._closed = True
        if self._waiting is not None:
            self._waiting.cancel()

    def _check_limits(self, data: str | bytes) -> None:
        now = asyncio.get_running_loop().time()
        self._speaker.client_sent(now)
        if self._most_bytes is not None and _exceeds(data, self._most_bytes):
            self._speaker.limit_reached(CloseCode.TOO_BIG, f"at most {self._most_bytes} bytes")
        elif self._bucket is not None and not self._bucket.take(now):
            self._speaker.limit_reached(CloseCode.TOO_MANY_MESSAGES, "too many messages")


@cache
def _warn_of_bypass() -> None:
    """Log it once per process: the code is the same for every client."""
    logger.warning(
        "a handler receives from its WebSocket itself inside connect(), as by websocket.receive_text(): "
        "use `async for message in connection` or `await connection.receive()` in its place"
    )


def _exceeds(data: str | bytes, most_bytes: int) -> bool:
    # A character has 1 to 4 bytes: most messages need not be encoded for it.
    if isinstance(data, bytes) or len(data) > most_bytes or 4 * len(data) <= most_bytes:
        return len(data) > most_bytes
    return not data.isascii() and len(data.encode()) > most_bytes
