"""Only one task at a time may receive from one source: of two that wait, one would wait for ever."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backplane.errors import LifecycleError

if TYPE_CHECKING:
    import asyncio

__all__ = ["check_one_receiver"]


def check_one_receiver(waiting: asyncio.Task[object], cancelling: int, what: str, cure: str) -> None:
    """Check that no other task waits for the next message. A task that is being cancelled does not count.

    Args:
        waiting: The task that began to wait last.
        cancelling: What its `cancelling()` returned then: a task that ignored an earlier cancellation does count.
        what: What it receives from, for the error.
        cure: What to do instead, for the error.

    Raises:
        LifecycleError: It still waits.
    """
    if not waiting.done() and waiting.cancelling() <= cancelling:
        raise LifecycleError(f"task {waiting.get_name()!r} receives from {what} already: {cure}")
