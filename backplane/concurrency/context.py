"""Run work for a client from code that belongs to another one: in the client's Context, in a task, and at once.

`begin` does what `asyncio.Task(..., eager_start=True)` does from Python 3.12 on. Python 3.11 has nothing like it, and a
task for each send would cost a third of the send. So on 3.11 the first step of the work runs under a task that is not
started yet, a `_Carrier`. If the work has to wait, the carrier's task continues it in the next pass of the event loop.
If the work ends in its first step, and nothing has kept or changed the task, the carrier is reused for the next work:
its task cannot be distinguished from a new one.

`task_in` is `loop.create_task(work, context=...)` without the task factory of the application: an eager factory would
enter the caller's Context a second time, and a factory from before Python 3.11 does not accept `context`.
"""

from __future__ import annotations

import asyncio
import sys
from contextvars import Context
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator

__all__ = ["begin", "run_in", "task_in"]

_ResultT = TypeVar("_ResultT")

_NAME: Final = "backplane-send"  # without a name asyncio formats a number for each task, which takes time


def run_in(context: Context, work: Callable[..., _ResultT], *args: object) -> _ResultT:
    """Call `work` in `context`, or in a copy of it where the caller itself runs in `context`.

    A Context cannot be entered twice, and a callback that runs in one can well cause another callback for it. The copy
    has the same variables; only what `work` sets in it is lost.
    """
    try:
        return context.run(work, *args)
    except RuntimeError as error:
        if error.__traceback__ is None or error.__traceback__.tb_next is not None:  # raised by `work`
            raise
    return context.copy().run(work, *args)


def task_in(
    context: Context, work: Coroutine[Any, Any, _ResultT], loop: asyncio.AbstractEventLoop, *, name: str | None = None
) -> asyncio.Task[_ResultT]:
    """Run `work` in `context`, in a task of `loop` that starts in the next pass."""
    return asyncio.Task(work, loop=loop, name=name, context=context)


if sys.version_info >= (3, 12):

    def begin(
        work: Coroutine[Any, Any, None], context: Context, loop: asyncio.AbstractEventLoop
    ) -> asyncio.Task[None] | None:
        """Run `work` in a task of `loop` up to its first wait; return the task, or `None` if the work has ended.

        `loop` is the running event loop. All of the work runs in `context`, and what it sets there lasts. It has one
        current task from its first step to its last; it may cancel that task, and use timeouts, cancel scopes and task
        groups. Where the caller itself runs in `context`, which cannot be entered twice, the work starts in the next
        pass of the event loop.

        Raises:
            CancelledError, Exception: What `work` raised before it waited.
        """
        try:
            context.run(_nothing)
        except RuntimeError:  # entered already; `asyncio.Task` would raise with the task half constructed
            return task_in(context, work, loop, name=_NAME)
        task = asyncio.Task(work, loop=loop, name=_NAME, context=context, eager_start=True)
        if not task.done():
            return task
        try:
            task.result()
        finally:
            del task  # breaks a cycle: the error of the task holds this frame
        return None

    def _nothing() -> None:
        """Do nothing, in a Context that is checked for whether it can be entered."""

else:
    from asyncio import current_task

    # What `asyncio.Task` itself calls around each step, and event loops written in C too.
    from asyncio.tasks import _enter_task, _leave_task  # pyright: ignore[reportPrivateUsage]
    from types import coroutine
    from weakref import getweakrefcount

    # PyPy counts no references. `id` never returns 4, so each work gets a carrier of its own there.
    _references: Callable[[object], int] = getattr(sys, "getrefcount", id)

    def begin(
        work: Coroutine[Any, Any, None], context: Context, loop: asyncio.AbstractEventLoop
    ) -> asyncio.Task[None] | None:
        """Run `work` in a task of `loop` up to its first wait: as above, by means of a carrier."""
        global _free
        carrier = _free
        # Reuse a task only if nothing has kept or changed it: neither its work, nor code that found it in `all_tasks`.
        # Its references are of its carrier, the event loop, this variable and the argument; the weak one: `all_tasks`.
        if (
            carrier is None
            or carrier.loop is not loop
            or (task := carrier.task).touched
            or _references(task) != 4
            or getweakrefcount(task) != 1
        ):
            carrier = _Carrier(loop)
            task = carrier.task
        _free = None  # `work` may call `begin` itself, which needs another carrier
        if (outer := current_task(loop)) is not None:
            _leave_task(loop, outer)
        _enter_task(loop, task)
        try:
            waits_for = context.run(carrier.step, work)
        except BaseException as error:
            if isinstance(error, RuntimeError) and getattr(work, "cr_frame", None) is not None:  # `context` was entered
                return task_in(context, work, loop, name=_NAME)
            carrier.fail(error)
            raise
        finally:
            _leave_task(loop, task)
            if outer is not None:
                _enter_task(loop, outer)
        if waits_for is not _ENDED:
            carrier.take(waits_for, context)
            return task
        if task.touched and task._must_cancel:  # type: ignore[attr-defined]  # a task that cancels itself, and ends, is cancelled
            raise asyncio.CancelledError
        _free = carrier
        return None

    @coroutine
    def _steps() -> Generator[Any, Any, None]:
        """Run one work after another: yield what the work waits for, and `_ENDED` at its end.

        A coroutine that is stepped by itself raises StopIteration at its end, which takes 0.1 µs.
        """
        while True:
            yield from (yield _ENDED)

    class _Task(asyncio.Task[None]):
        """A task that notes whether it was changed.

        Attributes:
            touched: A method or an attribute of it was used in a way that changes it.
        """

        touched: bool = False

        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__("touched", True)
            super().__setattr__(name, value)

        def set_name(self, value: object, /) -> None:
            self.touched = True
            super().set_name(value)

        def add_done_callback(self, fn: Callable[[Any], object], /, *, context: Context | None = None) -> None:
            self.touched = True
            super().add_done_callback(fn, context=context)

        def cancel(self, msg: Any | None = None) -> bool:
            self.touched = True
            return super().cancel(msg)

    class _Carrier:
        """A task that starts in the next pass of the event loop, and then continues the work it was given, if any.

        Until then the task looks like a running one: it waits for nothing, and a cancellation is kept for its start.

        Attributes:
            loop: Its event loop.
            task: The task.
            step: Runs the first step of a work; returns what the work waits for, or `_ENDED`.
        """

        __slots__ = ("_context", "_failure", "_is_marked", "_steps", "_waits_for", "loop", "step", "task")

        def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
            self.loop = loop
            self._steps: Any = _steps()  # a generator, which `coroutine` types as an awaitable
            self._steps.send(None)
            self.step: Callable[[Coroutine[Any, Any, None]], object] = self._steps.send
            self._context: Context | None = None  # of the work to continue, if there is one
            self._failure: BaseException | None = None
            driver = self._drive()
            # Start the coroutine: a task that is cancelled before its coroutine starts never runs it, so the work would
            # not receive the cancellation.
            driver.send(None)
            self.task = _Task(driver, loop=loop, name=_NAME, context=Context())
            self._set_log_destroy_pending(False)

        def take(self, waits_for: Any, context: Context) -> None:
            """Take the work, which waits for `waits_for`, to continue it in `context`."""
            self._waits_for, self._context = waits_for, context
            # A future marks itself when it is awaited, and the task that awaits it clears the mark in the same step.
            # Clear it here: other tasks can await the same future before this one starts. `_continue` restores it.
            self._is_marked: bool = getattr(waits_for, "_asyncio_future_blocking", None) is True
            if self._is_marked:
                waits_for._asyncio_future_blocking = False
            self._set_log_destroy_pending(True)

        def fail(self, error: BaseException) -> None:
            """End the task with the error that its work raised in the first step, for whatever has kept the task."""
            self._failure = error
            self.task.add_done_callback(_retrieve)

        def _set_log_destroy_pending(self, value: bool) -> None:
            """Set whether asyncio logs that the task was destroyed before its end."""
            object.__setattr__(self.task, "_log_destroy_pending", value)

        async def _drive(self) -> None:
            await self

        def __await__(self) -> Generator[Any, Any, None]:
            global _free
            cancelled: asyncio.CancelledError | None = None
            try:
                yield
            except asyncio.CancelledError as error:
                cancelled = error
            if _free is self:
                _free = None
            if (failure := self._failure) is not None:
                self._failure = None
                raise failure
            if self._context is not None:
                yield from self._continue(self._context.run, cancelled)
            elif cancelled is not None:
                raise cancelled

        def _continue(
            self, run: Callable[..., Any], cancelled: asyncio.CancelledError | None
        ) -> Generator[Any, Any, None]:
            work, waits_for = self._steps, self._waits_for
            if cancelled is not None and not _cancel(waits_for, cancelled):
                waits_for = run(work.throw, cancelled)
            elif waits_for is None:  # `sleep(0)`: its pass is over
                waits_for = run(work.send, None)
            elif self._is_marked:
                waits_for._asyncio_future_blocking = True
            while waits_for is not _ENDED:
                try:
                    sent = yield waits_for
                except BaseException as error:  # a cancellation, in general
                    waits_for = run(work.throw, error)
                else:
                    waits_for = run(work.send, sent)

    def _cancel(waits_for: Any, error: asyncio.CancelledError) -> bool:
        """Cancel what a task waits for, as `Task.cancel` does; return whether that was possible."""
        return asyncio.isfuture(waits_for) and waits_for.cancel(*error.args)

    def _retrieve(task: asyncio.Task[None]) -> None:
        """Mark the error of a task as retrieved: `begin` has raised it to its caller."""
        if not task.cancelled():
            task.exception()

    _ENDED: Final = object()

    _free: _Carrier | None = None
