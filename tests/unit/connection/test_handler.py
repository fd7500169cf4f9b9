"""`backplane.connection.handler`: tasks that cannot be cancelled; the rest: tests/unit/web/test_handshake.py."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from backplane.connection.handler import Handler

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 60.0


class Uncancellable:
    """A task as Granian makes it with `--task-impl rust`."""

    def cancelling(self) -> int:
        """Know of no cancellation."""
        return 0

    def cancel(self) -> bool:
        """Do nothing."""
        return False


@pytest.mark.parametrize("task", [Uncancellable, lambda: None], ids=["of a server's own", "none"])
async def test_task_that_cannot_be_cancelled(task: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """That is reported, once, and the handler's error is its own."""
    reported: asyncio.Queue[bool] = asyncio.Queue()
    with monkeypatch.context() as patch:
        patch.setattr("backplane.connection.handler.asyncio.current_task", task)
        handler = Handler(0.001, reported.put_nowait)
    handler.connection_ended()
    handler.connection_ended()
    assert await asyncio.wait_for(reported.get(), WAIT_SECONDS) is False
    assert not handler.left(asyncio.CancelledError())
    assert reported.empty()


async def test_second_end() -> None:
    """A connection that is reported as ended twice has its handler cancelled after the first report's time."""
    reported: asyncio.Queue[bool] = asyncio.Queue()

    async def handle() -> bool:
        handler = Handler(0.001, reported.put_nowait)
        handler.connection_ended()
        handler.connection_ended()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as error:
            return handler.left(error)
        return False

    task = asyncio.create_task(handle())
    assert await asyncio.wait_for(task, WAIT_SECONDS)
    assert (reported.get_nowait(), reported.empty()) == (True, True)
    assert not task.cancelling()
