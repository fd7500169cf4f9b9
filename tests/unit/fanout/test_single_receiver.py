"""`backplane.fanout.single_receiver`: one task at a time receives."""

from __future__ import annotations

import asyncio

import pytest

from backplane.errors import LifecycleError
from backplane.fanout.single_receiver import check_one_receiver

pytestmark = pytest.mark.anyio


async def test_task_that_waits() -> None:
    """A second receiver is refused while the first one waits; the error names that task, the source and the remedy."""
    task = asyncio.create_task(asyncio.Event().wait(), name="first")
    with pytest.raises(LifecycleError, match="task 'first' receives from the channel already: subscribe twice"):
        check_one_receiver(task, 0, "the channel", "subscribe twice")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_task_that_waits_no_more() -> None:
    """A task that is being cancelled, or has ended, does not count."""
    task = asyncio.create_task(asyncio.Event().wait())
    await asyncio.sleep(0)
    task.cancel()
    check_one_receiver(task, 0, "the channel", "subscribe twice")
    with pytest.raises(asyncio.CancelledError):
        await task
    check_one_receiver(task, 1, "the channel", "subscribe twice")
