"""Credentials that a callable of the application provides at each login: `?credentials=package.module:callable`.

For tokens that expire and passwords that are rotated. Each adapter decides what the callable may return.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from concurrent.futures import Future
from contextvars import copy_context
from importlib import import_module
from operator import attrgetter
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from backplane.concurrency.threads import start_thread
from backplane.concurrency.timeouts import PatientTimeout
from backplane.errors import BrokerUnavailableError, ConfigurationError
from backplane.journal.place import place_of

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CREDENTIALS_PATTERN", "ask_credentials", "ask_login"]

CREDENTIALS_PATTERN: Final = r"^[\w.]+:[\w.]+$"
"""The form of the option."""

# While one call hangs, the next one is started this much later, while two hang twice as much later, and so on. So a
# call that never returns does not block every later login, and hanging calls do not take a thread per login. Until the
# next one is due, a login waits for the last one.
_REPEAT_SECONDS: Final = 10.0


class _Call(Future[Any]):
    """One call, in its thread."""

    def __init__(self) -> None:
        super().__init__()
        self.started_at: float = monotonic()


# Calls that took longer than their caller could wait, by path.
_hanging: Final[dict[str, list[_Call]]] = {}

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_hanging.clear)  # their threads do not run in the child


async def ask_credentials(
    path: str, *, adapter: str, seconds: float | None = None, repeat_seconds: float = _REPEAT_SECONDS
) -> Any:
    """Import the callable that `path` names, call it, and return what it returns.

    An async one runs in this event loop, any other in a thread, so that a slow token service does not block the event
    loop. It is a thread of its own, so that a call that never returns delays neither the end of the event loop nor the
    callers of `asyncio.to_thread`.

    Args:
        path: `package.module:callable`.
        adapter: The adapter whose option it is.
        seconds: How long it may take. Defaults to no limit, where the caller has one.
        repeat_seconds: How long one call may hang before the next login starts another one.

    Raises:
        ConfigurationError: There is nothing callable of that name, or its module cannot be imported.
        BrokerUnavailableError: It raised, or took too long. Only type and place of its error are shown, because its
            message can hold a secret, and so can the messages of the errors that caused it.
    """
    function = _imported(path, adapter)
    try:
        async with PatientTimeout(seconds):
            return await _call(function, path, adapter, repeat_seconds)
    except TimeoutError:
        reason = f"no credentials: {path} took longer than {seconds:g} s"
        raise BrokerUnavailableError(reason, adapter=adapter) from None


async def ask_login(path: str, *, adapter: str, seconds: float) -> tuple[str | None, str]:
    """Return the user name, `None` where it provides none, and the password, as `ask_credentials` does.

    Raises:
        ConfigurationError: Likewise, or it returned something else.
        BrokerUnavailableError: Likewise.
    """
    match await ask_credentials(path, adapter=adapter, seconds=seconds):
        case (str() as password,) | (str() as password):
            return None, password
        case (str() | None as username, str() as password):
            return username, password
        case other:
            raise ConfigurationError(
                f"{adapter}: {path} must return a password or (username, password), not {type(other).__name__}"
            )


def _imported(path: str, adapter: str) -> Callable[[], Any]:
    module, _, name = path.partition(":")
    try:
        function: object = attrgetter(name)(import_module(module))
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"{adapter}: credentials={path} cannot be imported: {error}") from error
    except (Exception, SystemExit) as error:  # raised by the code of the module
        message = f"{adapter}: credentials={path} cannot be imported: {place_of(error)}"
        raise ConfigurationError(message) from None
    if not callable(function):
        raise ConfigurationError(f"{adapter}: credentials={path} is not callable")
    return function


async def _call(function: Callable[[], Any], path: str, adapter: str, repeat_seconds: float) -> Any:
    try:
        if inspect.iscoroutinefunction(function):
            return await function()
        returned = await _call_in_thread(function, path, repeat_seconds)
        return await returned if inspect.isawaitable(returned) else returned
    except (Exception, SystemExit) as error:
        place = error.args[0] if isinstance(error, _RaisedError) else place_of(error)
        raise BrokerUnavailableError(f"no credentials: {path} raised {place}", adapter=adapter) from None


class _RaisedError(Exception):
    """The function raised in its thread, at this place. Not every exception can be passed on to an event loop."""


async def _call_in_thread(function: Callable[[], Any], path: str, repeat_seconds: float) -> Any:
    hanging = _hanging[path] = [call for call in _hanging.get(path, ()) if not call.done()]
    if hanging and monotonic() < hanging[-1].started_at + repeat_seconds * 2 ** (len(hanging) - 1):
        call = hanging[-1]
    else:
        call = _start(function)
    try:
        return await asyncio.wrap_future(call)
    except asyncio.CancelledError:
        if call not in _hanging[path]:
            _hanging[path].append(call)
        raise


def _start(function: Callable[[], Any]) -> _Call:
    call = _Call()
    call.set_running_or_notify_cancel()  # from now on a cancelled caller does not cancel it
    context = copy_context()

    def run() -> None:
        try:
            call.set_result(context.run(function))
        except BaseException as error:
            call.set_exception(_RaisedError(place_of(error)))

    start_thread(run, "backplane-credentials")
    return call
