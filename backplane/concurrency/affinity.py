"""The event loop and the process that an object belongs to, and the error of a use from outside.

An object that belongs to an event loop must not be used outside it: a callback that is scheduled on another loop never
runs, or runs in parallel with the loop that owns the data. The most common cause is `asyncio.run(...)` in a `def`
endpoint.
"""

from __future__ import annotations

import asyncio
import os
from threading import get_ident
from typing import Final

from backplane.errors import ClosedError, LifecycleError, WrongLoopError

__all__ = ["LoopAffinity", "current_process", "refuse_in_event_loop"]

_CURE: Final = (
    "`await` it in an `async def` endpoint; publish from a `def` endpoint or a thread with "
    "`backplane.sync.publish(...)`, and run anything else by `asyncio.run_coroutine_threadsafe(..., its loop)`; "
    "in a script or a task queue use `backplane.sync.SyncBackplane`"
)


class _Process:
    """Identity of a process, different from that of its parent. A process id is none, since the system reuses it."""

    def __init__(self) -> None:
        self.pid = os.getpid()


_process = _Process()


def _forked() -> None:
    global _process  # one for each process
    _process = _Process()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def current_process() -> object:
    """Return an object that identifies this process: another one in each child that is forked from it."""
    return _process


class LoopAffinity:
    """The running event loop of this process, as the only one in which an object may be used.

    Attributes:
        loop: The event loop.

    Raises:
        LifecycleError: No event loop of asyncio is running.
    """

    __slots__ = ("_process", "_thread", "loop")

    def __init__(self) -> None:
        try:
            self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        except RuntimeError:
            raise LifecycleError(
                "a Backplane is started in an event loop of asyncio, and none runs here: trio is not supported"
            ) from None
        self._process: _Process = _process
        self._thread: int = get_ident()

    @property
    def is_inherited(self) -> bool:
        """Whether this process was forked from the one in which the event loop runs."""
        return self._process is not _process

    @property
    def is_alive(self) -> bool:
        """Whether the event loop can still run, in this process."""
        return not self.is_inherited and not self.loop.is_closed()

    @property
    def has_ended(self) -> bool:
        """Whether the event loop was closed, in this process."""
        return not self.is_inherited and self.loop.is_closed()

    def check(self) -> None:
        """Check that the caller runs in the event loop.

        Raises:
            WrongLoopError: Called from another event loop, thread or process; the message names the remedy.
            ClosedError: The event loop was closed.
        """
        # A thread runs one event loop at a time, so its identity is enough, except after a move to another thread.
        # `get_running_loop` makes a system call on CPython 3.11, which takes 100 ns.
        if get_ident() != self._thread or not self.loop.is_running() or self._process is not _process:
            self._check_running_loop()

    def _check_running_loop(self) -> None:
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        if here is not self.loop or self._process is not _process:
            raise self._error(here)
        self._thread = get_ident()  # the application runs the event loop in another thread now

    def _error(self, here: asyncio.AbstractEventLoop | None) -> LifecycleError:
        if self.is_inherited:
            return WrongLoopError(
                f"this Backplane was started in process {self._process.pid}, and this process was forked from it: "
                "start it here, or publish with `backplane.sync.publish(...)` or a `SyncBackplane`, which survive forks"
            )
        if self.loop.is_closed():
            return ClosedError("the event loop in which this Backplane was started has ended: start it again")
        place = "a thread without an event loop" if here is None else "another event loop, such as `asyncio.run` makes"
        return WrongLoopError(f"this Backplane runs in one event loop and was used from {place}: {_CURE}")


def refuse_in_event_loop() -> None:
    """Check that no event loop runs in this thread.

    Raises:
        WrongLoopError: One does, and a call that waits would block it.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise WrongLoopError(
        "this call waits, and would block the event loop that runs in this thread: `await backplane.publish(...)` "
        "instead, or call it by `await asyncio.to_thread(...)`"
    )
