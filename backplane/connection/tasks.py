"""Tasks that belong to someone: cancelled and awaited at their owner's end, and no error of theirs unseen."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from backplane.concurrency.context import task_in

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from contextvars import Context

__all__ = ["Tasks"]

_ResultT = TypeVar("_ResultT")


class Tasks:
    """What one owner runs.

    Args:
        on_error: Called with what a task raised.
        grace_seconds: After how long a task that has not ended by its cancellation is cancelled again, for it may have
            swallowed that. Defaults to never.
    """

    __slots__ = ("_grace_seconds", "_on_error", "_tasks")

    def __init__(self, on_error: Callable[[BaseException], None], grace_seconds: float | None = None) -> None:
        self._on_error = on_error
        self._grace_seconds = grace_seconds
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(
        self, work: Coroutine[Any, Any, _ResultT], name: str, *, context: Context | None = None
    ) -> asyncio.Task[_ResultT]:
        """Run `work`, in a copy of the context of who calls unless another one is given."""
        if context is None:
            task = asyncio.create_task(work, name=name)
        else:
            task = task_in(context, work, asyncio.get_running_loop(), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def cancel(self) -> None:
        """Cancel all but the one that calls: a task may end its own owner."""
        calling = asyncio.current_task()
        for task in self._tasks:
            if task is not calling:
                task.cancel()

    async def end(self) -> None:
        """Cancel all but the one that calls, and wait until no other is left, those too that they begin meanwhile."""
        calling = asyncio.current_task()
        while others := [task for task in self._tasks if task is not calling]:
            self.cancel()
            await asyncio.wait(others, timeout=self._grace_seconds)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_error(error)
