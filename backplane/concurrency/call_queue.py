"""Publishes called in other threads and run in one event loop: a queue, with one wake-up for all calls in it."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from contextvars import copy_context
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

from backplane.concurrency.context import task_in
from backplane.concurrency.threads import new_waiter
from backplane.errors import BrokerUnavailableError, ClosedError, PublishOutcomeUnknownError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from contextvars import Context

__all__ = ["CallQueue"]

_T = TypeVar("_T")

# A wait that ends this much too late shows that the process was paused, and the event loop with it.
_LATE_SECONDS: Final = 0.1
# How long the event loop then needs to read what has arrived, and to answer.
_GRACE_SECONDS: Final = 1.0


class CallQueue:
    """Runs publishes in an event loop, in the order in which other threads called, each in its caller's Context.

    Calls can be queued before `open`. There is no lock: a process that is forked at the wrong moment would inherit it
    locked.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: deque[_Call[Any]] = deque()
        self._in_progress: dict[asyncio.Task[None], _Call[Any]] = {}
        self._is_woken = False
        self._closed = False

    @property
    def is_open(self) -> bool:
        """Whether an event loop takes the calls, or has taken them until `close`."""
        return self._loop is not None

    def open(self) -> None:
        """Run calls in the running event loop from now on, the queued ones included."""
        self._loop = asyncio.get_running_loop()
        self._take()

    async def close(self) -> None:
        """Take no more calls: queued ones raise `ClosedError`; those that run are waited for. In the event loop."""
        self._closed = True
        self._take()
        if self._in_progress:
            await asyncio.wait(list(self._in_progress))

    def run(self, publish: Callable[[], Coroutine[Any, Any, _T]], *, seconds: float) -> _T:
        """Run `publish()` in the event loop and wait for its end; returns what it returns, raises what it raises.

        An exception that interrupts the wait (`KeyboardInterrupt`, the time limit of a task queue) cancels the publish.

        Raises:
            BrokerUnavailableError: The event loop did not begin it within `seconds`; certainly not published.
            PublishOutcomeUnknownError: It was begun, and did not end in time.
            ClosedError: The queue is closed; certainly not published.
        """
        call: _Call[_T] = _Call(publish, waiter := new_waiter())
        began = monotonic()
        try:
            self._put(call)
            in_time = waiter.wait(seconds)
            if not in_time and monotonic() - began > seconds + _LATE_SECONDS:
                in_time = waiter.wait(_GRACE_SECONDS)
        except BaseException:
            self._give_up(call)
            raise
        return self._outcome(call, in_time, seconds)

    async def call(self, publish: Callable[[], Coroutine[Any, Any, _T]], *, seconds: float) -> _T:
        """Run `publish()` as `run` does, for a coroutine of another event loop, which goes on meanwhile.

        A cancellation of the caller cancels the publish. Raises as `run`.
        """
        call: _Call[_T] = _Call(publish, waiter := _CoroutineWaiter())
        began = monotonic()
        try:
            self._put(call)
            in_time = await waiter.notified(seconds)
            if not in_time and monotonic() - began > seconds + _LATE_SECONDS:
                in_time = await waiter.notified(_GRACE_SECONDS)
        except BaseException:
            self._give_up(call)
            raise
        return self._outcome(call, in_time, seconds)

    def post(self, publish: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """Run `publish()` in the event loop without waiting for its end; nothing happens where the queue is closed."""
        with suppress(ClosedError):
            self._put(_Call(publish, _NoWaiter()))

    def _put(self, call: _Call[Any]) -> None:
        # Queue the call before `_wake` reads `_closed`: `close` sets it before it empties the queue, so that one of the
        # two threads sees the call.
        self._waiting.append(call)
        self._wake()

    def _outcome(self, call: _Call[_T], in_time: bool, seconds: float) -> _T:
        if not in_time:
            raise self._give_up(call, seconds)
        if call.error is not None:
            try:
                raise call.error
            finally:
                del call  # breaks a cycle: the traceback holds this frame, and the call holds the error
        return call.result

    def _wake(self) -> None:
        if self._closed:
            raise ClosedError("this Backplane has been stopped; not published")
        # `_take` resets it before it empties the queue: a thread that finds it set has its call taken by that pass.
        if self._is_woken or self._loop is None:
            return
        self._is_woken = True
        try:
            self._loop.call_soon_threadsafe(self._take)
        except RuntimeError:
            self._closed = True
            raise ClosedError("the event loop of this Backplane has ended; not published") from None

    def _take(self) -> None:
        self._is_woken = False
        while self._waiting:
            call = self._waiting.popleft()
            if not call.claim():  # its caller no longer waits
                continue
            if self._closed:
                call.end(ClosedError("this Backplane has been stopped; not published"))
                continue
            task = task_in(call.context, call.run(), asyncio.get_running_loop())
            self._in_progress[task] = call  # an event loop has only a weak reference to its tasks
            task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        call = self._in_progress.pop(task)
        if task.cancelled():
            call.end(PublishOutcomeUnknownError("the event loop ended; it may have been published"))

    def _give_up(self, call: _Call[Any], seconds: float = 0.0) -> BrokerUnavailableError | PublishOutcomeUnknownError:
        if call.claim():
            return BrokerUnavailableError(f"the event loop did not run it within {seconds:g} s; not published")
        if self._loop is not None:
            with suppress(RuntimeError):  # the event loop has ended meanwhile
                self._loop.call_soon_threadsafe(self._cancel, call)
        return PublishOutcomeUnknownError(f"no answer within {seconds:g} s; it may have been published")

    def _cancel(self, given_up: _Call[Any]) -> None:
        for task, call in self._in_progress.items():
            if call is given_up:
                task.cancel()


class Notified(Protocol):
    """What is notified of the end of a call, from the event loop that runs it."""

    def notify(self) -> None:
        """Take the notice."""
        ...


class _CoroutineWaiter:
    """Lets a coroutine wait in its own event loop."""

    __slots__ = ("_end", "_loop")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._end: asyncio.Future[None] = self._loop.create_future()

    def notify(self) -> None:
        with suppress(RuntimeError):  # the event loop has ended, and the caller with it
            self._loop.call_soon_threadsafe(self._ended)

    def _ended(self) -> None:
        if not self._end.done():
            self._end.set_result(None)

    async def notified(self, seconds: float) -> bool:
        await asyncio.wait((self._end,), timeout=seconds)
        return self._end.done()


class _NoWaiter:
    """For a call whose end is not waited for."""

    def notify(self) -> None:
        pass


class _Call(Generic[_T]):
    """One publish, in the queue or running.

    Attributes:
        context: The Context of its caller.
        waiter: Is notified of its end.
        error: What the publish raised.
        result: What it returned, if it raised nothing.
    """

    __slots__ = ("_publish", "_unclaimed", "context", "error", "result", "waiter")

    def __init__(self, publish: Callable[[], Coroutine[Any, Any, _T]], waiter: Notified) -> None:
        self._publish = publish
        self.context: Context = copy_context()
        self.waiter: Notified = waiter
        self.error: BaseException | None = None
        self.result: _T  # until the publish has returned it is not there
        self._unclaimed: list[None] = [None]

    def claim(self) -> bool:
        """Return whether this is the first claim: either the event loop takes a call, or its caller gives it up."""
        try:
            self._unclaimed.pop()  # atomic, so only one of two threads succeeds
        except IndexError:
            return False
        return True

    async def run(self) -> None:
        """Publish, and wake the caller at once: a callback of the task would run one pass of the event loop later."""
        try:
            self.result = await self._publish()
        except Exception as error:
            self.end(error)
        else:
            self.end(None)

    def end(self, error: BaseException | None) -> None:
        """Wake the caller."""
        self.error = error
        self.waiter.notify()
