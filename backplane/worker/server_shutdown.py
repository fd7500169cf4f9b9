"""The drain when a server ends: before the server closes its connections where it allows that, else at the same time.

A server stops its listeners, waits for its connections, and runs the end of the lifespan last: an application that
closes its clients there waits for a server that waits for these clients. No server notifies an application earlier, so
this module looks for the server in the tasks of its event loop, from the lifespan, once at the start:

- Uvicorn, by itself, in a thread and below Gunicorn, and Gunicorn's `asgi` worker: the drain is put before the method
  that ends the worker, whatever calls it: a signal, `should_exit`, a number of requests, a reload.
- Hypercorn: its shutdown trigger is awaited here too; the server ends its connections at the same time.
- Others, such as Granian: the signal is handled here too (`backplane.worker.shutdown`).
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final, cast

from backplane.connection.tasks import Tasks
from backplane.journal.events import DRAIN_FAILED
from backplane.journal.writing import write
from backplane.worker.shutdown import draining_on_signals

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator
    from types import FrameType

    Drain = Callable[[bool], Coroutine[Any, Any, None]]

__all__ = ["drain_at_the_end", "is_in_lifespan"]

logger: Final = logging.getLogger("backplane.worker.server_shutdown")

# The method of a server's object that ends its worker.
_ENDS: Final = {("uvicorn.server", "Server"): "shutdown", ("gunicorn.workers.gasgi", "ASGIWorker"): "_shutdown"}

_POLL_SECONDS: Final = 0.1

# A client that reads nothing of what was written to it before its transport was closed is cut after two of these.
_LINGER_SECONDS: Final = 3.0


def is_in_lifespan() -> bool:
    """Return whether a server runs the lifespan of its application in this task."""
    return any(_scope_type(frame) == "lifespan" for frame in _own_frames())


def drain_at_the_end(drain: Drain) -> ExitStack:
    """Make the server of this lifespan drain; closing what is returned undoes that. Elsewhere nothing is done.

    Args:
        drain: Called with whether the server ends its connections at the same time, so that there is little time.
    """
    stack = ExitStack()
    if not is_in_lifespan():
        return stack
    managers = {id(_local(frame, "self")) for frame in _own_frames()} - {id(None)}
    for frame in [frame for task in asyncio.all_tasks() for frame in _frames(task)]:
        server = _local(frame, "self")
        method = next((_ENDS[name] for name in _class_names(server) if name in _ENDS), None)
        if method is not None and hasattr(server, method) and id(getattr(server, "lifespan", None)) in managers:
            stack.callback(_put_before(server, method, drain))
            return stack
        if _is_hypercorn(frame) and id(_local(frame, "lifespan")) in managers:
            tasks = Tasks(_log_failure)
            tasks.spawn(_drain_beside_hypercorn(frame, drain), "backplane-drain")
            stack.callback(tasks.cancel)
            return stack
    stack.enter_context(draining_on_signals(drain))
    return stack


def _log_failure(error: BaseException) -> None:
    write(logger, DRAIN_FAILED, "the drain failed; the server ends all the same", exc_info=error)


def _put_before(server: Any, method: str, drain: Drain) -> Callable[[], None]:
    """Run `drain` before a method of the server; return a function that undoes this."""
    original: Callable[..., Awaitable[None]] = getattr(server, method)

    async def end(*args: Any, **kwargs: Any) -> None:
        tasks = Tasks(_log_failure)
        try:
            await _wait_for_drain(tasks.spawn(drain(False), "backplane-drain"), server)
            tasks.spawn(_cut_stalled(server), "backplane-cut-stalled")
            await original(*args, **kwargs)
        finally:
            await tasks.end()

    def undo() -> None:
        if getattr(server, method) is end:
            setattr(server, method, original)

    setattr(server, method, end)
    return undo


async def _wait_for_drain(draining: asyncio.Task[None], server: Any) -> None:
    """Wait for the drain, and cancel it where the server must end now; keep Gunicorn informed that the worker runs."""
    repeated = _repeated_signals(server)
    notify_uvicorn = getattr(getattr(server, "config", None), "callback_notify", None)
    notify_gunicorn = getattr(server, "notify", None)
    while not draining.done():
        if _must_end_now(server) or _repeated_signals(server) > repeated:
            draining.cancel()
        if notify_uvicorn is not None:
            await notify_uvicorn()
        if notify_gunicorn is not None:
            notify_gunicorn()
        await asyncio.wait([draining], timeout=_POLL_SECONDS)


def _must_end_now(server: Any) -> bool:
    return getattr(server, "force_exit", False) or getattr(server, "_quick_shutdown", False)


def _repeated_signals(server: Any) -> int:
    """Return how many signals were repeated: one of each kind is Ctrl-C, from the terminal and the parent process."""
    captured: list[int] = getattr(server, "_captured_signals", [])
    return len(captured) - len(set(captured))


async def _cut_stalled(server: Any) -> None:
    """Abort the transports that Uvicorn would wait for without end: closed ones whose clients do not read."""
    before: dict[Any, int] = {}
    while True:
        await asyncio.sleep(_LINGER_SECONDS)
        unsent: dict[Any, int] = {}
        for connection in list(getattr(getattr(server, "server_state", None), "connections", ())):
            transport = getattr(connection, "transport", None)
            if transport is not None and transport.is_closing():
                unsent[transport] = transport.get_write_buffer_size()
                if before.get(transport) == unsent[transport]:
                    transport.abort()
        before = unsent


async def _drain_beside_hypercorn(frame: FrameType, drain: Drain) -> None:
    """Await what Hypercorn awaits: its shutdown trigger, and its event for the largest number of requests."""
    while (context := _local(frame, "context")) is None:  # noqa: ASYNC110  # it is Hypercorn's variable
        await asyncio.sleep(_POLL_SECONDS)
    triggers: list[Any] = [context.terminate.wait]
    own = _local(frame, "shutdown_trigger")
    if getattr(getattr(own, "func", own), "__name__", "") in {"wait", "check_multiprocess_shutdown_event"}:
        triggers.append(own)  # one of the application may allow to be awaited only once
    awaited: list[asyncio.Task[object]] = [asyncio.create_task(trigger()) for trigger in triggers]
    try:
        await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in awaited:
            task.cancel()
    await drain(True)


def _is_hypercorn(frame: FrameType) -> bool:
    return (frame.f_globals.get("__name__"), frame.f_code.co_name) == ("hypercorn.asyncio.run", "worker_serve")


def _own_frames() -> Iterator[FrameType]:
    """Yield the frames of this task and of the event loop, the innermost first."""
    frame = inspect.currentframe()
    while frame is not None:
        yield frame
        frame = frame.f_back


def _frames(task: asyncio.Task[Any]) -> Iterator[FrameType]:
    """Yield the frames of the coroutines that await each other in a task that is suspended, the outermost first."""
    coroutine: Any = task.get_coro()
    while coroutine is not None:
        frame: FrameType | None = getattr(coroutine, "cr_frame", None)
        if frame is not None:
            yield frame
        coroutine = getattr(coroutine, "cr_await", None)


def _local(frame: FrameType, name: str) -> Any:
    # `f_locals` is read only where the name exists: it would keep alive what the variables hold at this moment.
    code = frame.f_code
    known = name in code.co_varnames or name in code.co_cellvars or name in code.co_freevars
    return frame.f_locals.get(name) if known else None


def _scope_type(frame: FrameType) -> object:
    scope = _local(frame, "scope")
    return cast("dict[str, object]", scope).get("type") if isinstance(scope, dict) else None


def _class_names(instance: object) -> Iterator[tuple[str, str]]:
    for kind in type(instance).__mro__:
        yield kind.__module__, kind.__qualname__
