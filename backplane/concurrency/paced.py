"""One call for each of many items, spread over a time: for 100,000 clients as cheap in one pass as for ten."""

from __future__ import annotations

import asyncio
from collections import deque
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
        self._remaining = deque(items)  # what was called is not kept: a client that has ended can be freed
        self._count = len(self._remaining)
        self._begin = self._loop.time() + after_seconds
        self._seconds = seconds
        self._handle: asyncio.Handle | None = None
        if self._remaining:
            self._handle = self._loop.call_at(self._begin, self._call_due)

    def __len__(self) -> int:
        """Return how many calls are still to be made."""
        return len(self._remaining)

    def cancel(self) -> None:
        """Make no further call."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        self._remaining.clear()

    def _call_due(self) -> None:
        late = self._due() - (self._count - len(self._remaining))
        number = min(late, _MOST_PER_PASS)
        items = [self._remaining.popleft() for _ in range(number)]
        if not self._remaining:
            self._handle = None
        elif number < late:
            self._handle = self._loop.call_soon(self._call_due)
        else:
            self._handle = self._loop.call_later(_TICK_SECONDS, self._call_due)
        for item in items:
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
