"""The application's answers to surveys: a function by name, called on every worker."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Final

from backplane.errors import ConfigurationError

__all__ = ["SurveyError", "SurveyHandler", "Surveys"]

SurveyHandler = Callable[[Any], Any | Awaitable[Any]]
"""Returns this worker's answer to the question of a survey, anything JSON; a function, or a coroutine function."""


class SurveyError(Exception):
    """A worker cannot answer; its text states why, to the one that asked."""


class Surveys:
    """The handlers of surveys, by name."""

    def __init__(self) -> None:
        self._handlers: Final[dict[str, SurveyHandler]] = {}
        self._calls: Final[set[asyncio.Task[Any]]] = set()  # an event loop has only a weak reference to its tasks

    def set(self, name: object, handler: SurveyHandler) -> None:
        """Answer surveys of a name by `handler`.

        Raises:
            ConfigurationError: The name is no text, or another handler has it.
        """
        if not (name and isinstance(name, str)):
            raise ConfigurationError(f"the name of a survey is a text such as 'load', not {name!r:.100}")
        if name in self._handlers:
            raise ConfigurationError(f"survey {name!r} has a handler already")
        self._handlers[name] = handler

    async def answer(self, name: str, question: Any, seconds: float) -> Any:
        """Return the answer to one survey. A handler that takes longer is cancelled, and not waited for.

        Raises:
            SurveyError: There is no such survey here, the handler took too long, or it raised.
        """
        handler = self._handlers.get(name)
        if handler is None:
            raise SurveyError(f"this worker has no handler of survey {name!r:.100}")
        call = asyncio.create_task(_call(handler, question), name="backplane-survey")
        self._calls.add(call)
        call.add_done_callback(self._ended)
        try:
            await asyncio.wait([call], timeout=seconds)
        finally:
            call.cancel()  # where it goes on all the same, what it returns is of no use any more
        if not call.done():
            raise SurveyError(f"the handler took longer than {seconds:g} s")
        if call.cancelled():
            raise SurveyError("the handler was cancelled")
        error = call.exception()
        if error is not None:
            # Its text can hold data of the application, which belongs into the log of this worker alone.
            raise SurveyError(f"the handler raised {type(error).__name__}") from error
        return call.result()

    def _ended(self, call: asyncio.Task[Any]) -> None:
        self._calls.discard(call)
        if not call.cancelled():
            call.exception()  # so that asyncio does not log it: either it was answered, or it came too late


async def _call(handler: SurveyHandler, question: Any) -> Any:
    answer = handler(question)
    return await answer if inspect.isawaitable(answer) else answer
