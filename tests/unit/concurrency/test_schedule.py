"""`backplane.concurrency.schedule`: calls at many moments, from one timer. Its order and slices: `test_keepalive`."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from backplane.concurrency.schedule import Schedule

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 60.0


class Calls(Schedule[str]):
    """A schedule that keeps what it calls; a call of `fail` raises."""

    def __init__(self) -> None:
        super().__init__(tick_seconds=0.001, slice_size=10)
        self.called: list[str] = []

    def put(self, item: str, seconds: float) -> int:
        """Call `item` after `seconds`."""
        return self._add(item, asyncio.get_running_loop().time() + seconds)

    def remove(self, item: str, tick: int) -> None:
        """Do not call `item`."""
        self._discard(item, tick)

    def _call(self, item: str, now: float) -> None:
        self.called.append(item)
        if item == "fail":
            raise KeyError(item)

    async def until(self, count: int) -> None:
        """Wait for so many calls."""
        async with asyncio.timeout(WAIT_SECONDS):
            while len(self.called) < count:
                await asyncio.sleep(0.001)

    @property
    def ticks(self) -> int:
        """How many moments are planned."""
        return len(self._ticks)

    @property
    def has_timer(self) -> bool:
        """Whether it waits for anything."""
        return self._timer is not None


async def test_a_call_that_raises() -> None:
    """It is reported to the event loop, and the others of its moment and later ones are called."""
    calls, reported = Calls(), list[Any]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["exception"]))
    for item in ("one", "fail", "two"):
        calls.put(item, 0.0)
    calls.put("later", 0.01)
    await calls.until(4)
    asyncio.get_running_loop().set_exception_handler(None)
    assert calls.called == ["one", "fail", "two", "later"]
    assert [type(error) for error in reported] == [KeyError]
    assert not calls.has_timer


async def test_moments_of_items_that_are_removed() -> None:
    """Items that come and leave, each with a moment of its own, leave nothing that grows."""
    calls = Calls()
    kept = calls.put("kept", 3_600.0)
    for number in range(1_000):
        calls.remove("other", calls.put("other", 60.0 + number))
    assert calls.ticks < 100
    early = calls.put("early", 0.0)
    await calls.until(1)
    calls.remove("early", early)
    assert (calls.called, calls.has_timer) == (["early"], True)
    calls.remove("kept", kept)
    assert not calls.has_timer


async def test_how_many_wait() -> None:
    """Those of all moments count, until they are called or removed."""
    calls = Calls()
    assert len(calls) == 0
    places = {item: calls.put(item, 60.0 + number) for number, item in enumerate(("one", "two", "three"))}
    calls.put("now", 0.0)
    assert len(calls) == 4
    await calls.until(1)
    calls.remove("two", places["two"])
    assert len(calls) == 2
    calls.remove("one", places["one"])
    calls.remove("three", places["three"])
    assert len(calls) == 0
