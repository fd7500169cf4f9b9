"""Only one task at a time may receive from one source: of two that wait, one would wait for ever."""

from __future__ import annotations

import asyncio

from backplane.errors import LifecycleError

__all__ = ["SingleReceiver"]


class SingleReceiver:
    """The task that waits for the next message of one source.

    A task that is being cancelled does not count: its successor may begin to wait before it has ended. One that went on
    after a cancellation waits as any other, so its count of cancellations is kept from when it began to wait.
    """

    __slots__ = ("_cancelling", "_task")

    def __init__(self) -> None:
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0

    @property
    def is_waiting(self) -> bool:
        """Whether a task waits."""
        return self._task is not None

    def check_single(self, source: str, cure: str) -> None:
        """Check that no other task waits.

        Args:
            source: What it receives from, for the error.
            cure: What to do instead.

        Raises:
            LifecycleError: One waits.
        """
        task = self._task
        if task is not None and not task.done() and task.cancelling() <= self._cancelling:
            raise LifecycleError(f"task {task.get_name()!r} receives from {source} already: {cure}")

    def begin_waiting(self) -> asyncio.Task[object] | None:
        """The current task waits from now on; return it, for `end_waiting`."""
        task = self._task = asyncio.current_task()
        self._cancelling = task.cancelling() if task is not None else 0
        return task

    def end_waiting(self, task: asyncio.Task[object] | None) -> None:
        """`task` waits no longer; a task that was cancelled may have a successor already, which goes on waiting."""
        if self._task is task:
            self._task = None
