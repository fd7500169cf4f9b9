"""Socket to handler: the messages of one client, within its limits."""

from __future__ import annotations

import asyncio
import logging
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Protocol

from backplane.close_codes import CloseCode
from backplane.connection.rate import TokenBucket
from backplane.fanout.single_receiver import SingleReceiver
from backplane.journal.events import HANDLER_BYPASS
from backplane.journal.writing import write

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from backplane.connection.limits import Limits

__all__ = ["Receiver", "ReceiverCallbacks", "bucket_of", "exceeded_limit"]

logger: Final = logging.getLogger("backplane.connection.receiver")


class ReceiverCallbacks(Protocol):
    """Callbacks of the receive loop."""

    def message_received(self, now: float, data: str | bytes, /) -> None:
        """A message came, at this time of the event loop's clock."""

    def disconnected(self) -> None:
        """Nothing more will come."""

    def limit_exceeded(self, code: CloseCode, reason: str, /) -> None:
        """The client sent more than it may: close it."""


class Receiver(SingleReceiver):
    """Receives the messages of one client, one after the other.

    What is suspended here is the largest part of an idle connection, so there is one coroutine between the handler and
    the socket, and no timer.

    Args:
        receive: Returns the next message, or `None` at the end.
        limits: Size and rate of messages; the first one over a limit is not handed on.
        callbacks: What is notified.
    """

    __slots__ = ("_bucket", "_callbacks", "_closed", "_max_bytes", "_receive")

    def __init__(
        self, receive: Callable[[], Awaitable[str | bytes | None]], limits: Limits, callbacks: ReceiverCallbacks
    ) -> None:
        super().__init__()
        self._receive = receive
        self._callbacks = callbacks
        self._max_bytes: int | None = limits.max_message_bytes
        self._bucket: TokenBucket | None = bucket_of(limits)
        self._closed = False

    async def iterate(self, receive: Callable[[], Awaitable[str | bytes | None]] | None = None) -> str | bytes:
        """Return the client's next message, as `__anext__` must.

        The receive can end in four ways: by a message, by the client's end (`None`), by a cancellation of the task
        from elsewhere, which goes on, and by `close`, which cancels the task too and takes that back here. A
        cancellation is how `asyncio.timeout` interrupts a wait as well: it needs no second task per connection, and
        nothing is set up per message. It counts as ours only if `close` was called and the task has, once ours is taken
        back (`uncancel`), no more cancellations than when it began.

        Args:
            receive: Where the message comes from. Defaults to what this was made with.

        Raises:
            StopAsyncIteration: The end, of which the callbacks were notified.
            LifecycleError: Another task waits for a message.
        """
        data = None
        if self._closed:
            # A loop that ignores the end must still suspend, for the other tasks and for its own cancellation.
            await asyncio.sleep(0)
        else:
            if self._task is not None:
                self.check_single("this connection", "receive in one task, and hand on from there")
            task = self.begin_waiting()
            cancelling = self._cancelling
            try:
                data = await (receive or self._receive)()
            except asyncio.CancelledError:
                if task is None or not self._closed or task.uncancel() > cancelling:
                    raise
            else:
                # `receive` may have swallowed our cancellation and returned: undo it all the same. A test runs this,
                # but the tracer of CPython 3.11 loses a coroutine once one that it awaits is cancelled and returns.
                if self._closed and task is not None and task.cancelling() > cancelling:  # pragma: no branch
                    task.uncancel()  # pragma: no cover
            finally:
                self.end_waiting(task)
        if data is None:
            self._callbacks.disconnected()
            raise StopAsyncIteration
        self._check_limits(data)
        if self._closed:
            raise StopAsyncIteration
        return data

    def bypass(self, receive: Callable[[], Awaitable[str | bytes | None]], /) -> Coroutine[Any, Any, str | bytes]:
        """Return the next message to a handler that reads the WebSocket itself: within the limits, and logged once."""
        _warn_of_bypass()
        return self.iterate(receive)

    async def next(self) -> str | bytes | None:
        """Return the client's next message, or `None` at the end."""
        try:
            return await self.iterate()
        except StopAsyncIteration:
            return None

    async def drop(self) -> None:
        """Receive and drop what the client sends until the end."""
        while await self.next() is not None:
            pass

    def close(self) -> None:
        """Receive nothing more, and wake the handler if it waits."""
        if self._closed:
            return
        self._closed = True
        if self._task is not None:
            self._task.cancel()

    def _check_limits(self, data: str | bytes) -> None:
        now = asyncio.get_running_loop().time()
        self._callbacks.message_received(now, data)
        exceeded = exceeded_limit(data, now, self._max_bytes, self._bucket)
        if exceeded is not None:
            self._callbacks.limit_exceeded(*exceeded)


def bucket_of(limits: Limits) -> TokenBucket | None:
    """Return what limits the rate of one client's messages; `None` where nothing does."""
    rate = limits.max_messages_per_second
    return None if rate is None else TokenBucket(rate, limits.max_burst or max(1, round(2 * rate)))


def exceeded_limit(
    data: str | bytes, now: float, max_bytes: int | None, bucket: TokenBucket | None
) -> tuple[CloseCode, str] | None:
    """Return with which code and reason a client is closed because of this message; `None` within the limits."""
    if max_bytes is not None and _exceeds(data, max_bytes):
        return CloseCode.MESSAGE_TOO_BIG, f"at most {max_bytes} bytes"
    if bucket is not None and not bucket.take(now):
        return CloseCode.TOO_MANY_MESSAGES, "too many messages"
    return None


@cache
def _warn_of_bypass() -> None:
    """Log it once per process: the code is the same for every client."""
    write(
        logger,
        HANDLER_BYPASS,
        "a handler receives from its WebSocket itself inside connect(), as by websocket.receive_text(): "
        "use `async for message in connection` or `await connection.receive()` in its place",
    )


def _exceeds(data: str | bytes, max_bytes: int) -> bool:
    # A character has 1 to 4 bytes: most messages need not be encoded for it.
    if isinstance(data, bytes) or len(data) > max_bytes or 4 * len(data) <= max_bytes:
        return len(data) > max_bytes
    return not data.isascii() and len(data.encode()) > max_bytes
