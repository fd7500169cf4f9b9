"""Work for a client, begun from elsewhere: in that client's Context, in a task, and at once.

`begin` is what `asyncio.Task(..., eager_start=True)` is from Python 3.12 on. Python 3.11 has no such thing, and a task
for each send would cost a third of the send there. So on 3.11 the first step is taken in the name of a task that has
not begun yet (a `_Carrier`). Work that has to wait keeps that task, which goes on with it in the next pass of the event
loop. Work that is over, and has left no trace on the task, leaves it to the next: nothing can tell it from a new one.

`task_in` is `loop.create_task(work, context=...)` whatever factory the application has set: an eager one would enter
the Context of who calls for a second time, one from before Python 3.11 takes none.
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

_NAME: Final = "backplane-send"  # asyncio would number each task, which takes a while


def run_in(context: Context, work: Callable[..., _ResultT], *args: object) -> _ResultT:
    """Call `work` in `context`; in a copy of it where the caller itself is called from there.

    A Context cannot be entered twice, and what runs in one may well cause what else belongs into it. The variables are
    the same in the copy; only what `work` sets does not last.
    """
    try:
        return context.run(work, *args)
    except RuntimeError as error:
        if error.__traceback__ is None or error.__traceback__.tb_next is not None:  # it comes from `work`
            raise
    return context.copy().run(work, *args)


def task_in(
    context: Context, work: Coroutine[Any, Any, _ResultT], loop: asyncio.AbstractEventLoop, *, name: str | None = None
) -> asyncio.Task[_ResultT]:
    """Run `work` in `context`, in a task of `loop` that begins in the next pass."""
    return asyncio.Task(work, loop=loop, name=name, context=context)


if sys.version_info >= (3, 12):

    def begin(
        work: Coroutine[Any, Any, None], context: Context, loop: asyncio.AbstractEventLoop
    ) -> asyncio.Task[None] | None:
        """Run `work` in a task of `loop`, which runs, up to its first wait; return the task, `None` where it is over.

        All of it runs in `context`, where what it sets lasts. Its code finds one current task from its first step to
        its last, which it may cancel, and may use timeouts, cancel scopes and task groups. Where the caller itself is
        called from `context`, which cannot be entered twice, it begins in the next pass of the event loop.

        Raises:
            CancelledError, Exception: What `work` raised before it waited.
        """
        try:
            context.run(_nothing)
        except RuntimeError:  # entered already, which `asyncio.Task` would notice half made
            return task_in(context, work, loop, name=_NAME)
        task = asyncio.Task(work, loop=loop, name=_NAME, context=context, eager_start=True)
        if not task.done():
            return task
        try:
            task.result()
        finally:
            del task  # its error holds this frame
        return None

    def _nothing() -> None:
        """Find out whether a Context can be entered."""

else:
    from asyncio import current_task

    # What a task itself calls around its steps; an event loop in another language has no other way either.
    from asyncio.tasks import _enter_task, _leave_task  # pyright: ignore[reportPrivateUsage]
    from weakref import getweakrefcount

    _references: Callable[[object], int] = getattr(sys, "getrefcount", id)  # PyPy counts none: each has its own there

    def begin(
        work: Coroutine[Any, Any, None], context: Context, loop: asyncio.AbstractEventLoop
    ) -> asyncio.Task[None] | None:
        """Run `work` in a task up to its first wait; see above."""
        global _free
        carrier = _free
        if carrier is None or carrier.loop is not loop or not _is_as_new(task := carrier.task):
            carrier = _Carrier(loop)
            task = carrier.task
        _free = None  # what `work` begins in turn needs another
        if (outer := current_task(loop)) is not None:
            _leave_task(loop, outer)
        _enter_task(loop, task)
        try:
            carrier.keep(work, context.run(work.send, None), context)
        except StopIteration:
            if task.touched and task._must_cancel:  # type: ignore[attr-defined]  # a task that cancels itself, and ends, is cancelled
                raise asyncio.CancelledError from None
            _free = carrier
            return None
        except BaseException as error:
            if isinstance(error, RuntimeError) and getattr(work, "cr_frame", None) is not None:  # it has not begun
                return task_in(context, work, loop, name=_NAME)
            if _is_as_new(task):
                _free = carrier
            else:
                carrier.fail(error)
            raise
        else:
            return task
        finally:
            _leave_task(loop, task)
            if outer is not None:
                _enter_task(loop, outer)

    def _is_as_new(task: _Task) -> bool:
        """Return whether nobody has kept or marked the task: its work, or who has found it in `all_tasks` since.

        It is referred to by its carrier, the event loop, the caller's variable and two for the argument; weakly by
        `all_tasks`.
        """
        return not task.touched and _references(task) == 5 and getweakrefcount(task) == 1

    class _Task(asyncio.Task[None]):
        """A task that remembers whether anything was done to it.

        Attributes:
            touched: It was.
        """

        touched = False

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
        """A task that begins in the next pass of the event loop, and goes on with what has kept it, if anything has.

        Until then it is in the state of a running one: it waits for nothing, and a cancellation is remembered.

        Attributes:
            loop: Its event loop.
            task: The task.
            work: What has kept it.
        """

        __slots__ = ("_context", "_failure", "_is_marked", "_waits_for", "loop", "task", "work")

        def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
            self.loop = loop
            self.work: Coroutine[Any, Any, None] | None = None
            self._failure: BaseException | None = None
            driver = self._drive()
            driver.send(None)  # a cancellation of what has not begun would never reach what has kept it
            self.task = _Task(driver, loop=loop, name=_NAME, context=Context())
            self._set_log_destroy_pending(False)

        def keep(self, work: Coroutine[Any, Any, None], waits_for: Any, context: Context) -> None:
            """Go on with `work`, which waits for something."""
            self.work, self._waits_for, self._context = work, waits_for, context
            # The mark of a future that is awaited, which a task takes at once: others may await the same one meanwhile.
            self._is_marked: bool = getattr(waits_for, "_asyncio_future_blocking", None) is True
            if self._is_marked:
                waits_for._asyncio_future_blocking = False
            self._set_log_destroy_pending(True)

        def fail(self, error: BaseException) -> None:
            """End the task with what its work has raised at once, for who has kept it."""
            self._failure = error
            self.task.add_done_callback(_retrieve)

        def _set_log_destroy_pending(self, value: bool) -> None:
            """Have it logged, or not, that the event loop ends before the task does."""
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
            if self.work is not None:
                yield from self._go_on(self.work, cancelled)
            elif cancelled is not None:
                raise cancelled

        def _go_on(
            self, work: Coroutine[Any, Any, None], cancelled: asyncio.CancelledError | None
        ) -> Generator[Any, Any, None]:
            run, waits_for = self._context.run, self._waits_for
            try:
                if cancelled is not None and not _cancel(waits_for, cancelled):
                    waits_for = run(work.throw, cancelled)
                elif waits_for is None:  # `sleep(0)`: a pass has gone by
                    waits_for = run(work.send, None)
                elif self._is_marked:
                    waits_for._asyncio_future_blocking = True
                while True:
                    try:
                        sent = yield waits_for
                    except BaseException as error:  # a cancellation, mostly
                        waits_for = run(work.throw, error)
                    else:
                        waits_for = run(work.send, sent)
            except StopIteration:
                return

    def _cancel(waits_for: Any, error: asyncio.CancelledError) -> bool:
        """Cancel what a task waits for, as `Task.cancel` does."""
        return asyncio.isfuture(waits_for) and waits_for.cancel(*error.args)

    def _retrieve(task: asyncio.Task[None]) -> None:
        """Take note of what a task has raised: who has begun its work was notified."""
        if not task.cancelled():
            task.exception()

    _free: _Carrier | None = None
