"""The race for a connection to one of several addresses or servers.

Some of them may not answer, and a host that is gone does not even refuse. So they are tried one after another with a
short delay (RFC 8305, Happy Eyeballs), each going on while the next is tried, and the first that is connected wins.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Sequence

__all__ = ["NoneConnectedError", "first_connected"]

_Target = TypeVar("_Target")
_Link = TypeVar("_Link")


class NoneConnectedError(Exception):
    """Every try failed.

    Attributes:
        failures: The error of each, in the order in which they failed.
    """

    def __init__(self, failures: Sequence[Exception]) -> None:
        super().__init__(failures)
        self.failures: Sequence[Exception] = failures


async def first_connected(
    targets: Iterable[_Target],
    connect: Callable[[_Target], Coroutine[Any, Any, _Link]],
    *,
    end: Callable[[_Link], object],
    failures: tuple[type[Exception], ...],
    next_after_seconds: float,
) -> _Link:
    """Return the first link that `connect` returns for one of `targets`, tried in their order; end all others.

    Cancelled, it leaves no link.

    Args:
        targets: Where to connect.
        connect: Connects to one of them.
        end: Ends a link at once.
        failures: The errors of `connect` after which the next target is tried. Any other one, a wrong option or a bug,
            is raised as it is.
        next_after_seconds: After this time without an answer the next target is tried as well.

    Raises:
        NoneConnectedError: Every target failed.
    """
    failed: list[Exception] = []
    untried = deque(targets)
    tasks: list[asyncio.Task[_Link]] = []
    running: set[asyncio.Task[_Link]] = set()
    winner: asyncio.Task[_Link] | None = None
    try:
        while winner is None and (untried or running):
            if untried:
                tasks.append(asyncio.create_task(connect(untried.popleft())))
                running.add(tasks[-1])
            delay = next_after_seconds if untried else None
            done, running = await asyncio.wait(running, timeout=delay, return_when=asyncio.FIRST_COMPLETED)
            failed += [error for task in done if isinstance(error := task.exception(), failures)]
            # A task that ended by another error wins as well, so that the error is raised below.
            winner = next((task for task in done if not isinstance(task.exception(), failures)), None)
        await _end_all([task for task in tasks if task is not winner], end)
    except BaseException:
        await _end_all(tasks, end)
        raise
    if winner is None:
        raise NoneConnectedError(failed)
    return winner.result()


async def _end_all(tasks: Sequence[asyncio.Task[_Link]], end: Callable[[_Link], object]) -> None:
    """Cancel what is still connecting, and end the links that connected too late."""

    def end_result(task: asyncio.Task[_Link]) -> None:
        if not task.cancelled() and task.exception() is None:
            end(task.result())

    for task in tasks:
        task.cancel()
        task.add_done_callback(end_result)  # not after the wait below, which can be cancelled
    if tasks:
        await asyncio.wait(tasks)
