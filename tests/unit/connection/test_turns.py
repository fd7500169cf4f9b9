"""`backplane.connection.turns`: closes that wait for their turn, from one timer and a few in one pass."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from backplane.connection.turns import Turns

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 60.0


class Close:
    """A close that waits."""

    def __init__(self, at_turn: Callable[[], object] = lambda: None) -> None:
        self.turns = 0
        self._at_turn = at_turn

    def turn_has_come(self) -> None:
        """Count it."""
        self.turns += 1
        self._at_turn()


async def until(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not condition():
            await asyncio.sleep(0)


async def test_each_in_its_turn() -> None:
    """The close with the shorter delay begins first, whichever came first."""
    turns, order = Turns(), list[str]()
    turns.put(Close(lambda: order.append("late")), 0.06)
    turns.put(Close(lambda: order.append("early")), 0.02)
    await until(lambda: len(order) == 2)
    assert order == ["early", "late"]


async def test_without_a_delay() -> None:
    """It begins in the next pass of the event loop, not at once."""
    turns, close = Turns(), Close()
    turns.put(close, 0.0)
    assert close.turns == 0
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert close.turns == 1


async def test_removed() -> None:
    """A close that is removed does not begin; one that has begun already can be removed too."""
    turns, one, two = Turns(), Close(), Close()
    place = turns.put(one, 0.0)
    other = turns.put(two, 0.0)
    turns.remove(one, place)
    await until(lambda: two.turns == 1)
    turns.remove(two, other)
    assert (one.turns, two.turns) == (0, 1)


async def test_few_in_one_pass() -> None:
    """Of many closes that are due at once fifty begin in one pass of the event loop."""
    turns, closes = Turns(), [Close() for _ in range(170)]
    for close in closes:
        turns.put(close, 0.0)
    begun: list[int] = []
    async with asyncio.timeout(WAIT_SECONDS):
        while not begun or begun[-1] < 170:
            await asyncio.sleep(0)
            begun.append(sum(close.turns for close in closes))
    assert sorted(set(begun) - {0}) == [50, 100, 150, 170]
