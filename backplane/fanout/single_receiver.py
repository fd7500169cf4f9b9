"""One task at a time receives: of two that wait for the next message of one source, one would wait for ever."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backplane.errors import LifecycleError

if TYPE_CHECKING:
    import asyncio

__all__ = ["check_one_receiver"]


def check_one_receiver(waiting: asyncio.Task[object], cancelling: int, what: str, cure: str) -> None:
    """Check that no other task waits for the next message of `what`. One that is being cancelled does not count.

    Args:
        waiting: The task that waits.
        cancelling: What its `cancelling` was when it began: one that went on after a cancellation waits as any other.
        what: What it receives from, for the error.
        cure: What to do instead.

    Raises:
        LifecycleError: It waits.
    """
    if not waiting.done() and waiting.cancelling() <= cancelling:
        raise LifecycleError(f"task {waiting.get_name()!r} receives from {what} already: {cure}")
