"""The orderly end of a worker: before its server acts on a signal, its sockets are closed one after the other.

Servers close every socket in the moment they are told to end, and ten thousand clients come back in the same second.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator

    _Handler = Callable[[int, None], object]

__all__ = ["draining_on_signals", "stagger_window"]

logger: Final = logging.getLogger("backplane.worker.shutdown")

# A handful of sockets needs no spreading: so many make the whole of it worth while.
_FULL_SPREAD: Final = 100


def stagger_window(sockets: int, most_seconds: float) -> float:
    """Return over how long to close so many sockets."""
    return most_seconds * min(1.0, sockets / _FULL_SPREAD)


@contextmanager
def draining_on_signals(drain: Callable[[bool], Coroutine[Any, Any, None]]) -> Generator[None]:
    """Put `drain` before what the server does on SIGTERM or SIGINT; the same signal again does not wait for it.

    Works where the server handles the signal in a Python function. Where its event loop does, as with Granian, `drain`
    runs beside what the server does, and is called with `True`: there is little time. Where nobody handles a signal,
    and where Python's own way of Ctrl-C does, nothing is changed.
    """
    with ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():
            draining = _Draining(drain)
            stack.callback(draining.cancel)
            for number in (signal.SIGTERM, signal.SIGINT):
                stack.callback(draining.handle(number))
        yield


class _Draining:
    """One drain, however many signals come."""

    def __init__(self, drain: Callable[[bool], Coroutine[Any, Any, None]]) -> None:
        self._drain = drain
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None
        self._seen: set[int] = set()

    def handle(self, number: signal.Signals) -> Callable[[], None]:
        """Take a signal from now on; return what gives it back."""
        servers = signal.getsignal(number)
        if not callable(servers) or _is_pythons(servers):
            return lambda: None
        then = None if _is_loops(servers) else servers

        def handler(*_: object) -> None:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._take, number, then)
            elif then is not None:
                then(number, None)

        def give_back() -> None:
            if signal.getsignal(number) is handler:
                _set_handler(number, servers)

        _set_handler(number, handler)
        return give_back

    def cancel(self) -> None:
        """End: what is left of the drain would outlive the server."""
        if self._task is not None:
            self._task.cancel()

    def _take(self, number: int, then: _Handler | None) -> None:
        if self._task is None:
            self._task = self._loop.create_task(self._run(number, then), name="backplane-drain")
        elif self._task.done():
            if then is not None:
                then(number, None)
        elif number in self._seen:  # at Ctrl-C a worker gets SIGINT from the terminal, and SIGTERM from its parent
            self._task.cancel()
        self._seen.add(number)

    async def _run(self, number: int, then: _Handler | None) -> None:
        try:
            await self._drain(then is None)
        except Exception:
            logger.exception("the drain failed; the server ends all the same")
        finally:
            if then is not None:
                then(number, None)


def _set_handler(number: int, handler: Any) -> None:
    signal.signal(number, handler)
    if hasattr(signal, "siginterrupt"):  # not on Windows
        signal.siginterrupt(number, False)  # as event loops have it, which are notified beside any handler


def _is_loops(handler: object) -> bool:
    """Return whether it is an event loop's own, an empty function: what really happens cannot be put off."""
    return _package(handler) in {"asyncio", "signal", "uvloop"}


def _is_pythons(handler: object) -> bool:
    """Return whether it is what Ctrl-C does in any program: `KeyboardInterrupt`, or the same by `asyncio.Runner`."""
    function = getattr(handler, "func", handler)  # of a partial
    return function is signal.default_int_handler or getattr(function, "__name__", "") == "_on_sigint"


def _package(handler: object) -> str:
    return (getattr(handler, "__module__", None) or "").partition(".")[0]
