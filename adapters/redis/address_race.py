"""The race for the first usable address of a name.

A name can have several addresses, some of which do not answer, and some of which are no primaries. They are tried one
after another with a short delay, and the first that is usable wins (RFC 8305, Happy Eyeballs).
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Final, TypeVar

from backplane.adapters.redis.errors import unavailable
from backplane.adapters.redis.link import RedisLink
from backplane.adapters.shared.error_chain import reason_of
from backplane.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Sequence

    from backplane.adapters.redis.server_info import Address

__all__ = ["first_usable"]

# After it the next address is tried as well: the delay that RFC 8305 recommends.
_NEXT_ADDRESS_SECONDS: Final = 0.25

_L = TypeVar("_L", bound=RedisLink)


async def first_usable(addresses: Collection[Address], open_link: Callable[[Address], Coroutine[Any, Any, _L]]) -> _L:
    """Return the first link that `open_link` returns for one of `addresses`, tried in their order; end all others.

    Raises:
        BrokerError: None is usable.
    """
    failures: list[BrokerError] = []
    untried = deque(addresses)
    tasks: list[asyncio.Task[_L]] = []
    running: set[asyncio.Task[_L]] = set()
    winner: asyncio.Task[_L] | None = None
    try:
        while winner is None and (untried or running):
            if untried:
                tasks.append(asyncio.create_task(open_link(untried.popleft())))
                running.add(tasks[-1])
            delay = _NEXT_ADDRESS_SECONDS if untried else None
            done, running = await asyncio.wait(running, timeout=delay, return_when=asyncio.FIRST_COMPLETED)
            failures += [failure for task in done if isinstance(failure := task.exception(), BrokerError)]
            # An error of another type (a wrong option, a bug) is no dead address: it wins too, to be raised below.
            winner = next((task for task in done if not isinstance(task.exception(), BrokerError)), None)
        await _end_all([task for task in tasks if task is not winner])
    except BaseException:
        await _end_all(tasks)
        raise
    if winner is None:
        raise _combined(failures)
    return winner.result()


async def _end_all(tasks: Sequence[asyncio.Task[_L]]) -> None:
    """Cancel what is still connecting, and end the links that were opened too late."""
    for task in tasks:
        task.cancel()
        task.add_done_callback(_end_result)
    if tasks:
        await asyncio.wait(tasks)


def _end_result(task: asyncio.Task[_L]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().end("another address was faster")


def _combined(failures: Sequence[BrokerError]) -> BrokerError:
    """Return one error for several addresses: the first that a repetition does not help against, else all in one."""
    if not failures:
        return unavailable("the name has no address")
    final = [failure for failure in failures if not failure.retriable]
    if final or len(failures) == 1:
        return (final or failures)[0]
    return unavailable("; ".join(map(reason_of, failures)))
