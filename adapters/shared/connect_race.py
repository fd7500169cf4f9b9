"""The race for a connection to one of several addresses or servers.

Some of them may not answer, and a host that is gone does not even refuse. So they are tried one after another with a
short delay (RFC 8305, Happy Eyeballs), each going on while the next is tried, and the first that is connected wins.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Final, TypeVar

from backplane.adapters.shared.error_chain import reason_of
from backplane.errors import BrokerError, BrokerUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Sequence

__all__ = ["NEXT_SERVER_SECONDS", "NoneConnectedError", "first_connected", "first_usable"]

NEXT_SERVER_SECONDS: Final = 1.0
"""After it the next server of a URL is tried as well, where one does not answer."""

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


async def first_usable(
    targets: Iterable[_Target],
    connect: Callable[[_Target], Coroutine[Any, Any, _Link]],
    *,
    end: Callable[[_Link], object],
    adapter: str,
    next_after_seconds: float = NEXT_SERVER_SECONDS,
) -> _Link:
    """Do as `first_connected` does after each `BrokerError`, and raise one error for all targets.

    Args:
        targets: Where to connect.
        connect: Connects to one of them.
        end: Ends a link at once.
        adapter: Name of the adapter, for the error.
        next_after_seconds: After this time without an answer the next target is tried as well.

    Raises:
        BrokerError: None is usable: the first error against which no repetition helps, else all of them in one.
    """
    try:
        return await first_connected(
            targets, connect, end=end, failures=(BrokerError,), next_after_seconds=next_after_seconds
        )
    except NoneConnectedError as error:
        failures = [failure for failure in error.failures if isinstance(failure, BrokerError)]
    final = [failure for failure in failures if not failure.retriable]
    if final or len(failures) == 1:
        raise (final or failures)[0]  # outside of the handler: an error that is raised as it is keeps its own cause
    reason = "; ".join(map(reason_of, failures)) or "the name has no address"
    raise BrokerUnavailableError(reason, adapter=adapter) from (failures[-1] if failures else None)


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
