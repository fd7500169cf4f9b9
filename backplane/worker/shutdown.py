"""The drain at a signal: before the server acts on it, the clients of the worker are closed one after the other.

A server that is stopped closes every socket at the same moment, and ten thousand clients reconnect in the same second.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final

from backplane.journal.events import DRAIN_FAILED
from backplane.journal.writing import write

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator

    _Handler = Callable[[int, None], object]

__all__ = ["draining_on_signals", "stagger_window"]

logger: Final = logging.getLogger("backplane.worker.shutdown")

# The closes of few sockets need not be spread: from so many on the whole of the time is used.
_FULL_SPREAD: Final = 100


def stagger_window(sockets: int, most_seconds: float) -> float:
    """Return over how many seconds to spread the close of so many sockets."""
    return most_seconds * min(1.0, sockets / _FULL_SPREAD)


@contextmanager
def draining_on_signals(drain: Callable[[bool], Coroutine[Any, Any, None]]) -> Generator[None]:
    """Run `drain` before the server handles SIGTERM or SIGINT; the same signal a second time cancels the drain.

    Works where the server handles the signal in a Python function. Where its event loop handles it, as with Granian,
    `drain` runs at the same time as the server's own handling, and is called with `True`: there is little time. A
    signal without a handler, and one that Python handles itself (`KeyboardInterrupt`), is left as it is.
    """
    with ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():
            draining = _Draining(drain)
            stack.callback(draining.cancel)
            for number in (signal.SIGTERM, signal.SIGINT):
                stack.callback(draining.handle(number))
        yield


class _Draining:
    """One drain, started by the first signal."""

    def __init__(self, drain: Callable[[bool], Coroutine[Any, Any, None]]) -> None:
        self._drain = drain
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None
        self._seen: set[int] = set()  # signals

    def handle(self, number: signal.Signals) -> Callable[[], None]:
        """Handle a signal from now on; return a function that restores the handler before."""
        original = signal.getsignal(number)
        if not callable(original) or _is_of_python(original):
            return lambda: None
        then = None if _is_of_loop(original) else original

        def handler(*_: object) -> None:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._signalled, number, then)
            elif then is not None:
                then(number, None)

        def restore() -> None:
            if signal.getsignal(number) is handler:
                _set_handler(number, original)

        _set_handler(number, handler)
        return restore

    def cancel(self) -> None:
        """Cancel the drain, if it runs: it would outlive the server."""
        if self._task is not None:
            self._task.cancel()

    def _signalled(self, number: int, then: _Handler | None) -> None:
        if self._task is None:
            self._task = self._loop.create_task(self._run(number, then), name="backplane-drain")
        elif self._task.done():
            if then is not None:
                then(number, None)
        elif number in self._seen:  # one of each is Ctrl-C: SIGINT from the terminal, SIGTERM from the parent process
            self._task.cancel()
        self._seen.add(number)

    async def _run(self, number: int, then: _Handler | None) -> None:
        try:
            await self._drain(then is None)
        except Exception as error:
            write(logger, DRAIN_FAILED, "the drain failed; the server ends all the same", exc_info=error)
        finally:
            if then is not None:
                then(number, None)


def _set_handler(number: int, handler: Any) -> None:
    signal.signal(number, handler)
    if hasattr(signal, "siginterrupt"):  # not on Windows
        signal.siginterrupt(number, False)  # as event loops set it: they are notified in addition to the handler


def _is_of_loop(handler: object) -> bool:
    """Return whether an event loop has set `handler`, a function that does nothing: its callback cannot be delayed."""
    return _package(handler) in {"asyncio", "signal", "uvloop"}


def _is_of_python(handler: object) -> bool:
    """Return whether `handler` is Python's own for Ctrl-C: it raises `KeyboardInterrupt`, or is that of `Runner`."""
    function = getattr(handler, "func", handler)  # of a partial
    return function is signal.default_int_handler or getattr(function, "__name__", "") == "_on_sigint"


def _package(handler: object) -> str:
    return (getattr(handler, "__module__", None) or "").partition(".")[0]
