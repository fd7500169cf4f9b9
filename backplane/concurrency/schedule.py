"""Calls at many moments: one timer of the event loop for all of them, and few calls in one pass of it."""

from __future__ import annotations

import asyncio
import math
from abc import ABC, abstractmethod
from heapq import heapify, heappop, heappush
from itertools import islice
from typing import Final, Generic, TypeVar

__all__ = ["Schedule"]

_ItemT = TypeVar("_ItemT")

# So many ticks beside those that have an item stay planned: clients that come and leave make new ones.
_SPARE_TICKS: Final = 64


class Schedule(ABC, Generic[_ItemT]):
    """Calls `_call` with each item once its time has come.

    Items whose time is in the same tick wait in one bucket, and are called in the order in which they came. More than
    one pass of the event loop should make are called in the passes after it, so that other work goes on in between.
    Without an item there is no timer. An item costs its place in a `dict`, and no object of its own.

    Args:
        tick_seconds: The resolution: a call is made up to so much later.
        slice_size: Most calls in one pass of the event loop.
    """

    def __init__(self, *, tick_seconds: float, slice_size: int) -> None:
        self._tick_seconds = tick_seconds
        self._slice_size = slice_size
        self._buckets: dict[int, dict[_ItemT, None]] = {}
        self._ticks: list[int] = []  # a heap: at least every bucket
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0

    def __len__(self) -> int:
        """Return how many items wait, in a time that grows with the ticks that have one."""
        return sum(map(len, self._buckets.values()))

    @abstractmethod
    def _call(self, item: _ItemT, now: float) -> None:
        """Do what is due. What it raises goes to the event loop's exception handler, and the calls go on."""

    def _add(self, item: _ItemT, when: float) -> int:
        """Call `item` at `when`, by the event loop's clock; return its bucket, by which it is removed."""
        tick = math.ceil(when / self._tick_seconds)
        if (bucket := self._buckets.get(tick)) is None:
            bucket = self._buckets[tick] = {}
            self._plan(tick)
        bucket[item] = None
        if self._timer is None or tick < self._timer_at:
            self._set_timer(tick)
        return tick

    def _discard(self, item: _ItemT, tick: int) -> None:
        """Do not call `item`; one that was called already changes nothing."""
        if (bucket := self._buckets.get(tick)) is not None:
            bucket.pop(item, None)
            if not bucket:
                del self._buckets[tick]
        if not self._buckets and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _plan(self, tick: int) -> None:
        if len(self._ticks) > 2 * len(self._buckets) + _SPARE_TICKS:
            self._ticks = list(self._buckets)
            heapify(self._ticks)
        else:
            heappush(self._ticks, tick)

    def _first(self) -> int | None:
        """Return the earliest tick that has an item."""
        while self._ticks and self._ticks[0] not in self._buckets:
            heappop(self._ticks)
        return self._ticks[0] if self._ticks else None

    def _set_timer(self, tick: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = tick
        self._timer = asyncio.get_running_loop().call_at(tick * self._tick_seconds, self._call_due)

    def _call_due(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        now, left = loop.time(), self._slice_size
        while left and (tick := self._first()) is not None and tick * self._tick_seconds <= now:
            for item in tuple(islice(self._buckets[tick], left)):
                if item not in self._buckets.get(tick, ()):  # an item called before has removed this one
                    continue
                self._discard(item, tick)
                left -= 1
                try:
                    self._call(item, now)
                except Exception as error:
                    loop.call_exception_handler({"message": "a scheduled call failed", "exception": error})
        if (tick := self._first()) is not None:
            self._set_timer(tick)
