"""Credentials that the application hands out at each login: `?credentials=package.module:callable`.

For tokens that expire and passwords that are rotated. What may be returned is each adapter's to decide.
"""

from __future__ import annotations

import asyncio
import inspect
from importlib import import_module
from operator import attrgetter
from typing import Any, Final

from backplane.errors import BrokerUnavailableError, ConfigurationError

__all__ = ["CREDENTIALS_PATTERN", "ask_credentials"]

CREDENTIALS_PATTERN: Final = r"^[\w.]+:[\w.]+$"
"""What the option must look like."""


async def ask_credentials(path: str, *, adapter: str) -> Any:
    """Import the callable that `path` names, call it, and return what it returns.

    An async one runs in this event loop, any other in a thread: a token service takes its time, and the event loop has
    others to serve. The caller limits the time.

    Raises:
        ConfigurationError: There is nothing callable of that name.
        BrokerUnavailableError: It raised. The words of its error are left out, for they can hold a secret.
    """
    module, _, name = path.partition(":")
    try:
        function = attrgetter(name)(import_module(module))
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"{adapter}: credentials={path} cannot be imported: {error}") from error
    if not callable(function):
        raise ConfigurationError(f"{adapter}: credentials={path} is not callable")
    try:
        answer: Any = function() if inspect.iscoroutinefunction(function) else await asyncio.to_thread(function)
        return await answer if inspect.isawaitable(answer) else answer
    except Exception as error:
        raise BrokerUnavailableError(
            f"no credentials: {path} raised {type(error).__name__}", adapter=adapter
        ) from error
