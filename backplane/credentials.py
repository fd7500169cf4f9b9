"""Credentials that the application hands out at each login: `?credentials=package.module:callable`.

For tokens that expire and passwords that are rotated. What may be returned is each adapter's to decide.
"""

from __future__ import annotations

import asyncio
import inspect
from importlib import import_module
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

from backplane.deadline import PatientTimeout
from backplane.errors import BrokerUnavailableError, ConfigurationError
from backplane.log_burst import place_of

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CREDENTIALS_PATTERN", "ask_credentials"]

CREDENTIALS_PATTERN: Final = r"^[\w.]+:[\w.]+$"
"""What the option must look like."""


async def ask_credentials(path: str, *, adapter: str, seconds: float | None = None) -> Any:
    """Import the callable that `path` names, call it, and return what it returns.

    An async one runs in this event loop, any other in a thread: a token service takes its time, and the event loop has
    others to serve.

    Args:
        path: `package.module:callable`.
        adapter: Whose option it is.
        seconds: How long it may take. Defaults to no limit, where the caller has one.

    Raises:
        ConfigurationError: There is nothing callable of that name.
        BrokerUnavailableError: It raised, or took too long. Of its error only type and place are shown, for its words
            can hold a secret, and so can those of the errors that it comes from.
    """
    module, _, name = path.partition(":")
    try:
        function = attrgetter(name)(import_module(module))
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"{adapter}: credentials={path} cannot be imported: {error}") from error
    if not callable(function):
        raise ConfigurationError(f"{adapter}: credentials={path} is not callable")
    try:
        async with PatientTimeout(seconds):
            return await _answer(function, path, adapter)
    except TimeoutError:
        words = f"no credentials: {path} took longer than {seconds:g} s"
        raise BrokerUnavailableError(words, adapter=adapter) from None


async def _answer(function: Callable[[], Any], path: str, adapter: str) -> Any:
    try:
        answer: Any = function() if inspect.iscoroutinefunction(function) else await asyncio.to_thread(function)
        return await answer if inspect.isawaitable(answer) else answer
    except Exception as error:
        raise BrokerUnavailableError(f"no credentials: {path} raised {place_of(error)}", adapter=adapter) from None
