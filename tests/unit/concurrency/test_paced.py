"""`backplane.concurrency.paced`: one call for each of many items, spread over a time."""

from __future__ import annotations

import asyncio
import weakref
from typing import Any

import pytest

from backplane.concurrency.paced import PacedCalls

pytestmark = pytest.mark.anyio

SECONDS = 60.0


class Calls:
    """What was called, and in which pass of the event loop."""

    def __init__(self) -> None:
        self.items: list[int] = []
        self.passes: list[int] = []
        self.number = 0
        self._changed = asyncio.Event()

    def __call__(self, item: int) -> None:
        """Keep the item."""
        self.items.append(item)
        self.passes.append(self.number)
        self._changed.set()

    async def until(self, count: int) -> None:
        """Wait until so many calls were made, and count the passes meanwhile."""
        async with asyncio.timeout(SECONDS):
            while len(self.items) < count:
                self.number += 1
                await asyncio.sleep(0)


async def test_each_item_once_and_in_order() -> None:
    """Every item is called once, in order, also where many are due at once."""
    calls = Calls()
    PacedCalls(calls, range(1000), after_seconds=0.0, seconds=0.0)
    await calls.until(1000)
    assert calls.items == list(range(1000))
    assert max(calls.passes.count(number) for number in set(calls.passes)) <= 50


@pytest.mark.parametrize(
    ("elapsed", "due"), [(-1.0, 1), (0.0, 1), (1.0, 11), (5.0, 51), (9.95, 100), (10.0, 100), (99.0, 100)]
)
async def test_how_many_are_due(elapsed: float, due: int) -> None:
    """By each moment as many calls are due as of the time has passed: the first at the begin, all at the end."""
    paced: Any = PacedCalls(Calls(), range(100), after_seconds=60.0, seconds=10.0)
    paced._begin = asyncio.get_running_loop().time() - elapsed - 0.001
    assert paced._due() == due
    paced.cancel()


async def test_spread() -> None:
    """The calls are not all made at the begin."""
    calls = Calls()
    paced = PacedCalls(calls, range(3), after_seconds=0.0, seconds=60.0)
    await calls.until(1)
    await asyncio.sleep(0)
    assert calls.items == [0]
    paced.cancel()
    paced.cancel()


async def test_nothing_to_call() -> None:
    """Without an item there is no timer."""
    paced: Any = PacedCalls(Calls(), [], after_seconds=0.0, seconds=1.0)
    assert paced._handle is None


async def test_a_call_that_raises() -> None:
    """It is reported to the event loop, and the calls go on."""
    calls, reported = Calls(), list[Any]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["exception"]))

    def fail(item: int) -> None:
        calls(item)
        if item == 1:
            raise KeyError(item)

    PacedCalls(fail, range(3), after_seconds=0.0, seconds=0.01)
    await calls.until(3)
    asyncio.get_running_loop().set_exception_handler(None)
    assert [str(error) for error in reported] == ["1"]


async def test_cancel() -> None:
    """After a cancellation nothing more is called."""
    calls = Calls()
    paced = PacedCalls(calls, range(200), after_seconds=0.0, seconds=0.0)
    await calls.until(1)
    paced.cancel()
    made = len(calls.items)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(calls.items) == made < 200


async def test_how_many_are_left() -> None:
    """The calls that are still to be made are counted, until the last one or a cancellation."""
    calls = Calls()
    paced = PacedCalls(calls, range(120), after_seconds=0.0, seconds=0.0)
    assert len(paced) == 120
    await calls.until(50)
    assert len(paced) == 120 - len(calls.items)
    await calls.until(120)
    assert len(paced) == 0
    paced = PacedCalls(calls, range(5), after_seconds=60.0, seconds=1.0)
    assert len(paced) == 5
    paced.cancel()
    assert len(paced) == 0
    assert len(PacedCalls(calls, (), after_seconds=0.0, seconds=1.0)) == 0


async def test_what_was_called_is_not_kept() -> None:
    """An item that nothing else refers to is freed once it was called, long before the last one."""

    class Item:
        pass

    called = asyncio.Event()
    items = [Item(), Item()]
    first, second = (weakref.ref(item) for item in items)
    paced = PacedCalls(lambda _: called.set(), items, after_seconds=0.0, seconds=60.0)
    items.clear()
    await asyncio.wait_for(called.wait(), SECONDS)
    await asyncio.sleep(0)
    assert first() is None
    assert second() is not None
    paced.cancel()
    assert second() is None
