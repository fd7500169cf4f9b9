"""Real threads, and waiting for them, in a process that gevent may have patched.

Under gevent a `threading.Thread` is a greenlet. An event loop in it would count as running for every other greenlet of
the same thread, so that each `asyncio.run` of the application raises. And a real lock would block them all.
"""

from __future__ import annotations

import sys
import threading
from _thread import allocate_lock
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Waiter", "new_waiter", "start_thread"]


class Waiter(Protocol):
    """Lets one thread, or greenlet, wait for one event of another thread."""

    def notify(self) -> None:
        """Wake the waiting thread, from any thread, once."""
        ...

    def wait(self, seconds: float) -> bool:
        """Return whether it was notified within `seconds`. Whatever a signal handler raises ends the wait."""
        ...


def new_waiter() -> Waiter:
    """Return a waiter for the calling thread or greenlet."""
    return _LockWaiter() if _gevent_monkey() is None else _GreenletWaiter()


def start_thread(run: Callable[[], None], name: str) -> None:
    """Run `run` in a daemon thread.

    Raises:
        RuntimeError: The system grants no thread, or the interpreter ends.
    """
    monkey = _gevent_monkey()
    if monkey is None:
        threading.Thread(target=run, name=name, daemon=True).start()
    else:
        from gevent import get_hub

        # Two hubs that are made at once, each in its thread, wait for each other's import locks for ever (gevent 26.9).
        get_hub()
        monkey.get_original("_thread", "start_new_thread")(run, ())


class _LockWaiter:
    """A bare lock: a tenth of what a `concurrent.futures.Future` costs."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = allocate_lock()
        self._lock.acquire()

    def notify(self) -> None:
        self._lock.release()

    def wait(self, seconds: float) -> bool:
        return self._lock.acquire(timeout=seconds)


class _GreenletWaiter:
    """Lets the other greenlets of the thread run meanwhile."""

    __slots__ = ("_event", "_loop")

    def __init__(self) -> None:
        from gevent import get_hub
        from gevent.event import Event

        self._loop: Any = get_hub().loop
        self._event = Event()

    def notify(self) -> None:
        self._loop.run_callback_threadsafe(self._event.set)

    def wait(self, seconds: float) -> bool:
        return self._event.wait(seconds)


def _gevent_monkey() -> Any:
    """Return `gevent.monkey` where it has patched this process, else `None`."""
    monkey: Any = sys.modules.get("gevent.monkey")
    # Some patch all but the threads; those greenlets must not be blocked either.
    return monkey if monkey is not None and monkey.is_module_patched("socket") else None
