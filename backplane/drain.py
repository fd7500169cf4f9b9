"""The orderly end of a worker: before its server acts on SIGTERM, its sockets are closed one after the other.

Servers close every socket in the moment they are told to end, and ten thousand clients come back in the same second.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator

__all__ = ["draining_on_sigterm", "spread_seconds"]

logger = logging.getLogger("backplane.drain")

# A handful of sockets needs no spreading: so many make the whole of it worth while.
_FULL_SPREAD: Final = 100


def spread_seconds(sockets: int, most_seconds: float) -> float:
    """Return over how long to close so many sockets."""
    return most_seconds * min(1.0, sockets / _FULL_SPREAD)


@contextmanager
def draining_on_sigterm(drain: Callable[[], Coroutine[Any, Any, None]]) -> Generator[None]:
    """Put `drain` before what the server does on SIGTERM; a second SIGTERM does not wait for it.

    Works where the server handles the signal in a Python function, as Uvicorn does, by itself and under Gunicorn. Where
    there is no such function (Hypercorn, Granian, a script) nothing is changed: `Backplane.drain` remains.
    """
    servers = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or not _is_servers(servers):
        yield
        return
    loop = asyncio.get_running_loop()
    draining: list[asyncio.Task[None]] = []

    async def drain_then_tell_the_server() -> None:
        try:
            await drain()
        except Exception:
            logger.exception("the drain failed; the server ends all the same")
        finally:
            servers(signal.SIGTERM, None)  # type: ignore[operator,misc]

    def begin() -> None:
        if not draining:
            draining.append(loop.create_task(drain_then_tell_the_server(), name="backplane-drain"))
        elif draining[0].done():
            servers(signal.SIGTERM, None)  # type: ignore[operator,misc]
        else:
            draining[0].cancel()

    def handle(*_: object) -> None:
        loop.call_soon_threadsafe(begin)

    signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is handle:
            signal.signal(signal.SIGTERM, servers)
        for task in draining:  # the server ends for another reason: what is left of the drain would outlive it
            task.cancel()


def _is_servers(handler: object) -> bool:
    # An event loop's own handler is an empty function: what really happens stands elsewhere, and cannot be put off.
    return callable(handler) and (getattr(handler, "__module__", None) or "").partition(".")[0] not in {
        "asyncio",
        "signal",
        "uvloop",
    }
