"""Credentials that the application hands out at each login: `?credentials=package.module:callable`.

For tokens that expire and passwords that are rotated. What may be returned is each adapter's to decide.
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
from backplane.log_bursts import place_of

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CREDENTIALS_PATTERN", "ask_credentials"]

CREDENTIALS_PATTERN: Final = r"^[\w.]+:[\w.]+$"
"""What the option must look like."""

# After one call that has not returned the next is begun this much later, after two twice as long, and so on: one that
# hangs for ever is survived, and there is no thread for each login. Until then a login waits for the last one.
_AGAIN_SECONDS: Final = 10.0


class _Call(Future[Any]):
    """One call, in its thread."""

    def __init__(self) -> None:
        super().__init__()
        self.begun_at = monotonic()


# Calls that took too long, by path.
_given_up: Final[dict[str, list[_Call]]] = {}

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_given_up.clear)  # their threads do not run there


async def ask_credentials(path: str, *, adapter: str, seconds: float | None = None) -> Any:
    """Import the callable that `path` names, call it, and return what it returns.

    An async one runs in this event loop, any other in a thread: a token service takes its time, and the event loop has
    others to serve. It is a thread of its own, so one that never returns holds up neither the end of the event loop nor
    those who wait for `asyncio.to_thread`.

    Args:
        path: `package.module:callable`.
        adapter: Whose option it is.
        seconds: How long it may take. Defaults to no limit, where the caller has one.

    Raises:
        ConfigurationError: There is nothing callable of that name, or its module cannot be imported.
        BrokerUnavailableError: It raised, or took too long. Of its error only type and place are shown, for its words
            can hold a secret, and so can those of the errors that it comes from.
    """
    function = _imported(path, adapter)
    try:
        async with PatientTimeout(seconds):
            return await _answer(function, path, adapter)
    except TimeoutError:
        words = f"no credentials: {path} took longer than {seconds:g} s"
        raise BrokerUnavailableError(words, adapter=adapter) from None


def _imported(path: str, adapter: str) -> Callable[[], Any]:
    module, _, name = path.partition(":")
    try:
        function: object = attrgetter(name)(import_module(module))
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"{adapter}: credentials={path} cannot be imported: {error}") from error
    except (Exception, SystemExit) as error:  # what the module does when it is imported
        words = f"{adapter}: credentials={path} cannot be imported: {place_of(error)}"
        raise ConfigurationError(words) from None
    if not callable(function):
        raise ConfigurationError(f"{adapter}: credentials={path} is not callable")
    return function


async def _answer(function: Callable[[], Any], path: str, adapter: str) -> Any:
    try:
        answer: Any = function() if inspect.iscoroutinefunction(function) else await _in_thread(function, path)
        return await answer if inspect.isawaitable(answer) else answer
    except (Exception, SystemExit) as error:
        place = error.args[0] if isinstance(error, _RaisedError) else place_of(error)
        raise BrokerUnavailableError(f"no credentials: {path} raised {place}", adapter=adapter) from None


class _RaisedError(Exception):
    """The function raised in its thread; where. Not every exception can be handed over to an event loop."""


async def _in_thread(function: Callable[[], Any], path: str) -> Any:
    hanging = _given_up[path] = [call for call in _given_up.get(path, ()) if not call.done()]
    if hanging and monotonic() < hanging[-1].begun_at + _AGAIN_SECONDS * 2 ** (len(hanging) - 1):
        call = hanging[-1]
    else:
        call = _begin(function)
    try:
        return await asyncio.wrap_future(call)
    except asyncio.CancelledError:
        if call not in _given_up[path]:
            _given_up[path].append(call)
        raise


def _begin(function: Callable[[], Any]) -> _Call:
    call = _Call()
    call.set_running_or_notify_cancel()  # and cannot be cancelled any more
    context = copy_context()

    def run() -> None:
        try:
            call.set_result(context.run(function))
        except BaseException as error:
            call.set_exception(_RaisedError(place_of(error)))

    start_thread(run, "backplane-credentials")
    return call
