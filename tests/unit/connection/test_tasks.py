"""`backplane.connection.tasks`: what one owner runs, seen at its error and awaited at its end."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from backplane.connection.tasks import Tasks
from tests.unit.doubles import until_idle

pytestmark = pytest.mark.anyio

WAIT_SECONDS = 60.0


class Owner:
    """Whose tasks they are.

    Attributes:
        errors: What was reported.
        tasks: What it runs.
    """

    def __init__(self) -> None:
        self.errors: list[BaseException] = []
        self.tasks = Tasks(self.errors.append)

    async def ends(self) -> None:
        """End, within a bounded time."""
        await asyncio.wait_for(self.tasks.end(), WAIT_SECONDS)


async def forever() -> None:
    """Run until cancelled."""
    await asyncio.Event().wait()


async def fail(error: BaseException) -> None:
    """Raise in a later pass of the event loop."""
    await asyncio.sleep(0)
    raise error


async def test_spawn() -> None:
    """A task has its name and returns its result, beside others."""
    owner = Owner()
    tasks = [owner.tasks.spawn(asyncio.sleep(0, text), text) for text in ("one", "two")]
    assert [task.get_name() for task in tasks] == ["one", "two"]
    assert await asyncio.gather(*tasks) == ["one", "two"]
    assert owner.errors == []


async def test_task_without_another_reference() -> None:
    """The owner keeps its tasks: one whose result is not awaited is not collected."""
    owner = Owner()
    owner.tasks.spawn(forever(), "kept")
    await until_idle()
    gc.collect()
    assert "kept" in {task.get_name() for task in asyncio.all_tasks()}
    await owner.ends()


async def test_error() -> None:
    """What a task raises is reported once, and changes nothing for the others; the end reports nothing more."""
    owner, error = Owner(), KeyError("a fault")
    other = owner.tasks.spawn(forever(), "other")
    owner.tasks.spawn(fail(error), "fails")
    await until_idle()
    assert (owner.errors, other.done()) == ([error], False)
    await owner.ends()
    assert owner.errors == [error]


async def test_cancelled_task_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    """A task that is cancelled, from anywhere, is not reported, nor does anything fail at it."""
    owner = Owner()
    owner.tasks.spawn(forever(), "cancelled").cancel()
    await until_idle()
    await owner.ends()
    assert (owner.errors, caplog.messages) == ([], [])


async def test_error_of_a_clean_up() -> None:
    """What a task raises while it is being cancelled is reported too."""
    owner, error = Owner(), KeyError("a fault")

    async def work() -> None:
        try:
            await forever()
        finally:
            await fail(error)

    owner.tasks.spawn(work(), "fails at its end")
    await until_idle()
    await owner.ends()
    assert owner.errors == [error]


async def test_end_of_nothing() -> None:
    """Where nothing runs, or no longer, the end is there at once; so is a second one."""
    owner = Owner()
    await owner.ends()
    await owner.tasks.spawn(asyncio.sleep(0), "done")
    for _ in range(2):
        await owner.ends()


async def test_end_awaits_clean_up() -> None:
    """The end returns when every task has cleaned up, and not before."""
    owner, gate, steps = Owner(), asyncio.Event(), list[str]()

    async def work() -> None:
        try:
            await forever()
        finally:
            await gate.wait()
            steps.append("cleaned up")

    tasks = [owner.tasks.spawn(work(), "work") for _ in range(3)]
    await until_idle()
    ending = asyncio.create_task(owner.ends())
    await until_idle()
    assert not ending.done()
    gate.set()
    await ending
    assert ([task.cancelled() for task in tasks], steps) == ([True] * 3, ["cleaned up"] * 3)


async def test_task_that_swallows_its_cancellation() -> None:
    """A task that goes on after its cancellation is cancelled again after the grace."""
    tasks, swallowed = Tasks(print, 0.001), 0

    async def work() -> None:
        nonlocal swallowed
        while swallowed < 2:
            try:
                await forever()
            except asyncio.CancelledError:
                swallowed += 1
        await forever()

    task = tasks.spawn(work(), "swallows")
    await until_idle()
    await asyncio.wait_for(tasks.end(), WAIT_SECONDS)
    assert (swallowed, task.cancelled()) == (2, True)


async def test_end_of_a_task_that_has_not_begun() -> None:
    """A task of the very same pass is ended too, and its coroutine leaves no warning."""
    owner = Owner()
    task = owner.tasks.spawn(forever(), "not begun")
    await owner.ends()
    assert task.cancelled()


async def test_task_that_spawns_at_its_end() -> None:
    """What a task begins while it is being cancelled is cancelled and awaited as well."""
    owner, late = Owner(), list[asyncio.Task[Any]]()

    async def work() -> None:
        try:
            await forever()
        finally:
            late.append(owner.tasks.spawn(forever(), "late"))

    owner.tasks.spawn(work(), "work")
    await until_idle()
    await owner.ends()
    assert [task.cancelled() for task in late] == [True]


async def test_end_that_is_cancelled() -> None:
    """A cancelled end is no swallowed cancellation, has cancelled the tasks, and may be finished by a second one."""
    owner, gate = Owner(), asyncio.Event()

    async def work() -> None:
        try:
            await forever()
        finally:
            await gate.wait()

    task = owner.tasks.spawn(work(), "work")
    await until_idle()
    ending = asyncio.create_task(owner.tasks.end())
    await until_idle()
    ending.cancel()
    await asyncio.wait([ending])
    assert (ending.cancelled(), task.cancelling(), task.done()) == (True, 1, False)
    gate.set()
    await asyncio.wait([task])
    await owner.ends()
    assert task.cancelled()


async def test_task_that_cancels_its_owner() -> None:
    """A task may end its own owner: the others are cancelled, it goes on to its own end."""
    owner = Owner()
    other = owner.tasks.spawn(forever(), "other")

    async def work() -> str:
        owner.tasks.cancel()
        await asyncio.wait([other])
        return "done"

    assert await asyncio.wait_for(owner.tasks.spawn(work(), "work"), WAIT_SECONDS) == "done"
    assert other.cancelled()
    await owner.ends()


async def test_task_that_ends_its_owner() -> None:
    """A task that calls `end` itself waits for the others, not for itself."""
    owner = Owner()
    task = owner.tasks.spawn(owner.tasks.end(), "ends")
    await until_idle()
    hangs = not task.done()
    task.cancel()
    await asyncio.wait([task])
    assert not hangs
