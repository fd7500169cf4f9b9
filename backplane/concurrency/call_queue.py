"""Publishes of other threads, run in one event loop: a queue, and one wake-up for all that waits in it."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from contextvars import copy_context
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from backplane.concurrency.context import task_in
from backplane.concurrency.threads import new_waiter
from backplane.errors import BrokerUnavailableError, ClosedError, PublishOutcomeUnknownError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

__all__ = ["CallQueue"]

# A wait that ends this much after its time shows that the process was paused, and the event loop with it.
_LATE_SECONDS: Final = 0.1
# What the event loop then needs to read what has arrived, and to answer.
_GRACE_SECONDS: Final = 1.0


class CallQueue:
    """Runs publishes in an event loop, in the order in which other threads called, each in its caller's context.

    Calls may wait before the event loop is there. There is no lock: a child that is forked meanwhile inherits none.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: deque[_Call] = deque()
        self._in_progress: dict[asyncio.Task[None], _Call] = {}
        self._woken = False
        self._closed = False

    @property
    def is_open(self) -> bool:
        """Whether an event loop takes the calls, or did."""
        return self._loop is not None

    def open(self) -> None:
        """Take calls into the running event loop from now on, those that wait too."""
        self._loop = asyncio.get_running_loop()
        self._take()

    async def close(self) -> None:
        """Take no more: what waits raises `ClosedError`, and what was taken comes to its end. In the event loop."""
        self._closed = True
        self._take()
        if self._in_progress:
            await asyncio.wait(list(self._in_progress))

    def run(self, publish: Callable[[], Coroutine[Any, Any, None]], *, seconds: float) -> None:
        """Run `publish()` in the event loop and wait for its end; raises what it raises.

        An exception that interrupts the wait (`KeyboardInterrupt`, a task queue's time limit) cancels the publish.

        Raises:
            BrokerUnavailableError: The event loop did not take it within `seconds`; certainly not published.
            PublishOutcomeUnknownError: It was taken, and did not end in time.
            ClosedError: The event loop takes no more; certainly not published.
        """
        call = _Call(publish)
        began = monotonic()
        try:
            # First into the queue, then the look at `_closed`, which `close` sets before it empties the queue.
            self._waiting.append(call)
            self._wake()
            in_time = call.waiter.wait(seconds)
            if not in_time and monotonic() - began > seconds + _LATE_SECONDS:
                in_time = call.waiter.wait(_GRACE_SECONDS)
        except BaseException:
            self._give_up(call)
            raise
        if not in_time:
            raise self._give_up(call, seconds)
        if call.error is not None:
            try:
                raise call.error
            finally:
                del call  # the traceback holds this frame, and the call the traceback

    def _wake(self) -> None:
        if self._closed:
            raise ClosedError("this Backplane has been stopped; not published")
        # Reset before the queue is emptied: who finds it set has a call that is still to be taken.
        if self._woken or self._loop is None:
            return
        self._woken = True
        try:
            self._loop.call_soon_threadsafe(self._take)
        except RuntimeError:
            self._closed = True
            raise ClosedError("the event loop of this Backplane has ended; not published") from None

    def _take(self) -> None:
        self._woken = False
        while self._waiting:
            call = self._waiting.popleft()
            if not call.claim():  # its caller has given up
                continue
            if self._closed:
                call.end(ClosedError("this Backplane has been stopped; not published"))
                continue
            task = task_in(call.context, call.run(), asyncio.get_running_loop())
            self._in_progress[task] = call  # an event loop holds its tasks weakly
            task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        call = self._in_progress.pop(task)
        if task.cancelled():
            call.end(PublishOutcomeUnknownError("the event loop ended; it may have been published"))

    def _give_up(self, call: _Call, seconds: float = 0.0) -> BrokerUnavailableError | PublishOutcomeUnknownError:
        if call.claim():
            return BrokerUnavailableError(f"the event loop did not take it within {seconds:g} s; not published")
        if self._loop is not None:
            with suppress(RuntimeError):  # it has ended meanwhile
                self._loop.call_soon_threadsafe(self._cancel, call)
        return PublishOutcomeUnknownError(f"no answer within {seconds:g} s; it may have been published")

    def _cancel(self, given_up: _Call) -> None:
        for task, call in self._in_progress.items():
            if call is given_up:
                task.cancel()


class _Call:
    """One publish on its way.

    Attributes:
        context: The context variables of its caller.
        waiter: What its caller waits for.
        error: What the publish raised.
    """

    __slots__ = ("_publish", "_unclaimed", "context", "error", "waiter")

    def __init__(self, publish: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._publish = publish
        self.context = copy_context()
        self.waiter = new_waiter()
        self.error: BaseException | None = None
        self._unclaimed = [None]

    def claim(self) -> bool:
        """Return whether this is the first claim: either the event loop takes a call, or its caller gives it up."""
        try:
            self._unclaimed.pop()  # one operation, so no two threads succeed
        except IndexError:
            return False
        return True

    async def run(self) -> None:
        """Publish, and wake the caller at once: a callback of the task would come a pass of the event loop later."""
        try:
            await self._publish()
        except Exception as error:
            self.end(error)
        else:
            self.end(None)

    def end(self, error: BaseException | None) -> None:
        """Wake the caller."""
        self.error = error
        self.waiter.notify()
