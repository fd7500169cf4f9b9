"""One call for each of many items, spread over a time: for 100,000 clients as cheap in one pass as for ten."""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["PacedCalls"]

_ItemT = TypeVar("_ItemT")

_TICK_SECONDS: Final = 0.01

# A call can begin tasks, which run in the pass after it: as many calls as cost a few milliseconds with them.
_MOST_PER_PASS: Final = 50


class PacedCalls(Generic[_ItemT]):
    """Calls a function for each item in order, evenly spread over a time.

    There is one timer, not one for each item. An event loop that is late makes up for it a few calls at a time, so that
    other work goes on in between.

    Args:
        call: The function. What it raises goes to the event loop's exception handler, and the calls go on.
        items: The items.
        after_seconds: When the first call is due.
        seconds: Over how long the calls are spread from then on. With 0 they are made as soon as other work allows.
    """

    def __init__(
        self, call: Callable[[_ItemT], object], items: Iterable[_ItemT], *, after_seconds: float, seconds: float
    ) -> None:
        self._call = call
        self._loop = asyncio.get_running_loop()
        everything = tuple(items)
        self._count = len(everything)
        self._called = 0
        self._remaining = iter(everything)
        self._begin = self._loop.time() + after_seconds
        self._seconds = seconds
        self._handle: asyncio.Handle | None = None
        if everything:
            self._handle = self._loop.call_at(self._begin, self._call_due)

    def __len__(self) -> int:
        """Return how many calls are still to be made."""
        return 0 if self._handle is None else self._count - self._called

    def cancel(self) -> None:
        """Make no further call."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _call_due(self) -> None:
        due = self._due()
        number = min(due - self._called, _MOST_PER_PASS)
        self._called += number
        if self._called == self._count:
            self._handle = None
        elif self._called < due:
            self._handle = self._loop.call_soon(self._call_due)
        else:
            self._handle = self._loop.call_later(_TICK_SECONDS, self._call_due)
        for item in islice(self._remaining, number):
            try:
                self._call(item)
            except Exception as error:
                self._loop.call_exception_handler({"message": "a paced call failed", "exception": error})

    def _due(self) -> int:
        """Return how many calls are due by now: at the begin one, at the end all."""
        elapsed = self._loop.time() - self._begin
        if elapsed >= self._seconds:
            return self._count
        return min(self._count, 1 + int(self._count * max(0.0, elapsed) / self._seconds))
