"""The tasks of a link: an adapter cancels them with it, and the failure of one is the loss of the link."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from backplane.errors import BrokerError, BrokerUnavailableError
from backplane.journal.events import ADAPTER_FAULT
from backplane.journal.writing import write

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from backplane.broadcaster import BrokerUrl

__all__ = ["LinkTasks"]

logger: Final = logging.getLogger("backplane.adapters.shared.link_tasks")


class LinkTasks:
    """Runs tasks until the link is closed. One that raises is logged, unless it raises a `BrokerError`.

    Args:
        url: Of the adapter, as errors show it.
        adapter: Its name, as errors show it.
        on_failure: Called with the error of a task that failed.
    """

    def __init__(self, url: BrokerUrl, adapter: str, on_failure: Callable[[BrokerError], None]) -> None:
        self._url = url
        self._adapter = adapter
        self._on_failure = on_failure
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Awaitable[None], name: str) -> asyncio.Task[None]:
        """Run `work` in a task of this name."""
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        task.set_name(f"backplane-{name}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def cancel(self) -> set[asyncio.Task[None]]:
        """Cancel every task, and return those that have not ended, to wait for."""
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        return tasks

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if not isinstance(error, BrokerError):
            write(logger, ADAPTER_FAULT, "unexpected error on the link to %(url)s", url=self._url, exc_info=error)
            error = BrokerUnavailableError(f"unexpected error: {error!r}", adapter=self._adapter)
        self._on_failure(error)
