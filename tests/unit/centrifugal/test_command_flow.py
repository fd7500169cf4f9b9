"""`backplane.centrifugal.command_flow`: the order of one client's commands, and how many run at a time."""

from __future__ import annotations

import asyncio

import pytest

from backplane.centrifugal.command_flow import MOST_RUNNING, CommandFlow
from tests.unit.doubles import until_idle

pytestmark = pytest.mark.anyio


async def test_room() -> None:
    """Another command waits while as many as there may be run, and takes the place of the first one that ends."""
    flow = CommandFlow(None)
    for _ in range(MOST_RUNNING):
        await flow.enter()
    waiting = [asyncio.create_task(flow.enter()) for _ in range(2)]
    await until_idle()
    assert not any(task.done() for task in waiting)
    flow.leave()
    await until_idle()
    assert sum(task.done() for task in waiting) == 1
    flow.leave()
    await asyncio.gather(*waiting)


@pytest.mark.parametrize(("max_running", "most"), [(2, 2), (None, MOST_RUNNING)])
async def test_slots(max_running: int | None, most: int) -> None:
    """As many commands have a slot at a time as are allowed; without a limit all that run."""
    flow = CommandFlow(max_running)
    for _ in range(most):
        await flow.slot().acquire()
    assert flow.slot().locked()


async def test_order() -> None:
    """Blocks of one channel run one after the other, those of another one at the same time; nothing is kept."""
    flow = CommandFlow(None)
    steps: list[str] = []
    go_on = asyncio.Event()

    async def run(name: str, channel: str, wait: bool) -> None:
        async with flow.in_order(channel):
            steps.append(name)
            if wait:
                await go_on.wait()
            steps.append(f"end of {name}")

    tasks = [
        asyncio.create_task(run(name, channel, wait))
        for name, channel, wait in [
            ("one", "a", True),
            ("two", "a", False),
            ("other", "b", False),
            ("three", "a", False),
        ]
    ]
    await until_idle()
    assert steps == ["one", "other", "end of other"]
    go_on.set()
    await asyncio.gather(*tasks)
    assert steps[3:] == ["end of one", "two", "end of two", "three", "end of three"]
    assert not flow._last  # pyright: ignore[reportPrivateUsage]


async def test_one_that_fails_or_is_cancelled_holds_up_none() -> None:
    """The next block of the channel runs."""
    flow = CommandFlow(None)
    with pytest.raises(KeyError):
        async with flow.in_order("a"):
            raise KeyError("a fault")
    go_on = asyncio.Event()

    async def wait() -> None:
        async with flow.in_order("a"):
            await go_on.wait()

    first, second, third = (asyncio.create_task(wait()) for _ in range(3))
    await until_idle()
    second.cancel()
    first.cancel()
    go_on.set()
    await third
    await asyncio.gather(first, second, return_exceptions=True)
    assert not flow._last  # pyright: ignore[reportPrivateUsage]
